# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts that all initramfs tools share: build an image beside the old one, verify its content, then replace it.

The tools themselves write in place, or do not verify the result. Here a new image replaces the old one by renaming, once
it is complete, synced, and has the required content. The old image is kept under a second name until C(finish), so that a
failure of a later step can restore it.
"""

from __future__ import annotations

import os
import re

from ansible_collections.nvm.fastboot.plugins.module_utils._boot import files
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs import archive, packages
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.modules import (
    MODULES_DIRECTORY,
    KernelModules,
    name_of,
)
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.unlocking import Programs, Unlocking
from ansible_collections.nvm.fastboot.plugins.module_utils._boot.initramfs.verified import Verified
from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

BOOT = "/boot"
NEW = ".nvm-fastboot-new"
OLD = ".nvm-fastboot-old"
HEADROOM = 1.1  # the expected size of a new image relative to the old one
POST_UPDATE = "/etc/initramfs/post-update.d"  # Debian's hooks for bootloaders that copy the initramfs
KERNEL_FILE = re.compile(r"^vmlinu[xz]-(.+)$")
NO_KERNEL = re.compile(r"\.(old|bak|sig|signed|rpmsave|rpmnew)$|\.dpkg-")  # grub-mkconfig_lib, grub_file_is_not_garbage
# Runs a command that sees other contents of files: pairs of what is there instead, and the file.
WITH_OTHER_FILES = """\
set -e
while [ "$1" != -- ]; do
    mount --bind "$1" "$2"
    shift 2
done
shift
exec "$@"
"""


class Initramfs:
    """One tool on one Host. Subclasses have its settings, its commands, and the required content of an image."""

    name = ""
    package = ""  # the Debian package that has new kernels call the tool
    files: tuple[str, ...] = ()  # all exist if the tool is installed
    kernel_hooks: tuple[str, ...] = ()  # one exists if new kernels call the tool
    image_names: tuple[str, ...] = ()  # with %s for the kernel; the usual name first
    programs = Programs("", (), "")  # what opens LUKS mappings in an image

    def __init__(self, host):
        self.host = host
        self.unlocking = Unlocking(host)
        self._verified = Verified(host)
        self._listed: dict = {}
        self._files: dict = {}
        self._seen: dict = {}

    @classmethod
    def present(cls, host):
        return all(host.exists(path) for path in cls.files)

    def unlock(self, mappings):
        """Have images open the LUKS C(mappings) that the resume device is on, and be verified to."""
        self.unlocking = Unlocking(self.host, mappings)

    def show(self, texts):
        """Have the tool see C(texts), C({path: text}), in place of these files while it builds images."""
        self._seen = texts

    def unlock_arguments(self):
        """The kernel arguments without which images would not open the LUKS mappings."""
        return []

    # implemented by subclasses ---------------------------------------------------------------------------------------

    def value(self, resume, file):
        """What images are built for, as all methods have it for C(resume): C(resume=) of the kernel command line ("UUID=..."). C(file): it
        is for a swap file."""
        del file
        return resume

    def settings(self, resume, modules):
        """Our files for C(resume) ("UUID=...") and C(modules), as C({path: (content, mode)})."""
        raise NotImplementedError

    def own_files(self):
        """Our files on the machine, of the current settings or of earlier ones."""
        raise NotImplementedError

    def command(self, kernel, target):
        """The command that builds the image of C(kernel) as C(target)."""
        raise NotImplementedError

    def listing(self, image):
        """The names in C(image) as a set, without a leading C(./) or C(usr/); empty if the image is damaged."""
        raise NotImplementedError

    def lacking(self, names, resume):
        """The names that are missing in C(names) to resume from C(resume), except modules, as a list of phrases."""
        raise NotImplementedError

    def reads(self, name):
        """Whether the file C(name) of an image may have settings that C(find_overrides) has to look at."""
        raise NotImplementedError

    def find_overrides(self, names, files, modules, needed):
        """The Overrides in C(files), C({name: text}), of an image with C(names), for C(modules) that C(needed) are C(modules) and what they
        depend on."""
        raise NotImplementedError

    def sources(self, name):
        """Where the file C(name) of an image comes from: the paths that there may be, the one that counts first."""
        raise NotImplementedError

    def excluded(self, modules):
        """Settings of others that keep files for C(modules), or for resuming, out of images: what to do about each, as sentences."""
        del modules
        return []

    # kernels ---------------------------------------------------------------------------------------------------------

    def kernels(self):
        """The versions of the installed kernels. All must be able to resume, because any may be booted next.

        A kernel without modules that no package of this system has belongs to another system with the same /boot.
        """
        versions = []
        for path in self.host.glob(BOOT + "/vmlinu[xz]-*"):
            match = KERNEL_FILE.match(os.path.basename(path))
            if match and not NO_KERNEL.search(match.group(1)) and match.group(1) not in versions and self._is_ours(match.group(1)):
                versions.append(match.group(1))
        return versions

    def _is_ours(self, kernel):
        return self.host.exists(MODULES_DIRECTORY % kernel) or packages.has_kernel(self.host, kernel)

    def image(self, kernel):
        """The path of the image of C(kernel), whether it exists or not."""
        paths = ["%s/%s" % (BOOT, name % kernel) for name in self.image_names]
        return next((path for path in paths if self.host.exists(path)), paths[0])

    # settings --------------------------------------------------------------------------------------------------------

    def configure(self, tx, resume, modules):
        """Write the settings: new images, also for future kernels, resume from C(resume) and contain C(modules)."""
        wanted = self.settings(resume, sorted(modules))
        changed = False
        for path in self.own_files():
            if path not in wanted:
                changed = tx.write(path, None, self._mode(path)) or changed
        for path, (content, mode) in wanted.items():
            changed = tx.write(path, content, mode) or changed
        return changed

    def unconfigure(self, tx):
        """Remove our settings. Returns whether there were settings, or images built with them (see C(stale))."""
        ours = bool(self.own_files())
        if ours and not tx.check_mode:
            for kernel in self.stale():
                self._verified.expect(self.image(kernel))
            self._verified.store()  # if this run is interrupted from here on, the next one completes it
        self.remove_settings(tx)
        return ours or bool(self._verified.known)

    def remove_settings(self, tx):
        for path in self.own_files():
            tx.write(path, None, self._mode(path))

    def stale(self):
        """The installed kernels whose images may contain settings that were removed."""
        ours = bool(self.own_files())
        images = [(kernel, self.image(kernel)) for kernel in self.kernels()]
        return [kernel for kernel, image in images
                if self.host.exists(image) and (ours or image in self._verified.known)]

    def _mode(self, path):
        return os.stat(self.host.path(path)).st_mode & 0o7777

    # the content of an image --------------------------------------------------------------------------------------------------

    def missing(self, kernel, resume, modules):
        """What the image of C(kernel) lacks to resume from C(resume), as a list of phrases.

        Lists the content of the image, unless the same file was found complete before. If C(resume) is None, any device
        counts.
        """
        image = self.image(kernel)
        if not self.host.exists(image):
            return ["%s does not exist" % image]
        if self._verified.holds(image, resume, modules, self._opened()):
            return []
        problems = self._problems(kernel, image, resume, modules)
        if not problems and not self._overrides(kernel, image, modules):
            self._verified.learn(image, resume, modules, self._opened())
        return problems

    def overrides(self, kernel, resume, modules):
        """The Overrides in the image of C(kernel): settings of others with which it would not resume from C(resume). Reads it."""
        image = self.image(kernel)
        if not self.host.exists(image) or self._verified.holds(image, resume, modules, self._opened()):
            return []
        return self._overrides(kernel, image, modules)

    def complete(self, kernel, resume, modules):
        """Whether the image of C(kernel) lacks nothing to resume from C(resume), and has no settings of others against it."""
        return not self.missing(kernel, resume, modules) and not self.overrides(kernel, resume, modules)

    def remedy(self, override):
        """What to do about an Override, as sentences."""
        source = next((path for path in self.sources(override.name) if self.host.exists(path)), None)
        if source is None:
            return ("Run boot_resume, which builds the image again. If the setting is in it again, a hook writes %s: remove that."
                    % override.name)
        return "Remove it from %s, unless that was done since, and run boot_resume, which builds the image again." % source

    def _overrides(self, kernel, image, modules):
        names = self._names(image)
        if "init" not in names or not any(self.reads(name) for name in names):
            return []
        key = self._key(image)
        if key not in self._files:
            self._files[key] = archive.contents(self.host, image, self.reads)
        available = KernelModules(self.host, kernel)
        needed = {name_of(path) for module in modules for path in available.files(module)}
        return self.find_overrides(names, self._files[key], [name_of(module) for module in modules], needed)

    def _problems(self, kernel, image, resume, modules):
        names = self._names(image)
        problems = [] if "init" in names else ["init (the image is damaged or empty)"]
        problems += self.lacking(names, resume)
        available = KernelModules(self.host, kernel)
        for module in modules:
            if not available.has(module):
                problems.append("module %s, which this kernel does not have" % module)
            elif any(not self._inside(names, kernel, path) for path in available.files(module)):
                problems.append("module %s" % module)
        return problems + self._locked(names, image)

    def _opened(self):
        """What of the machine says how the LUKS mappings are opened, for the records of verified images."""
        return self.unlocking.record

    def _locked(self, names, image):
        """What C(image) lacks to open the LUKS mappings."""
        problems = self.unlocking.lacking(names, self.programs)
        if not self.unlocking.mappings or problems:
            return problems
        contents = archive.contents(self.host, image, lambda name: self.unlocking.reads(name, self.programs))
        words = self.host.read("/proc/cmdline", "").split()
        return self.unlocking.unopened(contents, self.programs, self._mode(image), words)

    def _names(self, image):
        """The C(listing), cached per file because it takes seconds."""
        key = self._key(image)
        if key not in self._listed:
            self._listed[key] = self.listing(image)
        return self._listed[key]

    def _key(self, image):
        status = os.stat(self.host.path(image))
        return status.st_ino, status.st_size, status.st_mtime_ns

    @staticmethod
    def _inside(names, kernel, path):
        full = "lib/modules/%s/%s" % (kernel, path)
        return any(full + suffix in names for suffix in ("", ".xz", ".zst", ".gz"))

    # building --------------------------------------------------------------------------------------------------------

    def rebuild(self, tx, kernels, resume=None, modules=(), why="without our settings", lacking=None):
        """Rebuild the images of C(kernels) from the settings. With C(resume), verifies that each image can resume; with C(lacking), that
        C(lacking(names)), a list of phrases, is empty for the names in it. C(why) describes the images that are without C(resume).

        Refused C(boot_full), C(kernel_modules_missing), C(driver_missing), C(initramfs_incomplete), C(initramfs_overridden) or
        C(command_failed); all images are then unchanged.
        """
        if kernels:
            files.check(self.host)
            tx.check_kept(self.image(kernels[0]))
        for kernel in kernels:
            tx.note(self.image(kernel), "current image", "rebuilt: %s" % (
                "resume from %s with %s" % (resume, " ".join(modules)) if resume else why))
        if tx.check_mode or not kernels:
            return
        for kernel in kernels:
            self._check_kernel(kernel, modules)
        self._discard_leftovers()
        self._check_space(kernels)
        tx.on_failure(lambda: tx.host.flush_filesystem(BOOT))  # called last, after the old images are restored
        for kernel in kernels:
            self._build(tx, kernel, resume, modules, lacking)
        tx.host.flush_filesystem(BOOT)

    def finish(self):
        """Remove the old images, and record the new ones as verified. Called once nothing can fail any more."""
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
                "The kernel %s is in /boot, but has no modules in %s, so no initramfs can be built."
                % (kernel, MODULES_DIRECTORY % kernel),
                "Install the kernel's package again (apt-get install --reinstall linux-image-%s), or remove it completely "
                "(apt-get purge linux-image-%s)." % (kernel, kernel),
            )
        absent = [module for module in modules if not available.has(module)]
        if absent:
            raise Refused(
                "driver_missing",
                "The installed kernel %s lacks %s, and cannot resume." % (
                    kernel, ", ".join("the module %s" % module for module in absent)),
                "Install a kernel that has the module, or remove this kernel: booting it would destroy the image.",
            )

    def _check_space(self, kernels):
        sizes = []
        for kernel in kernels:
            image = self.host.path(self.image(kernel))
            sizes.append(os.stat(image).st_size if os.path.exists(image) else 0)
        need = int(sum(size or max(sizes) for size in sizes) * HEADROOM)
        free = self._free()
        if free < need:
            raise Refused(
                "boot_full",
                "%s has %d MiB free; building %d initramfs beside the old ones requires %d MiB." % (
                    BOOT, free >> 20, len(kernels), (need >> 20) + 1),
                "Remove unused kernels (apt autoremove --purge), or enlarge %s." % BOOT,
            )

    def _free(self):
        status = os.statvfs(self.host.path(BOOT))
        return status.f_bavail * status.f_frsize

    def _build(self, tx, kernel, resume, modules, lacking):
        host, image = self.host, self.image(kernel)
        existed = host.exists(image)
        try:
            self._create_private(image)
            self._run(self.command(kernel, image + NEW))
            if resume is not None:
                problems = self._problems(kernel, image + NEW, resume, modules)
            else:
                names = self.listing(image + NEW)
                problems = [] if "init" in names else ["init"]
                problems += lacking(names) if lacking else []
            if problems:
                raise Refused(
                    "initramfs_incomplete",
                    "The initramfs that %s built for kernel %s lacks: %s." % (self.name, kernel, ", ".join(problems)),
                    "The old image is unchanged. %s" % (" ".join(self.excluded(modules) if resume else []) or
                                                        "Check for other settings and hooks that exclude the missing files."),
                )
            if resume is not None:
                self._check_overrides(kernel, image + NEW, modules)
            self._keep_attributes(image, image + NEW)
            if existed:
                host.link(image, image + OLD)
        except BaseException:
            host.remove(image + NEW)
            raise
        # Restored in reverse order: first the image, then the settings.
        tx.on_failure(lambda: self._restore(kernel, image, existed))
        host.rename(image + NEW, image)
        if resume is not None:
            self._verified.learn(image, resume, modules, self._opened())
        else:
            self._verified.forget(image)
            self._verified.store()
        self._run_hooks(kernel, image)

    def _run(self, command):
        host, there = self.host, {"/run/nvm-fastboot-%s" % os.path.basename(path): path for path in self._seen}
        try:
            for copy, path in there.items():
                host.replace(copy, self._seen[path])
            if there:
                pairs = [host.path(each) for pair in there.items() for each in pair]
                shell = ["sh", "-c", WITH_OTHER_FILES, "sh", *pairs, "--"]
                command = [host.tool("unshare"), "--mount", "--propagation", "private", *shell, *command]
            host.run(command)
        finally:
            for copy in there:
                host.remove(copy)

    def _run_hooks(self, kernel, image, ok=(0,)):
        if self.host.glob(POST_UPDATE + "/*"):
            self.host.run(["run-parts", "--arg=" + kernel, "--arg=" + image, POST_UPDATE], ok=ok)

    def _restore(self, kernel, image, existed):
        """Put the earlier image back, and have the hooks copy it again."""
        if not existed:
            self.host.remove(image)
            return
        self.host.rename(image + OLD, image)
        self._run_hooks(kernel, image, ok=None)

    def _check_overrides(self, kernel, image, modules):
        found = self._overrides(kernel, image, modules)
        if found:
            raise Refused(
                "initramfs_overridden",
                "The initramfs that %s built for kernel %s would not resume: %s. The old image is unchanged."
                % (self.name, kernel, "; ".join(str(override) for override in found)),
                " ".join(dict.fromkeys(self.remedy(override) for override in found)),
            )

    def _create_private(self, image):
        """Create the file for the new C(image) where not all users may read the old one: it may hold keys, and so may the new one, which
        the tools write into an existing file without changing its mode."""
        mode = os.stat(self.host.path(image)).st_mode & 0o666 if self.host.exists(image) else 0o644
        mode = mode & 0o600 if self.unlocking.keys else mode
        if mode & 0o044 != 0o044:
            handle = os.open(self.host.path(image + NEW), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.fchmod(handle, mode)
            os.close(handle)

    def _keep_attributes(self, old, new):
        """Sync C(new) to the disk, with the owner of C(old). Who may read it: only who may read C(old) and whom the tool lets read the
        new one (UMASK=0077 in the settings of initramfs-tools; dracut)."""
        handle = os.open(self.host.path(new), os.O_RDONLY)
        try:
            if self.host.exists(old):
                status = os.stat(self.host.path(old))
                mode = status.st_mode & os.fstat(handle).st_mode & 0o7777
                os.fchown(handle, status.st_uid, status.st_gid)
                os.fchmod(handle, mode)
            os.fsync(handle)
        finally:
            os.close(handle)
