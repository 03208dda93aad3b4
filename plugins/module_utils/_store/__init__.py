# SPDX-License-Identifier: GPL-3.0-or-later
"""Boot images in a store: C(client) calls the command fuse-store, C(pipe) feeds it, C(boot_image) has the states."""
