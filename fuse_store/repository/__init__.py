# SPDX-License-Identifier: GPL-3.0-or-later
"""The repository: the objects of a store as bytes in a backend (blocks in packs, the index, manifests, state logs, locks, key
files), each verified when it is read. Knows nothing of images, and imports only ``errors``, ``progress`` and ``policy.names``.
"""
