#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvm_reservation
short_description: Reserve non-volatile memory under a stable device name
version_added: "1.0.0"
description:
  - Reserves non-volatile memory (NVM) as large as the memory of the machine, or of a given size, and gives it a device
    name that is the same at every boot, such as C(/dev/NVM_SWAP). M(nvm.fastboot.nvm_swap) creates a swap area on it.
  - On NVDIMMs with labels, creates a namespace named O(name), and destroys it with O(state=absent). Other namespaces are
    never changed.
  - On NVDIMMs without labels, uses the namespace that the kernel creates for a whole region. Such a namespace can neither
    be resized nor destroyed, see RV(why_not_resizable).
  - Without NVM, and with O(volatile_ok=true), turns ordinary memory into NVM with the kernel argument C(memmap=).
options:
  name:
    description:
      - Name of the reservation, of its link in C(/dev), and of its namespace if that has labels.
      - 1 to 63 letters, digits, underscores, dots and hyphens.
    type: str
    default: NVM_SWAP
  size:
    description:
      - Minimum size, as a number of bytes, or a number with a binary unit (V(512M), V(16G), V(1.5T)).
      - V(auto) is O(dram_multiple) times the ordinary memory of the machine. With C(memmap=), which takes ordinary memory
        away, it is O(dram_multiple) times the remaining memory, and at most half of the total.
      - A reservation that exists and is larger is not changed.
    type: str
    default: auto
  dram_multiple:
    description:
      - Factor for O(size=auto), relative to the ordinary memory.
    type: int
    choices: [1, 2]
    default: 1
  method:
    description:
      - V(ndctl) uses real NVM. The command C(ndctl) is required only to create or change a namespace.
      - V(memmap) turns ordinary memory into NVM. The range is chosen once and then kept.
      - V(auto) keeps the method of an existing reservation, otherwise prefers real NVM, and uses V(memmap) only with
        O(volatile_ok=true).
    type: str
    choices: [auto, ndctl, memmap]
    default: auto
  mode:
    description:
      - V(raw) has no metadata on the NVM.
      - V(sector) makes writes of a sector atomic, also at a power failure (BTT). It uses about 0.1 % of the space and is
        slower. Not supported with O(method=memmap).
      - The mode of a namespace without labels is changed with C(ndctl), which destroys its contents. Therefore it must be
        empty, or O(force=true) is required.
    type: str
    choices: [raw, sector]
    default: raw
  volatile_ok:
    description:
      - Accept NVM made of ordinary memory, which loses its contents at power-off.
    type: bool
    default: false
  force:
    description:
      - Destroy a reservation that has another size or mode and create it again. Its contents, such as a filesystem or a
        hibernation image, are lost.
      - Initialise the label area of DIMMs if it is empty and their namespace is empty.
      - A device in use (swap, mounted, mapped) is never changed or destroyed.
    type: bool
    default: false
  state:
    description:
      - V(present) creates the reservation, V(absent) removes it.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: With O(state=absent), assumes that an earlier task would deactivate the swap area. Needs no C(ndctl), see
      RV(ndctl_missing).
  diff_mode:
    details: Shows files and namespaces.
notes:
  - Requires root on the machine.
  - Sizes of namespaces are multiples of the alignment of the region (16 MiB for one DIMM), ranges of C(memmap=) of 128
    MiB.
  - A reservation with O(method=memmap) exists after a reboot, see RV(reboot_required). It is not changed while a
    hibernation image is pending, because the image would be lost.
seealso:
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.nvm_info
  - name: ndctl-create-namespace(1)
    description: Modes of namespaces and use of labels.
    link: https://docs.pmem.io/ndctl-user-guide/ndctl-man-pages/ndctl-create-namespace
  - name: Kernel parameters
    description: memmap=nn[KMG]!ss[KMG].
    link: https://docs.kernel.org/admin-guide/kernel-parameters.html
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Reserve as much NVM as the machine has memory
  nvm.fastboot.nvm_reservation:

- name: Reserve 16 GiB with atomic sector writes
  nvm.fastboot.nvm_reservation:
    size: 16G
    mode: sector

- name: Test on a machine without NVM
  nvm.fastboot.nvm_reservation:
    volatile_ok: true
  register: reservation

- name: Reboot if required
  ansible.builtin.reboot:
  when: reservation.reboot_required

- name: Remove the reservation
  nvm.fastboot.nvm_reservation:
    state: absent
"""

RETURN = r"""
device:
  description: Stable name of the device.
  returned: success
  type: str
  sample: /dev/NVM_SWAP
block_device:
  description: The device that the name links to; null in check mode, and before a required reboot.
  returned: success
  type: str
  sample: /dev/pmem0
size:
  description: Size in bytes.
  returned: success
  type: int
  sample: 17179869184
method:
  description: V(ndctl) or V(memmap).
  returned: success
  type: str
  sample: ndctl
mode:
  description: V(raw) or V(sector).
  returned: success
  type: str
  sample: raw
region:
  description: The NVM region that contains the reservation.
  returned: success
  type: str
  sample: region0
namespace:
  description: The namespace.
  returned: success
  type: str
  sample: namespace0.0
uuid:
  description: UUID of the namespace, or of the BTT in mode V(sector). A raw namespace without labels has none.
  returned: success
  type: str
  sample: 5b2f7d0c-1d8e-4f58-9c57-2b1d2f3f7c11
range:
  description: The kernel argument; null unless RV(method=memmap).
  returned: success
  type: str
  sample: memmap=8G!4G
reboot_required:
  description: Whether the change takes effect only after a reboot.
  returned: success
  type: bool
  sample: false
reboot_in_vain:
  description: Why another reboot does not help, although the machine was rebooted and RV(reboot_required) is still true; null
    if it may help.
  returned: success
  type: str
  sample: null
ndctl_missing:
  description: In check mode, whether the change needs the command C(ndctl), which is not installed. Otherwise that is an error.
  returned: success
  type: bool
  sample: false
resizable:
  description: Whether the size can be changed later, with O(force=true) and loss of the contents.
  returned: success
  type: bool
  sample: true
why_not_resizable:
  description: Why RV(resizable) is false; null otherwise.
  returned: success
  type: str
  sample: region0 has no labels, so it has one namespace as large as the region.
dram:
  description: Bytes of ordinary memory, without NVM.
  returned: success
  type: int
  sample: 17179869184
explanation:
  description: How the size was determined.
  returned: success
  type: str
  sample: "Requested: 16.0 GiB (1 x 16.0 GiB of ordinary memory). namespace0.0 takes all of region0, 32.0 GiB."
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: volatile
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: memmap= makes NVM of ordinary memory, which loses its contents at power-off, including images.
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Use real NVM. To accept the loss (for a test, or if the power stays on), set volatile_ok=true.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out_part
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation.reservation import PART


def main():
    carry_out_part(AnsibleModule(argument_spec=PART.options, supports_check_mode=True), PART)


if __name__ == "__main__":
    main()
