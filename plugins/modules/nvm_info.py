#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvm_info
short_description: Gather facts and blockers for hibernation to non-volatile memory
version_added: "1.0.0"
description:
  - Reports the sizes of ordinary and non-volatile memory (NVM), regions and namespaces, swap areas, the boot
    configuration, a pending hibernation image, and the recommended size of a reservation.
  - Reports every blocker with a remedy. A blocker is a condition that would prevent a hibernation, or lose the machine's
    state.
  - Changes nothing. Without root, facts that only root can read are missing, and RV(blockers) contains C(not_root).
options:
  device:
    description:
      - The swap device for hibernation, or the path of a swap file.
    type: path
    default: /dev/NVM_SWAP
  dram_multiple:
    description:
      - Factor for RV(recommended_size), relative to the ordinary memory.
    type: int
    choices: [1, 2]
    default: 1
  ignore_blockers:
    description:
      - Codes of blockers that are not looked for. RV(ready) does not depend on them.
      - Without V(initramfs_drivers) and V(initramfs_overridden), no initramfs is read.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - nvm.fastboot.attributes.info
notes:
  - Reads the initramfs of each installed kernel, which takes seconds. An initramfs that M(nvm.fastboot.boot_resume)
    verified and that did not change since is not read again.
seealso:
  - module: nvm.fastboot.nvm_reservation
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.boot_resume
  - module: nvm.fastboot.hibernate
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Gather facts
  nvm.fastboot.nvm_info:
  register: nvm

- name: Fail with the reasons if the machine cannot hibernate
  ansible.builtin.assert:
    that: nvm.ready
    fail_msg: "{{ nvm.blockers | map(attribute='message') | join(' ') }}"

- name: Look for everything but what the initramfs of each kernel lacks, which takes seconds
  nvm.fastboot.nvm_info:
    ignore_blockers: [initramfs_drivers, initramfs_overridden]
  register: nvm

- name: Get the size of a reservation for twice the memory
  nvm.fastboot.nvm_info:
    dram_multiple: 2
  register: nvm
"""

RETURN = r"""
dram:
  description: Bytes of ordinary memory, without NVM.
  returned: success
  type: int
  sample: 8589934592
nvm:
  description: Bytes of non-volatile memory, all regions together.
  returned: success
  type: int
  sample: 17179869184
recommended_size:
  description: Recommended size of a reservation in bytes, O(dram_multiple) times RV(dram), rounded up to the alignment of
    the region.
  returned: success
  type: int
  sample: 8589934592
regions:
  description: The regions of non-volatile memory.
  returned: success
  type: list
  elements: dict
  contains:
    dev:
      description: Name of the region.
      type: str
      sample: region0
    size:
      description: Bytes.
      type: int
      sample: 17179869184
    available:
      description: Size of the largest namespace that can be created, in bytes; 0 without labels.
      type: int
      sample: 0
    provider:
      description: Origin of the region, V(nfit), V(e820), V(virtio) or V(other).
      type: str
      sample: nfit
    persistence:
      description: Persistence domain reported by the kernel.
      type: str
      sample: memory_controller
    labelled:
      description: Whether it has labels, so that namespaces can be created and destroyed.
      type: bool
      sample: true
    resource:
      description: Physical address.
      type: int
      sample: 4294967296
    align:
      description: Alignment of namespace sizes, in bytes.
      type: int
      sample: 16777216
    dimms:
      description: The DIMMs of the region.
      type: list
      elements: str
      sample: [nmem0]
    initialisable:
      description: Whether its DIMMs have an uninitialised label area.
      type: bool
      sample: false
    read_only:
      description: Whether the kernel refuses writes to it.
      type: bool
      sample: false
    volatile:
      description: Whether the kernel reports it as volatile.
      type: bool
      sample: false
    security:
      description: State of each of its DIMMs that reports one, as C(ndctl list --dimms) shows it. V(disabled) is one without a
        passphrase.
      type: dict
      sample: {nmem0: disabled}
    namespaces:
      description: Its namespaces, each with C(dev), C(region), C(name), C(mode), C(size), C(uuid), C(blockdev),
        C(resource), C(labelled).
      type: list
      elements: dict
      sample:
        - dev: namespace0.0
          name: NVM_SWAP
          mode: raw
          size: 8589934592
          uuid: 5b2f7d0c-1d8e-4f58-9c57-2b1d2f3f7c11
          blockdev: pmem0
swaps:
  description: The active swap areas, sizes in bytes.
  returned: success
  type: list
  elements: dict
  sample:
    - {path: /dev/pmem0, kind: partition, size: 8589930496, used: 0, priority: 10}
memory:
  description:
    - Use of memory, in bytes. systemd hibernates if C(active_anon) is at most 98 % of the free swap. C(image) is the
      maximum size of an image made now, before compression.
  returned: success
  type: dict
  sample: {active_anon: 104857600, image: 419430400}
bootloader:
  description: The bootloader; null if unknown.
  returned: success
  type: str
  sample: grub
initramfs:
  description: The tool that builds the initramfs; null if unknown.
  returned: success
  type: str
  sample: initramfs-tools
kernels:
  description: The installed kernels.
  returned: success
  type: list
  elements: str
  sample: [6.1.0-56-amd64]
resume:
  description:
    - C(configured) - values of C(resume=) in the generated boot configuration.
    - C(running) - resume device of the running kernel, C(/sys/power/resume).
    - C(cmdline) - value on the running kernel's command line.
  returned: success
  type: dict
  sample:
    configured: [UUID=1b6e1c4e-7b0f-8e3f-9c41-2c9a3de0f3a5]
    running: "259:0"
    cmdline: UUID=1b6e1c4e-7b0f-8e3f-9c41-2c9a3de0f3a5
swap_file:
  description:
    - Where the swap file in O(device) is; null for a device, or if the kernel cannot use the file.
    - C(block_device) - kernel name of the device of its filesystem.
    - C(offset) - page of the device at which it begins.
    - C(running) - where the running kernel looks for the image, C(/sys/power/resume_offset).
  returned: success
  type: dict
  sample: {block_device: /dev/vda1, offset: 3471360, running: 3471360}
pending_image:
  description: The pending hibernation image on O(device); null if there is none.
  returned: success
  type: dict
  sample: {device: /dev/NVM_SWAP, type: swsuspend, uuid: 1b6e1c4e-7b0f-8e3f-9c41-2c9a3de0f3a5}
boot:
  description: C(efi), C(secure_boot) and C(lockdown); the latter two are null if not supported.
  returned: success
  type: dict
  sample: {efi: true, secure_boot: false, lockdown: none}
kernel:
  description: Release of the running kernel.
  returned: success
  type: str
  sample: 6.1.0-56-amd64
systemd:
  description: Version of systemd; null if unknown.
  returned: success
  type: int
  sample: 252
ndctl_installed:
  description: Whether C(ndctl) is installed, which M(nvm.fastboot.nvm_reservation) needs to create namespaces.
  returned: success
  type: bool
  sample: true
blockers:
  description: Conditions that would prevent a hibernation to O(device), or lose the machine's state.
  returned: success
  type: list
  elements: dict
  contains:
    code:
      description: Stable word for the blocker.
      type: str
      sample: swap_inactive
    message:
      description: The condition and its cause.
      type: str
      sample: /dev/NVM_SWAP is not in use as swap (/proc/swaps), so the kernel cannot write an image to it.
    remedy:
      description: How to fix it.
      type: str
      sample: Run nvm_swap with state=present, or swapon /dev/NVM_SWAP.
ready:
  description: Whether there are no blockers.
  returned: success
  type: bool
  sample: false
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: dram_unknown
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: /proc/zoneinfo does not contain the size of the memory.
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Set the option size to a number of bytes instead of auto.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import answer
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.report import report


def main():
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "path", "default": "/dev/NVM_SWAP"},
            "dram_multiple": {"type": "int", "choices": [1, 2], "default": 1},
            "ignore_blockers": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    answer(module, lambda host: report(host, given["device"], given["dram_multiple"], given["ignore_blockers"]))


if __name__ == "__main__":
    main()
