#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: hibernate_trigger
short_description: Hibernate when a condition is met
version_added: "1.0.0"
description:
  - Makes a machine hibernate by itself at a scheduled time, when it is idle, when its battery or UPS runs low, or when
    its power key is pressed.
  - Schedule, battery and UPS become a systemd timer and a service C(nvm-fastboot-NAME); idle and power key become a
    drop-in of C(logind.conf). All of them end in C(systemctl hibernate).
  - A time that passed while the machine was off does not count. A machine that is switched on in the morning does not
    go back to sleep because its schedule lay in the night; nor does any timer act within two minutes after a resume.
options:
  condition:
    description:
      - V(schedule) - at the times of O(schedule), unless somebody inhibits sleep then.
      - V(idle) - after the sessions have been idle for O(idle).
      - V(battery) - on battery, and no battery of the machine holds more than O(battery_percent). Where the kernel
        knows no battery, UPower is asked, which also knows UPSes on USB. Inhibitors of sleep are not waited for.
      - V(ups) - the UPS O(ups) is on battery, and reports a low battery or holds no more than O(battery_percent). Needs
        C(upsc) of Network UPS Tools. Inhibitors of sleep are not waited for.
      - V(power_key) - the power key, see O(press).
      - Required with O(state=present).
    type: str
    choices: [schedule, idle, battery, ups, power_key]
  name:
    description:
      - Name of the trigger; several triggers can stand side by side.
      - The default is the O(condition). With O(state=absent) and neither, every trigger on the machine is meant.
    type: str
  schedule:
    description:
      - When to hibernate, as a calendar event of systemd, see systemd.time(7).
      - It does not wake the machine.
    type: str
  idle:
    description:
      - How long every session has to be idle, as a number of seconds or a time span such as V(30min).
    type: str
  battery_percent:
    description:
      - The charge, in percent, at which to hibernate.
    type: int
    default: 10
  ups:
    description:
      - The UPS as C(upsc) takes it, C(NAME@HOST).
      - If C(upsmon) also watches it, it shuts the machine down when the UPS reports a low battery. Choose
        O(battery_percent) above that, or have C(upsmon) run C(systemctl hibernate).
    type: str
  press:
    description:
      - Whether a short or a long press of the power key hibernates. The other one keeps its meaning.
      - V(long) needs systemd 251.
    type: str
    choices: [short, long]
    default: short
  state:
    description:
      - V(present) sets the trigger up, V(absent) removes everything of it.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Says what would change without changing it.
    support: full
  diff_mode:
    description: Shows the files before and after.
    support: full
  idempotent:
    description: A second run changes nothing. A timer stopped by hand, but still enabled, is left stopped.
    support: full
  platform:
    description: Where it works.
    platforms: linux
    support: full
notes:
  - Needs root on the machine, and systemd 247 or later.
  - A desktop session may take the power key for itself with an inhibitor; then its own setting counts.
seealso:
  - module: nvm.fastboot.hibernate
  - module: nvm.fastboot.nvm_info
  - name: systemd.time(7)
    description: Calendar events and time spans.
    link: https://www.freedesktop.org/software/systemd/man/latest/systemd.time.html
  - name: logind.conf(5)
    description: IdleAction= and HandlePowerKey=.
    link: https://www.freedesktop.org/software/systemd/man/latest/logind.conf.html
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Hibernate at ten in the evening on working days
  nvm.fastboot.hibernate_trigger:
    condition: schedule
    schedule: Mon..Fri 22:00

- name: Hibernate when the power key is pressed
  nvm.fastboot.hibernate_trigger:
    condition: power_key

- name: Hibernate after half an hour without anybody
  nvm.fastboot.hibernate_trigger:
    condition: idle
    idle: 30min

- name: Hibernate before the UPS gives out
  nvm.fastboot.hibernate_trigger:
    condition: ups
    ups: rack1@localhost
    battery_percent: 40

- name: Two schedules side by side
  nvm.fastboot.hibernate_trigger:
    condition: schedule
    name: "{{ item.name }}"
    schedule: "{{ item.at }}"
  loop:
    - {name: weekdays, at: "Mon..Fri 22:00"}
    - {name: weekend, at: "Sat,Sun 20:00"}

- name: No longer on the power key
  nvm.fastboot.hibernate_trigger:
    name: power_key
    state: absent

- name: Hibernate by itself no more
  nvm.fastboot.hibernate_trigger:
    state: absent
"""

RETURN = r"""
names:
  description: Names of the triggers that were looked after.
  returned: success
  type: list
  elements: str
  sample: [schedule]
files:
  description: The files the trigger consists of; none with O(state=absent).
  returned: success
  type: list
  elements: str
  sample:
    - /etc/systemd/system/nvm-fastboot-schedule.service
    - /etc/systemd/system/nvm-fastboot-schedule.timer
    - /usr/local/lib/nvm-fastboot/trigger
code:
  description: A word for the error.
  returned: failure
  type: str
  sample: schedule_invalid
remedy:
  description: What helps.
  returned: failure
  type: str
  sample: See systemd.time(7), CALENDAR EVENTS; 'systemd-analyze calendar' tries a value.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import refuse
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate import triggers


def main():
    module = AnsibleModule(
        argument_spec={
            "condition": {"type": "str", "choices": list(triggers.CONDITIONS)},
            "name": {"type": "str"},
            "schedule": {"type": "str"},
            "idle": {"type": "str"},
            "battery_percent": {"type": "int", "default": 10},
            "ups": {"type": "str"},
            "press": {"type": "str", "choices": ["short", "long"], "default": "short"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("condition",))],
        supports_check_mode=True,
    )
    options = dict(module.params)
    present = options.pop("state") == "present"
    host = Host.of(module)
    name = options["name"] or options["condition"]
    names = [name] if name else triggers.installed(host)
    outcomes = []
    try:
        for each in names:
            trigger = triggers.Trigger(**dict(options, name=each))
            outcomes.append(triggers.apply(host, trigger, present, module.check_mode))
    except Refused as refused:
        refuse(module, refused)
    for outcome in outcomes:
        for warning in outcome.warnings:
            module.warn(warning)
    module.exit_json(
        changed=any(outcome.changed for outcome in outcomes),
        diff=[part for outcome in outcomes for part in outcome.diff],
        names=names,
        files=[path for outcome in outcomes for path in outcome.files],
    )


if __name__ == "__main__":
    main()
