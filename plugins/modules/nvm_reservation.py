#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvm_reservation
short_description: Reserve non-volatile memory under a lasting name
version_added: "0.1.0"
description:
  - Sets a piece of non-volatile memory aside, as large as the memory of the machine or as told, and gives it a name
    that stays the same at every boot, such as C(/dev/NVM_SWAP). M(nvm.fastboot.nvm_swap) makes a swap area of it.
  - On NVDIMMs with labels it makes a namespace of its own, named O(name), and destroys it with O(state=absent). No
    other namespace is ever touched.
  - On NVDIMMs without labels it uses the namespace that the kernel makes of a whole region. Such a namespace can be
    neither resized nor destroyed, see RV(why_not_resizable).
  - Without NVM, and with O(volatile_ok=true), it makes NVM of ordinary memory with the kernel argument C(memmap=).
options:
  name:
    description:
      - Name of the reservation, of the link in C(/dev), and of the namespace where it has labels.
      - 1 to 63 letters, digits, underscores, dots and hyphens.
    type: str
    default: NVM_SWAP
  size:
    description:
      - A number of bytes, or a number with a binary unit (V(512M), V(16G), V(1.5T)).
      - V(auto) is O(dram_multiple) times the ordinary memory of the machine. For C(memmap=), which takes from that
        memory, it is O(dram_multiple) times what remains, and at most half of all.
      - A reservation that is there and larger than this is left as it is.
    type: str
    default: auto
  dram_multiple:
    description:
      - How many times the ordinary memory O(size=auto) is.
    type: int
    choices: [1, 2]
    default: 1
  method:
    description:
      - V(ndctl) uses NVM that the machine has. C(ndctl) has to be installed only where a namespace is made or changed.
      - V(memmap) makes NVM of ordinary memory. Its range is chosen once and then kept.
      - V(auto) keeps what is there, prefers real NVM, and takes V(memmap) only with O(volatile_ok=true).
    type: str
    choices: [auto, ndctl, memmap]
    default: auto
  mode:
    description:
      - V(raw) is the NVM as it is.
      - V(sector) writes each sector whole or not at all, also when the power fails (BTT). It costs about 0.1 % of the
        room and some speed. O(method=memmap) has no such mode.
      - A label-less namespace is brought into the mode with C(ndctl); that loses its contents, and so is done only
        where it has none, or with O(force=true).
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
      - Make a reservation of another size or mode anew, and give up what the device holds (a filesystem, a hibernation
        image).
      - A namespace without labels whose DIMMs have an empty label area, and which holds nothing, gets labels.
      - A device in use (swap, mounted, mapped) is neither changed nor destroyed, forced or not.
    type: bool
    default: false
  state:
    description:
      - V(present) makes the reservation, V(absent) undoes it.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  diff_mode:
    details: Shows files and namespaces.
notes:
  - Needs root on the machine.
  - Sizes of namespaces are multiples of what the region asks for (16 MiB for one DIMM), ranges of C(memmap=) of 128
    MiB.
  - A reservation made with O(method=memmap) is there after a reboot, see RV(reboot_required). It is not changed while a
    hibernation image waits to be resumed, which would be lost.
seealso:
  - module: nvm.fastboot.nvm_swap
  - module: nvm.fastboot.nvm_info
  - name: ndctl-create-namespace(1)
    description: Modes of namespaces and what labels are for.
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

- name: Reserve 16 GiB, each sector written whole
  nvm.fastboot.nvm_reservation:
    size: 16G
    mode: sector

- name: Try it on a machine without NVM
  nvm.fastboot.nvm_reservation:
    volatile_ok: true
  register: reservation

- name: Reboot where that needs it
  ansible.builtin.reboot:
  when: reservation.reboot_required

- name: Give the NVM back
  nvm.fastboot.nvm_reservation:
    state: absent
"""

RETURN = r"""
device:
  description: The lasting name.
  returned: success
  type: str
  sample: /dev/NVM_SWAP
block_device:
  description: The device it points at now, or none before a reboot that is needed and in check mode.
  returned: success
  type: str
  sample: /dev/pmem0
size:
  description: Bytes reserved.
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
  description: The region of NVM it lies in.
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
  description: The kernel argument, with the method V(memmap).
  returned: success
  type: str
  sample: memmap=8G!4G
reboot_required:
  description: Whether the kernel has to boot again before the reservation is there, or gone.
  returned: success
  type: bool
  sample: false
resizable:
  description: Whether O(size) can be changed later, with O(force=true) and losing the contents.
  returned: success
  type: bool
  sample: true
why_not_resizable:
  description: Why it cannot be changed.
  returned: success
  type: str
  sample: region0 has no labels, which would divide it; its one namespace is as large as the region.
dram:
  description: Bytes of ordinary memory, without NVM.
  returned: success
  type: int
  sample: 17179869184
explanation:
  description: Where the size comes from.
  returned: success
  type: str
  sample: 16.0 GiB were asked for (1 x 16.0 GiB of ordinary memory). namespace0.0 takes all of region0, 32.0 GiB.
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: volatile
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: memmap= makes NVM of ordinary memory, which loses its contents at power-off.
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Set volatile_ok=true to accept that.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import reservation

STATES = {"present": reservation.present, "absent": reservation.absent}


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "NVM_SWAP"},
            "size": {"type": "str", "default": "auto"},
            "dram_multiple": {"type": "int", "choices": [1, 2], "default": 1},
            "method": {"type": "str", "choices": ["auto", "ndctl", "memmap"], "default": "auto"},
            "mode": {"type": "str", "choices": ["raw", "sector"], "default": "raw"},
            "volatile_ok": {"type": "bool", "default": False},
            "force": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    change = STATES[module.params["state"]]
    carry_out(module, lambda transaction: change(transaction, reservation.Options.of(module.params)))


if __name__ == "__main__":
    main()
