#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_image_info
short_description: List the boot images in a store, and select one
version_added: "1.0.0"
description:
  - Lists the versions in a store, selects one and explains why the others do not match, identifies the image on a device,
    and checks whether a version can be resumed.
  - Read only. Runs on the store's host.
options:
  device:
    description:
      - Block device or file for RV(device).
      - With O(image), also the device to resume from, for RV(preflight).
    type: path
  with_state:
    description: Select only versions in this state.
    type: str
    choices: [captured, verified, staged, armed, resumed, failed, unknown]
extends_documentation_fragment:
  - nvm.fastboot.image_store
  - nvm.fastboot.attributes.info
seealso:
  - module: nvm.fastboot.boot_image
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: List all versions of a machine, and select the newest verified one
  nvm.fastboot.boot_image_info:
    store: /var/lib/fuse-store
    machine: web01
    with_state: verified
  register: versions

- name: Check whether this machine can resume the version safely
  nvm.fastboot.boot_image_info:
    store: /var/lib/fuse-store
    image: "{{ versions.selected.id }}"
    device: /dev/NVM_SWAP
  register: check

- name: Fail with the reasons
  ansible.builtin.assert:
    that: check.preflight.accepted
    fail_msg: "{{ check.preflight.refusals | map(attribute='message') | join(' ') }}"
"""

RETURN = r"""
images:
  description: The versions of O(machine) and O(application), by default of all, as returned by C(fuse-store list).
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
  description: The newest version that matches; null if none matches, or without O(machine).
  returned: success
  type: dict
  sample:
    id: 4f1c9a0d6be2417c8f5a1b2c3d4e5f60
    version: 2026-11-22T02-10-33Z-4f1c9a
    machine: web01
    application: system
    taken: "2026-11-22T02:10:33.120+00:00"
passed_over:
  description: The other versions of O(machine), each with a list C(reasons) of C(code) and C(message); null without
    O(machine).
  returned: success
  type: list
  elements: dict
  sample:
    - id: 0b7d3a5e9c1f4d60a2b8c6e4f0123456
      reasons: [{code: other_state, message: "state is captured, not verified"}]
device:
  description: The image on O(device); null if there is none, or without O(device).
  returned: success
  type: dict
  sample: {format: swsusp, state: armed, kernel: 6.1.0-56-amd64, host: web01, compression: none}
preflight:
  description:
    - Whether O(image) can be resumed (C(accepted)). C(refusals) lists the reasons against it, C(untold) the checks without
      enough information, each as C(code), C(message) and C(remedy).
    - Null without O(image).
  returned: success
  type: dict
  sample:
    id: 4f1c9a0d6be2417c8f5a1b2c3d4e5f60
    accepted: false
    refusals: [{code: memory_size, message: the machine has more memory, remedy: Restore the previous memory size.}]
    untold: []
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: wrong_key
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: "store /var/lib/fuse-store: wrong key."
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Set --key-file to the key file of this store.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import answer
from ansible_collections.nvm.fastboot.plugins.module_utils._store import boot_image


def main():
    module = AnsibleModule(argument_spec=boot_image.COMMON, supports_check_mode=True)
    answer(module, lambda host: boot_image.look(host, module.params), directory=None)


if __name__ == "__main__":
    main()
