# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface of a bootloader class, and the parts that all bootloaders share.

A purpose ("resume", "memmap-NVM_SWAP") names one group of our settings, which is set, read and removed as a whole,
independently of the other purposes. Foreign settings are never edited; C(drop) removes their arguments from the generated
configuration instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

FOR_INITRAMFS = ("resume",)  # with a UUID, and for a device whose drivers are modules


@dataclass(frozen=True)
class BootEntry:
    """An entry of the boot menu that starts a kernel of this system, in one of the ways that it may take.

    C(kernel) is a path, C(arguments) are whole words, C(initrds) the paths of what it loads as initramfs; microcode alone is none.
    """

    title: str
    kernel: str
    arguments: list
    initrds: tuple = ()


@dataclass(frozen=True)
class NextBoot:
    """What starts when no person chooses.

    C(choices) are C((title, [BootEntry])), without entries where it is no kernel of this system; several where it cannot be known,
    none if the menu is empty. C(reason) is a phrase. C(remedy(path)) is a sentence: how to have the kernel C(path) start instead,
    or any of this system with None.
    """

    choices: list
    reason: str
    remedy: Callable


class Bootloader:
    """One bootloader on one Host. Modules call C(ensure) and C(forget); subclasses implement the rest."""

    name = ""
    title = ""
    update = ""  # the command that writes the configuration again, if there is one
    firmware = False  # whether next_boot says what the firmware starts, and not only what a menu does

    @classmethod
    def find(cls, host):
        """An instance if this bootloader starts C(host), or None."""
        raise NotImplementedError

    @classmethod
    def find_for_removal(cls, host):
        """As C(find), also where another bootloader starts the machine now and this one has settings of ours."""
        return cls.find(host)

    @classmethod
    def evidence(cls):
        """The files that C(find) looks for, as a phrase."""
        raise NotImplementedError

    @classmethod
    def remains(cls, host, purpose, leftovers=()):
        """The files on C(host) with our settings for C(purpose), or with one of the arguments C(leftovers), as a list of paths.

        Also where C(find) finds nothing.
        """
        raise NotImplementedError

    def owned(self, purpose):
        """The arguments in our settings for C(purpose), or None if there are no settings.

        Refused C(settings_modified) if the file was changed by hand.
        """
        raise NotImplementedError

    def set(self, tx, purpose, arguments, drop=()):
        """Set C(arguments) (whole words) for C(purpose). Returns whether that is a change.

        C(drop) names arguments in foreign settings that must not reach the kernel: a name ("resume") matches any value, a
        whole word ("hibernate=nocompress") only itself.
        """
        raise NotImplementedError

    def unset(self, tx, purpose):
        """Remove our settings for C(purpose). Returns whether there were any."""
        raise NotImplementedError

    def regenerate(self, tx):
        """Generate the bootloader's configuration from the settings, and verify it before it takes effect."""
        raise NotImplementedError

    def entries(self):
        """Each BootEntry of the configuration that the next boot uses."""
        raise NotImplementedError

    def next_boot(self):
        """What starts when no person chooses, as a NextBoot."""
        raise NotImplementedError

    def find_setting(self, words):
        """The first foreign setting with one of C(words), as C((file, word)), or None."""
        raise NotImplementedError

    def find_initrdless(self):
        """The foreign setting that makes entries start without an initramfs, as C((file, name)), or None."""
        raise NotImplementedError

    def check(self, entries, present, absent=()):
        """The problems of C(entries): a phrase for each entry that lacks a word of C(present) or has one of C(absent).

        C(absent) is like C(drop) of C(set). A word that is also in C(present) is not a problem. An entry without initramfs is
        one if C(present) has an argument that only an initramfs acts on.
        """
        if not entries:
            return ["no entry starts a kernel of this machine"]
        problems = []
        for entry in entries:
            if not entry.initrds and any(matches(word, FOR_INITRAMFS) for word in present):
                problems.append("the entry '%s' starts the kernel without an initramfs" % entry.title)
            lacking = [word for word in present if word not in entry.arguments]
            surplus = [word for word in entry.arguments if word not in present and matches(word, absent)]
            if lacking:
                problems.append("the entry '%s' lacks %s" % (entry.title, " ".join(lacking)))
            if surplus:
                problems.append("the entry '%s' has %s" % (entry.title, " ".join(surplus)))
        return problems + self.outdated()

    def outdated(self):
        """A phrase for each entry that loads a copy of an initramfs, or has one inside, that is not the same as the image in /boot."""
        return []

    def ensure(self, tx, purpose, arguments, drop=()):
        """Have every entry pass C(arguments) and none of C(drop). Generates the configuration only if necessary.

        Returns whether that is a change. Completes an earlier run that was interrupted.
        """
        changed = self.set(tx, purpose, arguments, drop)
        if not changed and not self.unfinished() and not self.check(self.entries(), arguments, drop):
            return False
        self.regenerate(tx)
        return True

    def forget(self, tx, purpose, leftovers=()):
        """Remove the settings for C(purpose), also from the generated configuration. Returns whether there were any.

        Also if only the configuration still has one of C(leftovers), arguments that our settings passed, because the settings
        were removed by hand.
        """
        if not self.unset(tx, purpose) and not self._left_over(leftovers):
            return False
        self.regenerate(tx)
        return True

    def after_hooks(self, tx):
        """Correct what the hooks of new images have written since C(forget), such as an entry with the arguments of the running kernel."""

    def _left_over(self, words):
        """Whether an entry has one of C(words), without a setting of others that passes it."""
        return any(set(words) & set(entry.arguments) for entry in self.entries()) and not self.find_setting(words)

    def unfinished(self):
        """Whether an interrupted run removed settings without generating the configuration."""
        return False


def matches(word, patterns):
    """Whether the argument C(word) matches one of C(patterns), which are names or whole words."""
    name = word.split("=", 1)[0]
    return any(word == pattern or name == pattern for pattern in patterns)


def incomplete(what, problems, remedy):
    """The Refused C(bootloader_incomplete) for a generated configuration that differs from the settings."""
    return Refused("bootloader_incomplete", "%s: %s." % (what, "; ".join(problems)), remedy)
