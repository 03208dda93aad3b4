# SPDX-License-Identifier: GPL-3.0-or-later
"""The laboratory's command line. Exit codes: 0 done, 1 failed, 2 usage."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable

from tests.vm.lab import images
from tests.vm.lab.images import BuildError
from tests.vm.lab.machine import Lab, LabError, Machine
from tests.vm.lab.qmp import QmpError
from tests.vm.lab.recipes import RECIPES


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    lab = Lab(arguments.lab, say=lambda text: print(text, file=sys.stderr, flush=True), keep=True)
    try:
        arguments.run(lab, arguments)
    except (LabError, BuildError, QmpError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


def _build(lab: Lab, arguments: argparse.Namespace) -> None:
    for name in arguments.recipes or RECIPES:
        print(images.ensure(name, lambda text, name=name: lab.say(f"{name}: {text}"), fresh=arguments.fresh))  # type: ignore[misc]


def _create(lab: Lab, arguments: argparse.Namespace) -> None:
    machine = lab.create(
        arguments.name,
        arguments.recipe,
        memory=arguments.memory,
        cpus=arguments.cpus,
        nvdimm=arguments.nvdimm,
        labels=arguments.labels,
        disk=arguments.disk,
    )
    print(f"{machine.name}: made, powered off; SSH will answer on 127.0.0.1:{machine.settings.port}")


def _on(machine: Machine, arguments: argparse.Namespace) -> None:
    machine.keep()
    machine.power_on()
    if arguments.wait:
        print(f"{machine.name} answers after {machine.wait_up():.1f} s")


def _wake(machine: Machine, arguments: argparse.Namespace) -> None:
    machine.wait_off(arguments.timeout)
    machine.power_on()


def _button(machine: Machine, arguments: argparse.Namespace) -> None:
    machine.power_button()
    if arguments.wait:
        print(f"{machine.name} is off after {machine.wait_off():.1f} s")


def _ssh(machine: Machine, arguments: argparse.Namespace) -> None:
    command = ["ssh", *machine.ssh_options(), "root@127.0.0.1", *arguments.command]
    os.execvp(command[0], command)


def _console(machine: Machine, arguments: argparse.Namespace) -> None:
    if arguments.follow:
        os.execvp("tail", ["tail", "-n", "+1", "-F", str(machine.folder / "console.log")])
    sys.stdout.write(machine.console())


def _list(lab: Lab, arguments: argparse.Namespace) -> None:
    rows = [{"name": m.name, "on": m.is_on(), **vars(m.settings)} for m in lab.machines()]
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("{name:20} {power:4} {recipe:26} {memory:5} MiB  nvdimm {nvdimm:5} MiB  port {port}".format(
            power="on" if row["on"] else "off", **row))  # fmt: skip


def _inventory(lab: Lab, arguments: argparse.Namespace) -> None:
    chosen = [lab.machine(name) for name in arguments.names] if arguments.names else lab.machines()
    sys.stdout.write(lab.inventory(*chosen))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description="Virtual machines with non-volatile memory.")
    parser.add_argument("--lab", metavar="DIR", help="folder of the machines (default: $LAB_DIR or .lab)")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Callable[[Lab, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def machine_verb(name: str, run: Callable[[Machine, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = verb(name, lambda lab, arguments: run(lab.machine(arguments.name), arguments), text)
        sub.add_argument("name")
        return sub

    sub = verb("build", _build, "build guest images (Debian packages only) into the cache")
    sub.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"one of {', '.join(RECIPES)}; default all")
    sub.add_argument("--fresh", action="store_true", help="even if the cache has it")
    sub = verb("create", _create, "make a machine, powered off")
    sub.add_argument("name")
    sub.add_argument("--recipe", default="debian12", choices=sorted(RECIPES))
    sub.add_argument("--memory", type=int, default=1024, metavar="MIB")
    sub.add_argument("--cpus", type=int, default=1)
    sub.add_argument("--nvdimm", type=int, default=2048, metavar="MIB", help="size of the NVDIMM; 0: none")
    sub.add_argument("--labels", action="store_true", help="give the NVDIMM a label area, so that namespaces can be made on it")
    sub.add_argument("--disk", type=int, default=0, metavar="MIB", help="size of a second, ordinary disk")
    sub = machine_verb("on", _on, "switch it on, through its firmware and bootloader; it then stays on")
    sub.add_argument("--wait", action="store_true", help="until SSH answers")
    sub = machine_verb("wake", _wake, "wait until its power is off, then switch it on (a wake_command)")
    sub.add_argument("--timeout", type=float, default=300, metavar="SECONDS")
    sub = machine_verb("button", _button, "press its power button (an ACPI event)")
    sub.add_argument("--wait", action="store_true", help="until it is off")
    machine_verb("cut", lambda machine, arguments: machine.power_cut(), "pull the plug")
    sub = machine_verb("ssh", _ssh, "log in, or run a command")
    sub.add_argument("command", nargs=argparse.REMAINDER)
    sub = machine_verb("console", _console, "what it printed on its serial console since it was switched on")
    sub.add_argument("-f", "--follow", action="store_true")
    machine_verb("destroy", lambda machine, arguments: machine.destroy(), "cut its power and remove it")
    sub = verb("list", _list, "all machines")
    sub.add_argument("--json", action="store_true")
    sub = verb("inventory", _inventory, "an Ansible inventory of the machines")
    sub.add_argument("names", nargs="*")
    return parser


if __name__ == "__main__":
    sys.exit(main())
