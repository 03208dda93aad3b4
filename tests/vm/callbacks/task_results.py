# SPDX-License-Identifier: GPL-3.0-or-later
"""An Ansible callback that writes one JSON line for each finished task to the file ``$TASK_RESULTS``.

``tests.vm.play`` reads it: the results of modules as data, while Ansible's own output stays for people.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_results
type: notification
short_description: Task results as JSON lines
description: Writes host, task, module, status, seconds and result of each finished task to the file $TASK_RESULTS.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "task_results"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._file = open(os.environ["TASK_RESULTS"], "a", buffering=1)  # noqa: SIM115 - open as long as the play runs
        self._started: dict[str, float] = {}

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._started[task._uuid] = time.monotonic()
        self._write(event="start", task=task.get_name(), module=task.action)

    def v2_runner_on_ok(self, result: Any) -> None:
        self._report("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._report("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._report("unreachable", result)

    def _report(self, status: str, result: Any) -> None:
        task = result.task
        self._write(
            event="end",
            host=result.host.get_name(),
            task=task.get_name(),
            module=task.action,
            status=status,
            seconds=time.monotonic() - self._started.get(task._uuid, time.monotonic()),
            result=json.loads(self._dump_results(result.result, indent=None)),
        )

    def _write(self, **record: Any) -> None:
        self._file.write(json.dumps(record) + "\n")
