# SPDX-License-Identifier: GPL-3.0-or-later
"""GRUB's script language, as far as a generated C(grub.cfg) uses it: words, blocks, quotes.

The lexical rules are those of C(grub-core/script/yylex.l): quotes and the backslash as in a shell, a comment from a C(#)
at the start of a word. Nothing is evaluated; C(program) does that. Pure functions.
"""

from __future__ import annotations

import re

ENDS = ";&|\n"
BLANK = " \t\r"
LINUX_COMMANDS = ("linux", "linux16", "linuxefi")
PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./!~^-]")


def quote(word):
    """C(word) such that GRUB reads it as one word: a backslash before every character that may be special."""
    return "".join(letter if PLAIN.match(letter) else "\\" + letter for letter in word)


def statements(text):
    """The commands in C(text), each a list of words without their quotes; C({) and C(}) are commands of their own."""
    return _Lexer(text).statements()


class _Lexer:
    """Reads C(text) once, from start to end."""

    def __init__(self, text):
        self._text = text
        self._position = 0
        self._words = []  # the current statement
        self._word = None  # the current word; None between words

    def statements(self):
        while self._position < len(self._text):
            letter = self._take()
            if letter in BLANK:
                self._end_word()
            elif letter in ENDS or (letter in "{}" and self._word is None):
                yield from self._end_statement()
                if letter in "{}":
                    yield [letter]
            elif letter == "#" and self._word is None:
                self._take_until("\n")
            else:
                self._extend_word(letter)
        yield from self._end_statement()

    def _end_word(self):
        if self._word is not None:
            self._words.append(self._word)
            self._word = None

    def _end_statement(self):
        self._end_word()
        if self._words:
            yield self._words
            self._words = []

    def _extend_word(self, letter):
        """Add what C(letter), a quote or an ordinary character, starts."""
        if letter == "\\":
            piece = self._take()
            if piece == "\n":
                return  # the statement goes on in the next line
        elif letter == "'":
            piece = self._take_until("'")
            self._take()
        elif letter == '"':
            piece = self._double_quoted()
        elif letter == "$" and self._next() == "{":
            piece = letter + self._take_until("}") + self._take()
        else:
            piece = letter
        self._word = (self._word or "") + piece

    def _double_quoted(self):
        piece = ""
        while self._next() not in ("", '"'):
            letter = self._take()
            if letter == "\\" and self._next() in ("$", '"', "\\", "\n"):
                letter = self._take()
                if letter == "\n":
                    continue
            piece += letter
        self._take()
        return piece

    def _next(self):
        """The next character, or an empty string at the end."""
        return self._text[self._position : self._position + 1]

    def _take(self):
        letter = self._next()
        self._position += 1
        return letter

    def _take_until(self, end):
        """The text before the next C(end), which stays to be taken, or the rest of the text."""
        index = self._text.find(end, self._position)
        stop = len(self._text) if index < 0 else index
        piece = self._text[self._position : stop]
        self._position = stop
        return piece


def identifier(words):
    """The id of a menu entry. Debian writes the option as a variable that is empty in old versions of GRUB."""
    for option in ("$menuentry_id_option", "${menuentry_id_option}", "--id"):
        if option in words[:-1]:
            return words[words.index(option) + 1]
    return next((word[len("--id=") :] for word in words if word.startswith("--id=")), "")
