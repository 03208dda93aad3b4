# SPDX-License-Identifier: GPL-3.0-or-later
"""How the machine boots: C(bootloaders) for the kernel arguments, C(initramfs) for the images, and C(resume), which uses both.

C(drivers) lists the modules of the resume device, C(compression) the arguments and modules for compressed images.
"""
