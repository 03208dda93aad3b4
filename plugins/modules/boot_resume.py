#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_resume
short_description: Configure all installed kernels to resume from a swap area
version_added: "1.0.0"
description:
  - Sets C(resume=) in the bootloader, for current and future kernels and for all entries, including recovery. A boot
    without C(resume=) activates the swap area, which destroys the image in it.
  - Includes the device's drivers in the initramfs of all current and future kernels, and verifies the content of the
    built images. For NVM, the initramfs tools omit the drivers by default.
  - Writes files of its own in C(/etc/default/grub.d), C(/etc/initramfs-tools) or C(/etc/dracut.conf.d). Other files are
    not changed, except the entries of systemd-boot or of C(blscfg) and C(/etc/kernel/cmdline), or C(/boot/refind_linux.conf), or
    C(extlinux.conf), or C(cmdline.txt) and C(/etc/default/raspi-extra-cmdline), or the boot options of the EFI firmware
    that start a kernel, where the machine boots by these; O(state=absent) brings them back byte for byte.
  - If the swap area is encrypted (LUKS), the images also open its mapping, with the line in C(/etc/crypttab) and its key file. Programs,
    line and key are verified in the built images. An image with a key can be read by root only.
  - While these settings exist, C(resume=) and C(resume_offset=) from other settings do not reach the kernel, from the
    bootloader's settings or from those of initramfs-tools. Other settings in a built image that keep it from resuming are
    refused with the name of the file (V(initramfs_overridden)).
  - Builds the images and the bootloader's configuration beside the old ones, verifies them, and renames them. If a later
    step fails, all changes are undone.
  - Supports GRUB with C(/etc/default/grub.d) (Debian, BIOS and EFI) and with C(blscfg), systemd-boot with entries in
    C(loader/entries), rEFInd with C(/boot/refind_linux.conf), Syslinux and U-Boot with C(extlinux.conf), the firmware
    of the Raspberry Pi with C(cmdline.txt), the kernel's EFI stub, started by a boot option of the firmware, and unified
    kernel images that kernel-install makes, started by systemd-boot or the firmware; initramfs-tools and dracut. The
    bootloader is the one that started the running kernel.
options:
  device:
    description:
      - Path of the device with the swap area, or with a LUKS mapping that has it, or of a swap file (any path that is not below
        C(/dev), see M(nvm.fastboot.swap_file)).
      - For a swap file, C(resume=) names its filesystem, and C(resume_offset=) the page of its first block, see RV(offset). If the file
        is moved, defragmented or created again, run the module again; until then, M(nvm.fastboot.nvm_info) has the blocker
        C(swap_file_moved), and M(nvm.fastboot.hibernate) refuses.
    type: str
    default: /dev/NVM_SWAP
  uuid:
    description:
      - Required UUID of the swap area. The default is read from O(device).
    type: str
  compression:
    description:
      - Compression of the image. V(none) suits NVM, which is usually faster than the compression. V(lz4) requires that all
        installed kernels are Linux 6.9 or later.
      - The default is the kernel's default, or what other settings configure.
    type: str
    choices: [lzo, lz4, none]
  force:
    description:
      - Change the boot configuration although O(device) holds a hibernation image. The image may be lost.
    type: bool
    default: false
  state:
    description:
      - V(present) configures the machine to resume from O(device). V(absent) removes this configuration, C(resume=) first,
        and rebuilds the images.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: If the swap area does not exist, assumes that an earlier task would create it. The list of drivers is then
      incomplete.
  diff_mode:
    details: Shows the settings and the bootloader's configuration, and names the images.
  idempotent:
    details: A second run starts no commands.
notes:
  - Requires root on the machine, and free space in C(/boot) for the new images beside the old ones.
  - The running kernel uses the configuration only after the next boot, see RV(reboot_required).
  - Kernel arguments that prevent resuming (C(nohibernate), C(noresume), C(hibernate=no)) are refused with the name of the
    file, not removed.
  - On failure, RV(code) is one of V(swap_file_missing), V(swap_file_invalid), V(swap_file_unusable), V(filesystem_unsupported),
    V(device_missing), V(device_unreadable), V(not_block_device), V(not_swap),
    V(uuid_invalid), V(uuid_missing), V(uuid_mismatch), V(machine_id_missing), V(image_pending),
    V(bootloader_unknown), V(bootloader_unsupported), V(bootloader_incomplete), V(firmware_refused), V(settings_modified),
    V(conflicting_argument), V(compressor_unsupported), V(initramfs_unknown), V(initramfs_ambiguous),
    V(initramfs_unreadable), V(initramfs_incomplete), V(initramfs_overridden), V(boot_not_mounted), V(boot_elsewhere),
    V(root_is_overlay), V(filesystem_read_only), V(kernel_missing), V(kernel_modules_missing), V(driver_missing), V(boot_full),
    V(settings_remain), V(not_writable), V(verify_failed) and V(command_failed).
seealso:
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.fstab_swap
  - module: nvm.fastboot.nvm_info
  - name: Swap suspend
    description: The kernel's documentation of hibernation.
    link: https://docs.kernel.org/power/swsusp.html
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Resume from the swap area on the reserved NVM
  nvm.fastboot.boot_resume:
  register: boot

- name: Reboot to activate the configuration
  ansible.builtin.reboot:
  when: boot.reboot_required

- name: Resume from another device, without compression
  nvm.fastboot.boot_resume:
    device: /dev/pmem1
    compression: none

- name: Remove the configuration
  nvm.fastboot.boot_resume:
    state: absent
"""

RETURN = r"""
resume:
  description: The swap area as on the kernel command line; null with O(state=absent).
  returned: success
  type: str
  sample: UUID=6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4
offset:
  description: For a swap file, the page of the device at which it begins; null for a device, or while the file does not exist.
  returned: success
  type: int
  sample: 3471360
arguments:
  description: Kernel arguments in the bootloader's settings; empty with O(state=absent).
  returned: success
  type: list
  elements: str
  sample: [resume=UUID=6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4, hibernate=nocompress]
bootloader:
  description: The bootloader; with O(state=absent), null if none is recognised and none has settings of the collection.
  returned: success
  type: str
  sample: grub
initramfs:
  description: The initramfs tool; with O(state=absent), null if none is recognised.
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
      description: Version of the kernel.
      type: str
      sample: 6.1.0-50-amd64
    initramfs:
      description: Path of its initramfs.
      type: str
      sample: /boot/initrd.img-6.1.0-50-amd64
    verified:
      description: Whether the image is complete, and the kernel built with hibernation; in check mode, whether it is so now. Null with
        O(state=absent).
      type: bool
      sample: true
drivers:
  description: Kernel modules of the device.
  returned: success
  type: list
  elements: str
  sample: [nd_pmem, libnvdimm, nfit]
reboot_required:
  description: Whether the running kernel has other arguments than the next boot, or resumes from another device.
  returned: success
  type: bool
  sample: true
reboot_in_vain:
  description:
    - Why another reboot does not help; null if it may. The machine was rebooted since its configuration was last changed, and
      RV(reboot_required) is still true, because something else than the configured bootloader has started its kernel.
  returned: success
  type: str
  sample: null
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: image_pending
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: /dev/NVM_SWAP holds a hibernation image that was not resumed; the boot configuration was not changed.
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Resume the image, or copy it off the device. Set force=true to discard it.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.resume import PART
from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out_part


def main():
    carry_out_part(AnsibleModule(argument_spec=PART.options, supports_check_mode=True), PART)


if __name__ == "__main__":
    main()
