# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with a TPM 2.0, which swtpm emulates in a process of its own and whose state stays when the power goes."""

from __future__ import annotations

import subprocess

from tests.vm.lab import LabError, Machine


class WithTpm(Machine):
    """The same machine, to be switched on with its TPM. swtpm ends when QEMU does."""

    def power_on(self) -> None:
        state = self.folder / "tpm"
        state.mkdir(exist_ok=True)
        state_of = f"dir={state.absolute()}"  # read when swtpm is a daemon, in another directory
        swtpm = ["swtpm", "socket", "--tpm2", "--tpmstate", state_of, "--ctrl", "type=unixio,path=tpm.sock", "--terminate", "--daemon"]
        done = subprocess.run(swtpm, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"{self.name}: swtpm does not start: {done.stderr or done.stdout}")
        super().power_on()

    def command(self) -> list[str]:
        return [
            *super().command(),
            "-chardev", "socket,id=tpm,path=tpm.sock", "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
        ]  # fmt: skip
