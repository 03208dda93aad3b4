# SPDX-License-Identifier: GPL-3.0-or-later
"""``verify``: is what was stored still there, bit for bit?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli import text, values
from fuse_store.cli.output import label
from fuse_store.cli.parser import IMAGE_HELP, Verb, argument
from fuse_store.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fuse_store.cli.context import Context
    from fuse_store.maintenance.upkeep import Verdict
    from fuse_store.store import Store


def run(context: Context) -> int:
    options = context.options
    with context.open_store() as store:
        from fuse_store.maintenance import upkeep

        versions = store.summaries()
        ids = [store.find(one).id for one in options.image]
        if not options.image:  # also those whose manifests can't be read
            ids = [*(one.id for one in versions), *sorted(set(store.ids()) - {one.id for one in versions})]
        verdicts = upkeep.verify(store, ids, options.sample, context.progress)
        checksums = _kernel_checksums(context, store, verdicts) if options.sample >= 100 else {}
        sound = [one.id for one in verdicts if one.state == "sound"]
        recorded = options.sample >= 100 and _record(context, store, sound, checksums)
    names = {one.id: label(one) for one in versions}
    damaged = [one for one in verdicts if one.state != "sound"]
    record = {
        "sample": options.sample, "sound": len(sound), "damaged": len(damaged), "recorded": recorded,
        "versions": [
            {"id": one.id, "state": one.state, "blocks": one.blocks, "kernel_checksum": checksums.get(one.id), "problems": one.problems}
            for one in verdicts
        ],
    }  # fmt: skip
    rows = [
        (one.id[:12], one.state, str(one.blocks), names.get(one.id, "its manifest can't be read")) for one in verdicts
    ]
    context.emit(record, text.table(("ID", "STATE", "BLOCKS", "VERSION"), rows, right=frozenset((2,))) if rows else "")
    if not damaged:
        context.remark(
            f"{len(verdicts)} versions, all sound"
            + ("" if options.sample >= 100 else f" in a sample of {options.sample:g} %")
        )
        return 0
    for one in damaged:
        for problem in one.problems:
            context.complain(problem if one.id in problem else f"image {one.id}: {problem}")
    raise Damaged(
        f"store {context.store_place}", f"{len(damaged)} of {len(verdicts)} versions are damaged.",
        "The others can be used; bring back what is damaged from a copy of the store.",
    )  # fmt: skip


def _kernel_checksums(context: Context, store: Store, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Of the hibernation images among sound versions; those that are wrong become damaged."""
    from fuse_store.image.kind import WRONG, load

    found = {}
    for one in verdicts:
        if one.state != "sound" or (image := store.open_image(one.id)).summary.kind != "hibernation":
            continue
        try:
            found[one.id] = load(image.summary.kind).checksum(image, context.progress)
            if found[one.id] == WRONG:
                one.problems.append("the kernel's checksum is not that of its pages: it was captured like this.")
        except Damaged as error:
            one.problems.append(str(error))
        one.state = "damaged" if one.problems else "sound"
    return found


def _record(context: Context, store: Store, sound: Sequence[str], checksums: Mapping[str, str]) -> bool:
    """Note that these verified whole. Whether that worked."""
    from fuse_store.hibernation import history
    from fuse_store.image.kind import RIGHT

    right = [one for one in sound if checksums.get(one) == RIGHT]
    others = [one for one in sound if checksums.get(one) != RIGHT]
    done = [context.record(store, ids, "verified", detail) for ids, detail in ((right, history.RIGHT), (others, "")) if ids]
    return bool(done) and all(done)


VERB = Verb(
    name="verify",
    summary="read versions and compare every page with its digest",
    description="Without IMAGE: all of them. Versions that a whole check finds sound are recorded as verified. "
    "Exit code 4 if anything is damaged; each problem names the image, the extent and the pack.",
    run=run,
    arguments=(
        argument("image", metavar="IMAGE", nargs="*", help=IMAGE_HELP),
        argument(
            "--sample", metavar="P", type=values.percent, default=100.0, help="read only P percent, chosen at random"
        ),
    ),
    keys={
        "sample": "percent of the blocks that were read",
        "sound": "how many versions are",
        "damaged": "how many versions are",
        "recorded": "whether the sound ones were recorded as verified",
        "versions": "one object for each version:",
        "  id": "of the version",
        "  state": "sound or damaged",
        "  blocks": "how many blocks were looked at; one that several versions share counts for the first",
        "  kernel_checksum": "of a hibernation image, the kernel's own: none, right or wrong; null if it was not compared",
        "  problems": "what is wrong, with image, extent and pack",
    },
    examples=(
        ("fuse-store verify", "everything"),
        ("fuse-store verify web01/system/latest", "before it is needed"),
        ("fuse-store verify --sample 5", "a twentieth of all blocks, for a nightly job"),
    ),
    interrupted="Nothing was changed.",
)
