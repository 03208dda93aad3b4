# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that are staged in a swap file of this system: where the file is on its device, and how an image is written, armed and disarmed
there. The kernel reads the device and not the file; so what is in the swap map are blocks of the device."""
