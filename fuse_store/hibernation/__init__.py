# SPDX-License-Identifier: GPL-3.0-or-later
"""Hibernation images of swap devices: captured, staged, checked and armed, so that the machine's own kernel resumes them.

A stored version is the whole swap device. ``stage`` writes it back, not armed; ``preflight`` tells whether the kernel would
accept it; ``arm`` sets the ten bytes of signature that make the next boot resume it. ``machine``, ``filesystems`` and
``initramfs`` read the facts that preflight compares; ``history`` reads the state log; ``lzo_chunks`` stores compressed images
so that their versions share pages. docs/staging.md is the user's guide.
"""
