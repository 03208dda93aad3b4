#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_slots
short_description: Make, list and remove the slots of a device, each of which holds one image of the machine
version_added: "1.0.0"
description:
  - Makes a table of slots on a device, so that it can hold several images of the running system side by side; lists the slots,
    removes one, or erases the device.
  - Calls the command C(fuse-store), see C(docs/slots.md). The module refuses what the command refuses.
options:
  device:
    description:
      - Block device for the slots, such as C(/dev/pmem1), on the machine that the module runs on.
    type: path
    required: true
  state:
    description:
      - V(present) - the device has a table of slots. Refused on a device that is in use, and on one that holds anything but a
        swap area, an image that is not armed, or zeros. An existing table stays, with its slots.
      - V(listed) - returns the table, and changes nothing.
      - V(absent) - removes O(slot). Without O(slot), overwrites the whole device with zeros, because an image holds every secret of
        the machine; a device without a table of slots stays as it is.
    type: str
    choices: [present, listed, absent]
    default: present
  slot:
    description: Number of the slot to remove, with O(state=absent).
    type: int
  force:
    description:
      - With O(state=present), overwrite what is on the device.
      - With O(state=absent), remove golden and armed images as well.
    type: bool
    default: false
  executable:
    description: Name or path of the command C(fuse-store).
    type: str
    default: fuse-store
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: Assumes that the device can be used. If the command C(fuse-store) is missing, assumes that an earlier task would install it,
      and that the device has no table.
  diff_mode:
    details: Names the table and the slots, not their content.
notes:
  - Requires root.
  - On failure, RV(code) is the type of error of C(fuse-store), V(refused), V(damaged), V(locked), V(usage_error), V(store_error),
    V(os_error), or V(command_failed); or V(device_missing), V(slots_kept), V(executable_missing).
seealso:
  - module: nvm.fastboot.boot_snapshot
  - module: nvm.fastboot.boot_image
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Have the device hold slots
  nvm.fastboot.boot_slots:
    device: /dev/pmem1

- name: List the slots
  nvm.fastboot.boot_slots:
    device: /dev/pmem1
    state: listed
  register: found

- name: Show the newest image of each application
  ansible.builtin.debug:
    msg: "{{ found.slots | groupby('application') | map('last') | map('max', attribute='taken') }}"

- name: Remove one slot
  nvm.fastboot.boot_slots:
    device: /dev/pmem1
    slot: 2
    state: absent

- name: Erase the device, with all images on it
  nvm.fastboot.boot_slots:
    device: /dev/pmem1
    state: absent
    force: true
"""

RETURN = r"""
device:
  description: The device, as it was given.
  returned: success
  type: str
  sample: /dev/pmem1
initialized:
  description: Whether the device has a table of slots.
  returned: success
  type: bool
  sample: true
page_size:
  description: Bytes of a block; null without a table.
  returned: success
  type: int
  sample: 4096
free:
  description: Bytes that no slot has; null without a table.
  returned: success
  type: int
  sample: 1069547520
slots:
  description: The slots, as returned by C(fuse-store slots list).
  returned: success
  type: list
  elements: dict
  sample:
    - slot: 1
      state: complete
      armed: false
      machine: web01
      application: shop
      event: ready
      image: 4f1c9a0d6be2417c8f5a1b2c3d4e5f60
      taken: "2026-11-29T02:10:33+00:00"
      size: 260046848
      attempts: 0
      kept: replaceable
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: refused
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: "device /dev/pmem1: contains an ext4 filesystem."
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Choose another device, or overwrite the data with --force.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out
from ansible_collections.nvm.fastboot.plugins.module_utils._store import slots


def main():
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "path", "required": True},
            "state": {"type": "str", "choices": list(slots.STATES), "default": "present"},
            "slot": {"type": "int"},
            "force": {"type": "bool", "default": False},
            "executable": {"type": "str", "default": "fuse-store"},
        },
        supports_check_mode=True,
    )
    carry_out(module, lambda transaction: slots.apply(transaction, module.params), directory=None)


if __name__ == "__main__":
    main()
