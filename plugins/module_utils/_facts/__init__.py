# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the machine: NVM regions and namespaces, the firmware's memory map, all facts in a Survey, and the checks whether the
machine can hibernate. Nothing here changes the machine, except the functions of nvm.py that call ndctl.
"""
