# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of C(hibernate), for the module and the action plugin, and their checks. Runs on the controller."""

from __future__ import annotations

import os
import shutil

OPTIONS = {
    "device": {"type": "path", "default": "/dev/NVM_SWAP"},
    "hibernate_timeout": {"type": "int", "default": 300},
    "resume_timeout": {"type": "int", "default": 600},
    "connect_timeout": {"type": "int", "default": 5},
    "wake_command": {"type": "raw"},
    "wake_delay": {"type": "int", "default": 0},
    "wake_interval": {"type": "int", "default": 5},
    "ignore_inhibitors": {"type": "bool", "default": False},
    "ignore_blockers": {"type": "list", "elements": "str", "default": []},
    "wait": {"type": "bool", "default": True},
}
STEP_OPTIONS = {
    "step": {"type": "str", "choices": ["prepare", "start", "check"]},
    "token": {"type": "str", "no_log": False},
    "marker": {"type": "dict"},
}


def problem(options, transport, directory):
    """A message on the first invalid value, or None. Brings C(wake_command) into the form for WakeCommand.

    C(transport) is that of the connection; a relative C(wake_command) is looked up in C(directory).
    """
    for name in ("hibernate_timeout", "resume_timeout", "connect_timeout", "wake_interval"):
        if options[name] < 1:
            return "%s is %d; the minimum is 1 second." % (name, options[name])
    if options["wake_delay"] < 0:
        return "wake_delay is %d; it must not be negative." % options["wake_delay"]
    command = options["wake_command"]
    if command is None or command == "":
        options["wake_command"] = None
        return None
    if transport == "local":
        return "wake_command is set, but the connection is local: the controller cannot wake itself."
    if isinstance(command, str):
        options["wake_command"] = str(command)
        return None
    if not isinstance(command, (list, tuple)) or not command:
        return "wake_command is neither a string nor a list of words."
    command = options["wake_command"] = [str(word) for word in command]
    if shutil.which(command[0]) or os.access(os.path.join(directory, command[0]), os.X_OK):
        return None
    return "wake_command: no such command on the controller: %s." % command[0]
