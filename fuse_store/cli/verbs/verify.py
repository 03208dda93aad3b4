# SPDX-License-Identifier: GPL-3.0-or-later
"""``verify``: read versions and compare every page with its digest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from fuse_store.cli import text, values
from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE_HELP, Verb, argument
from fuse_store.errors import Damaged, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fuse_store.cli.context import Context
    from fuse_store.maintenance.verify import Verdict
    from fuse_store.policy.retention import Duration
    from fuse_store.store import Store

MAX_PROBLEMS = 3  # of a version that are printed; --json has all
MAX_VERSIONS = 20  # whose problems are printed


def run(context: Context) -> int:
    options = context.options
    complete = options.sample >= 100
    with context.open_store() as store:
        from fuse_store.maintenance.verify import index_problems, verify

        ids = [store.versions.id_of(reference) for reference in options.image]
        if not options.image:  # all, also those with unreadable manifests
            unreadable: dict[str, Damaged] = {}
            ids = [version.id for versions in store.versions.by_machine(unreadable=unreadable) for version in versions]
            ids += sorted(unreadable)
        asked = len(ids)
        if options.not_verified_within is not None:
            ids = _due(store, ids, options.not_verified_within)
        verdicts = verify(store, ids, options.sample, context.progress)
        problems = index_problems(store, complete)
        checksums = _kernel_checksums(context, store, verdicts) if complete else {}
        sound = [verdict.id for verdict in verdicts if verdict.state == "sound"]
        recorded = complete and _record(context, store, sound, checksums)
        names = {verdict.id: _label(store, verdict.id) for verdict in verdicts}
    damaged = [verdict for verdict in verdicts if verdict.state != "sound"]
    record = {
        "sample": options.sample, "sound": len(sound), "damaged": len(damaged), "skipped": asked - len(ids), "recorded": recorded,
        "problems": problems,
        "versions": [
            {
                "id": verdict.id, "state": verdict.state, "blocks": verdict.blocks, "kernel_checksum": checksums.get(verdict.id),
                "problems": verdict.problems,
            }
            for verdict in verdicts
        ],
    }  # fmt: skip
    rows = [
        (verdict.id[:12], verdict.state, str(verdict.blocks), names[verdict.id]) for verdict in verdicts
    ]
    context.emit(record, text.table(("ID", "STATE", "BLOCKS", "VERSION"), rows, right=frozenset((2,))) if rows else "")
    for problem in problems:
        context.complain(problem)
    if not damaged and not problems:
        sample = "" if complete else f" in a sample of {options.sample:g} %"
        context.remark(f"{text.count(len(verdicts), 'version')} verified, no errors found{sample}")
        if asked > len(ids):
            context.remark(f"{text.count(asked - len(ids), 'version')} skipped, verified within {options.not_verified_within}")
        return 0
    _print_problems(context, damaged)
    if not damaged:
        raise Damaged(
            f"store {context.store_location}", f"no version damaged, but {text.count(len(problems), 'fragment')} of the index.",
            "Run 'fuse-store repair'. All versions are usable.",
        )  # fmt: skip
    raise Damaged(
        f"store {context.store_location}", f"{len(damaged)} of {text.count(len(verdicts), 'version')} damaged.",
        "Run 'fuse-store repair', then restore from a copy of the store what is still damaged."
        + (" The other versions are usable." if sound else ""),
    )  # fmt: skip


def _due(store: Store, ids: Sequence[str], within: Duration) -> list[str]:
    """Those that were not found to be sound since: first those that never were, then by the time when they last were. Their manifests
    and state logs are read."""
    from fuse_store.repository.manifest import read_head  # not at the top: help needs no store

    now = datetime.now(UTC)
    times = range(_nanoseconds(within.before(now)), _nanoseconds(now) + 1)
    verified_at: dict[str, int] = {}
    for image_id in ids:
        try:
            head, _start = read_head(store.backend, image_id, store.aead)
        except (Damaged, NotFound):
            at = 0
        else:
            at = store.state_log.read(head.content).verified_at(image_id)
        if at not in times:  # or in the future: a clock was wrong
            verified_at[image_id] = at
    return sorted(verified_at, key=lambda image_id: verified_at[image_id])


def _nanoseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def _label(store: Store, image_id: str) -> str:
    try:
        return label(store.find(image_id))
    except (Damaged, NotFound):
        return "unreadable manifest"


def _print_problems(context: Context, damaged: Sequence[Verdict]) -> None:
    """The first of each version: a pack that is gone takes thousands of blocks with it."""
    for verdict in damaged[:MAX_VERSIONS]:
        for problem in verdict.problems[:MAX_PROBLEMS]:
            context.complain(problem if verdict.id in problem else f"image {verdict.id}: {problem}")
        more = len(verdict.problems) - MAX_PROBLEMS
        if more > 0:
            context.complain(f"image {verdict.id}: {text.count(more, 'more error')} of this kind. Use --json to see all.")
    more = len(damaged) - MAX_VERSIONS
    if more > 0:
        context.complain(f"{text.count(more, 'more version')} damaged. Use --json to see all.")


def _kernel_checksums(context: Context, store: Store, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Kernel checksum results of the hibernation images among sound versions, by id. A mismatch makes a version damaged."""
    from fuse_store.image.kind import WRONG, load

    checksums = {}
    for verdict in verdicts:
        if verdict.state != "sound" or (image := store.open_image(verdict.id)).summary.kind != "hibernation":
            continue
        try:
            checksums[verdict.id] = load(image.summary.kind).checksum(image, context.progress)
            if checksums[verdict.id] == WRONG:
                verdict.problems.append("kernel checksum mismatch: the image was already damaged when it was captured.")
        except Damaged as error:
            verdict.problems.append(str(error))
        verdict.state = "damaged" if verdict.problems else "sound"
    return checksums


def _record(context: Context, store: Store, sound: Sequence[str], checksums: Mapping[str, str]) -> bool:
    """Record the sound versions as verified. Whether that succeeded."""
    from fuse_store.image.kind import RIGHT

    right = [image_id for image_id in sound if checksums.get(image_id) == RIGHT]
    others = [image_id for image_id in sound if checksums.get(image_id) != RIGHT]
    results = [context.record(store, right, "verified", checksum=RIGHT)] if right else []
    results += [context.record(store, others, "verified")] if others else []
    return bool(results) and all(results)


VERB = Verb(
    name="verify",
    summary="read versions and compare every page with its digest",
    description="Verifies all versions unless some are named. Records sound versions as verified, unless --sample is used. Exits with 4 "
    "if anything is damaged. Prints the first errors of each version, with image, extent and pack; --json prints all.",
    run=run,
    arguments=(
        argument("image", metavar="IMAGE", nargs="*", help=IMAGE_HELP, empty=True),
        argument(
            "--not-verified-within", metavar="DURATION", type=values.duration, default=None,
            help="only versions that were not verified within DURATION before now: 30d, 2m or 1y; the longest ago first",
        ),
        argument("--sample", metavar="P", type=values.percent, default=100.0, help="read a random P percent of the blocks (default: 100)"),
    ),
    keys={
        "sample": "percentage of blocks read",
        "sound": "number of sound versions",
        "damaged": "number of damaged versions",
        "skipped": "number of versions that were verified within the DURATION of --not-verified-within",
        "recorded": "whether the sound versions were recorded as verified",
        "problems": "list of errors of the store that are no version's",
        "versions": "one object for each version:",
        "  id": "version id",
        "  state": "sound or damaged",
        "  blocks": "number of blocks read; a shared block counts for the first version only",
        "  kernel_checksum": "checksum of the kernel in a hibernation image: none, right or wrong; null if not checked",
        "  problems": "list of errors, with image, extent and pack",
    },
    examples=(
        ("fuse-store verify", "verify the whole store"),
        ("fuse-store verify web01/system/latest", "verify one version before restoring it"),
        ("fuse-store verify --not-verified-within 30d", "in a nightly job: each version once in 30 days, and new ones at once"),
        ("fuse-store verify --sample 5", "verify 5 percent of the blocks, in a nightly job"),
    ),
    interrupted="Nothing was changed.",
)
