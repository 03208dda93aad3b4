# SPDX-License-Identifier: GPL-3.0-or-later
"""A part of the configuration: what one module takes, and what it does. C(nvm_plan) looks at several of them in one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

STATE = {"type": "str", "choices": ["present", "absent"], "default": "present"}


@dataclass(frozen=True)
class Part:
    """C(options) and C(required_if) are those of an C(AnsibleModule).

    C(change(transaction, params)) brings the part into the state that the checked options C(params) say, and returns the return
    values of the module. In check mode it changes nothing, and raises Refused for all that can be known before.
    """

    options: dict
    change: Callable
    required_if: tuple = ()


def by_state(present, absent, absent_options):
    """The C(change) of a part whose option C(state) is "present" or "absent".

    It calls C(present(transaction, **options)) with all other options, or C(absent(transaction, **options)) with those named in
    C(absent_options).
    """

    def change(transaction, params):
        options = {name: value for name, value in params.items() if name != "state"}
        if params["state"] == "present":
            return present(transaction, **options)
        return absent(transaction, **{name: options[name] for name in absent_options})

    return change
