# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
# Why the machine boots, and what was chosen for this boot. Sourced by select.sh.

EVENTS='power_loss panic watchdog shutdown unknown'
CARD_RESET=32 # WDIOF_CARDRESET of include/uapi/linux/watchdog.h
MAX_RECORDS=64

happened() { # prints which of EVENTS it was, by what the last system said of itself and what it left behind
	case $SESSION in
		ended) echo shutdown ;;
		running)
			if has_panicked; then
				echo panic
			elif was_reset; then
				echo watchdog
			else
				echo power_loss
			fi
			;;
		*) echo unknown ;;
	esac
}

find_records() { # what kernels left in pstore: $WORK/records, "record NAME SHA256", and $WORK/panics, those of them that are of a panic
	: >"$WORK/records"
	: >"$WORK/panics"
	place=$SYS/sys/fs/pstore
	mounted=''
	if [ -d "$place" ] && ! grep -q ' /sys/fs/pstore pstore ' "$SYS/proc/mounts" 2>/dev/null; then
		timeout 10 mount -t pstore pstore "$place" 2>/dev/null && mounted=1
	fi
	count=0
	for file in "$place"/dmesg-*; do
		name=${file##*/}
		case $name in
			*[!A-Za-z0-9._-]*) continue ;;
		esac
		[ -f "$file" ] && [ "$count" -lt "$MAX_RECORDS" ] || continue
		count=$((count + 1))
		sum=$(head -c 65536 "$file" | sha256sum)
		echo "record $name ${sum%% *}" >>"$WORK/records"
		# An oops that the system survived leaves a record as well.
		if [ "${name%.enc.z}" != "$name" ] || [ "$(head -c 6 "$file" | tr -d '\000')" = 'Panic#' ]; then
			echo "record $name ${sum%% *}" >>"$WORK/panics"
		fi
	done
	if [ -n "$mounted" ]; then umount "$place" 2>/dev/null; fi
}

has_panicked() { # whether there is a panic that the report of the last boot does not have
	while read -r record; do
		grep -Fqx "$record" "$WORK/before" || return 0
	done <"$WORK/panics"
	return 1
}

was_reset() { # by a watchdog of the hardware
	for file in "$SYS"/sys/class/watchdog/*/bootstatus; do
		status=''
		read -r status 2>/dev/null <"$file"
		if is_number "$status" && [ $((status & CARD_RESET)) -ne 0 ]; then return 0; fi
	done
	return 1
}

read_command_line() { # WANTED_SLOT, WANTED, RESUME, RESUME_OFFSET, NORESUME: what the kernel was told
	set -f
	# shellcheck disable=SC2013
	for word in $(head -c 65536 "$SYS/proc/cmdline" 2>/dev/null); do
		case $word in
			fuse_store.slot=*) WANTED_SLOT=${word#*=} ;;
			fuse_store.boot=*) WANTED=${word#*=} ;;
			resume=*) RESUME=${word#*=} ;;
			resume_offset=*) RESUME_OFFSET=${word#*=} ;;
			noresume) NORESUME=1 ;;
		esac
	done
	set +f
}

device_of() { # NAME SECONDS: prints the path of the device with a name as resume= takes it; nothing if it does not appear within that time
	case $1 in
		/dev/*) path=$1 ;;
		UUID=* | LABEL=* | PARTUUID=* | PARTLABEL=*)
			kind=$(echo "${1%%=*}" | tr '[:upper:]' '[:lower:]')
			path=$SYS/dev/disk/by-$kind/${1#*=}
			;;
		*[!0-9:]* | '') return ;;
		*) path=/dev/block/$1 ;;
	esac
	wait_for "$path" "$2" && echo "$path"
}

holds_image() { # PATH OFFSET: whether the kernel would resume what is at that page of a device
	end=$(dd if="$1" bs=10 count=1 iflag=skip_bytes skip=$((($2 + 1) * PAGE_SIZE - 10)) 2>/dev/null | tr '\000' '.')
	[ "$end" = "$SUSPENDED" ]
}

is_hibernated() { # whether the machine has an image of its own to be resumed from, which is newer than any slot
	limit=$((WAIT < 5 ? WAIT : 5))
	location=$SYS/sys/firmware/efi/efivars/HibernateLocation-8cf2644b-4b0b-428f-9387-6d876050dc67
	if [ -e "$location" ]; then
		# After four bytes of attributes, JSON in UTF-16. It stays behind where the image was resumed by resume=, or was discarded.
		text=$(head -c 4096 "$location" | tail -c +5 | tr -d '\000')
		uuid=$(echo "$text" | sed -n 's/.*"uuid" *: *"\([0-9A-Fa-f-]*\)".*/\1/p')
		offset=$(echo "$text" | sed -n 's/.*"offset" *: *\([0-9]*\)[^0-9].*/\1/p')
		path=$(device_of "UUID=$uuid" "$limit")
		# What cannot be looked at may be an image.
		if [ -z "$path" ] || ! is_number "$offset" || holds_image "$path" "$offset"; then return 0; fi
	fi
	[ -n "$RESUME" ] || return 1
	is_number "${RESUME_OFFSET:-0}" || return 1
	path=$(device_of "$RESUME" "$limit")
	[ -n "$path" ] && holds_image "$path" "${RESUME_OFFSET:-0}"
}

read_next() { # NEXT_CHOICE: what was chosen on the running system for this boot alone, "cold" or "slot N IMAGE"; and takes it away
	NEXT_CHOICE=''
	if frame_read "$NEXT" "$NEXT_AT" "$NEXT_SECTORS" "$WORK/next"; then
		read -r NEXT_CHOICE <"$WORK/next"
		dd if=/dev/zero of="$DEVICE" bs=512 seek="$NEXT_AT" count="$NEXT_SECTORS" conv=notrunc,fsync 2>/dev/null
		drop_cache
	fi
}

ask() { # prints the number of the slot that the user names on the console, 0 for a normal boot; nothing without an answer in time
	{
		printf '\nBoot images:\n'
		while IFS='|' read -r kind number state application event _image taken _rest; do
			[ "$kind" = slot ] || continue
			time=$(date -u -d "@$taken" '+%Y-%m-%d %H:%M:%S' 2>/dev/null) || time=$taken
			printf '%4s  %s  %s %s (%s)\n' "$number" "$time" "$application" "$event" "$state"
		done <"$WORK/values"
		printf '%4s  normal boot\nNumber, within %s seconds: ' 0 "$ASK"
	} 2>/dev/null >>"$CONSOLE"
	# shellcheck disable=SC2016
	timeout "$ASK" sh -c 'head -n 1 <"$1"' sh "$CONSOLE" 2>/dev/null | head -c 20 | tr -d ' \r\n'
}
