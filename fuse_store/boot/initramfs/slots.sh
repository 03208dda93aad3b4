# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
# Which slots a rule of the policy means, whether one may be resumed, and how. Sourced by select.sh.

MAX_WORKERS=64
MIN_PART=65536 # bytes: the list of parts is in memory
MAX_GUARDED=1073741824 # bytes of a filesystem that are compared

slots_of() { # KIND APPLICATION EVENT BEFORE: the numbers of the slots that a rule means, the newest first
	awk -F '|' -v kind="$1" -v application="$2" -v event="$3" -v before="$4" '
		$1 != "slot" { next }
		kind == "application" && $4 "" != application "" { next }
		kind == "application" && event != "" && $5 "" != event "" { next }
		kind == "golden" && $11 != "golden" { next }
		before != "" && $7 + 0 >= before + 0 { next }
		{ print $8 "|" $2 }
	' "$WORK/values" | sort -t '|' -k 1,1nr | cut -d '|' -f 2
}

may_be_resumed() { # SLOT: REASON says why not. With ASKED, also one that has failed, or was tried often
	state=$(slot_value "$1" 3)
	attempts=$(slot_value "$1" 10)
	case $state in
		writing) REASON='it is not complete' ;;
		failed) REASON='it has failed before' ;;
		*) REASON='' ;;
	esac
	if [ -n "$ASKED" ] && [ "$state" = failed ]; then REASON=''; fi
	if [ -n "$REASON" ]; then return 1; fi
	if [ -z "$ASKED" ] && [ "$attempts" -ge "$ATTEMPTS" ]; then
		REASON="it was tried $attempts times, and did not come up"
	elif has_tag "$1" unsafe; then
		REASON="unsafe: $(slot_tag "$1" unsafe)"
	elif has_tag "$1" kernel && [ "$(slot_tag "$1" kernel)" != "$(this_kernel)" ]; then
		REASON='it was made by another kernel'
	elif has_tag "$1" memory && [ "$(slot_tag "$1" memory)" != "$(this_memory)" ]; then
		REASON='it was made with other memory'
	elif [ -z "$(slot_value "$1" 12)" ]; then
		REASON='it has no checksum'
	elif ! is_swap "$(signature "$(slot_value "$1" 9)" 20)"; then
		REASON='no image is there'
	elif ! guards_hold "$1"; then
		: # REASON is set
	elif [ "$CHECK" = 1 ] && ! is_sound "$1"; then
		REASON='its checksum is wrong'
	fi
	[ -z "$REASON" ]
}

this_kernel() { # as the tag of a slot has it: release and version, encoded as names are in a table
	release='' version=''
	read -r release <"$SYS/proc/sys/kernel/osrelease"
	read -r version <"$SYS/proc/sys/kernel/version"
	printf '%s\n' "$release $version" |
		sed 's/%/%25/g; s/"/%22/g; s/</%3C/g; s/>/%3E/g; s/\\/%5C/g; s/\^/%5E/g; s/`/%60/g; s/{/%7B/g; s/|/%7C/g; s/}/%7D/g'
}

this_memory() { # as the tag of a slot has it: pages, and a digest of the memory map
	pages=$(awk '$1 == "present" { pages += $2 } END { printf "%d", pages }' "$SYS/proc/zoneinfo" 2>/dev/null)
	map=$(cat "$SYS"/sys/firmware/memmap/*/* 2>/dev/null | sha256sum)
	printf '%s\n' "$pages ${map%% *}"
}

is_sound() { # SLOT: whether its blocks have their checksums: CRC-32 of each part, or else SHA-256 of all, which takes longer
	if has_tag "$1" crc32 && [ "$(printf abc | crc32 2>/dev/null)" = 352441c2 ]; then
		# shellcheck disable=SC2046
		parts_are_sound "$1" $(slot_tag "$1" crc32)
		return
	fi
	found=$(slot_value "$1" 13 | tr ' ' '\n' | while IFS='+' read -r begin count; do
		echo "$((begin * PAGE_SIZE))+$((count * PAGE_SIZE))"
	done | bytes_of "$DEVICE" | sha256sum)
	[ "${found%% *}" = "$(slot_value "$1" 12)" ]
}

parts_are_sound() { # SLOT PART_SIZE SHA256: of the lines of all parts; as many are read at once as there are processors
	is_number "$2" && [ "$2" -ge "$MIN_PART" ] || return 1
	slot_value "$1" 13 | tr ' ' '\n' | awk -F '+' -v page="$PAGE_SIZE" -v part="$2" '{
		at = $1 * page
		for (left = $2 * page; left > 0; left -= length_) {
			length_ = part - filled < left ? part - filled : left
			printf "%d %.0f+%.0f\n", number, at, length_
			at += length_
			filled += length_
			if (filled == part) { filled = 0; number++ }
		}
	}' >"$WORK/parts"
	last=$(tail -n 1 "$WORK/parts" | cut -d ' ' -f 1)
	workers=$(grep -c '^processor' "$SYS/proc/cpuinfo" 2>/dev/null)
	if ! is_number "$workers" || [ "$workers" -lt 1 ]; then workers=1; fi
	if [ "$workers" -gt "$MAX_WORKERS" ]; then workers=$MAX_WORKERS; fi
	rm -f "$WORK"/sums.*
	worker=0
	while [ "$worker" -lt "$workers" ]; do
		sums_of "$worker" "$workers" "$last" >"$WORK/sums.$worker" &
		worker=$((worker + 1))
	done
	wait
	found=$(cat "$WORK"/sums.* | sort -n | cut -d ' ' -f 2 | sha256sum)
	[ "${found%% *}" = "$3" ]
}

bytes_of() { # DEVICE: prints its bytes at places, "OFFSET+LENGTH" in each line that is read
	while IFS='+' read -r begin length; do
		dd if="$1" bs=1048576 iflag=skip_bytes,count_bytes,fullblock skip="$begin" count="$length" 2>/dev/null </dev/null
	done
}

sums_of() { # FIRST STEP LAST: "NUMBER CRC32" of every STEPth part
	number=$1
	while [ "$number" -le "$3" ]; do
		sum=$(sed -n "s/^$number //p" "$WORK/parts" | bytes_of "$DEVICE" | crc32)
		echo "$number ${sum%% *}"
		number=$((number + $2))
	done
}

guards_hold() { # SLOT: whether all filesystems are as they were at the snapshot; REASON says which one is not
	awk -F '|' -v slot="$1" '$1 == "tag" && $2 == slot && $3 ~ /^guard\./ { print $3 " " $4 }' "$WORK/values" >"$WORK/guards"
	if [ ! -s "$WORK/guards" ]; then
		REASON='no state of the filesystems was recorded'
		return 1
	fi
	while read -r key uuid places sum more; do
		[ "$key" = guard.none ] && continue
		case $key$uuid in
			*[!-A-Za-z0-9.]*) REASON='the state of its filesystems cannot be read' ;;
			*) if [ -n "$more" ] || ! is_unchanged "$uuid" "$places" "$sum"; then
				REASON="the filesystem $uuid has changed since the snapshot"
			fi ;;
		esac
		if [ -n "$REASON" ]; then return 1; fi
	done <"$WORK/guards"
}

is_unchanged() { # UUID OFFSET+LENGTH,… SHA256: whether the bytes at these places have this checksum; of any device, if the UUID is "any"
	[ -n "$1" ] && [ -n "$2" ] && [ "${#3}" -eq 64 ] || return 1
	total=0
	echo "$2" | tr ',' '\n' >"$WORK/places"
	while IFS='+' read -r begin length; do
		is_number "$begin" && is_number "$length" || return 1
		total=$((total + length))
		[ "$total" -le "$MAX_GUARDED" ] || return 1
	done <"$WORK/places"
	if [ "$1" = any ]; then
		for place in "$SYS"/sys/class/block/*; do
			if has_bytes "/dev/${place##*/}" "$3"; then return 0; fi
		done
		return 1
	fi
	path=/dev/disk/by-uuid/$1
	if ! wait_for "$path" "$GUARD_WAIT"; then
		GUARD_WAIT=0 # in which the others had time to appear as well
		path=$(timeout 30 findfs "UUID=$1" 2>/dev/null)
	fi
	has_bytes "$path" "$3"
}

has_bytes() { # DEVICE SHA256: at $WORK/places
	[ -b "$1" ] || return 1
	found=$(bytes_of "$1" <"$WORK/places" | sha256sum)
	[ "${found%% *}" = "$2" ]
}

disarm_all() { # takes away signatures that are left; LEFT: what the table is to say of slots that it calls armed, "2=used 3=complete"
	LEFT=''
	awk -F '|' '$1 == "slot" && $3 != "writing" { print $2 "|" $3 "|" $9 }' "$WORK/values" >"$WORK/headers"
	while IFS='|' read -r number state header; do
		was=used
		if [ "$(signature "$header" 10)" = "$SUSPENDED" ]; then was=complete; fi
		if [ "$was" = complete ] || [ "$state" = armed ]; then disarm "$header" || return 1; fi
		if [ "$state" = armed ]; then LEFT="$LEFT $number=$was"; fi
	done <"$WORK/headers"
}

arm() { # SLOT: the table first, then the report, then the signature; fails if the device does not keep it
	others=$(echo "$LEFT" | tr ' ' '\n' | grep -v -e "^$1=" -e '^$' | tr '\n' ' ')
	table_write "$1=armed $others" "$1=$((attempts + 1))" || return 1
	LEFT=''
	write_report "$1" ''
	signature_write "$(slot_value "$1" 9)" "$SUSPENDED"
}

resume() { # SLOT: have the kernel resume it. Returns if it does not
	offset=$(cat "$SYS/sys/power/resume_offset" 2>/dev/null)
	if slot_value "$1" 9 2>/dev/null >"$SYS/sys/power/resume_offset"; then
		echo "$NUMBERS" 2>/dev/null >"$SYS/sys/power/resume"
	fi
	echo "${offset:-0}" 2>/dev/null >"$SYS/sys/power/resume_offset"
}

give_up() { # SLOT: which was armed, and not resumed
	header=$(slot_value "$1" 9)
	drop_cache
	if ! disarm "$header"; then say 3 "slot $1 cannot be disarmed"; fi
	table_write "$1=failed" ''
}
