# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot images in a store and on devices: C(client) calls the command fuse-store, C(pipe) feeds it, C(boot_image) has the states of an
image in a store, C(slots) the slots of a device, C(snapshot) asks for snapshots."""
