# SPDX-License-Identifier: GPL-3.0-or-later
"""The fuzzer of hibernation images, and the encoder that makes such images as the kernel does."""
