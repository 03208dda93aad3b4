# SPDX-License-Identifier: GPL-3.0-or-later
"""Hibernate a machine, wake it, and prove that its memory was restored; and the triggers that hibernate it automatically.

C(options) are those of the module. C(steps) run on the machine, with C(observation) for what the machine records,
C(verdict) for the decision, C(status) for the systemd units and C(inhibitors) for sleep inhibitors. C(follow), C(wake),
C(timeline) and C(alarm) run on the controller. C(triggers) is a package of its own.
"""
