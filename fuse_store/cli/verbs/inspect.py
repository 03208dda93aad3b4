# SPDX-License-Identifier: GPL-3.0-or-later
"""``inspect``: print the hibernation image in a device, a file or a stored version."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fuse_store.cli import text
from fuse_store.cli.parser import IMAGE_HELP, PROGRAM, Verb, argument
from fuse_store.errors import Damaged, NotFound

if TYPE_CHECKING:
    from fuse_store.cli.context import Context
    from fuse_store.formats.readable import Readable

SIZES = ("page_size", "memory_size", "image_size", "stored_size")


def run(context: Context) -> int:
    options = context.options
    from fuse_store.image.kind import inspect

    with ExitStack() as stack:
        readable = _source(context, stack)
        try:
            description = inspect(readable, options.resume_offset, options.check, context.progress)
        except NotFound as error:
            raise NotFound(f"source {options.source}", error.cause, error.remedy) from None
    context.emit({"source": options.source, **description}, "" if context.json else human(description))
    if description["crc"] == "wrong":
        raise Damaged(f"source {options.source}", "kernel checksum mismatch.", "The kernel would not resume this image.")
    return 0


def _source(context: Context, stack: ExitStack) -> Readable:
    """The file at that path if it exists, else a version of the store. Raises NotFound."""
    name = context.options.source
    if _exists(name) or not context.store_named:
        from fuse_store.formats.readable import File

        return stack.enter_context(File(name))
    store = stack.enter_context(context.open_store())
    try:
        version = context.find(store, name)
    except NotFound:
        remedy = f"Check the path; '{PROGRAM} list' shows the versions."
        raise NotFound(f"source {name}", "no such file or device, and no such version.", remedy) from None
    image: Readable = store.open_image(version.id)
    return image


def _exists(name: str) -> bool:
    """Whether there is such a file, as far as this user may know."""
    try:
        os.stat(name)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def human(description: dict[str, Any]) -> str:
    """A description by ``image.kind.inspect`` as lines of text."""
    flat: dict[str, Any] = {}
    for key, value in description.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner_key}": inner for inner_key, inner in value.items()}
        else:
            flat[key] = value
    lines = []
    for key, value in flat.items():
        if key in SIZES:
            value = f"{text.size(value)} ({value} bytes)"
        elif key.endswith(("checksum", "crc32", "cr3", "magic", "address")) and isinstance(value, int):
            value = f"{value:#x}"
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        lines.append(f"{key.replace('_', ' '):26} {text.printable('unknown' if value is None else str(value))}")
    return "\n".join(lines)


VERB = Verb(
    name="inspect",
    summary="print what an image in a device, file or version is: format, kernel or process, sizes, integrity",
    description="Reads only. Exits with 3 if no image is found, with 4 if the image is damaged.",
    run=run,
    arguments=(
        argument("source", metavar="SOURCE", help=f"block device, file, or {IMAGE_HELP}", complete="file"),
        argument("--check", action="store_true", help="read the whole image and compare the kernel's checksum"),
        argument(
            "--resume-offset", metavar="PAGES", type=int, default=0,
            help="position of the image header in pages, for a device that contains a swap file; as in the kernel parameter resume_offset=",
        ),
    ),
    keys={
        "source": "source as given",
        "format": "swsusp: hibernation image of Linux; or elf-core: core dump, which has other keys:",
        "  of": "process; kernel: one that crashed; or machine: a virtual one",
        "  architecture, kernel": "processor, and kernel release as far as it says one",
        "  command, arguments, pid, parent, user, group": "of the process; null for others",
        "  signal, address": "what ended it, and the address that it could not use; null if none",
        "  threads, mappings, mapped_files": "number of threads or processors, and of parts of memory; list of files",
        "  memory_size, stored_size": "bytes of all mappings, and of those that are in the dump",
        "  whole": "whether all is there that its headers promise",
        "state": "armed: the kernel would resume the image; or disarmed",
        "page_size": "bytes per page",
        "resume_offset": "position of the image header, in pages",
        "flags": "list of flags in the header",
        "compression": "none, lzo or lz4",
        "architecture": "x86, arm64, riscv or generic",
        "memory_pages, memory_size": "memory of the machine, in pages and bytes",
        "image_pages, image_size": "image, in pages and bytes",
        "stored_pages, zero_pages, list_pages": "pages with data, pages of zeros (not stored), and pages that list page numbers",
        "map_pages, device_pages, device_runs": "on the device: pages of the swap map, all pages, and contiguous runs of them",
        "highest_page": "highest page frame number in the image",
        "e820_checksum, e820_digest": "checksum of the firmware's memory map: CRC-32 since Linux 5.13, MD5 before; null if none",
        "hardware_signature": "ACPI hardware signature; null if none",
        "crc32": "kernel's checksum of the image; null if none",
        "record": "object: fields of the architecture's header",
        "swap": "object: uuid, label and size in pages of the swap area",
        "kernel, kernel_version, host, build_id": "hibernated system; null if not found",
        "vmcoreinfo_page": "page frame number of vmcoreinfo; null if not found",
        "crc": "result of the kernel's checksum: none, not checked, right or wrong",
    },
    examples=(
        ("fuse-store inspect /dev/pmem0", "show whether a device contains an image"),
        ("fuse-store inspect web01/system/latest --check", "verify the kernel's checksum of a stored version"),
        ("fuse-store inspect /dev/vda2 --resume-offset 34816", "image in a swap file on that device"),
    ),
    interrupted="Nothing was changed.",
)  # fmt: skip
