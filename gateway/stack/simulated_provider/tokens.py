"""The provider's own token counter: deterministic, similar to a byte-level tokenizer, about four characters a token in
English.

What must hold: a text never counts more tokens than it has UTF-8 bytes, and `len(split(text)) == count(text)`.
Every match below takes at least one character; a character outside the basic plane (emoji, four bytes)
counts twice. Chinese is one token a character, base64 about one for every two.
"""

from __future__ import annotations

import re

#: Input tokens that each message, and the start of the answer, count beyond their text.
TOKENS_PER_MESSAGE = 3
TOKENS_PER_ANSWER = 3

_TOKEN = re.compile(
    r" ?[A-Z]?[a-z]{1,6}"  # a word, or six letters of a long one
    r"| ?[A-Z]{1,2}"
    r"| ?[0-9]{1,3}"
    r"| ?[\u00c0-\u052f]{1,3}"  # accented Latin, Greek, Cyrillic
    r"|\n+| {1,8}"
    r"|[^\u0000-\u052f]"  # a single character: Chinese, Arabic, symbols, emoji
    r"|.",
    re.DOTALL,
)


def _extra(text: str) -> int:
    """How many characters need two UTF-16 units: each is a second token."""
    return 0 if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2 - len(text)


def count(text: str) -> int:
    """Tokens of a text, at most its UTF-8 bytes."""
    return _TOKEN.subn("", text)[1] + _extra(text)


def split(text: str) -> list[str]:
    """The text's tokens in order; a character that is two tokens is followed by an empty one."""
    found: list[str] = _TOKEN.findall(text)
    if not _extra(text):
        return found
    pieces: list[str] = []
    for piece in found:
        pieces.append(piece)
        pieces.extend([""] * _extra(piece))
    return pieces
