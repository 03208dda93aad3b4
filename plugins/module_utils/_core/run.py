# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module ends: with a result, or with an error that has a code, a message and a remedy.

Every main() calls exactly one of carry_out(), carry_out_part() and answer(). None of them returns.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction, shown


def carry_out(module, change, directory="/"):
    """End C(module) with what carried_out() returns, or fail it if that raises Refused. C(warnings) become the module's. C(directory) is
    that of its commands (see Host.of)."""
    try:
        result = carried_out(Host.of(module, directory), module.check_mode, change)
    except Refused as refused:
        refuse(module, refused)
    _exit(module, result)


def carry_out_part(module, part):
    """carry_out() for a module that is one Part."""
    carry_out(module, lambda transaction: part.change(transaction, module.params))


def carried_out(host, check_mode, change):
    """The dict that C(change(transaction)) returns, with C(changed) and C(diff).

    If C(change) raises Refused or OSError, every file is restored. OSError becomes Refused C(not_writable).
    """
    try:
        with Transaction(host, check_mode) as transaction:
            result = change(transaction)
    except OSError as error:
        raise Refused(
            "not_writable",
            "%s: %s. All changes were undone." % (error.filename or "A file", error.strerror),
            "Run as root, with /boot and /etc mounted writable and not full.",
        ) from error
    return dict(result, changed=transaction.changed, diff=transaction.diff)


def answer(module, call, directory="/"):
    """End C(module) with the dict that C(call(host)) returns, for a module that only reads or does its own undoing.

    C(warnings) in the dict become the module's; C(changed) is false unless the dict says otherwise. If C(call) raises
    Refused, the module fails. C(directory) as in carry_out().
    """
    try:
        result = call(Host.of(module, directory))
    except Refused as refused:
        refuse(module, refused)
    _exit(module, dict({"changed": False}, **result))


def refuse(module, refused):
    """Fail C(module) with the code, message and remedy of C(refused)."""
    error = printable(refused.as_dict())
    module.fail_json(msg="%(message)s %(remedy)s" % error, **error)


def _exit(module, result):
    result = printable(result)
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(**result)


def printable(value):
    """C(value), a tree of dicts and lists, with bytes that are not UTF-8 escaped in every text (see shown).

    Such bytes come from files of others, such as a menu title in Latin-1. Ansible could not print them: the module would fail
    after everything was changed.
    """
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {printable(name): printable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(each) for each in value]
    return value
