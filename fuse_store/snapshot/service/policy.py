# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may ask for snapshots: a file in TOML, by default /etc/fuse-store/snapshots.toml. docs/snapshots.md has an example."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuse_store import settings as settings_file
from fuse_store.boot import policy as boot_policy
from fuse_store.errors import NotFound, Refused, StoreError, UsageError
from fuse_store.snapshot.targets import HOOK_TIME_LIMIT, Wishes

if TYPE_CHECKING:
    from fuse_store.snapshot.taking import Snapshot

PATH = "/etc/fuse-store/snapshots.toml"
MAX_SIZE = 1 << 20  # bytes
ARM = ("no", "once", "always")
_APPLICATION_NAME = re.compile(r"(?! )[^/\x00-\x1f\x7f]{1,100}(?<! )")
_TOP = {
    "device": str, "arm": str, "time_limit": int, "hook_time_limit": int, "keep": int, "store": str, "key_file": str, "boot": dict,
    "applications": dict,
}  # fmt: skip
_APPLICATION = {"users": list, "groups": list, "interval": int, "keep": int, "replace": bool}
_NAMES = {int: "a number", bool: "true or false", dict: "a table", str: "a text", list: "a list"}


@dataclass(frozen=True)
class Application:
    """``users`` and ``groups`` that may ask, by number; ``interval``: seconds between two snapshots; ``keep``: how many of its images stay
    in slots, as many as fit if None; ``replace``: a new one replaces older ones of the same event."""

    users: frozenset[int]
    groups: frozenset[int]
    interval: int = 0
    keep: int | None = None
    replace: bool = False


@dataclass(frozen=True)
class Policy:
    """``device``: where images are written; ``arm``: ``no``, ``once`` or ``always`` (again after each resume), on a device without slots.
    ``hook_time_limit``: seconds for each program of the administrator; ``boot``: which images are resumed after what. ``keep``: for
    applications that say nothing of it. ``store`` and ``key_file``: where images are put besides; empty if nowhere."""

    device: str
    arm: str
    time_limit: int
    applications: dict[str, Application]
    hook_time_limit: int = HOOK_TIME_LIMIT
    boot: boot_policy.Boot = field(default_factory=boot_policy.Boot)
    keep: int | None = None
    store: str = ""
    key_file: str = ""

    def wishes(self, application: str, event: str, replace: bool = False, keep: int | None = None) -> Wishes:
        """What a snapshot is to be for which an application asks, which may keep fewer images of its own than it is allowed."""
        known = self.applications.get(application, Application(frozenset(), frozenset()))
        kept = [number for number in (known.keep or self.keep, keep) if number is not None]
        return Wishes(
            application, event, keep=min(kept, default=None), replace=replace or known.replace, arm=self.arm == "once",
            rearm=self.arm == "always", limit=self.time_limit, hook_limit=self.hook_time_limit,
        )  # fmt: skip

    def stores(self, taken: Snapshot) -> bool:
        """Whether a snapshot is to be put into a store."""
        return bool(self.store) and taken.slot is not None and os.path.realpath(taken.device) == os.path.realpath(self.device)

    def allows(self, application: str, user: int, groups: frozenset[int]) -> bool:
        """Root may ask for every application, others for those that name them."""
        if not user:
            return True
        known = self.applications.get(application)
        return known is not None and (user in known.users or bool(groups & known.groups))


def of_this_machine() -> tuple[Policy | None, str]:
    """For a snapshot that the service does not take: None without a policy, or with a mistake in it, and then what is wrong."""
    try:
        return load(), ""
    except NotFound:
        return None, ""
    except StoreError as error:
        return None, str(error)


def load(path: Path | str = PATH) -> Policy:
    """Raises NotFound, Refused if others than root may change the file, UsageError for what is wrong in it, StoreError."""
    content, status = settings_file.read(path, "policy", "docs/snapshots.md", MAX_SIZE)
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(f"policy {path}", "may be changed by others than root.", f"Run: chown root: {path}; chmod 644 {path}")
    try:
        if len(content) > MAX_SIZE:
            raise ValueError(f"more than {MAX_SIZE} bytes")
        return parse(tomllib.loads(content.decode()))
    except ValueError as error:
        document = "docs/boot-selection.md" if str(error).startswith("boot") else "docs/snapshots.md"
        raise UsageError(f"policy {path}", f"{error}.", f"Correct it; {document} has an example.") from None


def parse(content: dict[str, Any]) -> Policy:
    """Raises ValueError with the name of the setting that is wrong."""
    _check("", content, _TOP)
    device, store = str(content.get("device", "")), str(content.get("store", ""))
    if not device.startswith("/dev/") or os.path.normpath(device) != device:
        raise ValueError("device: a path below /dev is needed")
    if store and not (os.path.isabs(store) or re.fullmatch(r"s3://[^/\s]+(/\S*)?", store)):
        raise ValueError("store: an absolute path is needed, or s3://BUCKET/PREFIX")
    if content.get("arm", "no") not in ARM:
        raise ValueError(f"arm: not one of {', '.join(ARM)}")
    for name, least in (("time_limit", "a second"), ("hook_time_limit", "a second"), ("keep", "one")):
        if content.get(name, 1) < 1:
            raise ValueError(f"{name}: less than {least}")
    applications = {}
    for name, settings in content.get("applications", {}).items():
        if not isinstance(settings, dict):
            raise ValueError(f"applications.{name}: not a table")
        if name in boot_policy.KINDS or not _APPLICATION_NAME.fullmatch(name) or " before " in name:
            raise ValueError(f"applications.{name[:100]!r}: no name of an application: a candidate for a boot could not name it")
        _check(f"applications.{name}.", settings, _APPLICATION)
        if settings.get("interval", 0) < 0:
            raise ValueError(f"applications.{name}.interval: less than 0")
        users = frozenset(_number(user, lambda text: pwd.getpwnam(text).pw_uid, "user") for user in settings.get("users", []))
        groups = frozenset(_number(group, lambda text: grp.getgrnam(text).gr_gid, "group") for group in settings.get("groups", []))
        if settings.get("keep", 1) < 1:
            raise ValueError(f"applications.{name}.keep: less than one")
        applications[name] = Application(users, groups, settings.get("interval", 0), settings.get("keep"), settings.get("replace", False))
    return Policy(
        content["device"], content.get("arm", "no"), content.get("time_limit", 120), applications,
        content.get("hook_time_limit", HOOK_TIME_LIMIT), boot_policy.parse(content.get("boot", {}), applications), content.get("keep"),
        content.get("store", ""), content.get("key_file", ""),
    )  # fmt: skip


def _check(prefix: str, settings: dict[str, Any], known: dict[str, type]) -> None:
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{prefix}{name}: no such setting; there are {', '.join(known)}")
        if not isinstance(value, known[name]) or isinstance(value, bool) != (known[name] is bool):
            raise ValueError(f"{prefix}{name}: not {_NAMES[known[name]]}")


def _number(value: object, look_up: Any, what: str) -> int:
    """The number of a user or group, which may be named or a number."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    try:
        return int(look_up(str(value)))
    except KeyError:
        raise ValueError(f"no such {what}: {value}") from None
