# SPDX-License-Identifier: GPL-3.0-or-later
"""A swap area in LUKS on NVM: C(area) is what nvm_swap brings about, C(removal) undoes it, C(keys) has keys and what opens with them,
C(cryptsetup) the commands, C(packages) what they come from."""
