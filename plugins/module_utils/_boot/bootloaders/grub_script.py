# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB's script language as far as a generated C(grub.cfg) uses it: words, blocks, the lines that start Linux.

Used by C(grub). The lexical rules are those of C(grub-core/script/yylex.l): quotes and the backslash as in a shell, a
comment from a C(#) at the start of a word. Nothing is evaluated: of an C(if) both branches count, and a variable in an
argument stays as it is written.
"""

from __future__ import annotations

import re

ENDS = ";&|\n"
BLANK = " \t\r"
LINUX_COMMANDS = ("linux", "linux16", "linuxefi")
PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./!~^-]")


def quote(word):
    """C(word) so that GRUB reads it back as one word: every character that may mean something gets a backslash."""
    return "".join(letter if PLAIN.match(letter) else "\\" + letter for letter in word)


def statements(text):
    """The commands in C(text), each a list of words without their quotes; C({) and C(}) are commands of their own."""
    words, word, position = [], None, 0
    while position < len(text):
        letter = text[position]
        position += 1
        if letter == "\\":
            if text[position : position + 1] != "\n":
                word = (word or "") + text[position : position + 1]
            position += 1
        elif letter == "'":
            end = text.find("'", position)
            end = len(text) if end < 0 else end
            word, position = (word or "") + text[position:end], end + 1
        elif letter == '"':
            piece, position = _double_quoted(text, position)
            word = (word or "") + piece
        elif letter == "$" and text[position : position + 1] == "{":
            end = text.find("}", position)
            end = len(text) if end < 0 else end
            word, position = (word or "") + text[position - 1 : end + 1], end + 1
        elif letter == "#" and word is None:
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
        elif letter in BLANK or letter in ENDS or (letter in "{}" and word is None):
            if word is not None:
                words.append(word)
                word = None
            if letter not in BLANK:
                if words:
                    yield words
                    words = []
                if letter in "{}":
                    yield [letter]
        else:
            word = (word or "") + letter
    if word is not None:
        words.append(word)
    if words:
        yield words


def _double_quoted(text, position):
    piece = ""
    while position < len(text) and text[position] != '"':
        if text[position] == "\\" and text[position + 1 : position + 2] in ("$", '"', "\\", "\n"):
            position += 1
            if text[position] == "\n":
                position += 1
                continue
        piece += text[position]
        position += 1
    return piece, position + 1


def linux_lines(text):
    """Each line that starts Linux, as (title, id, kernel, arguments); title and id are those of the entry around it."""
    stack = []
    pending = ("", "")
    for words in statements(text):
        if words == ["{"]:
            stack.append(pending)
            pending = ("", "")
        elif words == ["}"]:
            if stack:
                stack.pop()
        elif words[0] == "menuentry" and len(words) > 1:
            pending = (words[1], _identifier(words))
        elif words[0] in LINUX_COMMANDS and len(words) > 1:
            title, identifier = next((block for block in reversed(stack) if block[0]), ("", ""))
            yield title, identifier, re.sub(r"^\([^)]*\)", "", words[1]), words[2:]


def _identifier(words):
    """The id of a menu entry; Debian writes the option as a variable that old versions of GRUB leave empty."""
    for option in ("$menuentry_id_option", "${menuentry_id_option}", "--id"):
        if option in words[:-1]:
            return words[words.index(option) + 1]
    return next((word[len("--id=") :] for word in words if word.startswith("--id=")), "")
