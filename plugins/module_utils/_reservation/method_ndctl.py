# SPDX-License-Identifier: GPL-3.0-or-later
"""The method C(ndctl) of C(nvm_reservation): a namespace on real NVM.

With labels, the namespace is created and destroyed here, and identified by its name. Without labels, it is the namespace
that the kernel creates for each region, which cannot be resized or destroyed. Other namespaces are never changed.
"""
from __future__ import annotations

from dataclasses import replace

from ansible_collections.nvm.fastboot.plugins.module_utils._core.host import Refused
from ansible_collections.nvm.fastboot.plugins.module_utils._core.sizing import format_size, round_down, round_up
from ansible_collections.nvm.fastboot.plugins.module_utils._facts import nvm
from ansible_collections.nvm.fastboot.plugins.module_utils._reservation import guards, obstacles, udev_rule

RECORD = {"method": "ndctl"}
USABLE = ("raw", "sector")  # fsdax keeps struct pages on the NVM, devdax has no block device


def usable_regions(context):
    """Regions that keep their contents at power-off; of these, those that survive a hibernation, if there are any."""
    lasting = [region for region in context.regions if not context.volatile(region)]
    return [region for region in lasting if nvm.survives_hibernation(context.host, region)] or lasting


def present(context):
    """Create the reservation. Returns the return values of the module."""
    own = context.own()
    if own and not context.volatile(own[0]):
        return _keep(context, *own)
    fitting = [region for region in usable_regions(context) if _fit(region, context.need)]
    if fitting:
        return _create(context, min(fitting, key=lambda region: region.available))
    smallest_first = sorted(_labelless(context), key=lambda pair: pair[1].size)
    refusals = []
    for region, namespace in [pair for pair in smallest_first if pair[1].size >= context.need]:
        try:
            guards.check_takeover(context.host, namespace.path, context.options.name, context.options.force)
            return _adopt(context, region, namespace)
        except Refused as refused:
            refusals.append(refused)
    refusals += obstacles.obstacles(context.host, usable_regions(context), context.need)
    raise refusals[0] if refusals else _too_small(context)


def absent(context):
    """Remove the reservation: destroy the namespace if it has a label, otherwise remove the link only."""
    own = context.own()
    if own is None or not own[1].labelled:
        namespace = own and own[1]
        removed = udev_rule.remove(context.tx, context.options.name, namespace and namespace.blockdev)
        text = "The namespace %s remains: without labels it cannot be destroyed." % namespace.dev if namespace else ""
        return context.result(method="ndctl", explanation=text if removed else "")
    region, namespace = own
    _check_destroy(context, namespace, swap=not context.tx.check_mode)  # nvm_swap would deactivate it before
    context.require_ndctl()
    udev_rule.remove(context.tx, context.options.name, namespace.blockdev)
    context.tx.note("namespace %s" % namespace.dev, _describe(context, namespace), "")
    if not context.tx.check_mode:
        nvm.destroy_namespace(context.host, namespace)
    return context.result(method="ndctl", explanation="Destroyed %s in %s." % (namespace.dev, region.dev))


# existing namespaces -------------------------------------------------------------------------------------------------


def _keep(context, region, namespace):
    """Use our namespace; change it only if it is too small or has another mode."""
    # an automatic size may vary a little between kernels, which reserve more or less memory
    slack = 0 if context.options.size else region.align
    small = namespace.size + slack < context.need
    if small and not namespace.labelled:
        raise _too_small(context)
    if small or namespace.mode != context.options.mode:
        return (_replace if namespace.labelled else _convert)(context, region, namespace)
    if namespace.blockdev is None:
        _check_driver(context, namespace)
        context.require_ndctl()
        context.tx.note("namespace %s" % namespace.dev, "disabled\n", "enabled\n")
        if not context.tx.check_mode:
            nvm.enable_namespace(context.host, namespace)
            region, namespace = _find(context, namespace.dev)
    return _link(context, region, namespace)


def _check_driver(context, namespace):
    """Refused C(nvm_unusable) where no driver can make a block device of C(namespace)."""
    if not context.host.exists("/sys/bus/nd/drivers/nd_pmem"):
        raise obstacles.no_block_device(context.host, namespace)


def _adopt(context, region, namespace):
    """Use an unused namespace without labels."""
    if context.options.force and region.initialisable and _is_empty(context, namespace) and _has_dimms_alone(context, region):
        return _label(context, region, namespace)
    if namespace.mode != context.options.mode:
        return _convert(context, region, namespace)
    return _link(context, region, namespace)


def _link(context, region, namespace):
    udev_rule.apply(context.tx, context.options.name, udev_rule.rule_for(namespace, region, RECORD), namespace.blockdev)
    return _result(context, region, namespace)


# changes -------------------------------------------------------------------------------------------------------------


def _create(context, region):
    """Create our namespace in the free space of a labelled region."""
    size = _fit(region, context.need)
    context.require_ndctl()
    new = nvm.Namespace("", region.dev, context.options.name, context.options.mode, size, None, None, None, True)
    context.tx.note("namespace in %s" % region.dev, "", _describe(context, new))
    if context.tx.check_mode:
        context.tx.note("link %s" % context.device, "", "to: the new namespace\n")
        return _result(context, region, new)
    before = {namespace.dev for namespace in region.namespaces}
    context.tx.on_failure(lambda: _undo_create(context, before))
    nvm.create_namespace(context.host, region, context.options.name, context.options.mode, size)
    context.reread_regions()
    own = context.own()
    if own is None or own[1].blockdev is None:
        raise Refused(
            "verify_failed",
            "ndctl succeeded, but the kernel has no namespace %s with a block device." % context.options.name,
            "Check ndctl list --namespaces --idle and the kernel log.",
        )
    # Free space may contain old data; a signature in it would look like valid contents.
    context.host.run([context.host.tool("wipefs"), "--all", own[1].path])
    return _link(context, *own)


def _undo_create(context, before):
    """Destroy the created namespace, and no other, after a later step failed. C(before): devices that existed before."""
    context.reread_regions()
    try:
        own = context.own()
        if own and own[1].labelled and own[1].dev not in before:
            nvm.destroy_namespace(context.host, own[1])
    except Refused:
        pass  # the error that caused the rollback is the one to report


def _replace(context, region, namespace):
    """Destroy our labelled namespace and create it with another size or mode. Requires force."""
    size = _fit(region, context.need, namespace.size)
    if not size:
        raise _too_small(context)
    if not context.options.force:
        raise _differs(context, namespace)
    _check_destroy(context, namespace)
    context.require_ndctl()
    context.tx.note("namespace %s" % namespace.dev, _describe(context, namespace), "")
    if context.tx.check_mode:
        return _create(context, replace(region, available=region.available + namespace.size))
    nvm.destroy_namespace(context.host, namespace)
    return _create_in_changed(context, region)


def _create_in_changed(context, region):
    """Create the namespace in a region that was changed just now: its available space is read again first."""
    context.reread_regions()
    region = next(each for each in context.regions if each.dev == region.dev)
    if not _fit(region, context.need):
        raise _too_small(context)
    return _create(context, region)


def _convert(context, region, namespace):
    """Change the mode of a namespace without labels, if it is empty or with force."""
    context.require_ndctl()
    if namespace.path:
        guards.check_unused(context.host, namespace.path)
        guards.check_contents(context.host, namespace.path, context.options.force)
    elif not context.options.force:
        raise _differs(context, namespace)
    context.tx.note("namespace %s" % namespace.dev, "mode: %s\n" % namespace.mode, "mode: %s\n" % context.options.mode)
    if context.tx.check_mode:
        return _result(context, region, replace(namespace, mode=context.options.mode, blockdev=None, uuid=None))
    nvm.change_mode(context.host, namespace, context.options.mode)
    region, namespace = _find(context, namespace.dev)
    if namespace.mode != context.options.mode or namespace.blockdev is None:
        raise Refused(
            "verify_failed",
            "ndctl succeeded, but %s is in mode %s." % (namespace.dev, namespace.mode),
            "Check ndctl list --namespaces --idle and the kernel log.",
        )
    return _link(context, region, namespace)


def _label(context, region, namespace):
    """Initialise the labels of empty DIMMs, so that the namespace can have the wanted size."""
    context.require_ndctl()
    context.tx.note("labels of %s" % ", ".join(region.dimms), "", "initialised\n")
    if context.tx.check_mode:
        return _create(context, replace(region, labelled=True, available=namespace.size))
    nvm.initialise_labels(context.host, region)
    return _create_in_changed(context, region)


# checks --------------------------------------------------------------------------------------------------------------


def _fit(region, need, more=0):
    """The size of a namespace of at least C(need) bytes in a labelled region with C(more) bytes freed; 0 if none fits."""
    if not region.labelled or region.read_only:
        return 0
    size = round_up(need, region.align)
    return size if size <= round_down(region.available + more, region.align) else 0


def _labelless(context):
    return [
        (region, namespace)
        for region in usable_regions(context)
        for namespace in region.namespaces
        if not region.labelled and not region.read_only and namespace.mode in USABLE and namespace.blockdev
    ]


def _check_destroy(context, namespace, swap=True):
    """Refused if our namespace is in use; unless forced, also if it holds an image or anything but swap."""
    if namespace.blockdev is None and namespace.mode in USABLE and not context.tx.check_mode:
        nvm.enable_namespace(context.host, namespace)  # disabled by an interrupted run: enable it to read its contents
        namespace = _find(context, namespace.dev)[1]
    if namespace.path is None:
        if not context.options.force and not context.tx.check_mode:
            raise Refused(
                "holds_unknown",
                "%s has no block device, so its contents cannot be checked." % namespace.dev,
                "Check it with ndctl list. To discard its contents, set force=true.",
            )
        return
    if not swap and guards.is_encrypted(context.host, namespace.path, context.options.name):
        return
    guards.check_unused(context.host, namespace.path, swap)
    guards.check_contents(context.host, namespace.path, context.options.force, own_label=True)


def _is_empty(context, namespace):
    try:
        guards.check_unused(context.host, namespace.path)
        guards.check_contents(context.host, namespace.path, force=False)
    except Refused:
        return False
    return True


def _has_dimms_alone(context, region):
    return not any(set(region.dimms) & set(other.dimms) for other in context.regions if other.dev != region.dev)


def _find(context, dev):
    """The (region, namespace) with device C(dev), read again."""
    context.reread_regions()
    for region in context.regions:
        for namespace in region.namespaces:
            if namespace.dev == dev:
                return region, namespace
    raise Refused("verify_failed", "%s does not exist any more." % dev, "Check ndctl list --namespaces --idle and the kernel log.")


def _differs(context, namespace):
    return Refused(
        "reservation_differs",
        "%s has mode %s and size %s; mode %s and size %s are wanted. Changing it destroys its contents." % (
            namespace.dev, namespace.mode, format_size(namespace.size),
            context.options.mode, format_size(context.need)),
        "Set mode and size to the existing values. To destroy the contents and create it again, set force=true.",
    )


def _too_small(context):
    """The error for a reservation that fits nowhere, with the sizes of all regions and namespaces."""
    regions = usable_regions(context)
    smaller = "Give a smaller size"
    if not context.options.size and context.options.dram_multiple > 1:
        smaller = "Set dram_multiple=1, give a smaller size"
    destroyable = any(region.labelled and region.namespaces for region in regions)
    remedy = smaller + (", or destroy namespaces that are not needed (ndctl destroy-namespace)." if destroyable else ".")
    initialisable = [region for region in regions if region.initialisable]
    if initialisable:
        remedy += " The label area of the DIMMs of %s is not initialised: ndctl init-labels would allow namespaces of any " \
            "size, and destroys all contents." % initialisable[0].dev
    return Refused(
        "nvm_too_small",
        "%s needs %s (%s), and there is not enough space: %s." % (
            context.options.name, format_size(context.need), context.why,
            "; ".join(_free_space(region) for region in regions) or "no region"),
        remedy,
    )


# texts ---------------------------------------------------------------------------------------------------------------


def _free_space(region):
    """Size, free space and namespaces of a region, as a phrase."""
    phrases = ["%s free" % format_size(region.available) if region.labelled else "no labels to divide it"]
    phrases += ["%s (%s, %s)" % (each.dev, each.mode, format_size(each.size)) for each in region.namespaces]
    if region.read_only:
        phrases.append("read-only")
    return "%s of %s has %s" % (region.dev, format_size(region.size), ", ".join(phrases))


def _describe(context, namespace):
    return "name: %s\nmode: %s\nsize: %d\n" % (namespace.name or context.options.name, namespace.mode, namespace.size)


def _result(context, region, namespace):
    explanation = "Requested: %s (%s)." % (format_size(context.need), context.why)
    reason = None
    if namespace.labelled:
        explanation += " %s has %s; sizes in %s are multiples of %s." % (
            namespace.dev or "The namespace", format_size(namespace.size), region.dev, format_size(region.align))
    else:
        explanation += " %s takes all of %s, %s." % (namespace.dev, region.dev, format_size(namespace.size))
        reason = "%s has no labels, so it has one namespace as large as the region." % region.dev
        if region.initialisable:
            reason += " Its DIMMs have a label area: ndctl init-labels initialises it, and destroys all contents."
    return context.result(
        region,
        namespace,
        method="ndctl",
        resizable=namespace.labelled,
        why_not_resizable=reason,
        explanation=explanation,
    )
