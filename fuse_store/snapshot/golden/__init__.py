# SPDX-License-Identifier: GPL-3.0-or-later
"""One image for many machines: before it the network is taken down, and each machine that is restored from it takes an identity of its
own before the network comes up.

``identity`` is the text of one, ``region`` its place on a device; ``links`` takes the network down and up, ``apply`` makes a system the
machine that an identity describes.
"""
