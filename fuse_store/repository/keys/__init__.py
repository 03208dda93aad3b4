# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user keeps outside of the stores, in files that no other user may read or write: keys (``keyfile``), and which stores were
seen where (``known_stores``). An attacker who can change a store can change neither.
"""
