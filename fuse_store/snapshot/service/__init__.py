# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshot service: programs without rights ask for snapshots over a socket (https://varlink.org), one after the other.

``policy`` is who may ask for what, ``server`` answers, ``varlink`` is the protocol. ``fuse_store.snapshot.client`` asks.
"""
