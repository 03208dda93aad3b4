#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_image_info
short_description: Tell which boot images a store has, and which of them fits
version_added: "1.0.0"
description:
  - Lists versions of a store, chooses one and says why each other was passed over, tells what a device holds, and whether
    a version could be resumed.
  - Reads only. Runs where the store is.
options:
  device:
    description:
      - Block device or file of which RV(device) tells what image it holds.
      - With O(image), where that is to be resumed from.
    type: path
  with_state:
    description: Of the versions to choose from, only those in this state.
    type: str
    choices: [captured, verified, staged, armed, resumed, failed]
extends_documentation_fragment:
  - nvm.fastboot.image_store
attributes:
  check_mode:
    description: Does the same in check mode, for it changes nothing.
    support: full
  diff_mode:
    description: There is never a difference.
    support: none
  idempotent:
    description: It changes nothing.
    support: full
  platform:
    description: Where it works.
    platforms: linux
    support: full
seealso:
  - module: nvm.fastboot.boot_image
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: All versions of a machine, and the newest that verified
  nvm.fastboot.boot_image_info:
    store: /var/lib/fuse-store
    machine: web01
    with_state: verified
  register: found

- name: Would this machine resume it, and would that be safe?
  nvm.fastboot.boot_image_info:
    store: /var/lib/fuse-store
    image: "{{ found.selected.id }}"
    device: /dev/NVM_SWAP
  register: asked

- name: Stop with the reasons
  ansible.builtin.assert:
    that: asked.preflight.accepted
    fail_msg: "{{ asked.preflight.refusals | map(attribute='message') | join(' ') }}"
"""

RETURN = r"""
images:
  description: The versions of O(machine) and O(application), or of all; each as C(fuse-store list) tells it.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 4f1c9a0d6be2417c8f5a1b2c3d4e5f60
      machine: web01
      application: system
      kind: hibernation
      event: nightly
      state: verified
      taken: "2026-11-22T02:10:33.120+00:00"
      size: 17179869184
selected:
  description: The newest version that fits; null if none does, or without O(machine).
  returned: success
  type: dict
  sample:
    id: 4f1c9a0d6be2417c8f5a1b2c3d4e5f60
    version: 2026-11-22T02-10-33Z-4f1c9a
    machine: web01
    application: system
    taken: "2026-11-22T02:10:33.120+00:00"
passed_over:
  description: The other versions of O(machine), each with C(reasons), a list of C(code) and C(message); null without O(machine).
  returned: success
  type: list
  elements: dict
  sample:
    - id: 0b7d3a5e9c1f4d60a2b8c6e4f0123456
      reasons: [{code: other_state, message: "its state is captured, not verified"}]
device:
  description: The image that O(device) holds; null if it holds none, or without O(device).
  returned: success
  type: dict
  sample: {format: swsusp, state: armed, kernel: 6.1.0-56-amd64, host: web01, compression: none}
preflight:
  description:
    - Whether O(image) would be resumed, and C(refusals) and C(untold), lists of C(code), C(message) and C(remedy).
    - Null without O(image).
  returned: success
  type: dict
  sample:
    id: 4f1c9a0d6be2417c8f5a1b2c3d4e5f60
    accepted: false
    refusals: [{code: memory_size, message: the machine has more pages of memory, remedy: Put memory back as it was.}]
    untold: []
code:
  description: What failed, as a stable word.
  returned: failure
  type: str
  sample: wrong_key
message:
  description: The thing and the cause.
  returned: failure
  type: str
  sample: "store /var/lib/fuse-store: its key is another one."
remedy:
  description: What to do about it.
  returned: failure
  type: str
  sample: Name the key file with --key-file.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import refuse
from ansible_collections.nvm.fastboot.plugins.module_utils._store import boot_image


def main():
    module = AnsibleModule(argument_spec=boot_image.COMMON, supports_check_mode=True)
    try:
        found = boot_image.look(Host.of(module), module.params)
    except Refused as refused:
        refuse(module, refused)
    for warning in found.pop("warnings"):
        module.warn(warning)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
