# SPDX-License-Identifier: GPL-3.0-or-later
"""How the machine boots: C(bootloaders) for the kernel's arguments, C(initramfs) for the images, C(resume) for both together."""
