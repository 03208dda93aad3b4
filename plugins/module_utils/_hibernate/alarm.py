# SPDX-License-Identifier: GPL-3.0-or-later
"""A time limit for calls that may block without end, such as those of a connection plugin.

Works in the main thread only, because signals are delivered there; in other threads there is no limit.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time


class Unanswered(Exception):
    """The machine did not answer within the time limit of one attempt."""


@contextlib.contextmanager
def bounded(seconds):
    """Raise Unanswered in the block after C(seconds).

    Uses SIGALRM, the only way to interrupt a blocking call of any connection plugin. The alarm of a task's own C(timeout)
    is restored with the time that is left, and takes precedence if it comes first.
    """
    left, _interval = signal.getitimer(signal.ITIMER_REAL)
    if threading.current_thread() is not threading.main_thread() or 0 < left <= seconds:
        yield
        return
    over = False

    def expire(_signal, _frame):
        if not over:
            raise Unanswered("no answer within %d seconds" % seconds)

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.001))
