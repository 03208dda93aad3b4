# SPDX-License-Identifier: GPL-3.0-or-later
"""The kind ``hibernation``: images of the whole machine that Linux writes into swap (``formats.swsusp``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuse_store.errors import Damaged, NotFound, Refused
from fuse_store.formats.readable import File, Readable
from fuse_store.formats.swsusp import HibernationImage, disarmed
from fuse_store.formats.swsusp.describe import describe
from fuse_store.formats.swsusp.header import area_size
from fuse_store.formats.swsusp.layout import IMAGE, PAGE_SIZES, SIGNATURE, SIGNATURE_SIZE, SWAP_SIGNATURES
from fuse_store.formats.swsusp.views import derived
from fuse_store.hibernation import filesystem_state, metadata
from fuse_store.hibernation.lzo_chunks.encode import LzoEncoder, open_encoder
from fuse_store.hibernation.machine import Machine
from fuse_store.image.inputs import InputFile
from fuse_store.image.kind import NO_CHECKSUM, RIGHT, WRONG, Kind, Recognised, Settings, View
from fuse_store.image.reader import Image
from fuse_store.progress import Progress
from fuse_store.repository.state_log import StateEntry

TRUNCATED = "Nothing was stored. Read the whole device again; to store it as it is, use --kind file."


class HibernationInput(Recognised):
    """An input in which a hibernation image was found, or ``problem`` says why none was."""

    def __init__(self, path: Path | None, tags: Mapping[str, str], machine_disks: Sequence[Path]) -> None:
        """``path`` is None for a stream, of which only the disks are known. Raises StoreError if a disk cannot be read."""
        self._resume_offset = metadata.resume_offset(tags)
        self.confirms = path is None
        self._opened = ExitStack()
        self._file: File | None = None
        self._image: HibernationImage | None = None
        try:
            recorded = self._open(path) if path is not None else {}
            state: Mapping[str, str] = {}
            if machine_disks:
                state = filesystem_state.tags_of_disks(machine_disks)
            elif path is not None and self._image is not None and not self.problem:
                state = filesystem_state.tags_of_machine(self._image, path, Machine())
            self.tags = {**recorded, **state}
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> dict[str, str]:
        if self._resume_offset is None:
            self.problem = "the tag resume_offset is not a number of pages."
            return {}
        self._file = self._opened.enter_context(File(path))
        _refuse_truncated(self._file, self._resume_offset)
        try:
            self._image = self._opened.enter_context(HibernationImage(self._file, self._resume_offset))
            return metadata.tags_of(self._image)
        except (NotFound, Refused, Damaged) as error:
            self.problem = str(error)
            return {}

    def store_as(self, file: InputFile, settings: Settings) -> LzoEncoder | None:
        if self._image is None or self._file is None:
            return None
        return open_encoder(self._file.size, self._image, settings)

    def confirm(self, image: Image) -> bool:
        offset = self._resume_offset or 0
        _refuse_truncated(image, offset)
        try:
            with HibernationImage(image, offset) as opened:
                with suppress(Damaged):  # it is whole all the same, as far as it says; nothing is known about it then
                    self.tags = {**metadata.tags_of(opened), **self.tags}
                return True
        except (NotFound, Refused):
            return False
        except Damaged as error:
            raise Refused(IMAGE, f"not whole: {error.cause}", TRUNCATED) from None

    def close(self) -> None:
        self._opened.close()


def _refuse_truncated(readable: Readable, resume_offset: int) -> None:
    """Raises Refused if a swap area says that it is longer."""
    size = area_size(readable, resume_offset)
    if size is not None and size > readable.size:
        raise Refused(IMAGE, f"truncated: {readable.size} of the {size} bytes of its swap area.", TRUNCATED)


@dataclass(frozen=True)
class Implementation(Kind):
    """Hibernation images in swap areas."""

    def recognise(self, files: Sequence[InputFile], tags: Mapping[str, str], machine_disks: Sequence[Path]) -> Recognised:
        if len(files) != 1 or (files[0].path is None and files[0].size is not None):
            several = Recognised()
            several.problem = "a hibernation image is one file, not a directory."
            return several
        return HibernationInput(files[0].path, tags, machine_disks)

    def neutral(self, first: bytes) -> bytes:
        """An armed swap area counts as if it was not armed: the ten bytes that differ do not make it another state of a machine."""
        for end in PAGE_SIZES:
            header = first[:end]
            if header.endswith(SIGNATURE) and header[:-SIGNATURE_SIZE].endswith(SWAP_SIGNATURES):
                return disarmed(header) + first[end:]
        return first

    def inspect(self, readable: Readable, resume_offset: int, check: bool, progress: Progress) -> dict[str, Any]:
        return describe(readable, resume_offset, check, progress)

    def describe(self, image: Image) -> dict[str, Any] | None:
        return metadata.describe(image)

    def shown(self, description: dict[str, Any], entries: Sequence[StateEntry], *, brief: bool) -> dict[str, Any]:
        keys = metadata.BRIEF if brief else description
        return {**{key: description[key] for key in keys}, "crc": metadata.checksum_known(description, entries)}

    def checksum(self, image: Image, progress: Progress) -> str:
        try:
            with HibernationImage(image, metadata.resume_offset(image.head.tags) or 0) as opened:
                _ = opened.pages
                matches = opened.crc_matches(progress)
        except (NotFound, Refused):
            return NO_CHECKSUM
        return NO_CHECKSUM if matches is None else RIGHT if matches else WRONG

    def is_in(self, image: Image) -> bool:
        if image.head.is_directory:
            return False
        try:
            with HibernationImage(image, metadata.resume_offset(image.head.tags) or 0) as opened:
                _ = opened.pages  # the lists, which come first; the swap map was read to its end, and is within the device
                return True
        except (NotFound, Refused, Damaged):
            return False

    def views(self, image: Image) -> Sequence[View]:
        tags = image.head.tags
        note = tags.get("vmcoreinfo_page", "")
        return derived(image, metadata.resume_offset(tags) or 0, int(note) if note.isdecimal() else None)
