# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsers of image formats: one package for each, which reads from a ``readable.Readable`` and knows nothing of the store.

Which kinds of images there are, and what the store, the mount and the command line do with them, is in ``image.kind``.
"""
