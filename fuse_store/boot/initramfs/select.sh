#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Selects an image at boot, in an initramfs, before any filesystem is mounted: finds out why the machine boots, goes through the slots that
# the policy names for that, and has the kernel resume the first one that may be. Ends, with the reason, where a normal boot is to follow.
# docs/boot-selection.md describes it.
#
# Of the environment: LIB, this directory; SYS, a prefix of /sys and /proc; POLICY, RUN, KMSG, CONSOLE: other paths; resume, as
# initramfs-tools passes it.

LC_ALL=C
export LC_ALL
LIB=${LIB:-/usr/lib/fuse-store} SYS=${SYS:-} RUN=${RUN:-/run/fuse-store} KMSG=${KMSG:-/dev/kmsg} CONSOLE=${CONSOLE:-/dev/console}
POLICY=${POLICY:-$LIB/policy}
WORK=$RUN/select
WANTED='' WANTED_SLOT='' RESUME=${resume:-} RESUME_OFFSET='' NORESUME='' ASKED='' EVENT='' LEFT=''

# shellcheck source=fuse_store/boot/initramfs/table.sh
. "$LIB/table.sh"
# shellcheck source=fuse_store/boot/initramfs/events.sh
. "$LIB/events.sh"
# shellcheck source=fuse_store/boot/initramfs/slots.sh
. "$LIB/slots.sh"

say() { # LEVEL TEXT: to the kernel's log, which the console shows and the journal keeps; 3: also on a quiet console
	printf '<%s>fuse-store: %s\n' "$1" "$2" 2>/dev/null >>"$KMSG"
}

setting() { # KEY DEFAULT: a number of the policy
	value=$(sed -n "s/^$1 //p" "$POLICY" | head -n 1)
	if is_number "$value"; then echo "$value"; else echo "$2"; fi
}

wait_for() { # PATH SECONDS: until it is there, a device or a file that acts as one
	turns=$(($2 * 5))
	until [ -b "$1" ] || [ -f "$1" ]; do
		[ "$turns" -gt 0 ] || return 1
		turns=$((turns - 1))
		sleep 0.2
	done
}

load_modules() { # of the device, of pstore and of watchdogs, as they were found when the initramfs was made
	sed -n 's/^module //p' "$POLICY" | while read -r module; do
		timeout 20 modprobe -q "$module" 2>/dev/null
	done
}

write_report() { # SLOT REASON: what was selected, or why nothing; on the device if it has a table, and in $RUN
	{
		echo "time $(date +%s)"
		echo "kernel $(this_kernel)"
		echo "event $EVENT"
		cat "$WORK/passed"
		if [ -n "$1" ]; then
			echo "selected $1 $(slot_value "$1" 6)"
		else
			echo "normal $2"
		fi
		cat "$WORK/records"
	} 2>/dev/null | head -c 64000 >"$WORK/report"
	cp "$WORK/report" "$RUN/boot-report"
	[ -s "$WORK/table" ] && frame_write "$REPORT" "$REPORT_AT" "$REPORT_SECTORS" "$WORK/report"
}

pass_over() { # SLOT REASON
	say 3 "slot $1 is passed over: $2"
	printf 'passed %s %s\n' "$1" "$2" >>"$WORK/passed"
}

try() { # SLOT: returns if it was not resumed
	case " $TRIED " in
		*" $1 "*) return ;;
	esac
	TRIED="$TRIED $1"
	if ! may_be_resumed "$1"; then
		pass_over "$1" "$REASON"
	elif ! arm "$1"; then
		give_up "$1"
		pass_over "$1" 'the device does not keep what is written to it'
	else
		say 5 "slot $1 is resumed: $(slot_value "$1" 4) $(slot_value "$1" 5)"
		resume "$1"
		give_up "$1"
		pass_over "$1" 'the kernel did not resume it'
	fi
}

try_rules() { # the slots that the rules in $WORK/rules name, in order
	while IFS='|' read -r kind application event before; do
		[ "$kind" != cold ] || return
		slots_of "$kind" "$application" "$event" "$before" >"$WORK/numbers"
		while read -r number; do
			try "$number" </dev/null
		done <"$WORK/numbers"
	done <"$WORK/rules"
}

try_number() { # TEXT: the slot that was chosen by its number
	if is_number "$1" && [ -n "$(slot_value "$1" 2)" ]; then
		try "$1"
		WHY="the chosen slot, $1, cannot be resumed"
	else
		WHY='there is no slot of the chosen number'
	fi
}

try_event() { # NAME: as the policy says for it
	sed -n "s/^$1 //p" "$POLICY" >"$WORK/rules"
	try_rules
	WHY="after $1 no slot is to be resumed"
	if [ -s "$WORK/passed" ]; then WHY="after $1 no slot can be resumed"; fi
}

try_all() { # what was chosen for this boot, else what the policy says for what happened. WHY: why nothing was resumed
	choice=$WANTED
	[ -z "$WANTED_SLOT" ] || choice=slot
	if [ -z "$choice" ] && [ -n "$NEXT_CHOICE" ]; then
		choice=next
		set -f
		# shellcheck disable=SC2086
		set -- $NEXT_CHOICE
		set +f
		if [ "$1" = cold ]; then choice=cold; fi
	fi
	case $choice in
		'') try_event "$EVENT" ;;
		cold) WHY='a normal boot was chosen' ;;
		slot) try_number "$WANTED_SLOT" ;;
		next)
			if [ "$1" = slot ] && is_number "$2" && [ "$(slot_value "$2" 6)" = "$3" ]; then
				try_number "$2"
			else
				WHY='the slot that was chosen for this boot has another image now'
			fi
			;;
		newest)
			echo 'any|||' >"$WORK/rules"
			try_rules
			WHY='no slot can be resumed'
			;;
		ask)
			answer=$(ask)
			ASKED=1
			case $answer in
				0) WHY='a normal boot was chosen' ;;
				'')
					ASKED=''
					say 3 "no answer within $ASK seconds"
					try_event "$EVENT"
					;;
				*) try_number "$answer" ;;
			esac
			;;
		*) case " $EVENTS " in
			*" $choice "*) try_event "$choice" ;;
			*) WHY='fuse_store.boot= is none of cold, ask, newest, and the events of the policy' ;;
		esac ;;
	esac
}

why_nothing() { # what keeps slots from being looked at; nothing if nothing does
	read -r disk 2>/dev/null <"$SYS/sys/power/disk" || disk=''
	if [ -n "$NORESUME" ]; then
		echo 'noresume is on the command line of the kernel'
	elif [ ! -e "$SYS/sys/power/resume" ] || [ "$disk" = '[disabled]' ]; then
		echo 'this kernel may not resume'
	elif [ -z "$NUMBERS" ]; then
		echo 'the device has no numbers'
	fi
}

normal() { # REASON: a normal boot follows
	level=5
	if [ -s "$WORK/passed" ]; then level=3; fi
	say "$level" "normal boot: $1"
	write_report '' "$1"
	rm -rf "$WORK"
	exit 0
}

main() {
	if ! mkdir -p "$RUN" || ! rm -rf "$WORK" || ! mkdir "$WORK"; then
		say 3 "normal boot: $RUN cannot be written"
		exit 0
	fi
	: >"$WORK/passed"
	: >"$WORK/records"
	TRIED='' WHY='' PAGE_SIZE=4096
	DEVICE=$(sed -n 's/^device //p' "$POLICY" 2>/dev/null | head -n 1)
	[ -n "$DEVICE" ] || normal 'there is no policy'
	WAIT=$(setting wait 10) ASK=$(setting ask 30) ATTEMPTS=$(setting attempts 2) CHECK=$(setting check 1)
	GUARD_WAIT=$WAIT
	read_command_line
	load_modules
	if ! wait_for "$DEVICE" "$WAIT"; then
		other=$(sed -n 's/^device //p' "$POLICY" | sed -n 2p)
		wait_for "$other" 0 || normal "the device $DEVICE did not appear within $WAIT seconds"
		DEVICE=$other
	fi
	table_read || { : >"$WORK/table" && normal "the device $DEVICE has no valid table of slots"; }
	begins_as_written || { : >"$WORK/table" && normal "something else was written over the beginning of the device $DEVICE"; }
	if is_hibernated; then # nothing is written: the image knows nothing of it
		: >"$WORK/table"
		EVENT=hibernated
		normal 'the machine was hibernated'
	fi
	NUMBERS=$(cat "$SYS/sys/class/block/$(basename "$(readlink -f "$DEVICE")")/dev" 2>/dev/null)
	frame_read "$REPORT" "$REPORT_AT" "$REPORT_SECTORS" "$WORK/before" || : >"$WORK/before"
	find_records
	EVENT=$(happened)
	say 5 "event $EVENT"
	read_next
	WHY=$(why_nothing)
	if [ -n "$WHY" ]; then
		: # what is armed stays so
	elif disarm_all; then
		try_all
	else
		WHY='a slot cannot be disarmed'
	fi
	if [ "$SESSION" != running ] || [ -n "$LEFT" ]; then table_write "$LEFT" '' || say 3 'the table of slots cannot be written'; fi
	normal "$WHY"
}

main
