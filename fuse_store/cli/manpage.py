# SPDX-License-Identifier: GPL-3.0-or-later
"""The man page, made from the table of verbs: ``python -m fuse_store.cli.manpage > docs/fuse-store.1`` (man-pages(7))."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fuse_store.cli.parser import GENERAL, PROGRAM, Argument, Verb, capital
from fuse_store.cli.verbs import load

EXIT_CODES = {
    0: "Done.",
    1: "Failed: a full disk, no right, an error of a device.",
    2: "Usage: what was asked for makes no sense.",
    3: "Not found: the store, an image, a source; select found none that fits.",
    4: "Integrity: something stored is damaged, or the key is another store's.",
    5: "Refused: it would not be safe, or the key file is not there.",
    6: "Locked: somebody else is writing to the store.",
    130: "Interrupted by Ctrl-C; 143 by SIGTERM, 129 by SIGHUP. Nothing half-written is left.",
    141: "The reader of standard output went away.",
}
ENVIRONMENT = {
    "FUSE_STORE": "The store, if --store does not say.",
    "FUSE_STORE_KEY_FILE": "The key file, if --key-file does not say.",
    "FUSE_STORE_DEBUG": "With 1, an error is preceded by its traceback.",
    "XDG_CONFIG_HOME": "Where fuse-store/keys is, if no key file is named; by default ~/.config.",
}


def manpage() -> str:
    """The page as roff."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield '.\\" SPDX-License-Identifier: GPL-3.0-or-later'
    yield '.\\" Made by python -m fuse_store.cli.manpage'
    yield f".TH {PROGRAM.upper()} 1"
    yield from (
        ".SH NAME",
        f"{PROGRAM} \\- versions of boot images and other large files: deduplicated, checked, encrypted",
    )
    yield from (".SH SYNOPSIS", f".B {PROGRAM}", "[\\fIoptions\\fR] \\fIverb\\fR [\\fIarguments\\fR]")
    yield ".SH DESCRIPTION"
    yield _roff(
        "Keeps many versions of images (of memory, disks, devices, or any file) in a folder, the store. What versions have in "
        "common is stored once, every byte is checked when it is read, and all of it is encrypted unless the store was made "
        "without. Any version can be written back, compared, or seen as a file in a mount."
    )
    yield from (".SH GENERAL OPTIONS", "Before or after the verb.")
    yield from _tagged((_flags(one), str(one.settings["help"])) for one in GENERAL)
    yield ".SH VERBS"
    for verb in load():
        yield f".SS {_roff(verb.name + ''.join(' ' + _usage(one) for one in verb.arguments))}"
        yield _roff(f"{capital(verb.summary)}. {verb.description}".strip())
        yield from _tagged((_flags(one), str(one.settings["help"])) for one in verb.arguments)
        yield from _examples(verb)
        yield from _keys(verb)
    yield ".SH EXIT STATUS"
    yield from _tagged((str(code), what) for code, what in EXIT_CODES.items())
    yield ".SH ENVIRONMENT"
    yield from _tagged(ENVIRONMENT.items())
    yield ".SH SEE ALSO"
    yield _roff("fusermount3(1), mount.fuse3(8), b3sum(1)")


def _usage(one: Argument) -> str:
    name = str(one.settings.get("metavar", ""))
    if not one.flags[0].startswith("-"):
        return {"*": f"[{name}…]"}.get(str(one.settings.get("nargs")), name)
    text = f"{one.flags[-1]} {name}".strip()
    return text if one.settings.get("required") else f"[{text}]"


def _flags(one: Argument) -> str:
    name = str(one.settings.get("metavar", ""))
    return f"{', '.join(one.flags)} {name}".strip() if one.flags[0].startswith("-") else name


def _tagged(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, what in pairs:
        yield from (".TP", f".B {_roff(name)}", _roff(what))


def _examples(verb: Verb) -> Iterator[str]:
    if verb.examples:
        yield from (".PP", "Examples:", ".PP", ".nf", ".RS 4")
        for command, what in verb.examples:
            yield from (_roff(f"# {what}"), _roff(command))
        yield from (".RE", ".fi")


def _keys(verb: Verb) -> Iterator[str]:
    if verb.keys:
        longest = max(map(len, verb.keys))
        yield from (".PP", _roff("Keys with --json:"), ".PP", ".nf", ".RS 4")
        yield from (_roff(f"{key:{longest}}  {what}") for key, what in verb.keys.items())
        yield from (".RE", ".fi")


def _roff(text: str) -> str:
    """``text`` without what roff would take for a request, in characters that every roff has."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace("~", "\\(ti").replace("'", "\\(aq")
    return "\\&" + text if text.startswith(".") else text


if __name__ == "__main__":
    print(manpage(), end="")
