#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_resume
short_description: Have every installed kernel resume from one swap area
version_added: "1.0.0"
description:
  - Sets C(resume=) for this and future kernels in the bootloader, for all entries, recovery included. A boot without
    it would take the swap area into use and thereby destroy the image in it.
  - Has the initramfs of every installed kernel, and of future ones, hold the drivers that the device needs, which the
    tools leave out by themselves for NVM, and looks inside the built images for them.
  - Settings stand in files of their own (below C(/etc/default/grub.d), C(/etc/initramfs-tools) or
    C(/etc/dracut.conf.d)); files of others stay byte for byte as they are. A C(resume=) or C(resume_offset=) that
    others set is kept from the kernel as long as the settings are there.
  - Images and the generated configuration of the bootloader are made beside the old ones, verified, and put in place by
    renaming. If a later step fails, everything is put back.
  - Supports GRUB with C(/etc/default/grub.d) (Debian, BIOS and EFI), initramfs-tools and dracut.
options:
  device:
    description:
      - Path of the device with the swap area.
    type: str
    default: /dev/NVM_SWAP
  uuid:
    description:
      - UUID that the swap area must have. The default is read from O(device).
    type: str
  compression:
    description:
      - What the kernel compresses images with. V(none) suits NVM, whose speed a processor's compression seldom
        reaches; V(lz4) needs Linux 6.9 or later in all installed kernels.
      - The default leaves the choice to the kernel, and to what others set.
    type: str
    choices: [lzo, lz4, none]
  force:
    description:
      - Change what boots the machine even while O(device) holds a hibernation image, which may be lost by it.
    type: bool
    default: false
  state:
    description:
      - V(present) has the machine resume from O(device). V(absent) removes everything that V(present) made, C(resume=)
        first, and builds the images anew without it.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Says what would change without changing it. A swap area that does not exist yet is assumed to be
      made; its drivers are then known only in part.
    support: full
  diff_mode:
    description: Shows the settings and the bootloader's configuration before and after, and names the images.
    support: full
  idempotent:
    description: A second run changes nothing, and starts no command.
    support: full
  platform:
    description: Where it works.
    platforms: linux
    support: full
notes:
  - Needs root on the machine, and room in C(/boot) for the new images beside the old ones.
  - The running kernel knows nothing of it before the next boot, see RV(reboot_required).
  - Arguments that rule out resuming (C(nohibernate), C(noresume), C(hibernate=no)) are somebody's decision. They are
    refused with the name of the file, not removed.
  - On failure the returned C(code) is one of V(device_missing), V(device_unreadable), V(not_block_device), V(not_swap),
    V(uuid_invalid), V(uuid_missing), V(uuid_mismatch), V(machine_id_missing), V(image_pending), V(bootloader_unknown),
    V(bootloader_unsupported), V(bootloader_incomplete), V(settings_modified), V(conflicting_argument),
    V(compressor_unsupported), V(initramfs_unknown), V(initramfs_ambiguous), V(initramfs_unreadable),
    V(initramfs_incomplete), V(kernel_missing), V(kernel_modules_missing), V(driver_missing), V(boot_full),
    V(not_writable), V(verify_failed) and V(command_failed).
seealso:
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.fstab_swap
  - module: nvm.fastboot.nvm_info
  - name: Swap suspend
    description: The kernel's own documentation of hibernation.
    link: https://docs.kernel.org/power/swsusp.html
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Resume from the swap area on the reserved NVM
  nvm.fastboot.boot_resume:
  register: boot

- name: Reboot once, so that the running kernel knows it too
  ansible.builtin.reboot:
  when: boot.reboot_required

- name: Without compression, from another device
  nvm.fastboot.boot_resume:
    device: /dev/pmem1
    compression: none

- name: Take it back
  nvm.fastboot.boot_resume:
    state: absent
"""

RETURN = r"""
resume:
  description: The swap area as the kernel command line names it; null with O(state=absent).
  returned: success
  type: str
  sample: UUID=6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4
arguments:
  description: Everything the bootloader was told to pass; empty with O(state=absent).
  returned: success
  type: list
  elements: str
  sample: [resume=UUID=6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4, hibernate=nocompress]
bootloader:
  description: The bootloader; null with O(state=absent) where none is known.
  returned: success
  type: str
  sample: grub
initramfs:
  description: The tool that builds the initramfs; null with O(state=absent) where none is known.
  returned: success
  type: str
  sample: initramfs-tools
kernels:
  description: The installed kernels.
  returned: success
  type: list
  elements: dict
  contains:
    kernel:
      description: The version.
      type: str
      sample: 6.1.0-50-amd64
    initramfs:
      description: The image.
      type: str
      sample: /boot/initrd.img-6.1.0-50-amd64
    verified:
      description: Whether everything was found inside the image; in check mode, whether it already is. Null with
        O(state=absent).
      type: bool
      sample: true
drivers:
  description: The modules that the device needs, found by what drives it now.
  returned: success
  type: list
  elements: str
  sample: [nd_pmem, libnvdimm, nfit]
reboot_required:
  description: Whether the running kernel was started with other arguments than the next one will be.
  returned: success
  type: bool
  sample: true
code:
  description: What the module refused, as a stable word.
  returned: failure
  type: str
  sample: image_pending
message:
  description: The thing and the cause.
  returned: failure
  type: str
  sample: /dev/NVM_SWAP holds a hibernation image that nobody has resumed; what boots the machine is left alone until
    then.
remedy:
  description: What to do about it.
  returned: failure
  type: str
  sample: Install a kernel that has it, or remove this one. Booting it would destroy the image.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import resume
from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.identity import DEFAULT_DEVICE


def main():
    module = AnsibleModule(
        argument_spec={
            "device": {"type": "str", "default": DEFAULT_DEVICE},
            "uuid": {"type": "str"},
            "compression": {"type": "str", "choices": list(resume.COMPRESSIONS)},
            "force": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    options = dict(module.params)
    if options.pop("state") == "present":
        carry_out(module, lambda transaction: resume.present(transaction, **options))
    else:
        carry_out(module, lambda transaction: resume.absent(transaction, options["device"], options["force"]))


if __name__ == "__main__":
    main()
