# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the store, one package for each layer of ``fuse_store``; they mount it, and need /dev/fuse."""
