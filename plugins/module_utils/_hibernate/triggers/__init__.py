# SPDX-License-Identifier: GPL-3.0-or-later
"""Triggers: the systemd units and logind settings that hibernate a machine automatically.

C(conditions) is the table of conditions, C(script) the shell script that decides for a timer, C(units) the files on the
machine, and C(state) the comparison with the machine and the changes. One run is one thread.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers.conditions import CONDITIONS, Trigger
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers.state import (
    PART,
    Outcome,
    apply,
    apply_all,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers.units import installed

__all__ = ["CONDITIONS", "PART", "Outcome", "Trigger", "apply", "apply_all", "installed"]
