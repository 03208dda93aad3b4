# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers as machines of Ansible, for what needs no kernel of its own; ``make containers`` runs it."""
