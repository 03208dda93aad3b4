#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvm_info
short_description: Tell what hibernating into non-volatile memory finds on a machine
version_added: "0.1.0"
description:
  - Reports the sizes of ordinary and non-volatile memory, regions and namespaces, swap areas, the boot configuration, a
    pending hibernation image, and the size to reserve.
  - Reports every blocker, that is, everything that would stop a hibernation or lose the machine's state in it, each
    with a remedy.
  - Reads only. Without root it reports what everybody may read, and RV(blockers) says so.
options:
  device:
    description:
      - The swap device that hibernation uses or is to use.
    type: path
    default: /dev/NVM_SWAP
  dram_multiple:
    description:
      - How many times the size of ordinary memory RV(recommended_size) is.
    type: int
    choices: [1, 2]
    default: 1
extends_documentation_fragment:
  - nvm.fastboot.attributes.info
notes:
  - Looks into the initramfs of each installed kernel, which takes seconds, unless M(nvm.fastboot.boot_resume) found
    it complete and it has not changed since.
seealso:
  - module: nvm.fastboot.nvm_reservation
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.boot_resume
  - module: nvm.fastboot.hibernate
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Look at the machine
  nvm.fastboot.nvm_info:
  register: nvm

- name: Stop with the reasons where it cannot hibernate
  ansible.builtin.assert:
    that: nvm.ready
    fail_msg: "{{ nvm.blockers | map(attribute='message') | join(' ') }}"

- name: How large the reservation should be for twice the memory
  nvm.fastboot.nvm_info:
    dram_multiple: 2
  register: nvm
"""

RETURN = r"""
dram:
  description: Bytes of ordinary memory, without the NVM.
  returned: success
  type: int
  sample: 8589934592
nvm:
  description: Bytes of non-volatile memory, all regions together.
  returned: success
  type: int
  sample: 17179869184
recommended_size:
  description: Bytes to reserve, O(dram_multiple) times RV(dram), rounded up as the region needs it.
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
      description: Bytes that no namespace takes.
      type: int
      sample: 0
    provider:
      description: Where it comes from, V(nfit), V(e820), V(virtio) or V(other).
      type: str
      sample: nfit
    persistence:
      description: What the kernel says of its persistence.
      type: str
      sample: memory_controller
    labelled:
      description: Whether it has labels, so that namespaces can be made and removed.
      type: bool
      sample: true
    resource:
      description: Physical address.
      type: int
      sample: 4294967296
    align:
      description: What sizes of namespaces on it must be multiples of, in bytes.
      type: int
      sample: 16777216
    dimms:
      description: The DIMMs it spans.
      type: list
      elements: str
      sample: [nmem0]
    initialisable:
      description: Whether its DIMMs have room for labels that nobody has written yet.
      type: bool
      sample: false
    read_only:
      description: Whether the kernel refuses writes to it.
      type: bool
      sample: false
    volatile:
      description: Whether it loses its contents at power-off by its own word.
      type: bool
      sample: false
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
    - What is in memory now, in bytes. systemd hibernates if C(active_anon) is at most 98 % of the free swap. C(image)
      is the most an image made now can be before compression.
  returned: success
  type: dict
  sample: {active_anon: 104857600, image: 419430400}
bootloader:
  description: The bootloader, or none where it is not known.
  returned: success
  type: str
  sample: grub
initramfs:
  description: The tool that builds the initramfs, or none where it is not known.
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
    - C(running) - device of the running kernel, C(/sys/power/resume).
    - C(cmdline) - value on the running kernel's command line.
  returned: success
  type: dict
  sample:
    configured: [UUID=1b6e1c4e-7b0f-8e3f-9c41-2c9a3de0f3a5]
    running: "259:0"
    cmdline: UUID=1b6e1c4e-7b0f-8e3f-9c41-2c9a3de0f3a5
pending_image:
  description: The hibernation image on O(device) that waits to be resumed, or none.
  returned: success
  type: dict
  sample: {device: /dev/NVM_SWAP, type: swsuspend, uuid: 1b6e1c4e-7b0f-8e3f-9c41-2c9a3de0f3a5}
boot:
  description: C(efi), C(secure_boot) and C(lockdown) (none where the machine has no such thing).
  returned: success
  type: dict
  sample: {efi: true, secure_boot: false, lockdown: none}
kernel:
  description: Release of the running kernel.
  returned: success
  type: str
  sample: 6.1.0-56-amd64
systemd:
  description: Version of systemd, or none.
  returned: success
  type: int
  sample: 252
ndctl_installed:
  description: Whether C(ndctl) is there, which nvm_reservation needs to make namespaces.
  returned: success
  type: bool
  sample: true
blockers:
  description: What would stop or endanger a hibernation into O(device).
  returned: success
  type: list
  elements: dict
  contains:
    code:
      description: A stable word for it.
      type: str
      sample: swap_inactive
    message:
      description: What is in the way and why.
      type: str
      sample: /dev/NVM_SWAP is not in use as swap (/proc/swaps), so the kernel would not write an image to it.
    remedy:
      description: What helps.
      type: str
      sample: "Activate it: nvm_swap with state: present, or swapon /dev/NVM_SWAP."
ready:
  description: Whether there is no blocker.
  returned: success
  type: bool
  sample: false
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import answer
from ansible_collections.nvm.fastboot.plugins.module_utils._facts.report import report


def main():
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "path", "default": "/dev/NVM_SWAP"},
            "dram_multiple": {"type": "int", "choices": [1, 2], "default": 1},
        },
        supports_check_mode=True,
    )
    answer(module, lambda host: report(host, module.params["device"], module.params["dram_multiple"]))


if __name__ == "__main__":
    main()
