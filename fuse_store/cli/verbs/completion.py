# SPDX-License-Identifier: GPL-3.0-or-later
"""``completion``: print a completion script for a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_store.cli.parser import PROGRAM, Verb, argument, build

if TYPE_CHECKING:
    from fuse_store.cli.context import Context

SHELLS = ("bash", "zsh", "tcsh")


def run(context: Context) -> int:
    import shtab

    from fuse_store.cli.verbs import load
    from fuse_store.hibernation.preflight import CODES
    from fuse_store.repository.manifest import PAGE_SIZES

    completions = {
        "file": shtab.FILE, "directory": shtab.DIRECTORY, "code": tuple(CODES),
        "page size": tuple(f"{size >> 10}KiB" for size in PAGE_SIZES),
    }  # fmt: skip
    parser = build(load(), completions)
    script = shtab.complete(parser, context.options.shell, root_prefix=PROGRAM.replace("-", "_"))
    context.emit({"shell": context.options.shell, "script": script}, script.rstrip("\n"))
    return 0


VERB = Verb(
    name="completion",
    summary="print a shell completion script",
    description="Completes verbs, options, values and file names.",
    run=run,
    arguments=(argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or tcsh"),),
    keys={"shell": "bash, zsh or tcsh", "script": "completion script"},
    examples=(
        ("fuse-store completion bash > /etc/bash_completion.d/fuse-store", "install for all users of bash"),
        ("fuse-store completion zsh > ~/.zfunc/_fuse-store", "install for one user of zsh, with ~/.zfunc in fpath"),
    ),
)
