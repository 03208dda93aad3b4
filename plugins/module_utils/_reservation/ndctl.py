# SPDX-License-Identifier: GPL-3.0-or-later
"""The method C(ndctl) of C(nvm_reservation): a namespace on NVM that the machine has.

With labels it is a namespace of our own, known by its name, made and destroyed here; without labels it is the one that
the kernel makes of each region, which can only be used as it is. No namespace of anybody else is ever changed.
"""
from __future__ import annotations

from dataclasses import replace

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import format_size, round_down, round_up
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import nvm
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import context, udev

RECORD = {"method": "ndctl"}
USABLE = ("raw", "sector")  # fsdax keeps struct pages on the NVM, devdax has no block device


def usable_regions(case):
    """The regions this method works on: those that keep their contents."""
    return [region for region in case.regions if not case.volatile(region)]


def present(case):
    """Make the reservation. Returns what the module returns."""
    own = case.own()
    if own and not case.volatile(own[0]):
        return _keep(case, *own)
    roomy = [region for region in usable_regions(case) if _fit(region, case.need)]
    if roomy:
        return _create(case, min(roomy, key=lambda region: region.available))
    fitting = sorted(_labelless(case), key=lambda pair: pair[1].size)
    refusals = []
    for region, namespace in [pair for pair in fitting if pair[1].size >= case.need]:
        try:
            context.vet(case.host, namespace.path, case.options.name, case.options.force)
            return _adopt(case, region, namespace)
        except Refused as refused:
            refusals.append(refused)
    raise refusals[0] if refusals else _too_small(case)


def absent(case):
    """Undo it: our labelled namespace is destroyed, of another only the link is taken away."""
    own = case.own()
    if own is None or not own[1].labelled:
        namespace = own and own[1]
        gone = udev.withdraw(case.tx, case.options.name, namespace and namespace.blockdev)
        stays = gone and namespace and "The namespace %s stays: without labels it cannot be destroyed." % namespace.dev
        return case.result(method="ndctl", explanation=stays or "")
    region, namespace = own
    _may_destroy(case, namespace)
    udev.withdraw(case.tx, case.options.name, namespace.blockdev)
    case.tx.note("namespace %s" % namespace.dev, _describe(case, namespace), "")
    if not case.tx.check_mode:
        nvm.require_ndctl(case.host)
        nvm.release(case.host, namespace)
    return case.result(
        method="ndctl", explanation="%s was destroyed; %s has its room back." % (namespace.dev, region.dev)
    )


# what is there already -----------------------------------------------------------------------------------------------


def _keep(case, region, namespace):
    """Our namespace, left alone where it is right or larger than wanted."""
    # an automatic size may change a little with the kernel, which keeps more or less memory for itself
    slack = 0 if case.options.size else region.align
    small = namespace.size + slack < case.need
    if small and not namespace.labelled:
        raise _too_small(case)
    if small or namespace.mode != case.options.mode:
        return (_replace if namespace.labelled else _convert)(case, region, namespace)
    if namespace.blockdev is None and not case.tx.check_mode:
        nvm.enable(case.host, namespace)
        region, namespace = _find(case, namespace.dev)
    return _link(case, region, namespace)


def _adopt(case, region, namespace):
    """A label-less namespace that nobody uses, as our own."""
    if case.options.force and region.initialisable and _blank(case, namespace) and _dimms_are_its_own(case, region):
        return _label(case, region, namespace)
    if namespace.mode != case.options.mode:
        return _convert(case, region, namespace)
    return _link(case, region, namespace)


def _link(case, region, namespace):
    udev.apply(case.tx, case.options.name, udev.rule_for(namespace, region, RECORD), namespace.blockdev)
    return _result(case, region, namespace)


# what is made --------------------------------------------------------------------------------------------------------


def _create(case, region):
    """A new namespace of our own in the free room of a labelled region."""
    size = _fit(region, case.need)
    nvm.require_ndctl(case.host)
    new = nvm.Namespace("", region.dev, case.options.name, case.options.mode, size, None, None, None, True)
    case.tx.note("namespace in %s" % region.dev, "", _describe(case, new))
    if case.tx.check_mode:
        case.tx.note("link %s" % case.device, "", "to: the new namespace\n")
        return _result(case, region, new)
    before = {namespace.dev for namespace in region.namespaces}
    case.tx.on_failure(lambda: _take_back(case, before))
    nvm.reserve(case.host, region, case.options.name, case.options.mode, size)
    case.read_again()
    own = case.own()
    if own is None or own[1].blockdev is None:
        raise Refused(
            "verify_failed",
            "ndctl reported success, but the kernel has no namespace %s with a block device." % case.options.name,
            "See ndctl list --namespaces --idle and the kernel log.",
        )
    # What stands in free room is nobody's, but a signature in it would look like something of value.
    case.host.run([case.host.tool("wipefs"), "--all", own[1].path])
    return _link(case, *own)


def _take_back(case, before):
    """Destroy the namespace that was made, and no other, after a later step failed."""
    case.read_again()
    try:
        own = case.own()
        if own and own[1].labelled and own[1].dev not in before:
            nvm.release(case.host, own[1])
    except Refused:
        pass  # the failure that led here is the one to report


def _replace(case, region, namespace):
    """Our labelled namespace in another size or mode: destroyed and made anew, which only force allows."""
    size = _fit(region, case.need, namespace.size)
    if not size:
        raise _too_small(case)
    if not case.options.force:
        raise _differs(case, namespace)
    _may_destroy(case, namespace)
    nvm.require_ndctl(case.host)
    case.tx.note("namespace %s" % namespace.dev, _describe(case, namespace), "")
    if case.tx.check_mode:
        return _create(case, replace(region, available=region.available + namespace.size))
    nvm.release(case.host, namespace)
    case.read_again()
    region = next(each for each in case.regions if each.dev == region.dev)
    if not _fit(region, case.need):
        raise _too_small(case)
    return _create(case, region)


def _convert(case, region, namespace):
    """A label-less namespace in another mode, where that loses nothing or is forced."""
    nvm.require_ndctl(case.host)
    if namespace.path:
        context.refuse_in_use(case.host, namespace.path)
        context.refuse_contents(case.host, namespace.path, case.options.force)
    elif not case.options.force:
        raise _differs(case, namespace)
    case.tx.note("namespace %s" % namespace.dev, "mode: %s\n" % namespace.mode, "mode: %s\n" % case.options.mode)
    if case.tx.check_mode:
        return _result(case, region, replace(namespace, mode=case.options.mode, blockdev=None, uuid=None))
    nvm.convert(case.host, namespace, case.options.mode)
    region, namespace = _find(case, namespace.dev)
    if namespace.mode != case.options.mode or namespace.blockdev is None:
        raise Refused(
            "verify_failed",
            "ndctl reported success, but %s is in mode %s." % (namespace.dev, namespace.mode),
            "See ndctl list --namespaces --idle and the kernel log.",
        )
    return _link(case, region, namespace)


def _label(case, region, namespace):
    """Labels for DIMMs that have room for them and hold nothing, so that the reservation can have its size."""
    nvm.require_ndctl(case.host)
    case.tx.note("labels of %s" % ", ".join(region.dimms), "", "initialised\n")
    if case.tx.check_mode:
        return _create(case, replace(region, labelled=True, available=namespace.size))
    nvm.initialise_labels(case.host, region)
    case.read_again()
    region = next(each for each in case.regions if each.dev == region.dev)
    if not _fit(region, case.need):
        raise _too_small(case)
    return _create(case, region)


# judgements ----------------------------------------------------------------------------------------------------------


def _fit(region, need, more=0):
    """The size a namespace of at least C(need) bytes would have in a labelled region (and C(more)); 0 if none fits."""
    if not region.labelled or region.read_only:
        return 0
    size = round_up(need, region.align)
    return size if size <= round_down(region.available + more, region.align) else 0


def _labelless(case):
    return [
        (region, namespace)
        for region in usable_regions(case)
        for namespace in region.namespaces
        if not region.labelled and not region.read_only and namespace.mode in USABLE and namespace.blockdev
    ]


def _may_destroy(case, namespace):
    """Refused where our namespace is in use (always), or holds an image or anything but swap (unless forced)."""
    if namespace.blockdev is None and namespace.mode in USABLE and not case.tx.check_mode:
        nvm.enable(case.host, namespace)  # left disabled by an interrupted run: look what it holds first
        namespace = _find(case, namespace.dev)[1]
    if namespace.path is None:
        if not case.options.force and not case.tx.check_mode:
            raise Refused(
                "holds_unknown",
                "%s has no block device, so that nobody can see what it holds." % namespace.dev,
                "Look at it with ndctl list; force: true gives up all that it holds.",
            )
        return
    context.refuse_in_use(case.host, namespace.path)
    context.refuse_contents(case.host, namespace.path, case.options.force, own_label=True)


def _blank(case, namespace):
    try:
        context.refuse_in_use(case.host, namespace.path)
        context.refuse_contents(case.host, namespace.path, force=False)
    except Refused:
        return False
    return True


def _dimms_are_its_own(case, region):
    return not any(set(region.dimms) & set(other.dimms) for other in case.regions if other.dev != region.dev)


def _find(case, dev):
    """The (region, namespace) called C(dev), read anew."""
    case.read_again()
    for region in case.regions:
        for namespace in region.namespaces:
            if namespace.dev == dev:
                return region, namespace
    raise Refused("verify_failed", "%s has gone." % dev, "See ndctl list --namespaces --idle and the kernel log.")


def _differs(case, namespace):
    wanted = nvm.Namespace("", "", "", case.options.mode, case.need, None, None, None, True)
    return Refused(
        "reservation_differs",
        "%s is %s, and %s is wanted. Changing that destroys what it holds."
        % (namespace.dev, _words(namespace), _words(wanted)),
        "Ask for what is there, or let it be made anew with force: true once nothing in it is needed.",
    )


def _too_small(case):
    """Why no region and no namespace will do, with all the numbers."""
    rooms = []
    for region in usable_regions(case):
        taken = ", ".join("%s (%s)" % (each.dev, _words(each)) for each in region.namespaces)
        room = "%s free" % format_size(region.available) if region.labelled else "no labels to divide it"
        rooms.append(
            "%s of %s has %s%s%s"
            % (region.dev, format_size(region.size), room, " and " + taken if taken else "",
               ", but is read-only" if region.read_only else "")
        )
    remedies = ["Give a size that fits", "destroy namespaces that are not needed (ndctl destroy-namespace)"]
    if not case.options.size and case.options.dram_multiple > 1:
        remedies[0] = "Take dram_multiple: 1 or give a size that fits"
    text = ", or ".join(remedies) + "."
    raw = [region for region in usable_regions(case) if region.initialisable]
    if raw:
        text += (
            " The DIMMs of %s have a label area that nobody initialised: ndctl init-labels makes them divisible, and "
            "destroys all that they hold." % raw[0].dev
        )
    return Refused(
        "nvm_too_small",
        "%s is to have %s (%s), and there is no room for it: %s."
        % (case.options.name, format_size(case.need), case.why, "; ".join(rooms) or "there is no region"),
        text,
    )


# words ---------------------------------------------------------------------------------------------------------------


def _words(namespace):
    return "%s, %s" % (namespace.mode, format_size(namespace.size))


def _describe(case, namespace):
    return "name: %s\nmode: %s\nsize: %d\n" % (namespace.name or case.options.name, namespace.mode, namespace.size)


def _result(case, region, namespace):
    explanation = "%s were asked for (%s)." % (format_size(case.need), case.why)
    reason = None
    if namespace.labelled:
        explanation += " %s has %s; sizes in %s are multiples of %s." % (
            namespace.dev or "The namespace", format_size(namespace.size), region.dev, format_size(region.align))
    else:
        explanation += " %s takes all of %s, %s." % (namespace.dev, region.dev, format_size(namespace.size))
        reason = "%s has no labels, which would divide it; its one namespace is as large as the region." % region.dev
        if region.initialisable:
            reason += " Its DIMMs have a label area: ndctl init-labels initialises it, and destroys all that they hold."
    return case.result(
        region,
        namespace,
        method="ndctl",
        resizable=namespace.labelled,
        why_not_resizable=reason,
        explanation=explanation,
    )
