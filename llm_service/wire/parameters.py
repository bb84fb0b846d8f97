"""Which parameters of a chat request reach which provider, and in which form LiteLLM passes them on. Pure.

What must hold:
  A parameter reaches the provider, unchanged or translated. If it would not, the call is refused before money is held,
      and the error names the parameter. LiteLLM drops some parameters silently. Each of these is refused here, or put
      where LiteLLM does not look at it.
  If a provider lacks a parameter, a value that only asks for the default (a penalty of 0, one choice) is left out.
  A translation by LiteLLM that would change the price is avoided: LiteLLM turns the tier `auto` into Gemini's
      `priority`.

`user` and `metadata.tags` are meant for Treasurer. A provider receives `user` too, if it has such a field.
tests/integration/test_parameters.py sends each parameter to each kind of provider through the real proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from llm_service.errors import InvalidRequest
from llm_service.grants import EXTRA_BODY_FIELDS

_OPENAI: Final = "openai"
_ANTHROPIC: Final = "anthropic"
_GOOGLE: Final = "google"
_OTHER: Final = "other"
#: LiteLLM's name of a provider → the provider whose parameters it accepts. A server of the operator with OpenAI's API
#: is "openai".
_FAMILIES: Final = {
    "openai": _OPENAI,
    "anthropic": _ANTHROPIC,
    "gemini": _GOOGLE,
    "vertex_ai-language-models": _GOOGLE,
}


@dataclass(frozen=True, slots=True)
class _Gap:
    """A parameter that some providers lack. `asks`: whether a value asks for more than these providers do by default."""

    param: str
    lacking: frozenset[str]
    asks: Callable[[Any], bool]
    what: str  # the end of the error message, after the model's name
    removable: bool = True  # such a value only asks for the default, and can be left out


def _other_than(*usual: object) -> Callable[[Any], bool]:
    return lambda value: value not in usual


def _any(_value: object) -> bool:
    return True


def _is_kind(*kinds: str) -> Callable[[Any], bool]:
    """Whether a value is an object whose `type` is one of these."""
    return lambda value: isinstance(value, dict) and cast("dict[str, Any]", value).get("type") in kinds


def _has_custom_tool(value: object) -> bool:
    return isinstance(value, list) and any(_is_kind("custom")(tool) for tool in cast("list[object]", value))


_NOT_OPENAI: Final = frozenset({_ANTHROPIC, _GOOGLE, _OTHER})
_BOTH: Final = frozenset({_ANTHROPIC, _GOOGLE})
_CLAUDE: Final = frozenset({_ANTHROPIC})
_GEMINI: Final = frozenset({_GOOGLE})
_TAGS = "; send what you sort calls by as 'metadata.tags', which stays in Treasurer"

# fmt: off
_GAPS: Final = (
    _Gap("metadata", _NOT_OPENAI, bool, f"keeps no metadata{_TAGS}"),
    _Gap("prompt_cache_retention", _NOT_OPENAI, _any, "has no such setting"),
    _Gap("prompt_cache_options", _NOT_OPENAI, bool, "has no such setting"),
    _Gap("tool_choice", _NOT_OPENAI, _is_kind("allowed_tools"), "cannot be limited to some of its tools; send only those", removable=False),
    _Gap("min_p", _BOTH, _other_than(0), "has no such setting"),
    _Gap("repetition_penalty", _BOTH, _other_than(1), "has no such setting"),
    _Gap("tools", _BOTH, _has_custom_tool, "takes only tools of type 'function'", removable=False),
    _Gap("safety_identifier", _BOTH, _any, "takes none; name the user in 'user'"),
    _Gap("logit_bias", _BOTH, bool, "has no such setting"),
    _Gap("top_logprobs", _BOTH, _other_than(0), "does not report them"),
    _Gap("verbosity", _BOTH, _other_than("medium"), "has no such setting"),
    _Gap("prediction", _BOTH, _any, "takes none"),
    _Gap("store", _BOTH, bool, "stores no answers"),
    _Gap("prompt_cache_key", _BOTH, _any, "has no such setting"),
    _Gap("function_call", _BOTH, _other_than("auto"), "takes 'tools' and 'tool_choice' instead"),
    _Gap("functions", _CLAUDE, bool, "takes 'tools' instead"),
    _Gap("n", _CLAUDE, _other_than(1), "gives one choice"),
    _Gap("seed", _CLAUDE, _any, "has no such setting"),
    _Gap("frequency_penalty", _CLAUDE, _other_than(0), "has no such setting"),
    _Gap("presence_penalty", _CLAUDE, _other_than(0), "has no such setting"),
    _Gap("logprobs", _CLAUDE, bool, "does not report them"),
    _Gap("modalities", _CLAUDE, _other_than(["text"]), "answers in text"),
    _Gap("service_tier", _CLAUDE, _other_than("auto", "default"), "has no such tier"),
    _Gap("response_format", _CLAUDE, _is_kind("json_object"), "takes only a 'json_schema'", removable=False),
    _Gap("parallel_tool_calls", _GEMINI, lambda value: value is False, "may call several tools at once"),
    _Gap("thinking", _GEMINI, _is_kind("disabled"), "takes 'reasoning_effort': 'none' instead", removable=False),
    _Gap("thinking", frozenset({_OPENAI}), _any, "takes 'reasoning_effort' instead"),
)
# fmt: on
_ALWAYS_THINKS: Final = (
    _Gap("thinking", frozenset(), _is_kind("disabled"), "always thinks"),
    _Gap("reasoning_effort", frozenset(), lambda value: value == "none", "always thinks"),
)


def check_arrives(data: Mapping[str, Any], model: str, providers: Collection[str], *, always_thinks: bool) -> None:
    """Refuse a parameter that would not reach one of the model's providers.

    Raises:
        InvalidRequest: the message names the parameter, the model, and what to do instead.
    """
    gaps = [*_gaps_of(providers), *(_ALWAYS_THINKS if always_thinks else ())]
    for gap in gaps:
        value = data.get(gap.param)
        if value is not None and gap.asks(value):
            raise InvalidRequest(
                f"'{gap.param}' as it is given here cannot reach {model!r}: its provider {gap.what}. Leave it out, or ask for "
                "another model.",
                param=gap.param,
                code="unsupported_parameter",
                details={"model": model},
            )


def as_sent(data: Mapping[str, Any], providers: Collection[str]) -> dict[str, Any]:
    """The parameters of a request that `check_arrives` has accepted, in a form that LiteLLM passes on completely."""
    removable = {gap.param for gap in _gaps_of(providers) if gap.removable}
    families = _families(providers)
    if families != {_OPENAI} and data.get("service_tier") == "auto":
        removable.add("service_tier")
    sent = {name: value for name, value in data.items() if value is not None and name not in removable}
    hidden = {name: sent.pop(name) for name in EXTRA_BODY_FIELDS if name in sent and _is_hidden(name, sent[name])}
    return sent | {"extra_body": hidden} if hidden else sent


def _is_hidden(name: str, value: object) -> bool:
    """Whether a parameter must be put into `extra_body`, so that LiteLLM passes it on to a server with OpenAI's API.

    Otherwise LiteLLM keeps `metadata` for itself, drops `prompt_cache_retention`, and refuses this kind of
    `tool_choice`.
    """
    return name != "tool_choice" or _is_kind("allowed_tools")(value)


def _gaps_of(providers: Collection[str]) -> Iterator[_Gap]:
    families = _families(providers)
    return (gap for gap in _GAPS if not gap.lacking.isdisjoint(families))


def _families(providers: Collection[str]) -> set[str]:
    return {_FAMILIES.get(provider, _OTHER) for provider in providers}
