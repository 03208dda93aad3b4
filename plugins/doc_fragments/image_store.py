# SPDX-License-Identifier: GPL-3.0-or-later
"""Options shared by the modules that use an image store."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  store:
    description:
      - Directory of the store on the host where the module runs, or C(s3://BUCKET/PREFIX) on an S3-compatible server.
      - C(fuse-store) reads the address of the server and the credentials from the environment of the task,
        E(AWS_ENDPOINT_URL), E(AWS_ACCESS_KEY_ID), E(AWS_SECRET_ACCESS_KEY) and others. See C(docs/fuse-store.md).
    type: str
    required: true
  key_file:
    description:
      - Key file of the store.
      - The default is the key file in C(~/.config) of the user that runs the module.
    type: path
  executable:
    description: Name or path of the command C(fuse-store).
    type: str
    default: fuse-store
  image:
    description:
      - The version, as an id, the start of an id, C(MACHINE/APPLICATION/latest) or C(MACHINE/APPLICATION@2026-11-22).
    type: str
  machine:
    description: Machine of the versions.
    type: str
  application:
    description:
      - Application name of the version.
      - The default is any when a version is selected, and V(system) when one is captured.
    type: str
  kind:
    description:
      - Kind of image.
      - The default is any when a version is selected, and V(hibernation) when one is captured.
    type: str
  event:
    description: Event for which the version was taken.
    type: str
  before:
    description: Select versions taken before this time only, V(2026-11-22) or V(2026-11-22T02:10:33Z), in UTC.
    type: str
  root:
    description:
      - Directory with C(/proc) and C(/sys) of the machine that will resume the image, if it is not the host where the
        module runs. C(docs/staging.md) lists the files.
    type: path
  machine_disks:
    description:
      - Disks of the machine, as devices or raw images on the host where the module runs, if they are not its own disks.
      - The state of their filesystems is recorded when an image is captured, and compared before an image is armed.
    type: list
    elements: path
"""
