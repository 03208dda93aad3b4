# SPDX-License-Identifier: GPL-3.0-or-later
"""Images: the bytes of versions. Inputs become images (``inputs``, ``put``), images are read (``reader``), compared (``diff``) and
written to files and devices (``restore``). What is special about a kind of image is behind ``kind``; nothing here knows more.
"""
