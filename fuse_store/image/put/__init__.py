# SPDX-License-Identifier: GPL-3.0-or-later
"""From an input to what a version needs: ``image_writer`` compares pages with those of the bases (``page_table``, ``page_digests``), and
has ``block_writer`` store the new ones; ``segment_writer`` notes where each page is.

One thread reads, another decides what is new and writes; processes share the rest with it (``processes.workers``).
"""
