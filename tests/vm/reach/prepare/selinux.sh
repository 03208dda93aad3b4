#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# SELinux, enforcing from the next boot on, with Debian's policy. That of Debian 12 does not let systemd-logind schedule a shutdown: what
# logind may not do is reported only.
set -e
sed -i 's/^SELINUX=.*/SELINUX=enforcing/' /etc/selinux/config
cat >/etc/default/grub.d/40-selinux.cfg <<'SETTINGS'
GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX security=selinux"
SETTINGS
update-grub
echo '(typepermissive systemd_logind_t)' >/root/logind.cil
semodule -n -i /root/logind.cil
rm /root/logind.cil
setfiles -F -e /proc -e /sys -e /dev -e /run /etc/selinux/default/contexts/files/file_contexts /
