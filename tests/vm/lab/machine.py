# SPDX-License-Identifier: GPL-3.0-or-later
"""One virtual machine with non-volatile memory: made, powered, cut off, logged in to, destroyed.

A machine is a folder (``.lab/<name>/``): its settings, an overlay disk, the file that is its NVDIMM (which keeps its
content when the power goes, as the real one does), its seed and its console log. Any process that knows the folder can
drive the machine, so that tests, the command line and a ``wake_command`` work on the same one. A machine may be driven
by one process at a time.

A machine ends with the process that made it, and is then off, with all that its disks hold; unless the laboratory is to keep its
machines: ``Lab(keep=True)``, KEEP=1, or the command line.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from tests.vm.lab import accelerator, images, lease, qmp
from tests.vm.lab.recipes import RECIPES

REPOSITORY = Path(__file__).resolve().parents[3]
LABEL_AREA = "128K"
ERST_SIZE = "64K"
OWNER = "owner"  # of a machine: the process with which it ends, see lease.process; nothing, if it is kept
CONSTANT = ("base.qcow2", "vmlinuz")  # parts of a machine that never change
BOOT_SECONDS = 420  # a cold boot under software emulation on a busy machine
OFF_SECONDS = 300
SSH_ATTEMPTS = 5
SECOND_NVDIMM = 256  # MiB
# How a machine has its NVM: files and QEMU's devices for them.
NVM = {
    "nvdimm": {"nvdimm": "nvdimm,id=nv1"},
    "two-nvdimms": {"nvdimm2": "nvdimm,id=nv2", "nvdimm": "nvdimm,id=nv1"},  # the first is too small to hibernate into
    "virtio-pmem": {"nvdimm": "virtio-pmem-pci,id=nv1"},
}
# What ssh says before a command could have begun; a guest may give its network interface another name when it answers already.
UNHEARD = (b"kex_exchange_identification", b"banner exchange", b"mux_client_request_session", b"to new control master")


class LabError(Exception):
    """The laboratory could not do what was asked; the message names the machine and the cause."""


class Protocol(NamedTuple):
    """The port on which a server listens in the guest, what it is told, and how it begins its answer."""

    port: int
    request: bytes
    answer: bytes


SSH = Protocol(22, b"", b"SSH-")  # RFC 4253, 4.2
HTTP = Protocol(8080, b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200")
PORTS = (10240, 32768)  # of the host, for machines
DISCARD = 9  # a port where nobody listens


@dataclass(frozen=True)
class Settings:
    """What a machine is made of. Sizes in MiB; ``nvdimm`` or ``disk`` 0 means that there is none.

    ``port`` and ``http`` are the ports on the host's loopback that lead to the guest's SSH and HTTP servers. ``erst``: the firmware keeps
    records of errors (ACPI ERST), where a kernel leaves its last words; ``watchdog``: an i6300esb, which resets the machine. ``nvm``: a
    row of NVM. ``secure_boot``: the firmware starts what Microsoft has signed, from the next time on that it is switched on.
    """

    recipe: str
    port: int
    memory: int = 1024
    cpus: int = 1
    nvdimm: int = 2048
    labels: bool = False
    disk: int = 0
    http: int = 0
    erst: bool = False
    watchdog: bool = False
    nvm: str = "nvdimm"
    secure_boot: bool = False


class Lab:
    """All machines below one folder. Those that are made here end with this process, or with ``owner``, unless ``keep`` (KEEP=1 is the
    default)."""

    def __init__(
        self,
        folder: Path | str | None = None,
        say: Callable[[str], None] = lambda text: None,
        *,
        keep: bool | None = None,
        owner: int | None = None,
    ) -> None:
        self.folder = Path(folder or os.environ.get("LAB_DIR") or REPOSITORY / ".lab").resolve()
        self.say = say
        self._owner = (
            "" if (os.environ.get("KEEP", "") not in ("", "0") if keep is None else keep) else lease.process(owner or os.getpid())
        )

    def create(
        self,
        name: str,
        recipe: str = "debian12",
        *,
        memory: int = 1024,
        cpus: int = 1,
        nvdimm: int = 2048,
        labels: bool = False,
        disk: int = 0,
        erst: bool = False,
        watchdog: bool = False,
        nvm: str = "nvdimm",
        files: Mapping[str, str] | None = None,
    ) -> Machine:
        """A new machine, powered off. ``files`` (path → text) are laid down at its first boot. Raises LabError."""
        if recipe not in RECIPES:
            raise LabError(f"there is no recipe {recipe}; there are {', '.join(RECIPES)}")
        folder = self.folder / name
        if folder.exists():
            raise LabError(f"the machine {name} exists already; 'lab destroy {name}' removes it")
        image = images.ensure(recipe, lambda text: self.say(f"{recipe}: {text}"))
        folder.mkdir(parents=True)
        self._key()
        port, http = _free_ports()
        machine = Machine(folder, Settings(recipe, port, memory, cpus, nvdimm, labels, disk, http, erst, watchdog, nvm))
        for part in CONSTANT:
            _link_or_copy(image / part, folder / part)  # the cache may drop the image, the machine keeps it
        _run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", "disk.qcow2"], folder)
        if nvdimm:
            _make_hole(folder / "nvdimm.img", nvdimm)
            if "nvdimm2" in NVM[nvm]:
                _make_hole(folder / "nvdimm2.img", SECOND_NVDIMM)
        if disk:
            _make_hole(folder / "disk2.img", disk)
        if RECIPES[recipe].firmware == "efi":
            shutil.copy(_firmware(False)[1], folder / "vars.fd")
        public_key = (self.folder / "key.pub").read_text()
        _write_seed(
            folder / "seed.tar",
            {
                "/etc/hostname": f"{name}\n",
                "/etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n",
                "/root/.ssh/authorized_keys": public_key,
                **(files or {}),
            },
        )
        (folder / OWNER).write_text(self._owner)
        (folder / "machine.json").write_text(json.dumps(asdict(machine.settings), indent=1) + "\n")
        return machine

    def copy(self, original: Machine, name: str) -> Machine:
        """A machine like ``original``, powered off, with what its disks and its NVDIMM hold. ``original`` must be off."""
        if original.is_on():
            raise LabError(f"{original.name} is on; only a machine that is off can be copied")
        folder = self.folder / name
        if folder.exists():
            raise LabError(f"the machine {name} exists already; 'lab destroy {name}' removes it")
        port, http = _free_ports()
        settings = replace(original.settings, port=port, http=http)
        folder.mkdir()
        for file in original.folder.iterdir():
            if file.name in CONSTANT:
                _link_or_copy(file, folder / file.name)
            elif file.is_file():  # sockets stay
                # cp keeps holes, and shares blocks where the filesystem can.
                _run(["cp", "-a", "--sparse=always", "--reflink=auto", str(file), str(folder)], self.folder)
        (folder / OWNER).write_text(self._owner)
        (folder / "machine.json").write_text(json.dumps(asdict(settings), indent=1) + "\n")
        return Machine(folder, settings)

    def machine(self, name: str) -> Machine:
        """The machine of that name. Raises LabError."""
        try:
            settings = Settings(**json.loads((self.folder / name / "machine.json").read_text()))
        except FileNotFoundError as error:
            raise LabError(f"there is no machine {name} in {self.folder}") from error
        return Machine(self.folder / name, settings)

    def machines(self) -> list[Machine]:
        return [self.machine(file.parent.name) for file in sorted(self.folder.glob("*/machine.json"))]

    def inventory(self, *machines: Machine) -> str:
        """An Ansible inventory (YAML) of the machines, as a user would write it for servers."""
        hosts = {machine.name: machine.inventory() for machine in machines}
        return json.dumps({"all": {"hosts": hosts}}, indent=1) + "\n"

    def _key(self) -> None:
        # One for all machines of the laboratory; two that are created at once, by two processes, must not both make it.
        with open(self.folder / "key.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (self.folder / "key.pub").exists():
                (self.folder / "key").unlink(missing_ok=True)
                _run(
                    ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(self.folder / "key")],
                    self.folder,
                )


class Machine:
    """One machine; made by ``Lab.create`` or found by ``Lab.machine``."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.name = folder.name
        self._pid_file = folder / "qemu.pid"
        self._owner_file = folder / OWNER

    # power ---------------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Switch it on, through its firmware and bootloader. Returns when QEMU runs. Raises LabError, also where the process that the
        machine was made for has ended."""
        if self.is_on():
            raise LabError(f"{self.name} is on already")
        owner = self._owner_file.read_text() if self._owner_file.exists() else ""
        if owner and not lease.lives(owner):
            raise LabError(
                f"{self.name} was made for a process that has ended; 'lab on {self.name}' switches it on and keeps it"
            )
        for stale in ("ssh.sock", "qmp.sock", "qemu.pid"):
            (self.folder / stale).unlink(missing_ok=True)
        console = self.folder / "console.log"
        if console.exists():
            with open(self.folder / "console.old.log", "ab") as old:
                old.write(console.read_bytes())
            console.unlink()
        try:
            if owner:
                _run(lease.command(owner, self._pid_file, self.command()), self.folder, session=True)
            else:
                _run(self.command(), self.folder)
        except LabError as error:
            raise LabError(f"{self.name} does not start: {error}") from error

    def secure_boot(self) -> Machine:
        """This machine, which is off, with a firmware that starts only what Microsoft has signed."""
        settings = replace(self.settings, secure_boot=True)
        shutil.copy(_firmware(True)[1], self.folder / "vars.fd")
        (self.folder / "machine.json").write_text(json.dumps(asdict(settings), indent=1) + "\n")
        return Machine(self.folder, settings)

    def add_disk(self, mebibytes: int) -> Path:
        """Give the machine, which is off, a second disk; the file that it is."""
        self.settings = replace(self.settings, disk=mebibytes)
        _make_hole(self.folder / "disk2.img", mebibytes)
        return self.folder / "disk2.img"

    def keep(self) -> None:
        """Let it outlive the process that it was made for, from the next time on that it is switched on."""
        self._owner_file.unlink(missing_ok=True)

    def command(self) -> list[str]:
        """The QEMU command line that runs this machine."""
        one = self.settings
        command = [
            "qemu-system-x86_64", "-name", self.name, "-daemonize", "-pidfile", str(self._pid_file),
            "-M", "q35,nvdimm=on,hpet=off", *accelerator.options(self.accelerator()),
            "-smp", str(one.cpus), "-m", f"{one.memory}M,slots=3,maxmem={one.memory + one.nvdimm + 8192}M",
            "-display", "none", "-qmp", "unix:qmp.sock,server=on,wait=off",
            "-chardev", "file,id=console,path=console.log", "-serial", "chardev:console",
            "-drive", "file=disk.qcow2,format=qcow2,if=none,id=root,cache=writeback,discard=unmap",
            "-device", "virtio-blk-pci,drive=root,bootindex=1",
            "-drive", "file=seed.tar,format=raw,if=none,id=seed,readonly=on",
            "-device", "virtio-blk-pci,drive=seed,serial=lab-seed",
            "-netdev", "user,id=net,restrict=on," + ",".join(
                f"hostfwd={kind}:127.0.0.1:{host}-:{guest}"
                for kind, host, guest in (
                    ("tcp", one.port, SSH.port), ("udp", one.port, DISCARD),
                    ("tcp", one.http, HTTP.port), ("udp", one.http, DISCARD),
                )
            ),
            "-device", "virtio-net-pci,netdev=net,romfile=",
        ]  # fmt: skip
        if RECIPES[one.recipe].firmware == "efi":
            code, _variables = _firmware(one.secure_boot)
            command += [
                "-global", f"driver=cfi.pflash01,property=secure,value={'on' if one.secure_boot else 'off'}",
                "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}",
                "-drive", "if=pflash,format=raw,unit=1,file=vars.fd",
            ]  # fmt: skip
        if one.disk:
            # Past the host's page cache, which would make a disk as fast as memory.
            command += [
                "-drive", "file=disk2.img,format=raw,if=none,id=disk2,cache=none",
                "-device", "virtio-blk-pci,drive=disk2,serial=lab-disk,bootindex=2",  # SeaBIOS shows GRUB no disk without one
            ]  # fmt: skip
        if one.nvdimm:
            label = f",label-size={LABEL_AREA}" if one.labels else ""
            for name, device in NVM[one.nvm].items():
                size = one.nvdimm if name == "nvdimm" else SECOND_NVDIMM
                command += [
                    "-object", f"memory-backend-file,id={name}-file,share=on,mem-path={name}.img,size={size}M",
                    "-device", f"{device},memdev={name}-file{label}",
                ]  # fmt: skip
        if one.erst:
            command += [
                "-object", f"memory-backend-file,id=erst1,share=on,mem-path=erst.img,size={ERST_SIZE}",
                "-device", "acpi-erst,memdev=erst1",
            ]  # fmt: skip
        if one.watchdog:
            command += ["-device", "i6300esb", "-action", "watchdog=reset"]
        return command

    def accelerator(self) -> str:
        """``kvm`` or ``tcg``."""
        return accelerator.choose(self.folder / "vmlinuz", images.cache_directory() / "accelerator")

    def is_on(self) -> bool:
        """Whether its QEMU process runs."""
        return self.pid() is not None

    def power_button(self) -> None:
        """Press the power button: an ACPI event, which the guest may answer as it likes."""
        qmp.execute(self.folder / "qmp.sock", "system_powerdown")

    def power_cut(self) -> None:
        """Pull the plug: the QEMU process is killed. What the NVDIMM and the disks hold, they keep."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just gone off
                os.kill(pid, signal.SIGKILL)
            self.wait_off()

    def freeze(self) -> None:
        """Stop its virtual processors, so that it costs nothing while another machine is measured."""
        qmp.execute(self.folder / "qmp.sock", "stop")

    def thaw(self) -> None:
        """Let it run on after ``freeze``."""
        qmp.execute(self.folder / "qmp.sock", "cont")

    def wait_off(self, timeout: float = OFF_SECONDS) -> float:
        """Wait until the power is off; the seconds it took. Raises LabError."""
        return self._wait(lambda: not self.is_on(), timeout, "is still on")

    def wait_up(self, timeout: float = BOOT_SECONDS) -> float:
        """Wait until its SSH server answers; the seconds it took. Raises LabError (at once if the power goes off)."""
        with _Greeting(self.settings.port, SSH) as greeting:
            return self._wait(greeting.heard, timeout, "does not answer on SSH", alive=True)

    def wait_served(self, timeout: float = BOOT_SECONDS) -> float:
        """Wait until its web application answers; the seconds it took. Raises LabError."""
        with _Greeting(self.settings.http, HTTP) as greeting:
            return self._wait(greeting.heard, timeout, "serves nothing by HTTP", alive=True)

    # work on it ----------------------------------------------------------------------------------------------------

    def ssh(self, command: str, *, check: bool = True, timeout: float = 300, stdin: str | bytes | None = None) -> str:
        """Run a shell command as root on the machine and return what it prints. Raises LabError if it fails."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        for _attempt in range(SSH_ATTEMPTS):
            try:
                done = subprocess.run(
                    ["ssh", *self.ssh_options(), "-o", "ControlMaster=auto", "-o", "ControlPersist=60",
                     "-o", "ControlPath=ssh.sock", "root@127.0.0.1", command],
                    cwd=self.folder, capture_output=True, check=False, timeout=timeout, input=data if data is not None else b"",
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise LabError(f"{self.name}: '{command}' did not end within {timeout:.0f} s") from error
            unheard = any(complaint in done.stderr for complaint in UNHEARD)
            if done.returncode != 255 or not unheard or not self.is_on():
                break
            time.sleep(1)  # a server that was just started, and has more connections than it takes
        output = done.stdout.decode(errors="replace")
        if check and done.returncode != 0:
            raise LabError(
                f"{self.name}: '{command}' exited with {done.returncode}: {done.stderr.decode(errors='replace')}{output}"
            )
        return output

    def ssh_options(self) -> list[str]:
        """Options for ssh and scp that reach this machine."""
        return [
            "-i", str(self.folder.parent / "key"), "-p", str(self.settings.port), "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", "-o", "BatchMode=yes",
            "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=6",
        ]  # fmt: skip

    def inventory(self) -> dict[str, object]:
        """Its Ansible variables."""
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.settings.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.folder.parent / "key"),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    def console(self) -> str:
        """What the machine has printed on its serial console since it was last switched on."""
        try:
            return (self.folder / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def destroy(self) -> None:
        """Cut its power and remove everything of it."""
        self.power_cut()
        shutil.rmtree(self.folder, onerror=_unless_gone)

    def pid(self) -> int | None:
        """The process id of its QEMU, None while it is off. One that is ending has no command line any more, but its disks open and
        locked until its last thread has ended, after the one that all of them go by."""
        try:
            pid = int(self._pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            name, _parenthesis, fields = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            threads = len(os.listdir(f"/proc/{pid}/task"))
        except (OSError, ValueError):
            return None
        ending = not any(words) and name.startswith("qemu") and (threads > 1 or fields.split()[0] not in ("Z", "X"))
        return pid if os.fsencode(self._pid_file) in words or ending else None

    def _wait(self, done: Callable[[], bool], timeout: float, complaint: str, alive: bool = False) -> float:
        started = time.monotonic()
        while not done():
            if alive and not self.is_on():
                raise LabError(f"{self.name} has gone off; its console is {self.folder}/console.log")
            if time.monotonic() - started > timeout:
                raise LabError(
                    f"{self.name} {complaint} after {timeout:.0f} s; its console is {self.folder}/console.log"
                )
            time.sleep(0.05)
        return time.monotonic() - started


class _Greeting:
    """Listens for the first bytes of a server in the guest, behind QEMU's port forward.

    The forward accepts connections even while the guest is dead, and keeps what it could not deliver for one second
    (libslirp, if_encap); so a new connection is made every second, beside the one before. Not more than these two: each
    that reaches the guest costs it a process, which would delay the greeting that is waited for. The longer it takes, the
    rarer and the more patient they are: a slow server needs seconds to greet.

    The forward asks for the guest's hardware address once per packet. So that it asks often enough to notice at once
    that a guest is back, datagrams are sent to a port where nobody listens.
    """

    EVERY = 1.0  # seconds between two connections at first
    SHARE = 0.05  # of the time waited so far: later
    AT_ONCE = 2

    def __init__(self, port: int, protocol: Protocol) -> None:
        self._port = port
        self._protocol = protocol
        self._began = time.monotonic()
        self._open: list[tuple[float, socket.socket]] = []
        self._datagrams = socket.socket(type=socket.SOCK_DGRAM)
        self._datagrams.setblocking(False)

    def __enter__(self) -> _Greeting:
        return self

    def __exit__(self, *error: object) -> None:
        for _since, connection in self._open:
            connection.close()
        self._datagrams.close()

    def heard(self) -> bool:
        now = time.monotonic()
        with contextlib.suppress(OSError):
            self._datagrams.sendto(b"\0", ("127.0.0.1", self._port))
        every = max(self.EVERY, self.SHARE * (now - self._began))
        for entry in list(self._open):
            since, connection = entry
            try:
                start: bytes | None = connection.recv(64)
            except BlockingIOError:
                start = b"" if now - since > every * self.AT_ONCE else None
            except OSError:
                start = b""
            if start and start.startswith(self._protocol.answer):
                return True
            if start is not None:
                connection.close()
                self._open.remove(entry)
        if not self._open or now - self._open[-1][0] > every:
            connection = socket.socket()
            with contextlib.suppress(OSError):  # QEMU accepts at once, unless it has just ended
                connection.connect(("127.0.0.1", self._port))
                connection.sendall(self._protocol.request)
            connection.setblocking(False)
            self._open.append((now, connection))
        return False


def _make_hole(path: Path, mebibytes: int) -> None:
    with open(path, "wb") as file:
        file.truncate(mebibytes << 20)


def _unless_gone(_function: object, _path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
    """Let rmtree go on where a file went by itself: the socket of an ssh that noticed the power cut."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def _firmware(secure_boot: bool) -> tuple[Path, Path]:
    """OVMF's code and variable store."""
    code, variables = images.ovmf()
    if not secure_boot:
        return code, variables
    return code.with_name("OVMF_CODE_4M.ms.fd"), variables.with_name("OVMF_VARS_4M.ms.fd")


def _free_ports() -> tuple[int, int]:
    """Two ports that nobody uses. A machine keeps them while it is off, so they are not of those (32768 and above on Linux)
    that the kernel gives to connections; and chosen at random, as other laboratories choose here too."""
    found: list[int] = []
    while len(found) < 2:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found[0], found[1]


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _write_seed(path: Path, files: Mapping[str, str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            content = text.encode()
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size = len(content)
            entry.mode = 0o600 if "/.ssh/" in name else 0o755 if content.startswith(b"#!") else 0o644
            archive.addfile(entry, BytesIO(content))


def _run(command: list[str], folder: Path, session: bool = False) -> None:
    """Run ``command`` in ``folder``, where ``session`` is set in a session of its own. Raises LabError."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            start_new_session=session,
        )
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is not installed; 'make setup' installs what the laboratory needs") from error
    if done.returncode != 0:
        raise LabError(f"{command[0]} exited with {done.returncode}: {done.stderr.strip()}")
