# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel that is in the memory of an image.

``vmcoreinfo`` finds and parses the note that a kernel keeps about itself, ``addresses`` translates the kernel's virtual
addresses with its help, and ``identity`` puts both together: release, build id and the name of the machine.
"""

from __future__ import annotations

from fuse_store.formats.swsusp.kernel.identity import Kernel, find_kernel

__all__ = ["Kernel", "find_kernel"]
