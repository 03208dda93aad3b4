#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_snapshot
short_description: Take a snapshot of the running system, to which the machine can return
version_added: "1.0.0"
description:
  - Has an image of the memory of the running machine written to its device, and waits for it. The system stands still meanwhile,
    and goes on.
  - Asks the snapshot service of the machine. With O(device), takes the snapshot without the service.
  - Calls the command C(fuse-store), see C(docs/snapshots.md). The module refuses what the command refuses.
options:
  application:
    description:
      - Name of the application for which the snapshot is taken.
      - The service must know it, unless the module runs as root.
    type: str
  event:
    description: Why the snapshot is taken, such as V(ready).
    type: str
  device:
    description:
      - Block device for the image, which need not be that of the service.
      - The default is what the service has been told.
    type: path
  keep:
    description:
      - Number of replaceable snapshots of O(application) that stay on the device, this one included.
      - The default is what the service has been told; with O(device), as many as there is space for.
    type: int
  golden:
    description:
      - Seal the image as golden, so that it is not replaced, and may be resumed on other machines of the same hardware. Needs
        O(device).
    type: bool
    default: false
  replace:
    description: Remove the older replaceable snapshots of the same application and event once this one is complete.
    type: bool
    default: false
  executable:
    description: Name or path of the command C(fuse-store).
    type: str
    default: fuse-store
extends_documentation_fragment:
  - nvm.fastboot.attributes
attributes:
  check_mode:
    details: Asks nothing, and assumes that a snapshot would be taken.
  diff_mode:
    details: Names the application and the event.
  idempotent:
    support: none
    details: Each run takes a snapshot.
notes:
  - The system stands still for seconds, and answers nothing, not even on a connection that is open. Keep C(ServerAliveInterval) times
    C(ServerAliveCountMax) of SSH above the time limit of the service.
  - A machine that is resumed from the image finds this module running, on a connection that is gone; the module ends there with
    RV(result) V(restored), which nothing reads.
  - On failure, RV(code) is the type of error of C(fuse-store), V(refused), V(store_error), V(usage_error), V(os_error), or
    V(command_failed); or V(executable_missing).
seealso:
  - module: nvm.fastboot.boot_slots
  - module: nvm.fastboot.boot_image
author:
  - The nvm.fastboot maintainers (@nvm-fastboot)
"""

EXAMPLES = r"""
- name: Take a snapshot of the application when it is ready
  nvm.fastboot.boot_snapshot:
    application: shop
    event: ready
  register: taken

- name: Take a snapshot without the service, and keep three
  nvm.fastboot.boot_snapshot:
    device: /dev/pmem1
    application: shop
    keep: 3
"""

RETURN = r"""
result:
  description: V(created), or V(restored) in a system that was resumed from the image; null in check mode.
  returned: success
  type: str
  sample: created
id:
  description: Id of the image; null in check mode.
  returned: success
  type: str
  sample: 4f1c9a0d6be2417c8f5a1b2c3d4e5f60
slot:
  description: Number of its slot; null if the device has no slots, and in check mode.
  returned: success
  type: int
  sample: 2
size:
  description: Bytes of the image; null in check mode.
  returned: success
  type: int
  sample: 260046848
pause:
  description: Seconds for which the system stood still; null in check mode.
  returned: success
  type: float
  sample: 2.9
code:
  description: Stable word for the error.
  returned: failure
  type: str
  sample: refused
message:
  description: What failed and why.
  returned: failure
  type: str
  sample: "user admin may not ask for snapshots of shop."
remedy:
  description: How to fix it.
  returned: failure
  type: str
  sample: Add it to /etc/fuse-store/snapshots.toml.
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.nvm.fastboot.plugins.module_utils._core.run import carry_out
from ansible_collections.nvm.fastboot.plugins.module_utils._store import snapshot


def main():
    module = AnsibleModule(
        argument_spec={
            "application": {"type": "str"},
            "event": {"type": "str"},
            "device": {"type": "path"},
            "keep": {"type": "int"},
            "golden": {"type": "bool", "default": False},
            "replace": {"type": "bool", "default": False},
            "executable": {"type": "str", "default": "fuse-store"},
        },
        required_one_of=[("application", "device")],
        supports_check_mode=True,
    )
    carry_out(module, lambda transaction: snapshot.take(transaction, module.params), directory=None)


if __name__ == "__main__":
    main()
