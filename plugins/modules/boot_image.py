#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_image
short_description: Capture, verify, stage and arm boot images of a store
version_added: "1.0.0"
description:
  - Stores the hibernation image that a device holds as a version that never changes, checks versions, writes one back
    onto a device, and has the machine's own kernel resume it at the next boot.
  - Runs where the store is. That is the machine itself, or another one through C(delegate_to); then an image comes
    from the machine as the output of O(source_command), without a copy in between.
  - Calls the command C(fuse-store), which is documented in C(docs/fuse-store.md). What that refuses, the module refuses,
    for the same reasons.
options:
  state:
    description:
      - V(captured) - the image on O(device), or what O(source_command) prints, is stored as a new version.
      - V(verified) - every page of the version has been read and compared, the kernel's own checksum as well.
      - V(staged) - the version stands on O(device), not armed. Only what differs is written. The header comes last.
      - V(armed) - what is staged on O(device) is resumed at the next boot. It is compared with the store first, and refused
        if the kernel would not accept it or if resuming it would destroy what has been written to disks since.
      - V(disarmed) - what is on O(device) is not resumed.
      - V(resumed) or V(failed) - the store notes what became of an armed version. An armed version counts as resumed, and is
        not armed again, until somebody notes that the attempt failed.
      - V(absent) - the version is removed. What only it took is freed by C(fuse-store gc).
    type: str
    choices: [captured, verified, staged, armed, disarmed, resumed, failed, absent]
    required: true
  device:
    description:
      - The block device, such as C(/dev/NVM_SWAP), or the file that is the non-volatile memory of a virtual machine,
        where the module runs.
      - The machine must not use it meanwhile. A device in use as swap is refused. A virtual machine must be off.
    type: path
  source_command:
    description:
      - Captures the output of this command instead of O(device). It is a list and is not run by a shell. It runs where the
        store is.
      - Nothing is stored unless it exits with 0. A pipeline needs a shell that says so, as C(bash -o pipefail) does.
    type: list
    elements: str
  tags:
    description: Tags of the version that is captured.
    type: dict
  replace:
    description: Remove the version before, of the same machine and application, once the new one is stored.
    type: bool
    default: false
  with_state:
    description: Of the versions to choose from, only those in this state.
    type: str
    choices: [captured, verified, staged, armed, resumed, failed]
  force:
    description:
      - With O(state=staged), write onto a device that holds something else or an armed image, which is lost.
    type: bool
    default: false
  ignore_refusals:
    description:
      - With O(state=armed), arm in spite of these reasons, for example V(filesystems_unknown). Each one may cost the
        contents of filesystems; RV(code) and RV(message) name the reasons of a refusal.
    type: list
    elements: str
extends_documentation_fragment:
  - nvm.fastboot.image_store
attributes:
  check_mode:
    description:
      - Says what would change without changing it. What only the work itself can tell is assumed to be fine, and
        V(staged) to write something.
    support: full
  diff_mode:
    description: Shows which version changes its state, or what is written where.
    support: full
  idempotent:
    description:
      - V(captured) makes a version each time, because an image has no name but its content. All other states change
        nothing in a second run.
    support: partial
  platform:
    description: Where it works.
    platforms: linux
    support: full
notes:
  - The version is O(image), or the newest that fits the options O(machine), O(application), O(kind), O(event), O(before)
    and O(with_state). With O(state=armed) and neither, it is what was staged on O(device) last.
  - One process at a time writes to a store. With many machines, use C(throttle=1).
  - On failure RV(code) is the type of error of C(fuse-store), V(not_found), V(damaged), V(wrong_key), V(refused), V(locked),
    V(usage_error), V(store_error), V(os_error), or V(command_failed); or V(source_failed), V(device_missing),
    V(device_in_use), V(executable_missing).
seealso:
  - module: nvm.fastboot.boot_image_info
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.hibernate
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Capture from the file that is the NVDIMM of a virtual machine, which is off
  nvm.fastboot.boot_image:
    state: captured
    store: /var/lib/fuse-store
    machine: "{{ inventory_hostname }}"
    device: /var/lib/machines/{{ inventory_hostname }}/nvdimm.img
    evidence_disks: ["/dev/vg0/{{ inventory_hostname }}"]
    event: nightly
  delegate_to: hypervisor

- name: Capture from a machine that has resumed, its swap area out of use
  nvm.fastboot.boot_image:
    state: captured
    store: /var/lib/fuse-store
    machine: "{{ inventory_hostname }}"
    source_command: [ssh, "root@{{ ansible_host }}", cat /dev/NVM_SWAP]
  delegate_to: store
  throttle: 1

- name: Check the last nightly image before the first of the month
  nvm.fastboot.boot_image:
    state: verified
    store: /var/lib/fuse-store
    machine: web01
    event: nightly
    before: "2026-12-01"
  register: checked

- name: Stage it
  nvm.fastboot.boot_image:
    state: staged
    store: /var/lib/fuse-store
    image: "{{ checked.image.id }}"
    device: /dev/NVM_SWAP

- name: Have the next boot resume it
  nvm.fastboot.boot_image:
    state: armed
    store: /var/lib/fuse-store
    image: "{{ checked.image.id }}"
    device: /dev/NVM_SWAP
"""

RETURN = r"""
image:
  description: The version as C(fuse-store show) tells it; null where there is none, as in check mode of V(captured).
  returned: success
  type: dict
  sample:
    id: 4f1c9a0d6be2417c8f5a1b2c3d4e5f60
    machine: web01
    application: system
    kind: hibernation
    event: nightly
    state: verified
    taken: "2026-11-22T02:10:33.120+00:00"
    size: 17179869184
answer:
  description: What C(fuse-store) answered; null in check mode, or where there was nothing to do.
  returned: success
  type: dict
  sample: {id: 4f1c9a0d6be2417c8f5a1b2c3d4e5f60, device: /dev/pmem0, written: 41943040, held: a swap area}
code:
  description: What was refused or failed, as a stable word.
  returned: failure
  type: str
  sample: refused
message:
  description: The thing and the cause.
  returned: failure
  type: str
  sample: "image 4f1c9a0d6be2: it would not be safe to resume it. filesystems_changed: ext4 8a… has been written to since."
remedy:
  description: What to do about it.
  returned: failure
  type: str
  sample: Choose another version.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out
from ansible_collections.nvm.fastboot.plugins.module_utils._store import boot_image


def main():
    version = ("image", "machine")
    module = AnsibleModule(
        argument_spec=dict(
            boot_image.COMMON,
            state={"type": "str", "choices": list(boot_image.STATES), "required": True},
            source_command={"type": "list", "elements": "str"},
            tags={"type": "dict"},
            replace={"type": "bool", "default": False},
            force={"type": "bool", "default": False},
            ignore_refusals={"type": "list", "elements": "str"},
        ),
        mutually_exclusive=[("device", "source_command")],
        required_if=[
            ("state", "captured", ("machine",)),
            ("state", "captured", ("device", "source_command"), True),
            ("state", "staged", ("device",)),
            ("state", "armed", ("device",)),
            ("state", "disarmed", ("device",)),
            *(("state", state, version, True) for state in ("verified", "staged", "resumed", "failed", "absent")),
        ],
        supports_check_mode=True,
    )
    carry_out(module, lambda transaction: boot_image.apply(transaction, module.params))


if __name__ == "__main__":
    main()
