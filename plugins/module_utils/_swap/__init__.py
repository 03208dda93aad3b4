# SPDX-License-Identifier: GPL-3.0-or-later
"""Swap areas: headers on devices, active swap, the area that nvm_swap creates, and its line in fstab."""
