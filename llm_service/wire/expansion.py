"""How much longer a request's text can become on its way to the model, beyond its bytes. Pure.

What must hold (I1): the text that LiteLLM or a tokenizer makes of a request's text is never longer than the request's
bytes plus this growth.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import cast

import orjson

from llm_service.errors import InvalidRequest

#: The most references of schemas that are followed to compute how long the schemas become.
_MAX_REFERENCES = 10_000
#: The most bytes by which a composed letter grows when it is decomposed: it has at most four, and becomes three times
#: as long.
_TAKEN_APART_BYTES = 8


def nfkc_growth_bytes(text: bytes) -> int:
    """By how many bytes a text grows if a tokenizer first converts it to Unicode's form NFKC, as Anthropic's did.

    One character of three bytes can become eighteen characters (U+FDFA). The growth is added up by character,
    because normalising the whole text takes a minute for a few hundred thousand accents on one letter. This sum misses
    one case, for which the last line adds an allowance: another accent can come between a composed letter and its own
    accent, so that the letter is decomposed.
    """
    if text.isascii():
        return 0
    grown = accents = composed = 0
    for char, count in Counter(text.decode()).items():
        if not char.isascii():
            growth, own_accents, own_composed = _spelled_out(char)
            grown += count * growth
            accents += count * own_accents
            composed += count * own_composed
    return max(0, grown + _TAKEN_APART_BYTES * min(accents, composed))


@lru_cache(maxsize=4096)
def _spelled_out(char: str) -> tuple[int, int, int]:
    """By how many bytes a character grows, and how many accents and composed letters it becomes."""
    spelled = unicodedata.normalize("NFKC", char)
    accents = sum(unicodedata.combining(each) != 0 for each in spelled)
    composed = sum(unicodedata.normalize("NFD", each) != each for each in spelled)
    return len(spelled.encode()) - len(char.encode()), accents, composed


def ref_expansion_bytes(schemas: object) -> int:
    """By how many bytes schemas grow if every reference is replaced by a copy of the schema that it names.

    LiteLLM does that for Google's and, in part, for Anthropic's models: with nested references a schema of one
    kilobyte becomes megabytes. As in LiteLLM, the last part of a reference is the schema's name, and a reference to a
    schema within that schema is not replaced. If a name is defined more than once, all of its definitions count.

    Raises:
        InvalidRequest: there are too many references to follow.
    """
    named: dict[str, tuple[int, tuple[str, ...]]] = {}
    for name, schema in _definitions(schemas):
        size, names = named.get(name, (0, ()))
        named[name] = (size + len(orjson.dumps(schema)), names + tuple(_references(schema)))
    total, followed = 0, 0
    waiting = [(name, frozenset[str]()) for name in _references(schemas)]
    while waiting:
        name, within = waiting.pop()
        if name not in named or name in within:
            continue
        size, names = named[name]
        total += size
        followed += 1 + len(names)
        if followed > _MAX_REFERENCES:
            raise InvalidRequest(
                f"The schemas have more than {_MAX_REFERENCES} references, counted where they are used.", param="tools"
            )
        waiting.extend((inner, within | {name}) for inner in names)
    return total


def _objects(value: object) -> Iterator[Mapping[str, object]]:
    """Every object in a JSON value."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            fields = cast("dict[str, object]", item)
            yield fields
            waiting.extend(fields.values())
        elif isinstance(item, list):
            waiting.extend(cast("list[object]", item))


def _definitions(schemas: object) -> Iterator[tuple[str, object]]:
    for fields in _objects(schemas):
        for place in ("$defs", "definitions", "schemas"):
            definitions = fields.get(place)
            if isinstance(definitions, dict):
                yield from cast("dict[str, object]", definitions).items()


def _references(schema: object) -> Iterator[str]:
    for fields in _objects(schema):
        reference = fields.get("$ref")
        if isinstance(reference, str):
            yield reference.rpartition("/")[2]
