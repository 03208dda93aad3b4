# SPDX-License-Identifier: GPL-3.0-or-later
"""The reservation of NVM under a stable name: an ndctl namespace, or a range of ordinary memory (memmap=)."""
