#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvm_plan
short_description: Look at what several modules would change, in one run
version_added: "1.0.0"
description:
  - Looks at each part of the configuration as its module does in check mode, all in one run on the machine. Where nothing would
    change, that is all a configuration takes.
  - What a module refuses, this module refuses, with the same code, message and remedy, and before anything is changed.
  - With O(device), also looks for the blockers of M(nvm.fastboot.nvm_info).
  - Changes nothing. Assumes for each part that those before it were done.
options:
  parts:
    description:
      - The parts, in the order in which they would be changed. Each entry is a dictionary with one key, the name of a module without
        C(nvm.fastboot), and as its value the options of that module, or a list of options for several uses.
      - The modules are V(nvm_reservation), V(nvm_swap), V(swap_file), V(fstab_swap), V(boot_resume) and V(hibernate_trigger).
    type: list
    elements: dict
    required: true
  device:
    description:
      - The swap device for hibernation. Without it, RV(blockers) are not looked for.
    type: path
  passphrase:
    description:
      - The option C(passphrase) of M(nvm.fastboot.nvm_swap), which is refused in O(parts) (V(part_invalid)), because those are logged.
    type: str
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: Changes nothing, in check mode or not. Reports a change in check mode alone, where one of the modules would change something.
  diff_mode:
    details: In check mode, shows the differences of all parts, each with its file or device.
notes:
  - Requires root on the machine.
  - If a part would change something, the blockers V(initramfs_drivers), V(initramfs_outdated) and V(initramfs_overridden) are
    not looked for.
seealso:
  - module: nvm.fastboot.nvm_reservation
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.swap_file
  - module: nvm.fastboot.fstab_swap
  - module: nvm.fastboot.boot_resume
  - module: nvm.fastboot.hibernate_trigger
  - module: nvm.fastboot.nvm_info
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Look at the swap area and its line in fstab
  nvm.fastboot.nvm_plan:
    parts:
      - nvm_swap:
          priority: 20
      - fstab_swap:
          priority: 20
  register: plan

- name: Tell what would change
  ansible.builtin.debug:
    msg: "{{ plan.would_change | join(', ') | default('nothing', true) }}"

- name: Look at two triggers, and for what is in the way of a hibernation
  nvm.fastboot.nvm_plan:
    parts:
      - hibernate_trigger:
          - condition: power_key
          - condition: schedule
            schedule: Mon..Fri 22:00
    device: /dev/NVM_SWAP
"""

RETURN = r"""
parts:
  description: For each module in O(parts) what it returns in check mode; a list if a list of options was given.
  returned: success
  type: dict
  sample: {fstab_swap: {path: /etc/fstab, uuid: 6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4}}
would_change:
  description: The modules in O(parts) that would change something.
  returned: success
  type: list
  elements: str
  sample: [nvm_swap, fstab_swap]
reboot_required:
  description: Whether one of them returns C(reboot_required).
  returned: success
  type: bool
  sample: false
reboot_in_vain:
  description: The reasons why another reboot does not help; empty if it may.
  returned: success
  type: list
  elements: str
  sample: []
blockers:
  description: As M(nvm.fastboot.nvm_info) returns them.
  returned: success, with O(device)
  type: list
  elements: dict
  sample:
    - code: swap_inactive
      message: /dev/NVM_SWAP is not in use as swap (/proc/swaps), so the kernel cannot write an image to it.
      remedy: Run nvm_swap with state=present, or swapon /dev/NVM_SWAP.
code:
  description: Stable word for the error, of one of the modules, or V(part_invalid) or V(options_invalid).
  returned: failure
  type: str
  sample: holds_filesystem
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: /dev/NVM_SWAP (/dev/pmem0) holds ext4.
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Copy the data elsewhere. Set force=true to destroy it.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import answer
from ansible_collections.nvm.fastboot.plugins.module_utils._plan.plan import plan


def main():
    module = AnsibleModule(
        argument_spec={
            "parts": {"type": "list", "elements": "dict", "required": True},
            "device": {"type": "path"},
            "passphrase": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )

    def look(host):
        found = plan(host, module.params["parts"], module.params["device"], module.params["passphrase"])
        return dict(found, changed=module.check_mode and bool(found["would_change"]))

    answer(module, look)


if __name__ == "__main__":
    main()
