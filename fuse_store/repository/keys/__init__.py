# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user keeps outside of the stores, in files that nobody else may read or write: keys (``keyfile``), and which stores were
seen where (``known_stores``). Whoever can change a store can change neither.
"""
