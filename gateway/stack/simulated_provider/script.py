"""Scripts: how a test tells the provider to be slow, to fail, to cut, to hang, or to lie.

There are three ways. For each knob, the way that is later in this list wins:
- rules, posted as a list to `/_sim/script`; the first rule that matches and is not used up applies;
- the request header `x-sim-script`, a JSON object of knobs;
- a marker in a user's message or an embedding's input, `[[sim: {"status": 429, "retry_after": 2}]]`, which
  passes through any proxy. A marker may say `"times": 1`: a marker with exactly this text then works only so many
  times.

What must hold: an unknown or ill-typed knob is refused by name, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import orjson

from gateway.stack.simulated_provider.ask import BadRequest

_MARKER = re.compile(r"\[\[sim:\s*(\{.*?\})\s*\]\]", re.DOTALL)
_USED_NAMES = frozenset(
    (
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "cache_write_tokens",
        "cache_write_1h_tokens",
        "reasoning_tokens",
        "audio_tokens",
        "cached_audio_tokens",
        "image_tokens",
        "video_tokens",
        "audio_output_tokens",
        "image_output_tokens",
        "citation_tokens",
        "searches",
    )
)


@dataclass(frozen=True, slots=True)
class Knobs:
    """What one request is to do. Times in seconds; `None` leaves a thing as it is."""

    latency_s: float = 0  # a wait before everything else, also before a scripted status
    first_token_s: float = 0  # a wait after a stream's headers and before its first token
    tokens_per_s: float | None = None  # None: as fast as possible
    chunk_tokens: int | None = None  # tokens in one streamed event. None: as many as this provider sends
    output_tokens: int | None = None  # the answer's length, still bounded by the request's max tokens
    text: str | None = None  # the exact answer
    tool_calls: list[dict[str, Any]] | None = None  # exactly these calls: [{"name": …, "arguments": {…}}]
    status: int | None = None  # the status of an error instead of an answer; bills nothing unless `billed` says so
    retry_after: float | None = None
    error: dict[str, Any] | None = None  # the error's whole body
    hang_s: float = 0  # a silence: before the headers, or in a stream after `hang_after_tokens`
    hang_after_tokens: int | None = None
    cut_after_tokens: int | None = None  # the connection is closed after the event that contains this token
    # The connection is closed without an answer; bills nothing unless `billed` says so.
    cut_before_headers: bool = False
    slow_body_s: float = 0  # an answer that is not streamed is sent in small parts over this time
    usage: Literal["missing", "zero"] | dict[str, int] | None = None  # the usage that the answer reports
    billed: Literal["full", "none"] | dict[str, int] | None = None  # what is truly billed, whatever happens
    cached_tokens: int = 0  # input tokens that came from the cache
    cache_write_tokens: int = 0  # input tokens that were written to the cache
    cache_write_1h_tokens: int = 0  # the part of them that is kept for an hour
    reasoning_tokens: int = 0  # output tokens of reasoning before the answer, which the caller does not see
    audio_tokens: int | None = None  # input tokens of audio. None: as many as were counted in the request
    image_tokens: int | None = None
    video_tokens: int | None = None
    audio_output_tokens: int = 0  # tokens of the answer that are audio
    image_output_tokens: int = 0  # tokens of the answer that are images
    citation_tokens: int = 0  # tokens read in search results, billed beside input and output
    searches: int = 0  # searches that the provider makes itself
    search_context: Literal["low", "medium", "high"] | None = None  # None: as the request says
    region: str | None = None  # where the model runs, as if a workspace's default said so. None: as the request says
    tier: Literal["", "priority", "flex", "batch"] | None = None  # as if a project's default said so
    cost_nano: int | None = None  # what the whole request costs, whatever the price list says
    reported_cost_nano: int | None = None  # a false cost, for answers that report their cost
    silent_about_cost: bool = False  # the answer reports no cost, although this provider's answers usually do
    mark: str = ""  # written on the invoice's line, so that a test finds the line of its own call
    keep_request: bool = False  # the request's body is kept as it arrived, for `/_sim/requests`


_TYPES: dict[str, tuple[type, ...]] = {
    "chunk_tokens": (int,),
    "output_tokens": (int,),
    "text": (str,),
    "tool_calls": (list,),
    "status": (int,),
    "error": (dict,),
    "hang_after_tokens": (int,),
    "cut_after_tokens": (int,),
    "cut_before_headers": (bool,),
    "usage": (str, dict),
    "billed": (str, dict),
    "cached_tokens": (int,),
    "cache_write_tokens": (int,),
    "cache_write_1h_tokens": (int,),
    "reasoning_tokens": (int,),
    "audio_tokens": (int,),
    "image_tokens": (int,),
    "video_tokens": (int,),
    "audio_output_tokens": (int,),
    "image_output_tokens": (int,),
    "citation_tokens": (int,),
    "searches": (int,),
    "search_context": (str,),
    "region": (str,),
    "tier": (str,),
    "cost_nano": (int,),
    "reported_cost_nano": (int,),
    "silent_about_cost": (bool,),
    "mark": (str,),
    "keep_request": (bool,),
}
_WORDS = {
    "usage": ("missing", "zero"),
    "billed": ("full", "none"),
    "search_context": ("low", "medium", "high"),
    "tier": ("", "priority", "flex", "batch"),
}
_NAMES = frozenset(field.name for field in fields(Knobs))


def check_knobs(knobs: Mapping[str, Any]) -> None:
    """Refuse a knob that does not exist or has the wrong type, by its name.

    Raises:
        BadRequest: says which knob and what was expected.
    """
    for name, value in knobs.items():
        if name not in _NAMES:
            raise BadRequest(f"sim script: there is no knob {name!r}; there are {', '.join(sorted(_NAMES))}")
        types = _TYPES.get(name, (int, float))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise BadRequest(
                f"sim script: {name} must be {' or '.join(kind.__name__ for kind in types)}, not {value!r}"
            )
        if isinstance(value, str) and name in _WORDS and value not in _WORDS[name]:
            raise BadRequest(f"sim script: {name} must be one of {', '.join(_WORDS[name])}{_or_object(types)}")
        if isinstance(value, int | float) and value < 0:
            raise BadRequest(f"sim script: {name} must not be negative")
        if name in ("tokens_per_s", "chunk_tokens") and value == 0:
            raise BadRequest(f"sim script: {name} must be above zero")
        if name == "status" and isinstance(value, int) and not 400 <= value <= 599:
            raise BadRequest("sim script: status must be from 400 to 599")
        if name in _WORDS and isinstance(value, dict) and not _USED_NAMES.issuperset(cast("dict[str, Any]", value)):
            raise BadRequest(f"sim script: {name} may hold {', '.join(sorted(_USED_NAMES))}")


def _or_object(types: tuple[type, ...]) -> str:
    return " or an object of tokens" if dict in types else ""


@dataclass(slots=True)
class Rule:
    """Knobs for the requests that match every field that is given. Patterns are shell-style (`*`, `?`)."""

    do: dict[str, Any]
    model: str | None = None
    face: str | None = None
    operation: str | None = None
    api_key: str | None = None
    headers: dict[str, str] | None = None
    contains: str | None = None  # in the text of the user's messages
    times: int | None = None
    matched: int = 0

    def matches(self, face: str, operation: str, model: str, headers: Mapping[str, str], text: str) -> bool:
        """Whether the rule applies to a request, and is not used up."""
        if self.times is not None and self.matched >= self.times:
            return False
        pairs = [(self.model, model), (self.face, face), (self.operation, operation)]
        if self.api_key is not None:
            pairs.append((self.api_key, api_key(headers)))
        pairs += [(pattern, headers.get(name.lower(), "")) for name, pattern in (self.headers or {}).items()]
        return all(pattern is None or fnmatchcase(value, pattern) for pattern, value in pairs) and (
            self.contains is None or self.contains in text
        )


def api_key(headers: Mapping[str, str]) -> str:
    """The key that a request carries, in whichever place the imitated provider's clients put it."""
    bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
    return bearer or headers.get("x-api-key", "") or headers.get("x-goog-api-key", "")


_RULE_FIELDS = frozenset(field.name for field in fields(Rule)) - {"matched"}


class Scripts:
    """The rules in force, and how often each was used. Markers that have a limit of uses are counted, too."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._markers: dict[str, int] = {}

    def replace(self, rules: Any) -> None:
        """Put these rules in the place of all others; `[]` clears them.

        Raises:
            BadRequest: not a list of rules, or one of them is wrong; nothing changes then.
        """
        if not isinstance(rules, list):
            raise BadRequest('expected a list of rules: [{"model": "gpt-4o*", "times": 1, "do": {"status": 500}}]')
        made: list[Rule] = []
        for rule in cast("list[Any]", rules):
            if not isinstance(rule, dict) or not isinstance(rule.get("do"), dict):  # pyright: ignore[reportUnknownMemberType]  # JSON
                raise BadRequest('a rule is an object with the knobs in "do"')
            given = cast("dict[str, Any]", rule)
            unknown = given.keys() - _RULE_FIELDS
            if unknown:
                raise BadRequest(f"a rule has no {sorted(unknown)[0]!r}; it has {', '.join(sorted(_RULE_FIELDS))}")
            check_knobs(given["do"])
            made.append(Rule(**given))
        self._rules = made
        self._markers.clear()

    def listing(self) -> dict[str, Any]:
        """The rules with how often each matched, and the uses of each marker that has a limit of uses."""
        return {"rules": [asdict(rule) for rule in self._rules], "markers": dict(self._markers)}

    def knobs(
        self,
        face: str,
        operation: str,
        model: str,
        headers: Mapping[str, str],
        text: str,
        habits: Mapping[str, Any] | None = None,
    ) -> Knobs | None:
        """The knobs for one request, or None if there are none. A rule that matches is counted as used.

        `habits`: the knobs that the model has without a script.

        Raises:
            BadRequest: a header or marker is not JSON, or names a knob wrongly.
        """
        header = headers.get("x-sim-script")
        marked = "[[sim:" in text
        if not self._rules and header is None and not marked and not habits:
            return None
        found: dict[str, Any] = dict(habits or {})
        for rule in self._rules:
            if rule.matches(face, operation, model, headers, text):
                rule.matched += 1
                found.update(rule.do)
                break
        if header is not None:
            found.update(_parse(header))
        if marked:
            for marker in cast("list[str]", _MARKER.findall(text)):
                found.update(self._marker(marker))
        return Knobs(**found) if found else None

    def _marker(self, marker: str) -> dict[str, Any]:
        knobs = _parse(marker, times=True)
        times = knobs.pop("times", None)
        if times is None:
            return knobs
        used = self._markers.get(marker, 0)
        if used >= times:
            return {}
        self._markers[marker] = used + 1
        return knobs


def _parse(text: str, *, times: bool = False) -> dict[str, Any]:
    try:
        knobs: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"sim script: {text!r} is not JSON: {error}") from None
    if not isinstance(knobs, dict):
        raise BadRequest(f"sim script: {text!r} is not an object of knobs")
    given = cast("dict[str, Any]", knobs)
    check_knobs({name: value for name, value in given.items() if not (times and name == "times")})
    return given
