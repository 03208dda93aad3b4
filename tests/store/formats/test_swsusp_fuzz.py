# SPDX-License-Identifier: GPL-3.0-or-later
"""A short run of the fuzzer of hibernation images with hypothesis; ``python -m tests.fuzz.swsusp`` runs for longer."""

from __future__ import annotations

import random
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.swsusp import KINDS, exercise, mutate, run_case, valid


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, len(KINDS) - 1), st.integers(0, 5), st.randoms(use_true_random=False))
def test_only_our_errors_come_out(kind: int, seed: int, source: random.Random) -> None:
    exercise(mutate(valid(kind, seed), source))


def test_what_is_fuzzed_is_valid_before() -> None:
    for kind in range(len(KINDS)):
        assert exercise(bytes(valid(kind, 1).device)) == "fine"


def test_cases_end_in_different_ways() -> None:
    assert {run_case(seed) for seed in range(100)} >= {"fine", "Damaged", "NotFound", "Refused"}


def test_absurd_numbers_take_no_memory() -> None:
    tracemalloc.start()
    try:
        for seed in range(40):
            run_case(seed)  # compares with MAX_MEMORY
    finally:
        tracemalloc.stop()
