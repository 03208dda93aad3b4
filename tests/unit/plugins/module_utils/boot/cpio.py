# SPDX-License-Identifier: GPL-3.0-or-later
"""An initramfs in small: a cpio archive as mkinitramfs and dracut make it (newc), and the names in it as their tools list them."""

from __future__ import annotations

import stat


def cpio(files: dict[str, str | bytes], links: dict[str, str] | None = None) -> bytes:
    """An archive of regular C(files), C({name: content}), and of symbolic C(links), C({name: target})."""
    entries = [(name, stat.S_IFREG | 0o644, content) for name, content in files.items()]
    entries += [(name, stat.S_IFLNK | 0o777, target) for name, target in (links or {}).items()]
    archive = b"".join(_entry(*entry) for entry in [*entries, ("TRAILER!!!", 0, "")])
    return archive + bytes(-len(archive) % 512)


def _entry(name: str, mode: int, content: str | bytes) -> bytes:
    data = content if isinstance(content, bytes) else content.encode()
    fields = (721, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def names(archive: bytes) -> list[str]:
    """The names in an archive of cpio()."""
    found, position = [], 0
    while archive[position : position + 6] == b"070701":
        size, length = (int(archive[position + 6 + 8 * field : position + 14 + 8 * field], 16) for field in (6, 11))
        start = position + 110
        found.append(archive[start : start + length - 1].decode())
        position = start + length
        position += -position % 4 + size
        position += -position % 4
    return [name for name in found if name != "TRAILER!!!"]
