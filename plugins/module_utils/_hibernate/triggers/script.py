# SPDX-License-Identifier: GPL-3.0-or-later
"""The shell script that decides whether a timer's condition is met.

A timer must not hibernate a machine right after it resumed. After a resume, systemd runs each C(OnCalendar=) timer whose
time passed while the machine was off, because the real-time clock has advanced past it; C(Persistent=false) only covers
cold boots. The script therefore decides, without state of its own and through documented interfaces of systemd 247 and
later. It checks whether a scheduled time lies within the last two minutes (C(systemd-analyze calendar)), and whether the
machine is going to sleep or resumed within the same two minutes (logind's property C(PreparingForSleep), the journal's
records of the end of a sleep).
"""

from __future__ import annotations

SCRIPT = "/usr/local/lib/nvm-fastboot/trigger"

# MESSAGE_ID: SD_MESSAGE_SLEEP_STOP (systemd, src/systemd/sd-messages.h), logged by systemd-sleep after a resume.
# The two MESSAGEs come from kernel/power/hibernate.c hibernate() and kernel/power/suspend.c pm_suspend(), and cover a
# sleep that was not requested through systemd.
SCRIPT_TEXT = """\
#!/bin/sh
# Written by the Ansible module nvm.fastboot.hibernate_trigger; changes here are overwritten.
#
# ExecCondition= of the units nvm-fastboot-*.service. Exit code 0: hibernate now. 1: not now.
#
#   trigger schedule CALENDAR       a time of CALENDAR (systemd.time(7)) lies within the last two minutes
#   trigger battery PERCENT         on battery, and no battery holds more than PERCENT
#   trigger ups NAME PERCENT        the NUT UPS is on battery, and low or holds no more than PERCENT
#
# and the machine is not going to sleep now and has not resumed within the last two minutes. A scheduled time with a sleep
# inhibitor is skipped, not postponed.

LC_ALL=C
export LC_ALL
grace=120
sys=${NVM_FASTBOOT_SYS:-/sys}

scheduled() {
    systemd-analyze --base-time="-${grace}s" calendar "$1" 2>/dev/null | grep -Eq 'From now: .*(ago|now)$'
}

is_number() {
    case $1 in
        '' | *[!0-9]*) return 1 ;;
    esac
}

# Several batteries are low only if each is low. A mouse or a headset (scope Device) does not power the machine.
battery_low() {
    highest=
    discharging=
    for supply in "$sys"/class/power_supply/*; do
        case $(cat "$supply/type" 2>/dev/null) in
            Battery | UPS) ;;
            *) continue ;;
        esac
        [ "$(cat "$supply/scope" 2>/dev/null)" != Device ] || continue
        capacity=$(cat "$supply/capacity" 2>/dev/null)
        is_number "$capacity" || continue
        case $(cat "$supply/status" 2>/dev/null) in
            Charging) return 1 ;;
            Discharging) discharging=yes ;;
        esac
        if [ -z "$highest" ] || [ "$capacity" -gt "$highest" ]; then
            highest=$capacity
        fi
    done
    if [ -n "$highest" ]; then
        [ -n "$discharging" ] && [ "$highest" -le "$1" ]
        return
    fi
    # The kernel has no battery. UPower also detects a UPS on USB.
    command -v upower >/dev/null 2>&1 || return 1
    upower -i /org/freedesktop/UPower/devices/DisplayDevice 2>/dev/null | awk -v limit="$1" '
        $1 == "state:" { state = $2 }
        $1 == "percentage:" && NF == 2 { sub(/%$/, "", $2); held = $2 }
        END { exit !(state == "discharging" && held != "" && held + 0 <= limit + 0) }'
}

ups_low() {
    status=$(upsc "$1" ups.status 2>/dev/null) || return 1
    case " $status " in
        *" OB "*) ;;
        *) return 1 ;;
    esac
    case " $status " in
        *" LB "*) return 0 ;;
    esac
    charge=$(upsc "$1" battery.charge 2>/dev/null)
    charge=${charge%%.*}
    is_number "$charge" && [ "$charge" -le "$2" ]
}

logind() {
    busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager "$1" 2>/dev/null
}

# Up to systemd 256, logind lets root override block inhibitors. On mains power, respect them.
inhibited() {
    case $(logind BlockInhibited) in
        *[\\":]sleep[\\":]*) return 0 ;;
    esac
    return 1
}

just_resumed() {
    case $(logind PreparingForSleep) in
        *true) return 0 ;;
    esac
    journalctl --sync >/dev/null 2>&1
    [ -n "$(journalctl --quiet --boot --since="-${grace}s" --lines=1 --output=cat \\
            MESSAGE_ID=8811e6df2a8e40f58a94cea26f8ebf14 + \\
            MESSAGE='PM: hibernation: hibernation exit' + MESSAGE='PM: suspend exit' 2>/dev/null)" ]
}

case $1 in
    schedule) scheduled "$2" || exit 1 ;;
    battery) battery_low "$2" || exit 1 ;;
    ups) ups_low "$2" "$3" || exit 1 ;;
    *) echo "<3>unknown condition: $1"; exit 255 ;;
esac
if [ "$1" = schedule ] && inhibited; then
    echo "<5>Condition '$*' met, but sleep is inhibited: not hibernating."
    exit 1
fi
if just_resumed; then
    echo "<5>Condition '$*' met, but the machine has just resumed: not hibernating."
    exit 1
fi
echo "<5>Condition '$*' met: hibernating."
"""
