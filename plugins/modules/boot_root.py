#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_root
short_description: Prepare filesystems for snapshots, such as a read-only root whose changes stay in memory
version_added: "1.0.0"
description:
  - With O(mode=overlay), has all installed kernels boot with an overlay in memory above the root filesystem, which is then mounted
    read-only. The machine comes back to the same state at each boot, and any of its snapshots can be resumed as long as the disk is
    not changed.
  - The initramfs tool makes the overlay, initramfs-tools with the package C(overlayroot), dracut with its module C(overlayfs). The module
    sets the kernel arguments in the bootloader and the settings of the tool.
  - Mounts other filesystems in C(/etc/fstab) read-only, by additions to their mount units; that file itself stays as it is.
  - Builds each initramfs and the bootloader's configuration again if O(sources) have changed since. They are built beside the old ones,
    verified, and renamed. If a later step fails, all changes are undone.
  - Supports GRUB with C(/etc/default/grub.d) (Debian, BIOS and EFI), initramfs-tools and dracut.
options:
  mode:
    description:
      - V(overlay) - a read-only root filesystem with an overlay in memory. All other filesystems but O(data_mounts) are mounted
        read-only, too.
      - V(guarded) - a writable root filesystem. Only filesystems whose changes since a snapshot are not seen are mounted read-only, such
        as the EFI system partition.
      - V(writable) - removes all of this. With V(guarded) and V(writable), if the running system is on the overlay, only takes the
        arguments out of the bootloader's configuration on the disk; run the module again after the reboot.
    type: str
    choices: [overlay, guarded, writable]
    default: writable
  data_mounts:
    description: Mount points in C(/etc/fstab) that stay writable. They must not be mounted in a snapshot.
    type: list
    elements: path
    default: []
  sources:
    description:
      - Files that others have written for the initramfs or for the bootloader, such as hooks. Missing files are left out.
      - An initramfs that was built from other content is built again. Without O(sources), those that were built from some before.
    type: list
    elements: path
    default: []
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: Assumes that an earlier task would install the package C(overlayroot) if it is missing.
  diff_mode:
    details: Shows the settings, and names the images.
notes:
  - Requires root on the machine, and free space in C(/boot) for the new images beside the old ones.
  - The running system is on what it was booted with, see RV(running) and RV(reboot_required).
  - Kernel arguments of O(mode=overlay) include C(fsck.mode=skip), because a check writes to the filesystem at each boot, even if there is
    nothing to repair. It counts for all filesystems; journals are replayed as before.
  - With dracut the changes have a fifth of the memory (the filesystem at C(/run)), with C(overlayroot) half of it.
  - On failure, RV(code) is one of V(overlay_missing), V(root_is_overlay), V(filesystem_read_only),
    V(overlay_unknown), V(conflicting_argument),
    V(bootloader_unknown), V(bootloader_unsupported), V(bootloader_incomplete), V(settings_modified), V(initramfs_unknown),
    V(initramfs_ambiguous), V(initramfs_unreadable), V(initramfs_incomplete), V(kernel_modules_missing), V(boot_full),
    V(boot_not_mounted), V(boot_elsewhere), V(not_writable) and
    V(command_failed).
seealso:
  - module: nvm.fastboot.boot_slots
  - module: nvm.fastboot.boot_resume
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Boot with an overlay in memory; the database's filesystem stays writable
  nvm.fastboot.boot_root:
    mode: overlay
    data_mounts: [/srv/database]
  register: root

- name: Reboot to activate it
  ansible.builtin.reboot:
  when: root.reboot_required

- name: Boot with a writable root again
  nvm.fastboot.boot_root:
    mode: writable
"""

RETURN = r"""
mode:
  description: As in O(mode).
  returned: success
  type: str
  sample: overlay
running:
  description: What the running system has, V(overlay) or V(writable).
  returned: success
  type: str
  sample: writable
reboot_required:
  description: Whether the running system is on an overlay, and O(mode) is another one, or the reverse.
  returned: success
  type: bool
  sample: true
initramfs:
  description: The initramfs tool.
  returned: success
  type: str
  sample: dracut
rebuilt:
  description: The images that were built; in check mode, that would be.
  returned: success
  type: list
  elements: str
  sample: [/boot/initrd.img-6.12.107+deb13-amd64]
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: root_is_overlay
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: "The root filesystem is an overlay in memory: what is written to it is lost at the next boot."
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Run the module with mode=writable, reboot, and run it again.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import root
from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out


def main():
    module = AnsibleModule(
        argument_spec={
            "mode": {"type": "str", "choices": list(root.MODES), "default": "writable"},
            "data_mounts": {"type": "list", "elements": "path", "default": []},
            "sources": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    options = module.params
    carry_out(module, lambda transaction: root.apply(transaction, options["mode"], options["sources"], options["data_mounts"]))


if __name__ == "__main__":
    main()
