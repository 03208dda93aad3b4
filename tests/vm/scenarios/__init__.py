# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests that start virtual machines: each hibernates or cuts power for real."""
