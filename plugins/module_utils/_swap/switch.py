# SPDX-License-Identifier: GPL-3.0-or-later
"""Activates and deactivates the swap area at a path, a block device or a file."""

from __future__ import annotations

import re

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused


def check_memory(host, name, swap):
    """Refused C(swap_needed) unless the pages swapped out to the ActiveSwap C(swap), called C(name), fit into memory."""
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", host.read("/proc/meminfo", ""), re.MULTILINE)
    available = int(match.group(1)) * 1024 if match else 0
    if swap.used > available:
        raise Refused(
            "swap_needed",
            "%s cannot be deactivated: %d bytes are swapped out to it, and %d bytes of memory are available."
            % (name, swap.used, available),
            "Stop programs that use much memory, or add another swap area first.",
        )


def off(tx, path, swap, pending):
    """Deactivate the ActiveSwap C(swap) at C(path). If the transaction fails later, it is activated again, unless C(pending()): a
    hibernation image is there."""
    tx.host.run([tx.host.tool("swapoff"), path])
    tx.on_failure(lambda: None if pending() else tx.host.run(_command(tx.host, path, swap.priority), ok=None))


def on(host, path, priority):
    """Activate the swap area at C(path)."""
    host.run(_command(host, path, priority))


def _command(host, path, priority):
    return [host.tool("swapon")] + (["-p", str(priority)] if priority >= 0 else []) + [path]
