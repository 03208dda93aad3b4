# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module ends: with what it did, or with an error that has a code, a message and a remedy.

Used by every module of the collection; the modules themselves hold documentation and an argument spec.
"""

from __future__ import annotations

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Host, Refused, Transaction


def carry_out(module, change):
    """Call C(change(transaction)) on the machine and leave the module with the dict it returns.

    Its C(warnings) become the module's. Where it raises, every file is put back, and the module fails.
    """
    try:
        with Transaction(Host.of(module), module.check_mode) as transaction:
            result = change(transaction)
    except Refused as refused:
        refuse(module, refused)
    except OSError as error:
        refuse(module, Refused(
            "not_writable",
            "%s: %s. What had changed was put back." % (error.filename or "A file", error.strerror),
            "Run as root, with /boot and /etc mounted writable and not full.",
        ))
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(changed=transaction.changed, diff=transaction.diff, **result)


def refuse(module, refused):
    """Leave the module with an error."""
    module.fail_json(msg="%s %s" % (refused.message, refused.remedy), **refused.as_dict())
