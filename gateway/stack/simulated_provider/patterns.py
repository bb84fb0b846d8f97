"""Makes a string that a regular expression matches, for the kinds of patterns that schemas have.

Python's own parser reads the expression, and this module walks the result. The string is checked against the expression
at the end, so that a construct that the walk does not know is an error and never a wrong string.
"""

from __future__ import annotations

import re
from random import Random
from typing import Any, cast

_CATEGORIES = {"CATEGORY_DIGIT": "0123456789", "CATEGORY_WORD": "abcdefgh0123_", "CATEGORY_SPACE": " "}
_PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789 -_.,ABC"


def matching(pattern: str, random: Random, least: int, most: int) -> str:
    """A string within the lengths in which the pattern is found.

    Raises:
        ValueError: the pattern is broken, or no such string was found.
    """
    try:
        compiled = re.compile(pattern)
        tree: Any = re._parser.parse(pattern)  # type: ignore[attr-defined]  # pyright: ignore  # no public parser
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is not a regular expression: {error}") from None
    anchored = pattern.endswith("$") and not pattern.endswith(r"\$")
    for spread in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144):
        for _ in range(8):
            text = _walk(cast("list[Any]", tree), random, spread)
            if len(text) < least and not anchored:
                text += "a" * (least - len(text))
            if least <= len(text) <= most and compiled.search(text):
                return text
    raise ValueError(f"no string of {least} to {most} characters was found for the pattern {pattern!r}")


def _walk(tree: list[Any], random: Random, spread: int) -> str:
    return "".join(_part(str(op), argument, random, spread) for op, argument in tree)


def _part(op: str, argument: Any, random: Random, spread: int) -> str:
    if op == "LITERAL":
        return chr(argument)
    if op == "NOT_LITERAL":
        return next(char for char in _PLAIN if ord(char) != argument)
    if op == "ANY":
        return random.choice(_PLAIN)
    if op == "IN":
        return _one_of(argument, random)
    if op in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        low, high, inner = argument
        times = random.randint(int(low), min(int(high), int(low) + spread))
        return "".join(_walk(inner, random, spread) for _ in range(times))
    if op == "SUBPATTERN":
        return _walk(argument[-1], random, spread)
    if op == "ATOMIC_GROUP":
        return _walk(argument, random, spread)
    if op == "BRANCH":
        return _walk(random.choice(argument[1]), random, spread)
    return ""  # anchors and look-arounds add no characters; the check at the end decides


def _one_of(members: list[Any], random: Random) -> str:
    allowed, refused, negated = "", "", False
    for op, argument in members:
        name = str(op)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            allowed += chr(argument)
        elif name == "RANGE":
            low, high = argument
            allowed += "".join(map(chr, range(low, min(high, low + 127) + 1)))
        elif str(argument) in _CATEGORIES:
            allowed += _CATEGORIES[str(argument)]
        else:  # a negated category: the plain characters outside it
            refused = _CATEGORIES.get(str(argument).replace("_NOT", ""), "")
            allowed += "".join(char for char in _PLAIN if char not in refused)
    if negated:
        allowed = "".join(char for char in _PLAIN if char not in allowed)
    if not allowed:
        raise ValueError("a character class of the pattern allows no plain character")
    return random.choice(allowed)
