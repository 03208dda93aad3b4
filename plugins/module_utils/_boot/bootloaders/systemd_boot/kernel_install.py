# SPDX-License-Identifier: GPL-3.0-or-later
"""kernel-install(8) as it makes unified kernel images: its settings, and an image that is built beside the one that is there.

Its plugin 90-uki-copy removes the image that is there before it copies the new one. C(BOOT_ROOT) has it make the new one in a directory of
ours on the same partition, from where it is renamed once it is whole.
"""

from __future__ import annotations

import os
import re
import shutil

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders import copies
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.bootloaders.systemd_boot.images import DIRECTORY

DIRECTORIES = ("/etc/kernel", "/run/kernel", "/usr/local/lib/kernel", "/usr/lib/kernel")
NEW = "/nvm-fastboot-new"
STUB = 1 << 20  # bytes of a unified kernel image beside kernel and initramfs, at most
SIGNING = re.compile(r"sbctl|sbsign|pesign|osslsigncode")
KEYS = re.compile(r"(?m)^[ \t]*(SecureBootPrivateKey|SecureBootCertificateName|PCRPrivateKey)[ \t]*=[ \t]*\S")
SHIPPED = re.compile(r"/(60-ukify|90-uki-copy|90-loaderentry)\.install$")


def lacking(host):
    """C((cause, remedy)) why kernel-install makes no unified kernel images of a kernel and an initramfs that it is given, or None."""
    if host.which("kernel-install") is None:
        return "kernel-install is not there", "Install the package with it (systemd)."
    settings = _settings(host)
    layout, generator = settings.get("layout", "auto"), settings.get("uki_generator", "ukify")
    if layout != "uki":
        return "kernel-install makes none (layout=%s in install.conf)" % layout, "Set layout=uki in /etc/kernel/install.conf."
    if generator != "ukify":
        return "%s makes it together with an initramfs of its own (uki_generator in install.conf)" % generator, (
            "Install systemd-ukify, and set uki_generator=ukify in /etc/kernel/install.conf.")
    if host.which("ukify") is None and not host.exists("/usr/lib/systemd/ukify"):
        return "ukify is not there", "Install the package systemd-ukify."
    return None


def signs(host):
    """Whether images are signed when they are made, as far as the settings tell."""
    if any(KEYS.search(host.read(directory + "/uki.conf", "")) for directory in DIRECTORIES):
        return True
    plugins = [path for directory in DIRECTORIES for path in host.glob(directory + "/install.d/*") if not SHIPPED.search(path)]
    return any(SIGNING.search(host.read(path, "")) for path in plugins)


def build(host, image, initramfs):
    """Build C(image), an Image, of its kernel and the file C(initramfs). Returns the path of what was made, or None; see C(discard).

    Refused C(boot_full) or C(command_failed).
    """
    kernel, new = "/boot/vmlinuz-" + image.version, image.root + NEW
    discard(host, image.root)
    sizes = [os.stat(host.path(path)).st_size for path in (kernel, initramfs)]
    copies.check_space(host, image.root, sum(sizes) + STUB)
    os.makedirs(host.path(new))
    host.run(["env", "BOOT_ROOT=" + new, host.tool("kernel-install"), "add", image.version, kernel, initramfs])
    made = host.glob(new + DIRECTORY + "/*.efi")
    return made[0] if len(made) == 1 else None


def discard(host, root):
    """Remove what C(build) has left on the partition at C(root)."""
    shutil.rmtree(host.path(root + NEW), ignore_errors=True)


def _settings(host):
    """The settings in install.conf and its drop-ins: the first of these files counts, and all of those."""
    files = [directory + "/install.conf" for directory in DIRECTORIES]
    main = [path for path in files if host.exists(path)][:1]
    more: dict = {}
    for directory in reversed(DIRECTORIES):
        more.update({os.path.basename(path): path for path in host.glob(directory + "/install.conf.d/*.conf")})
    found: dict = {}
    for path in [*main, *(more[name] for name in sorted(more))]:
        lines = (line.partition("=") for line in host.read(path, "").splitlines() if not line.lstrip().startswith(("#", ";")))
        found.update({name.strip(): value.strip() for name, equals, value in lines if equals})
    return found
