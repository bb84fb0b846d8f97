"""Makes a valid instance of a JSON Schema, for structured output and tool calls. The same seed gives the same instance.

What must hold: the instance is valid for the kinds of schemas that PydanticAI, the SDKs and LiteLLM send: $ref and
$defs (recursive too), enum, const, anyOf, oneOf, allOf, type lists, objects with additionalProperties, arrays with
minItems, maxItems, prefixItems and uniqueItems, strings with length, format and pattern, numbers with bounds and
multipleOf, and Gemini's upper-case types with `nullable`. Recursion ends: below a certain depth, only what is required
is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from random import Random
from typing import Any, cast

from gateway.stack.simulated_provider.ask import Json
from gateway.stack.simulated_provider.patterns import matching
from gateway.stack.simulated_provider.words import WORDS

#: Two depths. From the first on, only what the schema requires is made. Below the second, it is refused as endless.
_SPARSE, _UNENDING = 5, 60

_MADE: dict[str, Callable[[Random], str]] = {
    "date": lambda random: f"2026-{random.randint(1, 12):02d}-{random.randint(1, 28):02d}",
    "time": lambda random: f"{random.randint(0, 23):02d}:{random.randint(0, 59):02d}:00Z",
    "date-time": lambda random: f"2026-{random.randint(1, 12):02d}-{random.randint(1, 28):02d}T08:30:00Z",
    "duration": lambda random: f"PT{random.randint(1, 59)}M",
    "email": lambda random: f"{random.choice(WORDS)}@example.com",
    "uri": lambda random: f"https://example.com/{random.choice(WORDS)}",
    "uuid": lambda random: f"{random.getrandbits(32):08x}-0000-4000-8000-{random.getrandbits(48):012x}",
    "ipv4": lambda random: f"192.0.2.{random.randint(1, 254)}",
    "ipv6": lambda random: f"2001:db8::{random.randint(1, 9999):x}",
    "hostname": lambda random: f"{random.choice(WORDS)}.example.com",
    "byte": lambda _: "c2ltdWxhdGVk",
}
_FORMATS = _MADE | {"url": _MADE["uri"], "uuid4": _MADE["uuid"], "idn-email": _MADE["email"]}


def instance(schema: Json, random: Random) -> Any:
    """One value that is valid against the schema.

    Raises:
        ValueError: no value can be valid (a reference leads nowhere, bounds cross, or the schema requires itself).
    """
    return _Maker(schema, random).make(schema, 0)


class _Maker:
    def __init__(self, root: Json, random: Random) -> None:
        self._root = root
        self._random = random

    def make(self, schema: Json | bool, depth: int) -> Any:
        if depth > _UNENDING:
            raise ValueError("the schema requires itself without end")
        if isinstance(schema, bool):
            return self._random.choice(WORDS)
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._random.choice(schema["enum"])
        for name in ("anyOf", "oneOf"):
            if schema.get(name):
                return self._any_of(schema, name, depth)
        kind = self._kind(schema, depth)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "string":
            return self._string(schema)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        return self._random.random() < 0.5 if kind == "boolean" else None

    def _resolved(self, schema: Json) -> Json:
        """The schema with its reference followed and its allOf merged in."""
        for _ in range(_UNENDING):
            reference = schema.get("$ref")
            if reference is None:
                break
            rest = {name: value for name, value in schema.items() if name != "$ref"}
            schema = {**self._target(reference), **rest}
        else:
            raise ValueError(f"the reference {schema.get('$ref')!r} leads back to itself")
        for part in cast("list[Json]", schema.get("allOf") or []):
            schema = _merged(schema, self._resolved(part))
        return schema

    def _target(self, reference: str) -> Json:
        found: Any = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or step not in found:
                raise ValueError(f"the reference {reference!r} leads nowhere")
            found = cast("Json", found)[step]
        return found

    def _any_of(self, schema: Json, name: str, depth: int) -> Any:
        around = {key: value for key, value in schema.items() if key != name}
        options = list(cast("list[Json]", schema[name]))
        kinds = [option.get("type") for option in options]
        if "number" in kinds:  # a Decimal's schema, whose option of a text allows digits only
            options = [option for option in options if option != {"type": "string"}]
        self._random.shuffle(options)
        if depth >= _SPARSE:  # the options that end soonest come first
            options.sort(key=lambda option: self._weight(self._resolved(option)))
        fault = ValueError("no option")
        for option in options:
            try:
                return self.make(_merged(around, self._resolved(option)), depth + 1)
            except ValueError as error:
                fault = error
        raise fault

    @staticmethod
    def _weight(schema: Json) -> int:
        kind = schema.get("type")
        if "const" in schema or "enum" in schema or kind in ("null", "string", "integer", "number", "boolean"):
            return 0
        if kind == "array":
            return 1 + bool(schema.get("minItems"))
        return 2 + len(schema.get("required") or [])

    def _kind(self, schema: Json, depth: int) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            kinds = cast("list[str]", kind)
            kind = "null" if depth >= _SPARSE and "null" in kinds else self._random.choice(kinds)
        if kind is None:
            hints = (("object", ("properties", "additionalProperties")), ("array", ("items", "prefixItems")))
            numbers = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
            hints += (("number", numbers),)
            kind = next((hint for hint, names in hints if any(name in schema for name in names)), "string")
        if schema.get("nullable") and depth >= _SPARSE:
            return "null"
        return str(kind).lower()

    def _object(self, schema: Json, depth: int) -> Json:
        properties = cast("dict[str, Json]", schema.get("properties") or {})
        required = cast("list[str]", schema.get("required") or [])
        names = [name for name in properties if name in required or depth < _SPARSE]
        made: Json = {}
        for name in [*names, *(name for name in required if name not in properties)]:
            try:
                made[name] = self.make(properties.get(name, True), depth + 1)
            except ValueError:
                if name in required:
                    raise
        extra: Json | bool = schema.get("additionalProperties", not properties)
        least = int(schema.get("minProperties", 0))
        wanted = max(least, 2 if isinstance(extra, dict) and depth < _SPARSE else 0)
        wanted = min(wanted, int(schema.get("maxProperties", wanted)))
        for word in WORDS:
            if len(made) >= wanted or extra is False:
                break
            if word not in properties:
                made[word] = self.make(extra if isinstance(extra, dict) else True, depth + 1)
        return made

    def _array(self, schema: Json, depth: int) -> list[Any]:
        least = int(schema.get("minItems", 0))
        most = int(schema.get("maxItems", max(least, 3)))
        if least > most:
            raise ValueError("minItems is above maxItems")
        first = cast("list[Json]", schema.get("prefixItems") or [])
        items = schema.get("items", True)
        if items is False:
            most = min(most, len(first))
        length = least if depth >= _SPARSE else self._random.randint(max(least, min(1, most)), min(most, least + 3))
        length = max(length, min(len(first), most))
        made: list[Any] = []
        for attempt in range(length * 20 + 20):
            if len(made) >= length:
                return made
            item = self.make(first[len(made)] if len(made) < len(first) else items, depth + 1)
            if not (schema.get("uniqueItems") and item in made and attempt >= 0):
                made.append(item)
        if len(made) >= least:
            return made
        raise ValueError("there are not enough different items")

    def _string(self, schema: Json) -> str:
        least = int(schema.get("minLength", 0))
        most = int(schema.get("maxLength", max(least, 80)))
        if least > most:
            raise ValueError("minLength is above maxLength")
        if "pattern" in schema:
            return matching(str(schema["pattern"]), self._random, least, most)
        known = _FORMATS.get(str(schema.get("format")))
        if known is not None:
            return known(self._random)
        text = " ".join(self._random.choices(WORDS, k=self._random.randint(2, 6)))
        while len(text) < least:
            text += " " + self._random.choice(WORDS)
        return text[:most].rstrip() if len(text[:most].rstrip()) >= least else text[:most].replace(" ", "a")

    def _number(self, schema: Json, *, whole: bool) -> int | float:
        step = (
            Decimal(repr(schema["multipleOf"]))
            if schema.get("multipleOf")
            else (Decimal(1) if whole else Decimal("0.01"))
        )
        if whole and step != step.to_integral_value():
            step *= Decimal(repr(float(step))).as_integer_ratio()[1]
        low, high = schema.get("minimum"), schema.get("maximum")
        over, under = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        if over is True or under is True:  # in drafts before 6 these are flags beside the bounds
            over, under = (low if over is True else None), (high if under is True else None)
        lows = [Decimal(repr(low))] if low is not None else []
        highs = [Decimal(repr(high))] if high is not None else []
        if over is not None and over is not False:
            lows.append(Decimal(repr(over)) + step / 10 if not whole else Decimal(math.floor(over) + 1))
        if under is not None and under is not False:
            highs.append(Decimal(repr(under)) - step / 10 if not whole else Decimal(math.ceil(under) - 1))
        bottom = max(lows) if lows else min([*highs, Decimal(101)]) - 100 if highs else Decimal(1)
        top = min(highs) if highs else bottom + 100 * max(Decimal(1), step)
        first, last = math.ceil(bottom / step), math.floor(top / step)
        if first <= last:
            value = self._random.randint(first, last) * step
        elif not whole and "multipleOf" not in schema and bottom <= top:
            value = (bottom + top) / 2
        else:
            raise ValueError("no number is within the bounds")
        return int(value) if whole else float(value)


def _merged(first: Json, second: Json) -> Json:
    """Both in one: `properties` and `required` are united, the tighter bound wins, and otherwise the second schema."""
    merged: Json = {name: value for name, value in first.items() if name != "allOf"}
    for name, value in second.items():
        if name == "properties":
            merged[name] = {**merged.get(name, {}), **value}
        elif name == "required":
            merged[name] = list(dict.fromkeys([*merged.get(name, []), *value]))
        elif name in merged and name.startswith(("min", "exclusiveMin")) and not isinstance(value, bool):
            merged[name] = max(merged[name], value)
        elif name in merged and name.startswith(("max", "exclusiveMax")) and not isinstance(value, bool):
            merged[name] = min(merged[name], value)
        elif name == "enum" and "enum" in merged:
            merged[name] = [item for item in merged[name] if item in value]
        else:
            merged[name] = value
    return merged
