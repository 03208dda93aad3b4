# SPDX-License-Identifier: GPL-3.0-or-later
"""What every bootloader class owes its users, and what they have in common.

A purpose is one user's settings ("resume", "memmap-NVM_SWAP"): it is set, read back and removed as a whole and knows
nothing of the others. Settings of other people's are never edited; C(drop) keeps theirs from the kernel instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused


@dataclass(frozen=True)
class Entry:
    """A line of the boot menu that starts a kernel of this machine. C(kernel) is its path, C(arguments) whole words."""

    title: str
    kernel: str
    arguments: list


class Bootloader:
    """One bootloader on one Host. Subclasses say how; C(ensure) and C(forget) are what modules call."""

    name = ""
    title = ""

    @classmethod
    def find(cls, host):
        """An instance if this bootloader starts C(host), or None."""
        raise NotImplementedError

    @classmethod
    def evidence(cls):
        """What C(find) looks for, as a phrase."""
        raise NotImplementedError

    def owned(self, purpose):
        """The arguments our settings for C(purpose) hold now, or None where there are none.

        Refused C(settings_modified) where somebody else changed them.
        """
        raise NotImplementedError

    def set(self, tx, purpose, arguments, drop=()):
        """Make our settings for C(purpose) these C(arguments) (whole words). Returns whether that is a change.

        C(drop) names arguments of everybody else's that must not reach the kernel: a name ("resume") stands for it
        with any value, a whole word ("hibernate=nocompress") for itself.
        """
        raise NotImplementedError

    def unset(self, tx, purpose):
        """Take our settings for C(purpose) away. Returns whether there were any."""
        raise NotImplementedError

    def regenerate(self, tx):
        """Build the configuration that the bootloader reads anew from the settings, verified before it takes effect."""
        raise NotImplementedError

    def entries(self):
        """Each Entry of the configuration the bootloader will read."""
        raise NotImplementedError

    def find_setting(self, words):
        """The first setting of other people's that holds one of C(words) as (file, word), or None."""
        raise NotImplementedError

    def check(self, entries, present, absent=()):
        """What is wrong with C(entries): one phrase for each that lacks a word of C(present) or has one of C(absent).

        C(absent) is as C(drop) of C(set); words that are in C(present) too are wanted.
        """
        if not entries:
            return ["no entry starts a kernel of this machine"]
        found = []
        for entry in entries:
            lacking = [word for word in present if word not in entry.arguments]
            surplus = [word for word in entry.arguments if word not in present and matches(word, absent)]
            if lacking:
                found.append("the entry '%s' lacks %s" % (entry.title, " ".join(lacking)))
            if surplus:
                found.append("the entry '%s' has %s" % (entry.title, " ".join(surplus)))
        return found

    def ensure(self, tx, purpose, arguments, drop=()):
        """Have every entry pass C(arguments) and none of C(drop), generating the configuration anew if it has to be.

        Returns whether that is a change. An earlier run that was cut short is completed.
        """
        changed = self.set(tx, purpose, arguments, drop)
        if not changed and not self.unfinished() and not self.check(self.entries(), arguments, drop):
            return False
        self.regenerate(tx)
        return True

    def forget(self, tx, purpose):
        """Take the settings for C(purpose) away, out of the generated configuration too. Returns whether it changed."""
        if not self.unset(tx, purpose):
            return False
        self.regenerate(tx)
        return True

    def unfinished(self):
        """Whether settings were removed by a run that was cut short before it generated the configuration anew."""
        return False


def matches(word, patterns):
    """Whether the argument C(word) is one that C(patterns) (names or whole words) stand for."""
    name = word.split("=", 1)[0]
    return any(word == pattern or name == pattern for pattern in patterns)


def incomplete(what, problems, remedy):
    """The Refused C(bootloader_incomplete) for a generated configuration that does not do what was asked."""
    return Refused("bootloader_incomplete", "%s: %s." % (what, "; ".join(problems)), remedy)
