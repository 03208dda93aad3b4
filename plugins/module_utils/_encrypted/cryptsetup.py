# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands for LUKS. A passphrase is given on standard input only, as bytes, and is in no message.

Exit codes of cryptsetup(8): 2 is a wrong key.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused

WRONG = 2
# A key of 64 random bytes cannot be guessed, however fast one guess is; so the boot does not wait for the derivation.
FAST = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
TPM2_PCRS = "7"  # systemd-cryptenroll(1): the state of Secure Boot


@dataclass(frozen=True)
class Key:
    """A passphrase (bytes), or the path of a key file. C(random): the file holds random bytes of ours."""

    passphrase: bytes = field(default=b"", repr=False)
    file: str = ""
    random: bool = False

    @property
    def words(self):
        return ["--key-file=%s" % (self.file or "-")]

    @property
    def data(self):
        return None if self.file else self.passphrase


def make(host, block, uuid, label, key):
    """Format C(block) as LUKS2 with C(key)."""
    words = ["luksFormat", "--batch-mode", "--type", "luks2", "--uuid", uuid, "--label", label]
    _run(host, words + list(FAST if key.random else ()) + key.words + [block.path], key.data)


def opens(host, block, key):
    """Whether C(key) opens C(block)."""
    return _run(host, ["open", "--test-passphrase"] + key.words + [block.path], key.data, ok=(0, WRONG)).rc == 0


def open_mapping(host, block, name, key):
    """Open C(block) as C(name). Returns whether the key was right."""
    return _run(host, ["open", "--type", "luks2"] + key.words + [block.path, name], key.data, ok=(0, WRONG)).rc == 0


def close(host, name, ok=(0,)):
    _run(host, ["close", name], None, ok=ok)


def add_file(host, block, key, new):
    """Make the key file C(new) open C(block), which C(key) opens."""
    _run(host, ["luksAddKey", "--batch-mode"] + list(FAST if new.random else ()) + key.words + [block.path, new.file], key.data)


def enrol_tpm2(host, block, key):
    """Have the TPM of this machine open C(block), which C(key) opens."""
    words = [host.tool("systemd-cryptenroll"), "--unlock-key-file=%s" % (key.file or "/dev/stdin"), "--tpm2-device=auto",
             "--tpm2-pcrs=" + TPM2_PCRS, block.path]
    host.run(words, data=key.data)


def _run(host, words, data, ok=(0,)):
    result = host.run([host.tool("cryptsetup")] + words, data=data, ok=None)
    if ok is not None and result.rc not in ok:
        raise Refused(
            "command_failed",
            "cryptsetup %s exited with status %d: %s" % (words[0], result.rc, (result.err or result.out).strip() or "no output"),
            "Run the command by hand on the machine to find the cause; the kernel log (dmesg) may have more.",
        )
    return result
