# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of what was done to the machine, each a file of JSON below C(/var/lib/nvm-fastboot), which is there only if one is."""

from __future__ import annotations

import json
import os

DIRECTORY = "/var/lib/nvm-fastboot"


def load(host, name):
    """The record C(name), a dict; empty if it is missing or cannot be parsed."""
    try:
        found = json.loads(host.read(path(name)) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def store(host, name, content):
    """Write the dict C(content) as the record C(name), for root alone; without content, remove it, and the directory if it is empty."""
    if content:
        host.replace(path(name), json.dumps(content, sort_keys=True) + "\n", mode=0o600)
    elif host.remove(path(name)):
        try:
            os.rmdir(host.path(DIRECTORY))
        except OSError:
            pass  # not empty


def path(name):
    return "%s/%s.json" % (DIRECTORY, name)
