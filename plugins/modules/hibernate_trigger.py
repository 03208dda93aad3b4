#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: hibernate_trigger
short_description: Hibernate a machine automatically on a condition
version_added: "1.0.0"
description:
  - Hibernates a machine at a scheduled time, when it is idle, when its battery or UPS is low, or when its power key is
    pressed.
  - For schedule, battery and UPS, creates a systemd timer and a service C(nvm-fastboot-NAME); for idle and power key, a
    drop-in of C(logind.conf).
  - A scheduled time that passed while the machine was off is ignored. No timer hibernates the machine within two minutes
    after a resume.
options:
  condition:
    description:
      - V(schedule) - at the times in O(schedule), unless a sleep inhibitor is active.
      - V(idle) - after all sessions are idle for O(idle).
      - V(battery) - on battery power, if no battery has more than O(battery_percent). If the kernel detects no battery, UPower
        is used, which also detects a UPS on USB. Ignores sleep inhibitors.
      - V(ups) - if the UPS O(ups) is on battery, and reports a low battery or has at most O(battery_percent). Requires C(upsc)
        of Network UPS Tools. Ignores sleep inhibitors.
      - V(power_key) - on a press of the power key, see O(press).
      - Required with O(state=present).
    type: str
    choices: [schedule, idle, battery, ups, power_key]
  name:
    description:
      - Name of the trigger. A machine can have several triggers.
      - The default is O(condition). With O(state=absent) and neither O(name) nor O(condition), all triggers of the machine are
        removed.
    type: str
  schedule:
    description:
      - Times to hibernate at, as a calendar event of systemd, see systemd.time(7).
      - The timer does not wake the machine.
    type: str
  idle:
    description:
      - Duration for which all sessions must be idle, in seconds or as a time span such as V(30min).
    type: str
  battery_percent:
    description:
      - Charge in percent at or below which to hibernate.
    type: int
    default: 10
  ups:
    description:
      - Name of the UPS as for C(upsc), C(NAME@HOST).
      - If C(upsmon) monitors the UPS, it shuts the machine down when the UPS reports a low battery. Set O(battery_percent)
        above that charge, or configure C(upsmon) to run C(systemctl hibernate).
    type: str
  press:
    description:
      - Whether a short or a long press of the power key hibernates the machine. The other one keeps its function.
      - V(long) requires systemd 251 or later.
    type: str
    choices: [short, long]
    default: short
  state:
    description:
      - V(present) sets the trigger up. V(absent) removes it.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  diff_mode:
    details: Shows the files.
  idempotent:
    details: A timer that is enabled but was stopped by hand is not started.
notes:
  - Requires root on the machine, and systemd 247 or later.
  - Where the system's configuration forbids hibernation (a masked C(hibernate.target), C(AllowHibernation=no)), the module
    fails with V(sleep_masked) or V(sleep_disallowed), because the trigger would do nothing.
  - A desktop session may handle the power key itself, with an inhibitor. Its own setting then applies.
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
- name: Hibernate on working days at 22:00
  nvm.fastboot.hibernate_trigger:
    condition: schedule
    schedule: Mon..Fri 22:00

- name: Hibernate when the power key is pressed
  nvm.fastboot.hibernate_trigger:
    condition: power_key

- name: Hibernate after all sessions were idle for 30 minutes
  nvm.fastboot.hibernate_trigger:
    condition: idle
    idle: 30min

- name: Hibernate when the UPS is at 40 percent
  nvm.fastboot.hibernate_trigger:
    condition: ups
    ups: rack1@localhost
    battery_percent: 40

- name: Set up two schedules
  nvm.fastboot.hibernate_trigger:
    condition: schedule
    name: "{{ item.name }}"
    schedule: "{{ item.at }}"
  loop:
    - {name: weekdays, at: "Mon..Fri 22:00"}
    - {name: weekend, at: "Sat,Sun 20:00"}

- name: Remove the trigger on the power key
  nvm.fastboot.hibernate_trigger:
    name: power_key
    state: absent

- name: Remove all triggers
  nvm.fastboot.hibernate_trigger:
    state: absent
"""

RETURN = r"""
names:
  description: Names of the managed triggers.
  returned: success
  type: list
  elements: str
  sample: [schedule]
files:
  description: Files of the triggers; empty with O(state=absent).
  returned: success
  type: list
  elements: str
  sample:
    - /etc/systemd/system/nvm-fastboot-schedule.service
    - /etc/systemd/system/nvm-fastboot-schedule.timer
    - /usr/local/lib/nvm-fastboot/trigger
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: schedule_invalid
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: "systemd cannot parse schedule 'never'."
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: See systemd.time(7), CALENDAR EVENTS. Run 'systemd-analyze calendar' to test a value.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out_part
from ansible_collections.nvm.fastboot.plugins.module_utils._hibernate.triggers import PART


def main():
    carry_out_part(AnsibleModule(argument_spec=PART.options, required_if=PART.required_if, supports_check_mode=True), PART)


if __name__ == "__main__":
    main()
