#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: fstab_swap
short_description: Manage the line in fstab for a swap area on NVM
version_added: "1.0.0"
description:
  - Keeps exactly one line for a swap area in C(/etc/fstab), which refers to it by UUID. All other bytes of the file,
    including comments, white space and malformed lines, are not changed.
  - A line belongs to the swap area if its type is C(swap) and it refers to the swap area by UUID, by label, by a link
    in C(/dev/disk/by-uuid) or C(/dev/disk/by-label), or by the path in O(device). An equivalent line, with options in
    another order or other white space, is kept. Further lines of the swap area are removed.
  - A line that the module wrote under another machine id, before the system was cloned, belongs to it as well. Such a line has
    a UUID of version 8 that no other device has, and that is not derived from the present machine id.
  - The line for a swap file has its path, because a UUID leads to devices only.
  - The file is replaced atomically, and verified.
options:
  device:
    description:
      - Path of the device with the swap area, or of a swap file.
    type: str
    default: /dev/NVM_SWAP
  uuid:
    description:
      - UUID of the swap area. The default is read from O(device).
    type: str
  options:
    description:
      - Mount options of the line. O(priority) sets the priority.
      - With the default, the machine boots without the device, after the 90 seconds that systemd waits for one. With a
        shorter C(x-systemd.device-timeout=), a machine that boots slowly may give up too early, run without the swap
        area, and therefore not hibernate.
    type: list
    elements: str
    default: [defaults, nofail]
  priority:
    description:
      - Priority of the swap area, V(0) to V(32767), or V(-1) to leave it to the kernel. Use the same value as for
        M(nvm.fastboot.nvm_swap), which has the same default.
    type: int
    default: 10
  path:
    description:
      - Path of the file. If it is C(/etc/fstab), systemd reloads it after a change (C(systemctl daemon-reload)).
    type: path
    default: /etc/fstab
  state:
    description:
      - V(present) keeps one line, V(absent) removes it. Removing an added line restores the file byte for byte.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: If the swap area does not exist, assumes that an earlier task would create it.
  diff_mode:
    details: Shows the file.
notes:
  - Requires root on the machine. Does not activate or deactivate the swap area, see M(nvm.fastboot.nvm_swap).
  - On failure, RV(code) is one of V(not_swap), V(device_unreadable), V(device_ephemeral), V(device_claimed),
    V(swap_file_unusable), V(uuid_invalid),
    V(machine_id_missing), V(options_invalid), V(priority_invalid), V(file_unreadable), V(file_not_writable), V(not_writable),
    V(root_is_overlay), V(filesystem_read_only),
    V(verify_failed) and V(command_failed).
seealso:
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.boot_resume
  - module: ansible.posix.mount
  - name: fstab(5)
    description: The format of the file.
    link: https://man7.org/linux/man-pages/man5/fstab.5.html
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Add the line for the swap area on the reserved NVM
  nvm.fastboot.fstab_swap:

- name: Do not wait for the device at boot
  nvm.fastboot.fstab_swap:
    options: [defaults, nofail, x-systemd.device-timeout=1s]

- name: Remove the line
  nvm.fastboot.fstab_swap:
    state: absent
"""

RETURN = r"""
path:
  description: Path of the file.
  returned: success
  type: str
  sample: /etc/fstab
uuid:
  description: UUID of the swap area; null with O(state=absent) if there is no swap area and O(uuid) is not set.
  returned: success
  type: str
  sample: 6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4
line:
  description: The line in the file; null with O(state=absent).
  returned: success
  type: str
  sample: UUID=6d9bd8a5-4cf6-8c37-a8fd-0d0c5a9be2f4 swap swap defaults,nofail,pri=10 0 0
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: not_swap
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: /dev/NVM_SWAP holds no swap area with a UUID, which its line in fstab needs.
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Create the swap area with nvm_swap first, or set the option uuid.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out_part
from ansible_collections.nvm.fastboot.plugins.module_utils._swap.fstab import PART


def main():
    carry_out_part(AnsibleModule(argument_spec=PART.options, supports_check_mode=True), PART)


if __name__ == "__main__":
    main()
