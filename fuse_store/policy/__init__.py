# SPDX-License-Identifier: GPL-3.0-or-later
"""Policy: pure functions on the summaries of versions. Which names are valid (``names``), which versions are kept (``retention``),
and which version fits a machine (``selection``); nothing here reads a store.
"""
