#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: swap_file
short_description: Create a swap file to hibernate to
version_added: "1.0.0"
description:
  - Creates a swap file with a stable UUID and label on an ext4, XFS or btrfs filesystem, and activates it. A machine without NVM can
    hibernate into it.
  - The file is for root alone, and all its blocks are placed on the device; on btrfs it is not copied on write. It is formatted under
    another name, and takes its own name when it is complete.
  - Of a swap file, the kernel knows the device of the filesystem and the page of the first block, RV(offset).
    M(nvm.fastboot.boot_resume) passes both. A file that is too small is enlarged at its end, so that this page stays the same.
  - A file that is no swap area is never overwritten or removed, with O(force) or without.
options:
  path:
    description:
      - Path of the swap file. Its directory has to exist.
      - On btrfs, a subvolume with an active swap file cannot be snapshotted. Give a path in a subvolume of its own if the others are.
    type: str
    default: /swapfile
  size:
    description:
      - Least size of the file, as bytes, or as a number with a binary unit such as V(16G). A larger file is kept as it is.
      - V(auto) is O(dram_multiple) times the size of the ordinary memory.
    type: str
    default: auto
  dram_multiple:
    description:
      - Size as a multiple of the ordinary memory, with O(size=auto).
    type: int
    choices: [1, 2]
    default: 1
  uuid:
    description:
      - UUID of the swap area.
      - The default is derived from the machine id and the last part of O(path). It is the same in every run, and different on every
        machine.
    type: str
  label:
    description:
      - Label of the swap area, at most 15 bytes.
    type: str
    default: SWAP_FILE
  priority:
    description:
      - Priority among the active swap areas, V(0) to V(32767); the highest is used first. V(-1) leaves it to the kernel.
      - It does not select the swap area to hibernate to. C(resume=) and C(resume_offset=) do.
    type: int
    default: 10
  active:
    description:
      - Whether the swap area is active.
    type: bool
    default: true
  force:
    description:
      - Format a swap file that holds a hibernation image, or a swap header that does not match the file. The image is lost.
      - With O(state=absent), remove a swap file that has another UUID or holds a hibernation image.
    type: bool
    default: false
  state:
    description:
      - V(present) creates the swap file. V(absent) deactivates and removes it.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: RV(offset) is null while the file does not exist.
  diff_mode:
    details: Shows type, UUID, label, size and priority of the swap area.
notes:
  - Requires root on the machine, and C(mkswap), C(swaplabel), C(blkid), C(swapon) and C(swapoff) of util-linux. No command runs if
    nothing has to change.
  - On failure, RV(code) is one of V(swap_file_invalid), V(filesystem_unsupported), V(swap_file_unusable), V(device_missing),
    V(device_unreadable), V(device_ephemeral), V(device_claimed), V(root_is_overlay), V(filesystem_read_only), V(no_space), V(not_swap),
    V(header_mismatch), V(image_pending), V(not_ours), V(swap_needed), V(size_invalid), V(dram_unknown), V(machine_id_missing),
    V(uuid_invalid), V(label_invalid), V(priority_invalid), V(not_writable), V(verify_failed) and V(command_failed).
seealso:
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.fstab_swap
  - module: nvm.fastboot.boot_resume
  - name: swapon(8)
    description: What a filesystem has to offer to swap files.
    link: https://man7.org/linux/man-pages/man8/swapon.8.html
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Create a swap file as large as the memory
  nvm.fastboot.swap_file:

- name: Create a swap file of 16 GiB on another filesystem
  nvm.fastboot.swap_file:
    path: /srv/swapfile
    size: 16G

- name: Activate it at every boot
  nvm.fastboot.fstab_swap:
    device: /swapfile

- name: Configure all kernels to resume from it
  nvm.fastboot.boot_resume:
    device: /swapfile

- name: Deactivate and remove the swap file
  nvm.fastboot.swap_file:
    state: absent
"""

RETURN = r"""
path:
  description: The option O(path).
  returned: success
  type: str
  sample: /swapfile
block_device:
  description: Kernel name of the device of the filesystem; null with O(state=absent).
  returned: success
  type: str
  sample: /dev/vda1
offset:
  description: The page of the device at which the file begins, for C(resume_offset=); null if the file does not exist.
  returned: success
  type: int
  sample: 3471360
uuid:
  description: UUID of the swap area; null with O(state=absent).
  returned: success
  type: str
  sample: 6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4
label:
  description: Label of the swap area; null with O(state=absent).
  returned: success
  type: str
  sample: SWAP_FILE
size:
  description: Usable size in bytes; null with O(state=absent).
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
    - What the file held before the run, V(swap) or V(swsuspend) for a hibernation image; null if there was no swap file.
  returned: success
  type: str
  sample: swap
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: not_swap
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: /swapfile is a file that is no swap area. It is never overwritten.
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Give another path, or remove the file, if it is not needed.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out_part
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.file_area import PART


def main():
    carry_out_part(AnsibleModule(argument_spec=PART.options, supports_check_mode=True), PART)


if __name__ == "__main__":
    main()
