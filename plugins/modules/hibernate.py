#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One step of a hibernation on the machine. The action plugin of the same name runs the steps."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hibernate
short_description: Hibernate a machine, wake it, and verify that its memory was restored
version_added: "1.0.0"
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
description:
  - Hibernates the machine through systemd, waits until it is down, runs the wake command if there is one, waits until the
    machine answers again, and determines whether its memory was restored.
  - The verdict is based on records of the machine itself, not on whether it was seen down. A machine that slept too
    briefly to be noticed counts as resumed; a machine that only lost its network does not.
  - A failed task returns a verdict, a code, a message with the cause, and a remedy.
options:
  device:
    description: Device for the hibernation image, or path of the swap file, to check for blockers.
    type: path
    default: /dev/NVM_SWAP
  hibernate_timeout:
    description: Seconds in which the machine must stop answering, or have resumed already.
    type: int
    default: 300
  resume_timeout:
    description: Seconds after the machine stopped answering in which it must be woken and answer again.
    type: int
    default: 600
  connect_timeout:
    description:
      - Seconds to connect in one attempt to reach the machine. While this module waits, the connection uses this timeout,
        sends keepalive messages, and is neither shared nor retried. Afterwards its options are restored.
    type: int
    default: 5
  wake_command:
    description:
      - Command that wakes the machine. Runs on the controller after the machine stopped answering.
      - A list runs without a shell, a string with C(/bin/sh). The working directory is the directory of the playbook.
      - A machine stops answering before it has written its image and powered off. Either the command must fail while the
        machine cannot be woken, and is then repeated, or O(wake_delay) must be long enough.
      - Without this option, the machine must wake in another way within O(resume_timeout).
    type: raw
  wake_delay:
    description: Seconds between the machine's last answer and the first run of O(wake_command).
    type: int
    default: 0
  wake_interval:
    description: Seconds between two runs of O(wake_command) while it fails.
    type: int
    default: 5
  ignore_inhibitors:
    description: Hibernate despite sleep inhibitors, like C(systemctl hibernate -i).
    type: bool
    default: false
  ignore_blockers:
    description: Codes of blockers to ignore, as in RV(blockers).
    type: list
    elements: str
    default: []
  wait:
    description:
      - Whether to wait until the machine is up again.
      - With V(false), the task ends when the machine is down, without O(wake_command) and without a verdict. If the machine
        does not hibernate, the task still fails.
    type: bool
    default: true
  step:
    description: Step to run on the machine. Set by the action plugin; not for playbooks.
    type: str
    choices: [prepare, start, check]
  token:
    description: Random name of this hibernation. Set by the action plugin; not for playbooks.
    type: str
  marker:
    description: Marker from the step V(prepare). Set by the action plugin; not for playbooks.
    type: dict
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: Only checks for blockers, and fails if there are any.
  diff_mode:
    support: none
    details: There is no state to compare.
  idempotent:
    support: none
    details: Each run hibernates the machine.
  async:
    description: Supports being run with the C(async) keyword.
    support: none
    details: The task follows the machine until it answers again, and must run in the foreground.
  platform:
    details: Linux with systemd.
notes:
  - Requires root on the machine (C(become)). Works with all connection plugins. With P(ansible.builtin.ssh#connection) no
    attempt hangs on a machine that went down with the connection open.
  - With a local connection the controller itself hibernates. O(wake_command) is then refused.
  - Hosts are independent of each other. A play hibernates as many hosts at once as it has forks.
seealso:
  - module: nvm.fastboot.nvm_info
  - module: nvm.fastboot.boot_resume
  - module: nvm.fastboot.hibernate_trigger
"""

EXAMPLES = r"""
- name: Hibernate, and wake the machine with its baseboard management controller
  nvm.fastboot.hibernate:
    wake_command: >-
      ipmitool -H {{ bmc }} -f /etc/bmc.pass power status | grep -q off &&
      ipmitool -H {{ bmc }} -f /etc/bmc.pass power on
  become: true

- name: Hibernate, and wake the machine over the network after a delay for writing the image
  nvm.fastboot.hibernate:
    wake_command: [wakeonlan, "{{ mac_address }}"]
    wake_delay: 60
  become: true

- name: Hibernate without waiting for the machine
  nvm.fastboot.hibernate:
    wait: false
  become: true

- name: Hibernate despite a blocker
  nvm.fastboot.hibernate:
    ignore_blockers: [other_swap_first]
  become: true
"""

RETURN = r"""
verdict:
  description:
    - V(resumed) - the machine slept and its memory was restored.
    - V(cold_booted) - the machine booted without resuming, or resumed an older image. Its previous memory is lost.
    - V(never_slept) - the machine did not hibernate. RV(msg) has the reason.
    - V(inhibited) - the machine did not hibernate because of a sleep inhibitor.
    - Only V(resumed) is a success. Not returned in check mode, with O(wait=false), and if the machine does not answer
      again.
  returned: when known
  type: str
  sample: resumed
msg:
  description: What happened, the cause, and how to fix it.
  returned: always
  type: str
  sample: Resumed with its memory intact, 31.4 seconds after the request to hibernate.
code:
  description: Stable word for the outcome.
  returned: always, except in check mode
  type: str
  sample: resumed
remedy:
  description: How to fix it.
  returned: on failure
  type: str
  sample: Reserve more NVM, or free memory first.
seconds:
  description:
    - Duration of each phase by the controller's clock, except RV(seconds.slept). Null for a phase that did not take place.
  returned: when the hibernation was started
  type: dict
  contains:
    prepare:
      description: Checking for blockers and writing the marker.
      type: float
    down:
      description: From the request to hibernate until the machine stopped answering.
      type: float
    "off":
      description: From then until O(wake_command) succeeded, or without one until the machine answered.
      type: float
    up:
      description: From the success of O(wake_command) until the machine answered.
      type: float
    slept:
      description: From the copy of the memory until its restoration by the machine's clock, accurate to about one second.
      type: float
    total:
      description: From the request to hibernate until the verdict.
      type: float
  sample: {prepare: 4.1, down: 3.2, "off": 14.8, up: 12.0, slept: 25.0, total: 33.1}
boot_id:
  description: Boot id of the machine at its last answer.
  returned: when the machine answered
  type: str
  sample: 7d0d1a5c-2c0f-4a3e-9a2b-3f1b1c1f8b1e
blockers:
  description: Blockers of the hibernation; after V(verdict=cold_booted), of the next one.
  returned: when checked
  type: list
  elements: dict
  contains:
    code:
      description: Stable word for the blocker, for O(ignore_blockers).
      type: str
    message:
      description: The cause.
      type: str
    remedy:
      description: How to fix it.
      type: str
  sample: []
kernel:
  description: The kernel's messages about hibernation since the marker, or since a new boot.
  returned: when the machine answered after the hibernation
  type: list
  elements: str
  sample: ["PM: hibernation: Creating image:"]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import answer
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate import options, steps


def main():
    module = AnsibleModule(
        argument_spec={**options.OPTIONS, **options.STEP_OPTIONS},
        required_if=[
            ("step", "prepare", ["token"]),
            ("step", "start", ["token"]),
            ("step", "check", ["token", "marker"]),
        ],
        supports_check_mode=True,
    )
    if module.params["step"] is None:
        module.fail_json(
            code="no_step",
            msg="The option step is not set: the module ran without its action plugin. Call it as nvm.fastboot.hibernate.",
            remedy="Call it as nvm.fastboot.hibernate.",
        )
    answer(module, lambda host: _run_step(host, module.params, module.check_mode))


def _run_step(host, given, check_mode):
    if given["step"] == "prepare":
        skip, ignore_inhibitors = given["ignore_blockers"], given["ignore_inhibitors"]
        return steps.prepare(host, given["device"], given["token"], skip, ignore_inhibitors, check_mode)
    if given["step"] == "start":
        steps.start(host, given["token"], given["ignore_inhibitors"])
        return {"changed": True}
    return steps.check(host, given["device"], given["token"], given["marker"])


if __name__ == "__main__":
    main()
