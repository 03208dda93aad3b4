# SPDX-License-Identifier: GPL-3.0-or-later
"""Images compressed with LZ4, which Linux has since 6.9: captured and resumed on Debian 13, with EFI and dracut.

What differs from the LZO of Debian 12 (test_restore.py) is in the image, in the initramfs, which needs the module that
decompresses, and in the kernel. The kernel's own default there is LZO; the role chooses.
"""

from __future__ import annotations

from pathlib import Path

from tests.vm import play, ram_root
from tests.vm.conftest import MEMORY, NVDIMM, off, switched_on
from tests.vm.lab import Lab
from tests.vm.restoring import Case, resumes_the_first
from tests.vm.store import Store, tree_of


def test_an_image_compressed_with_lz4_is_resumed(lab: Lab, tmp_path: Path) -> None:
    """The first of two, by the distribution's own kernel, with its memory and its files."""
    with switched_on(lab.create("lz4", "debian13", memory=MEMORY, nvdimm=NVDIMM)) as machine:
        play.play(lab, [machine], "nvm.fastboot.configure", {"nvm_compression": "lz4"}).ok()
        ram_root.adopt(machine)
        case = Case(machine, Store(tmp_path), tmp_path, machine.folder / "nvdimm.img", tree_of(machine, tmp_path / "tree"))
        off(machine)
        resumes_the_first(case, "lz4")
