# SPDX-License-Identifier: GPL-3.0-or-later
"""A laboratory of virtual machines with non-volatile memory, for tests, demonstrations and work by hand.

``recipes`` names the kinds of guest, ``images`` builds their disks from Debian packages, ``machine`` runs one
(power on, power button, power cut, SSH on the loopback interface), ``accelerator`` decides between KVM and TCG, and
``__main__`` is the command line over them: ``python -m tests.vm.lab --help``.
"""

from tests.vm.lab.machine import Lab, LabError, Machine
from tests.vm.lab.recipes import RECIPES, Recipe

__all__ = ["RECIPES", "Lab", "LabError", "Machine", "Recipe"]
