#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_image
short_description: Capture, verify, stage and arm boot images in a store
version_added: "1.0.0"
description:
  - Stores the hibernation image on a device as an immutable version, verifies versions, writes a version to a device, and
    arms the device, so that the machine's kernel resumes the image at the next boot.
  - Runs on the store's host, which is the machine itself, or another host with C(delegate_to). An image from another
    machine is the output of O(source_command), and needs no temporary copy.
  - Calls the command C(fuse-store), see C(docs/fuse-store.md). The module refuses what the command refuses.
options:
  state:
    description:
      - V(captured) - stores the image on O(device), or the output of O(source_command), as a new version.
      - V(verified) - reads every page of the version and compares it with its digest, and verifies the kernel's checksum.
      - V(staged) - writes the version to O(device), not armed. Only pages that differ are written, and the header last.
      - V(armed) - arms the staged image on O(device), so that the next boot resumes it. The image is compared with the store first.
        Refused if the kernel would reject the image, or if the filesystems were written to since the image was created,
        because resuming would corrupt them.
      - V(disarmed) - disarms the image on O(device), so that the next boot does not resume it.
      - V(resumed) or V(failed) - reports the outcome of an armed version to the store. Until a failure is reported, an armed
        version counts as resumed, and is not armed again.
      - V(absent) - removes the version. Run C(fuse-store gc) to reclaim disk space.
    type: str
    choices: [captured, verified, staged, armed, disarmed, resumed, failed, absent]
    required: true
  device:
    description:
      - Block device, such as C(/dev/NVM_SWAP), or the file of a virtual machine's NVDIMM, on the host the module runs on.
      - The machine must not use the device. A device in use as swap is refused. A virtual machine must be off.
    type: path
  source_command:
    description:
      - Command whose output is captured instead of O(device), as a list, without a shell. Runs on the store's host.
      - Nothing is stored if the command fails. A pipeline needs a shell that reports failures, such as C(bash -o pipefail).
    type: list
    elements: str
  tags:
    description: Tags of the new version.
    type: dict
  replace:
    description: Remove the previous version of the same machine and application after the new one is stored.
    type: bool
    default: false
  with_state:
    description: Select only versions in this state.
    type: str
    choices: [captured, verified, staged, armed, resumed, failed, unknown]
  into_slot:
    description:
      - With O(state=staged), write to a slot of O(device), beside other images. C(fuse-store slots init) or
        M(nvm.fastboot.boot_slots) makes the slots. The number of the slot is in RV(answer).
    type: bool
    default: false
  force:
    description:
      - With O(state=staged), overwrite other data or an armed image on the device.
      - With O(state=absent), remove the version although it is staged or armed on a device.
    type: bool
    default: false
  ignore_refusals:
    description:
      - With O(state=armed), override the refusals with these codes, for example V(filesystems_unknown). Each may corrupt
        filesystems. RV(message) has the codes of a refusal.
    type: list
    elements: str
extends_documentation_fragment:
  - nvm.fastboot.image_store
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: Assumes that verification succeeds, and that V(staged) writes to the device.
  diff_mode:
    details: Shows the states of versions and devices.
  idempotent:
    support: partial
    details: V(captured) creates a version in each run. For all other states, a second run changes nothing.
notes:
  - The version is O(image), or the newest one that matches O(machine), O(application), O(kind), O(event), O(before) and
    O(with_state). With O(state=armed) and neither O(image) nor O(machine), the version is the one that was last staged on
    O(device).
  - Only one process can write to a store at a time. With several machines, use C(throttle=1).
  - On failure, RV(code) is the type of error of C(fuse-store), V(not_found), V(damaged), V(wrong_key), V(refused), V(locked),
    V(usage_error), V(store_error), V(os_error), or V(command_failed); or V(source_failed), V(device_missing),
    V(device_in_use), V(executable_missing), V(home_missing).
seealso:
  - module: nvm.fastboot.boot_image_info
  - module: nvm.fastboot.boot_slots
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.hibernate
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Capture from the file of a virtual machine's NVDIMM, while the machine is off
  nvm.fastboot.boot_image:
    state: captured
    store: /var/lib/fuse-store
    machine: "{{ inventory_hostname }}"
    device: /var/lib/machines/{{ inventory_hostname }}/nvdimm.img
    machine_disks: ["/dev/vg0/{{ inventory_hostname }}"]
    event: nightly
  delegate_to: hypervisor

- name: Capture from a machine that has resumed, while its swap area is inactive
  nvm.fastboot.boot_image:
    state: captured
    store: /var/lib/fuse-store
    machine: "{{ inventory_hostname }}"
    source_command: [ssh, "root@{{ ansible_host }}", cat /dev/NVM_SWAP]
  delegate_to: store
  throttle: 1

- name: Verify the last nightly image before December
  nvm.fastboot.boot_image:
    state: verified
    store: /var/lib/fuse-store
    machine: web01
    event: nightly
    before: "2026-12-01"
  register: checked

- name: Stage the version
  nvm.fastboot.boot_image:
    state: staged
    store: /var/lib/fuse-store
    image: "{{ checked.image.id }}"
    device: /dev/NVM_SWAP

- name: Put the version into a slot of a device, beside others
  nvm.fastboot.boot_image:
    state: staged
    store: /var/lib/fuse-store
    image: "{{ checked.image.id }}"
    device: /dev/pmem1
    into_slot: true

- name: Arm the device for the next boot
  nvm.fastboot.boot_image:
    state: armed
    store: /var/lib/fuse-store
    image: "{{ checked.image.id }}"
    device: /dev/NVM_SWAP
"""

RETURN = r"""
image:
  description: The version as returned by C(fuse-store show); null if there is none, as with V(captured) in check mode.
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
  description: The answer of C(fuse-store); null in check mode, or if there was nothing to do.
  returned: success
  type: dict
  sample: {id: 4f1c9a0d6be2417c8f5a1b2c3d4e5f60, device: /dev/pmem0, written: 41943040, held: a swap area}
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: refused
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: "image 4f1c9a0d6be2: resuming is not safe. filesystems_changed: ext4 8a… was written to after the capture."
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Select another version.
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
            into_slot={"type": "bool", "default": False},
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
    carry_out(module, lambda transaction: boot_image.apply(transaction, module.params), directory=None)


if __name__ == "__main__":
    main()
