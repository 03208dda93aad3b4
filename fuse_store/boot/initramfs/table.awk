# SPDX-License-Identifier: GPL-3.0-or-later
# Checks the text of a table of slots, line by line (docs/slots.md), and prints what a shell needs of it, in fields between "|", which no
# value has. Exit code 1 if the table is not valid, but for extents that overlap: those are for the shell to sort.
#   generation|N  page_size|N  blocks|N  session|S  extent|FIRST|COUNT  tag|SLOT|NAME|VALUE
#   slot|NUMBER|STATE|APPLICATION|EVENT|IMAGE|TAKEN|STAGED|HEADER|ATTEMPTS|KEPT|SHA256|EXTENTS

function fail() { failed = 1; exit 1 }

function number(text) {
	if (text !~ /^[0-9]+$/ || length(text) > 15 || text ~ /^0./ || text + 0 >= 281474976710656) fail()
	return text
}

function hex(text, digits) {
	if (length(text) != digits || text ~ /[^0-9a-f]/) fail()
	return text
}

function name(text, inner) {
	inner = text
	sub(/^(%20)+/, "", inner)
	sub(/(%20)+$/, "", inner)
	if (inner !~ encoded) fail()
	if (inner ~ /^ / || inner ~ / $/) fail()
	return text
}

function one_of(text, names) {
	if (text == "" || text ~ / / || index(" " names " ", " " text " ") == 0) fail()
	return text
}

function value(key, text) { # of the next line, which has this key
	text = line[++at]
	if (at > lines || (text != key && index(text, key " ") != 1) || text == key " ") fail()
	return substr(text, length(key) + 2)
}

function extents(text, count, pairs, pair, first, i) {
	count = split(text, pairs, " ")
	if (!count || count > 256 || text ~ /^ / || text ~ / $/ || text ~ /  /) fail()
	for (i = 1; i <= count; i++) {
		if (split(pairs[i], pair, "+") != 2) fail()
		first = number(pair[1]) + 0
		if (first < edge || number(pair[2]) + 0 < 1 || first + pair[2] > blocks - edge) fail()
		if (i == 1 && first != header + 0) fail()
		print "extent|" pair[1] "|" pair[2]
	}
	return text
}

{ line[NR] = $0 }

END {
	if (failed) exit 1
	plain = "[]A-Za-z0-9_.!#$&'()*+,/:;=?@[~ -]" # what a value has as it is
	encoded_key = "^([A-Za-z0-9_.~-]|%([01][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[BCDF]|[89A-F][0-9A-F]))*$"
	encoded = "^(" plain "|%([01][0-9A-F]|2[25]|3[CE]|5[CE]|60|7[BCDF]|[89A-F][0-9A-F]))*$"
	for (lines = NR; lines && line[lines] == ""; lines--);
	hex(value("device"), 32)
	print "generation|" number(value("generation"))
	page_size = one_of(value("page_size"), "4096 16384 65536")
	blocks = number(value("blocks")) + 0
	edge = 1048576 / page_size
	if (blocks < 2 * edge) fail()
	replaced = value("replaced")
	if (length(replaced) > 36 || replaced ~ /[^0-9a-f-]/) fail()
	print "page_size|" page_size
	printf "blocks|%.0f\n", blocks
	print "session|" one_of(value("session"), "ended running unknown")
	last = 0
	while (at < lines) {
		if (line[++at] != "") fail()
		slot = number(value("slot"))
		if (slot + 0 <= last || slot + 0 > 64) fail()
		last = slot + 0
		state = one_of(value("state"), "writing complete armed used failed")
		name(value("machine"))
		application = name(value("application"))
		event = name(value("event"))
		image = hex(value("image"), 32)
		content = value("content")
		if (content != "") hex(content, 32)
		taken = number(value("taken"))
		staged = number(value("staged"))
		number(value("pages"))
		header = number(value("header"))
		parts = extents(value("extents"))
		sum = value("sha256")
		if (sum != "") hex(sum, 64)
		attempts = number(value("attempts"))
		kept = one_of(value("kept"), "replaceable golden")
		one_of(value("swap"), "inactive unused unknown")
		print "slot|" slot "|" state "|" application "|" event "|" image "|" taken "|" staged "|" header "|" attempts "|" kept "|" sum "|" parts
		previous = ""
		for (tags = 0; at < lines && line[at + 1] != ""; tags++) {
			tag = value("tag")
			space = index(tag, " ")
			key = space ? substr(tag, 1, space - 1) : tag
			text = space ? substr(tag, space + 1) : ""
			if (tags == 64 || key !~ encoded_key || (space && text == "")) fail()
			if (tags && key "" <= previous "" && key previous !~ /%/) fail()
			previous = key
			print "tag|" slot "|" key "|" name(text)
		}
	}
}
