# SPDX-License-Identifier: GPL-3.0-or-later
"""The command on the controller that wakes the machine. One object per hibernation, used by one thread."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time

OUTPUT = 1000  # characters of the command's output that are kept, from its end


class WakeCommand:
    """C(command) is a list, or a string for the shell, or None; C(output) says how the last run ended.

    C(log(output)) is called after each run.
    """

    def __init__(self, command, interval, directory, log=None):
        self.command = command
        self.interval = interval
        self.directory = directory
        self._log = log
        self.due = float("inf")
        self.done = False
        self.output = ""

    def arm(self, due):
        """Have the command run from the moment C(due) on, until it succeeds."""
        self.due, self.done = due, False

    def is_due(self, now):
        return self.command is not None and not self.done and now >= self.due

    def run(self, bound):
        """Run the command for at most C(bound) seconds, and return whether it succeeded.

        After a failure the command is due again after the interval.
        """
        try:
            code, text = self._run(bound)
        except OSError as error:
            code, self.output = None, str(error)
        else:
            text = text.strip()[-OUTPUT:] or "no output"
            self.output = "still running: %s" % text if code is None else "exit code %d: %s" % (code, text)
        self.done = code == 0
        self.due = time.monotonic() + self.interval
        if self._log:
            self._log(self.output)
        return self.done

    def _run(self, bound):
        """The exit code, or None after C(bound) seconds, and the output.

        The output goes to a file: processes that the command leaves in the background would keep a pipe open.
        """
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(  # pylint: disable=ansible-bad-function  # on the controller, without a module
                self.command,
                shell=isinstance(self.command, str),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code: int | None
            try:
                code = process.wait(timeout=max(bound, 1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
            output.seek(0)
            return code, output.read().decode("utf-8", "replace")
