#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One step of a hibernation on the machine itself. The action plugin of the same name chains them; see there."""
from __future__ import annotations

DOCUMENTATION = r"""
module: hibernate
short_description: Hibernate a machine, wake it, and prove that its memory came back
version_added: "1.0.0"
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
description:
  - Hibernates the machine through systemd, waits until it is down, wakes it if told how, waits until it answers again,
    and finds out whether it is the same memory that went on.
  - The verdict stands on what the machine itself shows afterwards, not on having seen it down, so that a machine which
    slept too shortly to be noticed still counts as resumed, and one that merely lost its network does not.
  - Every way of failing leaves the task failed with a verdict, a code, a message that names the cause, and a remedy.
options:
  device:
    description: The device that takes the image, for the check of what stands in the way.
    type: path
    default: /dev/NVM_SWAP
  hibernate_timeout:
    description: Seconds within which the machine must stop answering, or have come back already.
    type: int
    default: 300
  resume_timeout:
    description: Seconds from when the machine stopped answering within which it must have been woken and answer again.
    type: int
    default: 600
  connect_timeout:
    description:
      - Seconds that one attempt to reach the machine may take to connect. While this module waits, the connection is
        told to give up that soon, to keep checking that the machine is alive, and not to be shared or retried;
        afterwards its options are as before.
    type: int
    default: 5
  wake_command:
    description:
      - Command that is run on the controller to bring the machine up, once it has stopped answering.
      - A list is run as it is, a string by C(/bin/sh). It runs in the directory of the playbook.
      - A machine stops answering before it has written its image and cut its power. The command must fail as long as
        the machine cannot be woken, and is then tried again, or O(wake_delay) must be long enough.
      - Without it, something else must wake the machine within O(resume_timeout).
    type: raw
  wake_delay:
    description: Seconds between the machine's last answer and the first run of O(wake_command).
    type: int
    default: 0
  wake_interval:
    description: Seconds between two runs of O(wake_command) as long as it fails.
    type: int
    default: 5
  ignore_inhibitors:
    description: Hibernate although something blocks sleep, as C(systemctl hibernate -i) does.
    type: bool
    default: false
  ignore_blockers:
    description: Codes of blockers, as in RV(blockers), to go on in spite of.
    type: list
    elements: str
    default: []
  wait:
    description:
      - Whether to wait until the machine is up again.
      - With V(false) the task ends when the machine is down, without O(wake_command) and without a verdict. A machine
        that could not be hibernated still fails the task.
    type: bool
    default: true
  step:
    description: Which part to do on the machine. Set by the action plugin; not for playbooks.
    type: str
    choices: [prepare, start, check]
  token:
    description: Name of this hibernation, random, from the controller. Set by the action plugin; not for playbooks.
    type: str
  marker:
    description: What the step V(prepare) returned. Set by the action plugin; not for playbooks.
    type: dict
attributes:
  check_mode:
    support: full
    description: Looks for blockers only, fails if there are any, and says that it would hibernate.
  diff_mode:
    support: none
    description: There is no state to compare.
  idempotent:
    support: none
    description: Each run hibernates the machine.
  async:
    support: none
    description: The task follows the machine down and up; run it in the foreground.
  platform:
    support: full
    platforms: linux
    description: Linux with systemd.
notes:
  - Runs as root on the machine (C(become)), over any connection plugin. With P(ansible.builtin.ssh#connection) no
    attempt can hang on a machine that died with the connection open.
  - With a local connection the controller itself hibernates; O(wake_command) is refused then.
  - Each host is followed on its own, so that a play hibernates as many hosts at once as it has forks.
seealso:
  - module: nvm.fastboot.nvm_info
  - module: nvm.fastboot.boot_resume
  - module: nvm.fastboot.hibernate_trigger
"""

EXAMPLES = r"""
- name: Hibernate, and wake over the baseboard management controller
  nvm.fastboot.hibernate:
    wake_command: >-
      ipmitool -H {{ bmc }} -f /etc/bmc.pass power status | grep -q off &&
      ipmitool -H {{ bmc }} -f /etc/bmc.pass power on
  become: true

- name: Hibernate, and wake over the network once it has had time to write the image
  nvm.fastboot.hibernate:
    wake_command: [wakeonlan, "{{ mac_address }}"]
    wake_delay: 60
  become: true

- name: Hibernate and leave it asleep
  nvm.fastboot.hibernate:
    wait: false
  become: true

- name: Hibernate although another swap area would be filled first
  nvm.fastboot.hibernate:
    ignore_blockers: [other_swap_first]
  become: true
"""

RETURN = r"""
verdict:
  description:
    - V(resumed), the machine slept and the memory it had is the memory it has.
    - V(cold_booted), it booted afresh or resumed an older image; what it had in memory is lost.
    - V(never_slept), it went on running, and RV(msg) says why.
    - V(inhibited), it went on running because a sleep inhibitor is in force.
    - Only V(resumed) is a success. Not returned in check mode, with O(wait=false), and when the machine never answered
      again, for then nobody knows.
  returned: when it is known
  type: str
  sample: resumed
msg:
  description: What happened, why, and what helps.
  returned: always
  type: str
  sample: Resumed with its memory as it was, 31.4 seconds after it was told to hibernate.
code:
  description: One word for what happened, for programs.
  returned: always, except in check mode
  type: str
  sample: resumed
remedy:
  description: What helps.
  returned: on failure
  type: str
  sample: Reserve more, or free memory first.
seconds:
  description:
    - How long each phase took, on the controller's clock, except RV(seconds.slept). A phase that did not take place
      is null.
  returned: when the hibernation was started
  type: dict
  contains:
    prepare:
      description: Looking for blockers and leaving the marker.
      type: float
    down:
      description: From when the machine was told to hibernate until it stopped answering.
      type: float
    "off":
      description: From when it stopped answering until O(wake_command) had succeeded, or without one until it answered.
      type: float
    up:
      description: From when O(wake_command) had succeeded until the machine answered.
      type: float
    slept:
      description: From the copy of the memory until its restoration, on the machine's own clock, to about one second.
      type: float
    total:
      description: From when it was told to hibernate until the verdict.
      type: float
  sample: {prepare: 4.1, down: 3.2, "off": 14.8, up: 12.0, slept: 25.0, total: 33.1}
boot_id:
  description: The boot id the machine has now, or had when it last answered.
  returned: when the machine answered
  type: str
  sample: 7d0d1a5c-2c0f-4a3e-9a2b-3f1b1c1f8b1e
blockers:
  description: What stands in the way of a hibernation; after V(verdict=cold_booted), of the next one.
  returned: when they were looked for
  type: list
  elements: dict
  contains:
    code:
      description: One word for it, for programs and for O(ignore_blockers).
      type: str
    message:
      description: What it is.
      type: str
    remedy:
      description: What helps.
      type: str
  sample: []
kernel:
  description: The kernel's own messages on hibernation since the marker, or since it booted.
  returned: when the machine answered afterwards
  type: list
  elements: str
  sample: ["PM: hibernation: Creating image:"]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import refuse
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
    given = module.params
    if given["step"] is None:
        module.fail_json(
            code="no_step",
            msg="This module was run without its action plugin, which sets step. Call it as nvm.fastboot.hibernate.",
            remedy="Call it as nvm.fastboot.hibernate.",
        )
    host = Host.of(module)
    try:
        if given["step"] == "prepare":
            answer = steps.prepare(
                host,
                given["device"],
                given["token"],
                given["ignore_blockers"],
                given["ignore_inhibitors"],
                module.check_mode,
            )
        elif given["step"] == "start":
            steps.start(host, given["token"], given["ignore_inhibitors"])
            answer = {"changed": True}
        else:
            answer = steps.check(host, given["device"], given["token"], given["marker"])
    except Refused as refused:
        refuse(module, refused)
    module.exit_json(**dict({"changed": False}, **answer))


if __name__ == "__main__":
    main()
