# SPDX-License-Identifier: GPL-3.0-or-later
"""Slots: several staged hibernation images side by side on one device, each with a header page of its own.

The stock kernel resumes any of them with ``resume=DEVICE resume_offset=BLOCK``: all that it needs is at that block, and the swap
map that the header leads to counts blocks from the start of the device. A table at the start of the device says what is where.
docs/slots.md describes it to the byte. ``layout`` has what a table is, ``text`` its form on the device, ``table`` reads and writes
its two copies, ``allocate`` finds space, ``reserve`` notes what goes on, ``writer`` fills a slot, ``swap_use`` tells whether
an image needs more than its memory; ``stage``, ``arm`` and ``manage`` put these together.
"""
