# SPDX-License-Identifier: GPL-3.0-or-later
"""``inspect``: what is in a device, a file, or a stored version?"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fuse_store.cli import text
from fuse_store.cli.parser import IMAGE_HELP, Verb, argument
from fuse_store.errors import Damaged, NotFound

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.formats import Readable

SIZES = ("page_size", "memory_size", "image_size")


def run(context: Context) -> int:
    options = context.options
    from fuse_store.formats import describe

    with ExitStack() as stack:
        readable = _source(context, stack)
        try:
            found = describe(readable, options.resume_offset, options.check, context.progress)
        except NotFound as error:
            raise NotFound(f"source {options.source}", error.cause, error.remedy) from None
    context.emit({"source": options.source, **found}, "" if context.json else human(found))
    if found["crc"] == "wrong":
        raise Damaged(
            f"source {options.source}", "the kernel's checksum is not that of its pages.", "The kernel would refuse it."
        )
    return 0


def _source(context: Context, stack: ExitStack) -> Readable:
    """What the name means: a path if there is one, else a version of the store. Raises NotFound."""
    name = context.options.source
    if os.path.exists(name) or not (context.options.store or os.environ.get("FUSE_STORE")):
        from fuse_store.formats import File

        return stack.enter_context(File(name))
    store = stack.enter_context(context.open_store())
    image: Readable = store.open_image(store.find(name).id)
    return image


def human(found: dict[str, Any]) -> str:
    """What ``formats.describe`` found, for people."""
    shown: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            shown |= {f"{key}.{inner}": one for inner, one in value.items()}
        else:
            shown[key] = value
    lines = []
    for key, value in shown.items():
        if key in SIZES:
            value = f"{text.size(value)} ({value} bytes)"
        elif key.endswith(("checksum", "crc32", "cr3", "magic")) and isinstance(value, int):
            value = f"{value:#x}"
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        lines.append(f"{key.replace('_', ' '):26} {text.printable('unknown' if value is None else str(value))}")
    return "\n".join(lines)


VERB = Verb(
    name="inspect",
    summary="show what a device, a file or a version is: format, kernel, sizes, flags, integrity",
    description="Exit code 3 if there is no image in it, 4 if it is damaged. Only reads.",
    run=run,
    arguments=(
        argument("source", metavar="SOURCE", help=f"a block device, a file, or {IMAGE_HELP}", complete="file"),
        argument("--check", action="store_true", help="read all of it, and compare the kernel's own checksum"),
        argument(
            "--resume-offset", metavar="PAGES", type=int, default=0,
            help="where the header is on the device that holds a swap file, in pages: what resume_offset= names",
        ),
    ),
    keys={
        "source": "as it was named",
        "format": "swsusp: an image of Linux in a swap area",
        "state": "armed: the kernel would resume it; or disarmed",
        "page_size": "in bytes",
        "resume_offset": "where the header is, in pages",
        "flags": "list of those in the header",
        "compression": "none, lzo or lz4",
        "architecture": "x86, arm64, riscv, or generic",
        "memory_pages, memory_size": "of the machine; sizes are in bytes",
        "image_pages, image_size": "of the image",
        "stored_pages, zero_pages, list_pages": "of the image: with data, all zeros and not stored, and those that list the others",
        "map_pages, device_pages, device_runs": "on the device: of the swap map, in all, and in how many places they stand",
        "highest_page": "number of the last page of memory in the image",
        "e820_checksum, e820_digest": "of the firmware's memory map, since Linux 5.13 and before; null if it has none",
        "hardware_signature": "of ACPI; null if it has none",
        "crc32": "the kernel's own checksum; null if it has none",
        "record": "object: what the architecture's code keeps for itself",
        "swap": "object: uuid and label of the swap area, and its size in pages",
        "kernel, kernel_version, host, build_id": "who hibernated; null if it was not found",
        "vmcoreinfo_page": "number of the page of memory that tells; null if it was not found",
        "crc": "whether the kernel's own checksum is right: none, not checked, right or wrong",
    },
    examples=(
        ("fuse-store inspect /dev/pmem0", "whether a device holds an image, and of what"),
        ("fuse-store inspect web01/system/latest --check", "a stored one, with the kernel's checksum"),
        ("fuse-store inspect /dev/vda2 --resume-offset 34816", "one in a swap file on that device"),
    ),
    interrupted="Nothing was changed.",
)  # fmt: skip
