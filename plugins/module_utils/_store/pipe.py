# SPDX-License-Identifier: GPL-3.0-or-later
"""Two processes and a pipe, such that a source that fails does not look like one that ended. One call is one thread."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Result

TERMINATED = (-15, 128 + 15)  # exit codes of a process that ended by SIGTERM
_POLL = 0.05  # seconds


def pipe(source, sink):
    """Run C(source) with its output as the input of C(sink), and return both Results (of C(source) without the output).

    C(sink) reads the end of its input only after C(source) exited with 0. Otherwise it gets SIGTERM before that, so that
    a program that stores its input up to the end does not store an incomplete input.
    """
    environment = dict(os.environ, LC_ALL="C", LANGUAGE="C")
    with tempfile.TemporaryFile() as messages, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        reading, writing = os.pipe()
        started = []
        try:
            # run_command() of a module cannot connect two programs.
            # pylint: disable=ansible-bad-function
            try:
                started.append(subprocess.Popen(sink, stdin=reading, stdout=out, stderr=err, env=environment))
            finally:
                os.close(reading)
            started.append(
                subprocess.Popen(source, stdin=subprocess.DEVNULL, stdout=writing, stderr=messages, env=environment)
            )
            last, first = started
            _wait_for_first(first, last)
        except BaseException:
            for process in started:
                process.kill()
            raise
        finally:
            os.close(writing)
        last.wait()
        return Result(first.returncode, "", _text(messages)), Result(last.returncode, _text(out), _text(err))


def _wait_for_first(source, sink):
    """Wait until C(source) has ended, and end the other process if one of them failed."""
    while source.poll() is None and sink.poll() is None:
        time.sleep(_POLL)
    if source.poll() is None:  # the sink has ended, so the source's output has no reader
        source.terminate()
        source.wait()
    elif source.returncode != 0 and sink.poll() is None:
        sink.terminate()


def _text(file):
    file.seek(0)
    return file.read().decode("utf-8", "replace")
