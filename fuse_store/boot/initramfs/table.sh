# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
# The table of slots on a device: read, checked, replaced; and what else is framed like it (docs/slots.md, docs/boot-selection.md).
# Sourced by select.sh. What is on the device is untrusted: nothing of it is evaluated, numbers are checked before they are used.

TABLE='fuse-store-slots 1' REPORT='fuse-store-boot 1' NEXT='fuse-store-boot-next 1'
COPY_SECTORS=512 REPORT_AT=1536 REPORT_SECTORS=126 NEXT_AT=1662 NEXT_SECTORS=2
SUSPENDED='S1SUSPEND.' # a signature is shown with a dot for NUL

is_number() { # TEXT: as it is in a table
	case $1 in
		'' | *[!0-9]* | 0?*) return 1 ;;
	esac
	[ "${#1}" -le 15 ] && [ "$1" -lt 281474976710656 ]
}

fill_sector() { # FILE: line feeds up to the end of its last sector
	missing=$(((512 - $(wc -c <"$1") % 512) % 512))
	if [ "$missing" -gt 0 ]; then printf "%${missing}s" '' | tr ' ' '\n' >>"$1"; fi
}

frame() { # NAME FILE: the file, whose last sector is filled, behind a sector with its name and checksum, to $WORK/frame
	fill_sector "$2"
	sum=$(sha256sum <"$2")
	printf '%s %s %s\n' "$1" "$(($(wc -c <"$2") / 512))" "${sum%% *}" >"$WORK/frame"
	fill_sector "$WORK/frame"
	cat "$2" >>"$WORK/frame"
}

frame_read() { # NAME SECTOR SECTORS FILE: the text that is framed at a sector of the device, in at most so many; fails if none is
	dd if="$DEVICE" of="$WORK/read" bs=512 skip="$2" count=1 2>/dev/null || return 1
	sectors=''
	IFS=' ' read -r _name _format sectors _sum <"$WORK/read" 2>/dev/null
	is_number "$sectors" && [ "$sectors" -gt 0 ] && [ "$sectors" -lt "$3" ] || return 1
	dd if="$DEVICE" of="$4" bs=512 skip=$(($2 + 1)) count="$sectors" 2>/dev/null || return 1
	dd if="$DEVICE" of="$WORK/read" bs=512 skip="$2" count=$((sectors + 1)) 2>/dev/null || return 1
	frame "$1" "$4"
	cmp -s "$WORK/read" "$WORK/frame" || return 1
	[ "$(tr -d '\012\040-\176' <"$4" | wc -c)" -eq 0 ]
}

frame_write() { # NAME SECTOR SECTORS FILE: fails if the text is too long, or does not come back from the device
	frame "$1" "$4"
	[ "$(wc -c <"$WORK/frame")" -le $(($3 * 512)) ] || return 1
	dd if="$WORK/frame" of="$DEVICE" bs=512 seek="$2" conv=notrunc,fsync 2>/dev/null || return 1
	drop_cache
	dd if="$DEVICE" bs=512 skip="$2" count=$(($(wc -c <"$WORK/frame") / 512)) 2>/dev/null | cmp -s - "$WORK/frame"
}

drop_cache() { # so that the next read comes from the device
	blockdev --flushbufs "$DEVICE" 2>/dev/null || return 0
}

device_size() { # bytes
	blockdev --getsize64 "$DEVICE" 2>/dev/null || stat -L -c %s "$DEVICE" 2>/dev/null || echo 0
}

copy_read() { # SECTOR NAME: a copy of the table to $WORK/NAME, and what is in it, by table.awk, to $WORK/NAME.values
	frame_read "$TABLE" "$1" "$COPY_SECTORS" "$WORK/$2" || return 1
	awk -f "$LIB/table.awk" "$WORK/$2" >"$WORK/$2.values" || return 1
	sed -n 's/^extent|//p' "$WORK/$2.values" | sort -t '|' -k 1,1n | awk -F '|' '$1 < end { exit 1 } { end = $1 + $2 }'
}

table_read() { # the newest valid copy: $WORK/table, $WORK/values, GENERATION, PAGE_SIZE, BLOCKS, SESSION and COPY, its sector
	first=-1 second=-1
	copy_read 512 first && first=$(sed -n 's/^generation|//p' "$WORK/first.values")
	copy_read 1024 second && second=$(sed -n 's/^generation|//p' "$WORK/second.values")
	if [ "$first" -lt 0 ] && [ "$second" -lt 0 ]; then return 1; fi
	if [ "$first" -ge "$second" ]; then table_is first 512; else table_is second 1024; fi
	[ "$BLOCKS" -le $(($(device_size) / PAGE_SIZE)) ]
}

begins_as_written() { # whether nothing else was written over the beginning of the device, such as a filesystem
	printf '%s\n' "$TABLE" >"$WORK/begin"
	fill_sector "$WORK/begin"
	dd if=/dev/zero bs=512 count=511 2>/dev/null >>"$WORK/begin"
	dd if="$DEVICE" bs=512 count=512 2>/dev/null | cmp -s - "$WORK/begin"
}

table_is() { # NAME SECTOR: the copy that was read from, or written to, a sector
	COPY=$2
	mv "$WORK/$1" "$WORK/table"
	mv "$WORK/$1.values" "$WORK/values"
	GENERATION=$(sed -n 's/^generation|//p' "$WORK/values")
	PAGE_SIZE=$(sed -n 's/^page_size|//p' "$WORK/values")
	BLOCKS=$(sed -n 's/^blocks|//p' "$WORK/values")
	SESSION=$(sed -n 's/^session|//p' "$WORK/values")
}

table_write() { # STATES ATTEMPTS, as in "2=armed 3=used" and "2=1": write the other copy, with the next generation
	is_number $((GENERATION + 1)) || return 1
	awk -v generation=$((GENERATION + 1)) -v states="$1" -v attempts="$2" '
		BEGIN {
			count = split(states " ", pairs, " ")
			for (at = 1; at <= count; at++) { split(pairs[at], pair, "="); state[pair[1]] = pair[2] }
			count = split(attempts " ", pairs, " ")
			for (at = 1; at <= count; at++) { split(pairs[at], pair, "="); attempt[pair[1]] = pair[2] }
		}
		/^$/ { blank++; next }
		{ for (; blank > 0; blank--) print "" }
		$1 == "slot" { slot = $2 }
		slot == "" && $1 == "generation" { print "generation " generation; next }
		slot == "" && $1 == "session" { print "session running"; next }
		$1 == "state" && slot in state { print "state " state[slot]; next }
		$1 == "attempts" && slot in attempt { print "attempts " attempt[slot]; next }
		{ print }
	' "$WORK/table" >"$WORK/new" || return 1
	awk -f "$LIB/table.awk" "$WORK/new" >"$WORK/new.values" || return 1
	frame_write "$TABLE" $((1536 - COPY)) "$COPY_SECTORS" "$WORK/new" || return 1
	table_is new $((1536 - COPY))
}

slot_value() { # SLOT FIELD: as table.awk numbers them
	awk -F '|' -v slot="$1" -v field="$2" '$1 == "slot" && $2 == slot { print $field; exit }' "$WORK/values"
}

slot_tag() { # SLOT NAME
	awk -F '|' -v slot="$1" -v name="$2" '$1 == "tag" && $2 == slot && $3 "" == name "" { print $4; exit }' "$WORK/values"
}

has_tag() { # SLOT NAME
	awk -F '|' -v slot="$1" -v name="$2" '$1 == "tag" && $2 == slot && $3 "" == name "" { found = 1 } END { exit !found }' "$WORK/values"
}

# Signatures ----------------------------------------------------------------------------------------------------------------

signature() { # HEADER BACK: the ten bytes that begin so many before the end of a header page
	dd if="$DEVICE" bs=10 count=1 iflag=skip_bytes skip=$((($1 + 1) * PAGE_SIZE - $2)) 2>/dev/null | tr '\000' '.'
}

signature_write() { # HEADER SIGNATURE; fails if it does not come back from the device
	printf '%s' "$2" | tr '.' '\000' |
		dd of="$DEVICE" bs=10 count=1 oflag=seek_bytes seek=$((($1 + 1) * PAGE_SIZE - 10)) conv=notrunc,fsync 2>/dev/null || return 1
	drop_cache
	[ "$(signature "$1" 10)" = "$2" ]
}

is_swap() { # SIGNATURE
	[ "$1" = SWAPSPACE2 ] || [ "$1" = SWAP-SPACE ]
}

disarm() { # HEADER: what the signature was before the image is there again, also where the power failed while it was written
	is_swap "$(signature "$1" 10)" && return
	original=$(signature "$1" 20)
	is_swap "$original" || original='..........' # no header of an image: leads nowhere
	signature_write "$1" "$original"
}
