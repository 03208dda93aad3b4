# SPDX-License-Identifier: GPL-3.0-or-later
"""Work in several processes: ``crew`` shares it among them, ``workers`` do tasks for one; ``forking`` has what they are made of."""
