# SPDX-License-Identifier: GPL-3.0-or-later
"""What the initramfs tools have in common: build beside the old image, look inside, and only then replace it.

The tools themselves write either in place or without a look at the result. Here a new image gets the old one's place by
renaming when it is whole, on the disk, and has what was asked for; the old one stays under a second name until
C(settle), so that a later step's failure puts it back.
"""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.modules import FOLDER, KernelModules
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.verified import Verified
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

BOOT = "/boot"
NEW = ".nvm-fastboot-new"
OLD = ".nvm-fastboot-old"
HEADROOM = 1.1  # of an image's size: what the next one may be larger
POST_UPDATE = "/etc/initramfs/post-update.d"  # Debian's hooks of bootloaders that copy the initramfs
KERNEL_FILE = re.compile(r"^vmlinu[xz]-(.+)$")
NO_KERNEL = re.compile(r"\.(old|bak|sig|signed|rpmsave|rpmnew)$|\.dpkg-")  # grub-mkconfig_lib, grub_file_is_not_garbage


class Initramfs:
    """One tool on one Host. Subclasses say which files configure it, how it is called and what an image must hold."""

    name = ""
    files: tuple[str, ...] = ()  # all of them are there if the tool is
    kernel_hooks: tuple[str, ...] = ()  # one of them is there if new kernels call the tool
    image_names: tuple[str, ...] = ()  # with a %s for the kernel, the usual one first

    def __init__(self, host):
        self.host = host
        self._verified = Verified(host)
        self._listed: dict = {}

    @classmethod
    def present(cls, host):
        return all(host.exists(path) for path in cls.files)

    # what a subclass says --------------------------------------------------------------------------------------------

    def settings(self, resume, modules):
        """Our files for C(resume) ("UUID=...") and C(modules): {path: (content, mode)}."""
        raise NotImplementedError

    def own_files(self):
        """Every file of ours that is there, of these settings or of earlier ones."""
        raise NotImplementedError

    def command(self, kernel, target):
        """The command that builds the image of C(kernel) as C(target)."""
        raise NotImplementedError

    def listing(self, image):
        """The names inside of C(image) as a set, without C(./) or C(usr/) in front; none if it is damaged."""
        raise NotImplementedError

    def lacking(self, names, resume):
        """What C(names) lack for a resume from C(resume), the modules aside: a list of phrases."""
        raise NotImplementedError

    # kernels ---------------------------------------------------------------------------------------------------------

    def kernels(self):
        """The versions of the installed kernels, all of which must be able to resume: any may be booted next."""
        found = []
        for path in self.host.glob(BOOT + "/vmlinu[xz]-*"):
            match = KERNEL_FILE.match(os.path.basename(path))
            if match and not NO_KERNEL.search(match.group(1)) and match.group(1) not in found:
                found.append(match.group(1))
        return found

    def image(self, kernel):
        """The path of the image of C(kernel): the one that is there, or the one that would be made."""
        paths = ["%s/%s" % (BOOT, name % kernel) for name in self.image_names]
        return next((path for path in paths if self.host.exists(path)), paths[0])

    # settings --------------------------------------------------------------------------------------------------------

    def configure(self, tx, resume, modules):
        """Have images built from now on (for future kernels too) resume from C(resume) and hold C(modules)."""
        wanted = self.settings(resume, sorted(modules))
        changed = False
        for path in self.own_files():
            if path not in wanted:
                changed = tx.write(path, None, self._mode(path)) or changed
        for path, (content, mode) in wanted.items():
            changed = tx.write(path, content, mode) or changed
        return changed

    def unconfigure(self, tx):
        """Remove our settings. Returns whether there were any, or images built with them (see C(stale))."""
        found = self.own_files()
        if found and not tx.check_mode:
            for kernel in self.stale():
                self._verified.expect(self.image(kernel))
            self._verified.store()  # a run that is cut short after this is completed by the next one
        for path in found:
            tx.write(path, None, self._mode(path))
        return bool(found) or bool(self._verified.known)

    def stale(self):
        """The installed kernels whose images may hold settings of ours that were removed."""
        ours = bool(self.own_files())
        images = [(kernel, self.image(kernel)) for kernel in self.kernels()]
        return [kernel for kernel, image in images
                if self.host.exists(image) and (ours or image in self._verified.known)]

    def _mode(self, path):
        return os.stat(self.host.path(path)).st_mode & 0o7777

    # looking inside --------------------------------------------------------------------------------------------------

    def missing(self, kernel, resume, modules):
        """What the built image of C(kernel) lacks to resume from C(resume): a list of phrases, empty if nothing.

        Looks inside the image, unless exactly that file was found complete before. Without C(resume) it is enough that
        the image can resume at all.
        """
        image = self.image(kernel)
        if not self.host.exists(image):
            return ["%s does not exist" % image]
        if self._verified.holds(image, resume, modules):
            return []
        found = self._look(kernel, image, resume, modules)
        if not found:
            self._verified.learn(image, resume, modules)
        return found

    def _look(self, kernel, image, resume, modules):
        names = self._names(image)
        found = [] if "init" in names else ["init (the image is damaged or empty)"]
        found += self.lacking(names, resume)
        available = KernelModules(self.host, kernel)
        for module in modules:
            if not available.has(module):
                found.append("module %s, which this kernel does not have" % module)
            elif any(not self._inside(names, kernel, path) for path in available.files(module)):
                found.append("module %s" % module)
        return found

    def _names(self, image):
        """C(listing), once for each file: it takes seconds."""
        status = os.stat(self.host.path(image))
        key = (status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._listed:
            self._listed[key] = self.listing(image)
        return self._listed[key]

    @staticmethod
    def _inside(names, kernel, path):
        full = "lib/modules/%s/%s" % (kernel, path)
        return any(full + suffix in names for suffix in ("", ".xz", ".zst", ".gz"))

    # building --------------------------------------------------------------------------------------------------------

    def rebuild(self, tx, kernels, resume=None, modules=()):
        """Build the images of C(kernels) anew from the settings. With C(resume), each must hold what resuming needs.

        Refused C(boot_full), C(kernel_modules_missing), C(driver_missing), C(initramfs_incomplete) or
        C(command_failed); every image then is what it was.
        """
        for kernel in kernels:
            tx.note(self.image(kernel), "built before", "built anew: %s" % (
                "resume from %s with %s" % (resume, " ".join(modules)) if resume else "without our settings"))
        if tx.check_mode or not kernels:
            return
        for kernel in kernels:
            self._check_kernel(kernel, modules)
        self._discard_leftovers()
        self._check_room(kernels)
        tx.on_failure(lambda: tx.host.flush_filesystem(BOOT))  # called last, when the old images are back
        for kernel in kernels:
            self._build(tx, kernel, resume, modules)
        tx.host.flush_filesystem(BOOT)

    def settle(self):
        """Drop the old images and keep what is known of the new ones: nothing can fail any more."""
        self._discard_leftovers()
        for image in list(self._verified.known):
            if not self.host.exists(image):
                self._verified.forget(image)
        self._verified.store()

    def _discard_leftovers(self):
        for path in self.host.glob(BOOT + "/init*.nvm-fastboot-*"):
            self.host.remove(path)

    def _check_kernel(self, kernel, modules):
        available = KernelModules(self.host, kernel)
        if not available.installed:
            raise Refused(
                "kernel_modules_missing",
                "The kernel %s is in /boot, but has no modules in %s, so no initramfs can be built for it."
                % (kernel, FOLDER % kernel),
                "Install its package again, or remove what is left of it from /boot.",
            )
        absent = [module for module in modules if not available.has(module)]
        if absent:
            raise Refused(
                "driver_missing",
                "The installed kernel %s does not have %s, without which it cannot resume." % (
                    kernel, ", ".join("the module %s" % module for module in absent)),
                "Install a kernel that has it, or remove this one: booting it would destroy the image.",
            )

    def _check_room(self, kernels):
        sizes = []
        for kernel in kernels:
            image = self.host.path(self.image(kernel))
            sizes.append(os.stat(image).st_size if os.path.exists(image) else 0)
        need = int(sum(size or max(sizes) for size in sizes) * HEADROOM)
        free = self._free()
        if free < need:
            raise Refused(
                "boot_full",
                "%s has %d MiB free; building %d new initramfs beside the old ones takes %d MiB." % (
                    BOOT, free >> 20, len(kernels), (need >> 20) + 1),
                "Remove kernels that are no longer needed (apt autoremove --purge), or make %s larger." % BOOT,
            )

    def _free(self):
        status = os.statvfs(self.host.path(BOOT))
        return status.f_bavail * status.f_frsize

    def _build(self, tx, kernel, resume, modules):
        host, image = self.host, self.image(kernel)
        existed = host.exists(image)
        try:
            host.run(self.command(kernel, image + NEW))
            if resume is not None:
                problems = self._look(kernel, image + NEW, resume, modules)
            else:
                problems = [] if "init" in self.listing(image + NEW) else ["init"]
            if problems:
                raise Refused(
                    "initramfs_incomplete",
                    "The initramfs that %s built for kernel %s lacks: %s." % (self.name, kernel, ", ".join(problems)),
                    "The old image is still in place. Look for settings and hooks of others that leave it out.",
                )
            self._keep_attributes(image, image + NEW)
            if existed:
                host.link(image, image + OLD)
        except BaseException:
            host.remove(image + NEW)
            raise
        # The order on the way back is the reverse: first the image, then the settings it was built from.
        tx.on_failure(lambda: host.rename(image + OLD, image) if existed else host.remove(image))
        host.rename(image + NEW, image)
        if resume is not None:
            self._verified.learn(image, resume, modules)
        else:
            self._verified.forget(image)
            self._verified.store()
        if host.glob(POST_UPDATE + "/*"):
            host.run(["run-parts", "--arg=" + kernel, "--arg=" + image, POST_UPDATE])

    def _keep_attributes(self, old, new):
        """Bring C(new) to the disk, with owner and mode of C(old)."""
        handle = os.open(self.host.path(new), os.O_RDONLY)
        try:
            if self.host.exists(old):
                status = os.stat(self.host.path(old))
                os.fchown(handle, status.st_uid, status.st_gid)
                os.fchmod(handle, status.st_mode & 0o7777)
            os.fsync(handle)
        finally:
            os.close(handle)


def plain(name):
    """A name inside an image as all of them are compared: on merged-usr systems C(lib) is C(usr/lib)."""
    for prefix in ("./", "/", "usr/"):
        if name.startswith(prefix):
            name = name[len(prefix) :]
    return name
