# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of the modules that use a store of images."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  store:
    description:
      - Folder of the store, where the module runs; or C(s3://BUCKET/PREFIX), a bucket of an S3-compatible server.
      - Where the server is, and the credentials, C(fuse-store) takes from the task's environment, C(AWS_ENDPOINT_URL),
        C(AWS_ACCESS_KEY_ID), C(AWS_SECRET_ACCESS_KEY) and so on. See C(docs/fuse-store.md).
    type: str
    required: true
  key_file:
    description:
      - File with the key of the store.
      - By default C(fuse-store) looks for it below C(~/.config) of the user that the module runs as.
    type: path
  executable:
    description: The command C(fuse-store), by name or with its path.
    type: str
    default: fuse-store
  image:
    description:
      - Which version, as an id, the start of one, C(MACHINE/APPLICATION/latest) or C(MACHINE/APPLICATION@2026-11-22).
    type: str
  machine:
    description: The machine that versions belong to.
    type: str
  application:
    description:
      - What asked for the version.
      - By default any when one is chosen, and C(system) when one is captured.
    type: str
  kind:
    description:
      - The kind of image.
      - By default any when one is chosen, and C(hibernation) when one is captured.
    type: str
  event:
    description: Why the version was taken.
    type: str
  before:
    description: Only versions taken before this time, C(2026-11-22) or C(2026-11-22T02:10:33Z), in UTC.
    type: str
  root:
    description:
      - Folder with C(/proc) and C(/sys) of the machine that is to resume the image, if that is not the one the module runs
        on. C(docs/staging.md) lists the files.
    type: path
  evidence_disks:
    description:
      - Disks of the machine, as devices or raw images where the module runs, if they are not its own.
      - When an image is captured, the state of the filesystems on them is recorded; before one is armed, it is compared.
    type: list
    elements: path
"""
