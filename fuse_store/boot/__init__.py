# SPDX-License-Identifier: GPL-3.0-or-later
"""Which image a machine resumes at boot, and how that comes about.

``initramfs/`` has the scripts that select, with a shell and busybox alone; ``policy`` reads what they are to go by, and compiles it for
them; ``choice`` and ``report`` are the places on the device where the running system leaves a choice for the next boot, and reads what
the last one did. Needs the standard library alone: it runs on the machine itself. docs/boot-selection.md is for its users.
"""
