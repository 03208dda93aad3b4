# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes that modules share. A module names the fragment and adds C(details) or another C(support) where it differs."""

from __future__ import annotations


class ModuleDocFragment:
    # Modules that change the machine
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Reports what would change and changes nothing.
    support: full
  diff_mode:
    description: Returns what changed, before and after.
    support: full
  idempotent:
    description: Run again with the same options, changes nothing.
    support: full
  platform:
    description: Operating systems the module runs on.
    platforms: linux
    support: full
"""

    # Modules that only read
    INFO = r"""
options: {}
attributes:
  check_mode:
    description: Changes nothing, in check mode or not.
    support: full
  diff_mode:
    description: Not applicable, because nothing changes.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
  platform:
    description: Operating systems the module runs on.
    platforms: linux
    support: full
"""
