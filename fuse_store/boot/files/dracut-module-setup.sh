#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck disable=SC2154
# Puts what selects an image at boot into the initramfs, and the policy for it; a wrong policy makes the build fail.
# Written by 'fuse-store boot install'.

check() {
	return 0
}

depends() {
	return 0
}

# A failure of this function ends dracut; one of install() does not.
installkernel() {
	if ! command -v busybox >/dev/null; then
		derror 'fuse-store: busybox is not installed. Run: apt-get install busybox'
		return 1
	fi
	mkdir -p "$initdir/usr/lib/fuse-store/bin" || return 1
	@COMMAND@ --quiet boot check --compiled "$initdir/usr/lib/fuse-store/policy" >/dev/null || return 1
	local module
	while read -r module; do
		hostonly='' instmods "$module"
	done < <(sed -n 's/^module //p' "$initdir/usr/lib/fuse-store/policy")
	return 0
}

install() {
	local file applet
	for file in "$moddir"/{select,table,events,slots}.sh "$moddir/table.awk"; do
		inst_simple "$file" "/usr/lib/fuse-store/${file##*/}"
	done
	inst "$(command -v busybox)" /usr/lib/fuse-store/busybox
	inst_multiple modprobe
	mkdir -p "$initdir/usr/lib/fuse-store/bin"
	while read -r applet; do
		ln -sf ../busybox "$initdir/usr/lib/fuse-store/bin/$applet"
	done < <(grep -v '^#' "$moddir/applets")
	inst_hook pre-mount 01 "$moddir/pre-mount.sh"
}
