#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvm_boot_times
short_description: Read how long a machine took to boot, and to come back from its last hibernation
version_added: "1.0.0"
description:
  - Reads the phases of the last boot, as C(systemd-analyze) shows them. A machine that resumed has those of the boot that its memory is
    from.
  - Reads how the last hibernation ended, as the playbook C(nvm.fastboot.hibernate) noted it in the machine's journal. The note is gone
    with the journal.
  - Changes nothing.
options: {}
extends_documentation_fragment:
  - nvm.fastboot.attributes.info
seealso:
  - module: nvm.fastboot.nvm_info
  - module: nvm.fastboot.hibernate
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Read the times of the boot
  nvm.fastboot.nvm_boot_times:
  register: nvm_times

- name: Show machines that take more than a minute
  ansible.builtin.debug:
    msg: "{{ nvm_times.boot.total }} seconds, of which {{ nvm_times.boot.userspace }} in user space"
  when: (nvm_times.boot.total or 0) > 60
"""

RETURN = r"""
boot:
  description:
    - Seconds of the phases of the last boot, and as C(total) of all. Null for one that the machine does not tell, such as C(firmware) and
      C(loader) with BIOS, or that is not over.
  returned: success
  type: dict
  contains:
    firmware:
      description: Until the bootloader started.
      type: float
      sample: 4.1
    loader:
      description: In the bootloader.
      type: float
      sample: 0.6
    kernel:
      description: From the start of the kernel to that of the initramfs.
      type: float
      sample: 1.3
    initrd:
      description: In the initramfs, if systemd runs there.
      type: float
      sample: 2.2
    userspace:
      description: Until everything had started.
      type: float
      sample: 41.7
    total:
      description: All of it, as far as it is known.
      type: float
      sample: 49.9
last_hibernation:
  description:
    - How the last hibernation ended that the playbook C(nvm.fastboot.hibernate) noted; null if there is none in the journal.
  returned: success
  type: dict
  contains:
    verdict:
      description: V(resumed), V(cold_booted), V(never_slept) or V(inhibited).
      type: str
      sample: resumed
    seconds:
      description: The phases, as M(nvm.fastboot.hibernate) returns them.
      type: dict
      sample: {down: 3.2, up: 9.4, slept: 25.0, total: 33.1}
    time:
      description: When it was noted (UTC).
      type: str
      sample: "2026-11-30T02:00:41Z"
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: command_failed
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: "systemctl show exited with status 1: System has not been booted with systemd as init system"
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Run the command by hand on the machine to find the cause.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.times import boot_times
from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import answer


def main():
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    answer(module, boot_times)


if __name__ == "__main__":
    main()
