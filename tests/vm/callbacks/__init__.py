# SPDX-License-Identifier: GPL-3.0-or-later
"""Callback plugins of Ansible for tests."""
