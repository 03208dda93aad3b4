# SPDX-License-Identifier: GPL-3.0-or-later
"""Maintenance of a store: ``verify`` compares stored bytes with their digests, ``gc`` frees unused disk space, ``repair`` rebuilds
the index; ``trash`` holds removed files during the grace period. ``verify`` only reads; the others take the writer lock.
"""
