# SPDX-License-Identifier: GPL-3.0-or-later
"""LZO chunks of hibernation images, stored as the pages they hold: the transform ``lzo`` (``image.kind.Transform``).

One changed page changes its whole chunk, so versions of a compressed image share almost nothing as bytes, and most of it as
pages. ``layout`` says where those pages stand and what a row of parameters is, ``encode`` stores them, ``transform`` computes the
chunks again, ``lzo`` is the compressor. docs/format.md, "LZO chunks", describes what is stored.
"""
