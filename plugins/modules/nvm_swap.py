#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvm_swap
short_description: Create a swap area with a stable UUID on NVM
version_added: "1.0.0"
description:
  - Creates a swap area with a stable UUID and label on a block device, by default C(/dev/NVM_SWAP), and activates it.
  - C(fstab) and C(resume=) refer to the swap area by its UUID. If the UUID changed, the machine would hibernate without
    an error and lose its state at the next boot.
  - A correct swap area is not written to. A swap area with another UUID or label is renamed, not formatted.
  - A device that holds a hibernation image, a filesystem, a partition table or other contents known to C(blkid) is
    refused without O(force=true). A device that is mounted or in other use is always refused, and so is one that cannot keep
    an image over a power cycle (zram, a loop device, dm-crypt with a random key), or that C(crypttab), C(zram-generator.conf) or a
    mount in C(fstab) gives to another use.
  - With O(encryption=luks), the device holds LUKS2, and the swap area is in the mapping C(/dev/mapper/NAME), with the last part of
    O(device) as name. The mapping has a line in C(/etc/crypttab), and is opened by the initramfs before the machine resumes. All
    other modules may be given O(device) or the mapping.
  - LUKS that this module did not make is never written to, also with O(force=true).
options:
  device:
    description:
      - Path of the block device, or of a symbolic link to it.
    type: str
    default: /dev/NVM_SWAP
  encryption:
    description:
      - V(luks) encrypts the swap area, and with it the hibernation image. V(none) does not, and is refused where the device is
        encrypted (V(encrypted)).
      - A swap area in the clear is replaced by an encrypted one if it is that of this machine and holds no image.
    type: str
    choices: [none, luks]
    default: none
  unlock:
    description:
      - What opens the mapping at boot.
      - V(passphrase) asks a person at the console. The machine resumes when it was entered.
      - V(key_file) uses the file O(key_file), of which the initramfs has a copy. Only root can read the initramfs then. Who has the disk
        with C(/boot) has the key; the NVM alone cannot be read.
      - V(tpm2) has the machine's TPM 2.0 give the key, as long as the state of Secure Boot is the same (PCR 7). O(passphrase) opens the
        mapping if the TPM does not. It needs dracut.
    type: str
    choices: [passphrase, key_file, tpm2]
    default: passphrase
  passphrase:
    description:
      - A passphrase that opens the device. It is needed to encrypt a device, except with O(unlock=key_file), and to open one that is
        closed. It is given to commands on standard input only.
      - An encrypted device that is open is not compared with it, and its passphrase is not changed.
    type: str
  key_file:
    description:
      - Path of the key file on the machine, with O(unlock=key_file). Only root may be able to read it.
      - If it does not exist, it is made of 64 random bytes. A file that was made is removed with O(state=absent).
      - The default is C(/etc/cryptsetup-keys.d/NAME.key).
    type: path
  uuid:
    description:
      - UUID of the swap area.
      - The default is derived from the machine id and the last part of O(device). It is the same in every run, and
        different on every machine.
    type: str
  label:
    description:
      - Label of the swap area, at most 15 bytes.
    type: str
    default: NVM_SWAP
  priority:
    description:
      - Priority among the active swap areas, V(0) to V(32767); the highest is used first. V(-1) leaves it to the kernel,
        which assigns negative priorities in descending order.
      - The default is higher than priorities chosen by the kernel, because NVM is faster than a disk, and lower than the
        usual priority of zram, because pages in zram leave space on the NVM for the image.
      - The priority does not select the swap area to hibernate to. C(resume=) does, see M(nvm.fastboot.boot_resume).
      - To change the priority of an active swap area, its pages are moved back to memory first.
    type: int
    default: 10
  active:
    description:
      - Whether the swap area is active.
    type: bool
    default: true
  force:
    description:
      - Format the device although it holds other contents or a swap header that does not match the device. All contents
        are lost, including a hibernation image.
      - With O(state=absent), remove a swap area that has another UUID or holds a hibernation image.
      - A correct swap area is not formatted.
    type: bool
    default: false
  state:
    description:
      - V(present) creates the swap area. V(absent) deactivates it and erases its signature, and nothing else.
      - Of an encrypted device, V(absent) also closes the mapping, removes its line from C(/etc/crypttab), and erases the LUKS header with
        all keys, after the same checks. What was on the device cannot be read again.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: If the device does not exist, assumes that an earlier task would create it.
  diff_mode:
    details: Shows type, UUID, label, size and priority of the swap area, the LUKS header and C(/etc/crypttab). No key or passphrase.
notes:
  - Requires root on the machine, and C(mkswap), C(swaplabel), C(blkid), C(wipefs), C(swapon) and C(swapoff) of
    util-linux. No command runs if nothing has to change.
  - With O(encryption=luks), requires the packages in RV(packages_missing), and at least 32 MiB. The LUKS header takes 16 MiB.
  - On failure, RV(code) is one of V(device_missing), V(not_block_device), V(device_invalid),
    V(device_too_small), V(device_read_only), V(device_unreadable), V(device_in_use), V(device_changed),
    V(device_ephemeral), V(device_claimed),
    V(holds_filesystem), V(header_mismatch), V(image_pending), V(not_ours), V(swap_needed), V(machine_id_missing),
    V(uuid_invalid), V(label_invalid), V(priority_invalid), V(verify_failed), V(command_failed), and, for encryption,
    V(encrypted), V(cryptsetup_missing), V(passphrase_missing), V(passphrase_invalid), V(passphrase_wrong), V(key_missing), V(key_wrong),
    V(key_file_invalid), V(key_exposed), V(tpm2_unsupported), V(header_damaged), V(mapping_elsewhere), V(mapping_closed),
    V(initramfs_unknown), V(initramfs_ambiguous) and V(root_is_overlay).
seealso:
  - module: nvm.fastboot.nvm_reservation
  - module: nvm.fastboot.fstab_swap
  - module: nvm.fastboot.boot_resume
  - name: mkswap(8)
    description: The format and its limits.
    link: https://man7.org/linux/man-pages/man8/mkswap.8.html
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Create swap on the reserved NVM
  nvm.fastboot.nvm_swap:

- name: Create swap on the reserved NVM with the highest priority
  nvm.fastboot.nvm_swap:
    priority: 32767

- name: Create swap with a given UUID on a given device
  nvm.fastboot.nvm_swap:
    device: /dev/pmem1
    uuid: 6f1c1e1e-9d4b-4a57-9f0e-2f6d0a6f2b11
    label: FAST

- name: Encrypt the swap area with a key file, and a passphrase in case it is lost
  nvm.fastboot.nvm_swap:
    encryption: luks
    unlock: key_file
    passphrase: "{{ vault_nvm_passphrase }}"

- name: Deactivate and remove the swap area
  nvm.fastboot.nvm_swap:
    state: absent
"""

RETURN = r"""
device:
  description: The option O(device).
  returned: success
  type: str
  sample: /dev/NVM_SWAP
block_device:
  description: Kernel name of the device; null if it does not exist.
  returned: success
  type: str
  sample: /dev/pmem0
swap_device:
  description: The device with the swap area, which is O(device), or the mapping over it; null if an encrypted one was removed.
  returned: success
  type: str
  sample: /dev/mapper/NVM_SWAP
luks_uuid:
  description: UUID of the LUKS header; null without encryption.
  returned: success
  type: str
  sample: 9a0c7d0e-2c1b-8f52-8f63-1d9a4c1c8b1f
key_file:
  description: Path of the key file; null without one.
  returned: success
  type: str
  sample: /etc/cryptsetup-keys.d/NVM_SWAP.key
packages_missing:
  description: Debian packages that are to be installed for O(encryption=luks). Not empty in check mode only.
  returned: success
  type: list
  elements: str
  sample: [cryptsetup-bin, cryptsetup-initramfs]
uuid:
  description: UUID of the swap area; null with O(state=absent).
  returned: success
  type: str
  sample: 6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4
label:
  description: Label of the swap area; null with O(state=absent).
  returned: success
  type: str
  sample: NVM_SWAP
size:
  description: Usable size in bytes; null with O(state=absent), or if the device does not exist.
  returned: success
  type: int
  sample: 1073737728
active:
  description: Whether the swap area is active.
  returned: success
  type: bool
  sample: true
priority:
  description: Priority of the active swap area; null if it is not active.
  returned: success
  type: int
  sample: 10
signature:
  description:
    - Contents of the device before the run, as a type of C(blkid) (V(swap), V(swsuspend) for a hibernation image,
      V(ext4)); null if it was empty.
  returned: success
  type: str
  sample: swap
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: image_pending
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: /dev/NVM_SWAP (/dev/pmem0) holds a hibernation image that was not resumed.
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: To keep the image, copy it off the device first. To discard it, run nvm_swap with force=true.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out_part
from ansible_collections.nvm.fastboot.plugins.module_utils._encrypted.area import PART


def main():
    carry_out_part(AnsibleModule(argument_spec=PART.options, supports_check_mode=True), PART)


if __name__ == "__main__":
    main()
