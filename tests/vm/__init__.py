# SPDX-License-Identifier: GPL-3.0-or-later
"""What needs a virtual machine: the laboratory (``lab``), scenarios, the demonstration, benchmarks."""
