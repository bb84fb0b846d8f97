"""Reads a caller's body once, for the facts that governance needs, and removes only the fields that are meant for
Treasurer. Pure.

What must hold: each request that is passed on can be bounded and priced. So only the parameters of OpenAI's
API (and the few that LiteLLM adds for other providers' features) are accepted. An unknown one is refused by
name, as OpenAI does, because LiteLLM would obey some of them (`api_base`, `fallbacks`,
`input_cost_per_token` …). Features that cost money beyond tokens (hosted tools, audio output) are refused by name.

`input_bound` is an upper bound of the tokens that the text can become: no byte-level tokenizer makes more tokens than
there are UTF-8 bytes, plus an allowance for the text that a provider wraps around messages and tools, and for text that
becomes longer on its way: references that LiteLLM replaces by the schemas that they name, and compatibility characters
that tokenizers spell out. Images, recordings and files are read separately (media.py), because their bound depends on
the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import orjson

from llm_service.errors import InvalidRequest
from llm_service.wire.bodies import parse_body
from llm_service.wire.expansion import nfkc_growth_bytes, ref_expansion_bytes
from llm_service.wire.media import Medium, read_part

MAX_TOKENS_CEILING = 10_000_000
MAX_CHOICES = 128
#: The longest run, user, session or tag that a call may name.
MAX_ATTRIBUTION = 128
#: The most tags that a call may name.
MAX_TAGS = 32

_COMMON = frozenset({"model", "user"})
# fmt: off
CHAT_PARAMETERS = _COMMON | {
    "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "temperature", "top_p", "top_k",
    "min_p", "stop", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "logprobs",
    "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format",
    "reasoning_effort", "thinking", "verbosity", "prediction", "service_tier", "metadata", "store", "modalities",
    "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "safety_identifier", "web_search_options",
}
# fmt: on
EMBEDDINGS_PARAMETERS = _COMMON | frozenset({"input", "encoding_format", "dimensions", "metadata"})
#: Parameters that are known, and refused with a reason unless they are null.
_UNPRICED = {
    "audio": "Only text output can be bounded and priced",
    "moderation": "Moderation within a completion has no known price",
}
#: How long a provider keeps a cache: the values whose price is known. The price is the same for each value.
_CACHE_RETENTIONS = (None, "in_memory", "in-memory", "24h")
_CACHE_OPTIONS = {"mode": ("implicit", "explicit"), "ttl": ("30m",)}
#: The sizes of a search context: how much of its results a search gives to the model. They can decide a search's price.
SearchContext = Literal["low", "medium", "high"]
SEARCH_CONTEXTS: Final[tuple[SearchContext, ...]] = ("low", "medium", "high")

#: The parameters whose text becomes tokens. The options of a search contain the user's location.
_TEXT = ("messages", "tools", "functions", "response_format", "web_search_options")

# Allowances, in tokens, for what providers add around the caller's text. The largest published ones are Anthropic's: up
# to 530 tokens for the system prompt for tools, plus a wrapping for each tool.
_PER_REQUEST = 16
_PER_MESSAGE = 8
_WITH_TOOLS = 600
_PER_TOOL = 32
#: The lifetimes of Anthropic's caches: https://platform.claude.com/docs/en/build-with-claude/prompt-caching
CacheWrites = Literal["none", "5m", "1h"]
_TTL: Final = re.compile(rb'"ttl":')
_TTL_5M: Final = re.compile(rb'"ttl":"5m"')


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """The facts of a request that governance uses. `data` is the caller's body, to be passed on, without `metadata.tags`.

    `max_tokens` is the caller's limit for one choice; None if the caller set none.
    `media` are its images, recordings and files. `cache_writes`: the longest time for which the request asks the
    provider to cache a part of it. `search_options`: whether the request has options for searches. `search_context`:
    the size of search context that it asks for.
    `text_bytes` is the size of the text alone, for estimates; `input_bound` is the most input tokens that its text can be.
    """

    data: dict[str, Any]
    model: str
    stream: bool = False
    wants_usage: bool = False
    choices: int = 1
    max_tokens: int | None = None
    input_bound: int = 0
    text_bytes: int = 0
    allowance: int = 0
    extra_output: int = 0
    media: tuple[Medium, ...] = ()
    cache_writes: CacheWrites = "none"
    search_context: SearchContext | None = None
    search_options: bool = False
    service_tier: str | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    token_ids: bool = False  # the input consists of token ids of OpenAI's tokenizers


def _invalid(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param)


def parse_chat(body: bytes) -> ParsedRequest:
    """Read a chat completion request (https://platform.openai.com/docs/api-reference/chat/create).

    Raises:
        InvalidRequest: naming the parameter, and what was expected.
    """
    data = parse_body(body)
    _refuse_unknown(data, CHAT_PARAMETERS | _UNPRICED.keys())
    data, tags = _take_tags(data)
    model, user = _model(data), attribution(data.get("user"), "'user'", "user")
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _invalid("messages", "'messages' must be a non-empty array.")
    media, media_bytes = _scan_messages(cast("list[object]", messages))
    stream = _flag(data, "stream")
    choices = _count(data, "n", 1, MAX_CHOICES)
    tools = _tools(data)
    _refuse_unpriced(data)
    text = [data[name] for name in _TEXT if data.get(name) is not None]
    written = orjson.dumps(text)
    text_bytes = len(written) - media_bytes
    allowance = _PER_REQUEST + _PER_MESSAGE * len(cast("list[object]", messages)) + nfkc_growth_bytes(written)
    if b'"$ref"' in written:
        allowance += ref_expansion_bytes(text[1:])
    if data.get("response_format") is not None:
        tools += 1  # LiteLLM makes a tool of it for Anthropic's models
    if tools:
        allowance += _WITH_TOOLS + _PER_TOOL * tools
    prediction = data.get("prediction")
    return ParsedRequest(
        data=data,
        model=model,
        stream=stream,
        wants_usage=_wants_usage(data),
        choices=choices or 1,
        max_tokens=_max_tokens(data),
        input_bound=text_bytes + allowance,
        text_bytes=text_bytes,
        allowance=allowance,
        extra_output=0 if prediction is None else len(orjson.dumps(prediction)),
        media=media,
        cache_writes=_cache_writes(written),
        search_context=_search_context(data),
        search_options=data.get("web_search_options") is not None,
        service_tier=_service_tier(data),
        user=user,
        tags=tags,
    )


def parse_embeddings(body: bytes) -> ParsedRequest:
    """Read an embeddings request (https://platform.openai.com/docs/api-reference/embeddings/create).

    Raises:
        InvalidRequest: naming the parameter, and what was expected.
    """
    data = parse_body(body)
    _refuse_unknown(data, EMBEDDINGS_PARAMETERS)
    data, tags = _take_tags(data)
    if data.pop("metadata", None) is not None:
        raise InvalidRequest(
            "No provider keeps metadata of embeddings. 'metadata' may hold 'tags', which stay in Treasurer.",
            param="metadata",
            code="unsupported_parameter",
        )
    given = data.get("input")
    items = cast("list[object]", given) if isinstance(given, list) else [given]
    if not items or (len(items) > 2048 and not isinstance(items[0], int)):
        raise _invalid("input", "'input' must hold between 1 and 2048 items.")
    tokens, token_ids = 0, False
    if isinstance(given, list) and all(type(item) is int for item in items):
        tokens, token_ids = len(items) + _PER_MESSAGE, True
    else:
        for item in items:
            if isinstance(item, str) and item:
                written = item.encode()
                tokens += len(written) + nfkc_growth_bytes(written) + _PER_MESSAGE
            elif isinstance(item, list) and item and all(type(token) is int for token in cast("list[object]", item)):
                tokens, token_ids = tokens + len(cast("list[object]", item)) + _PER_MESSAGE, True
            else:
                raise _invalid(
                    "input", "'input' must be a non-empty string, or an array of strings or of token arrays."
                )
    _count(data, "dimensions", 1, 100_000)
    if data.get("encoding_format") not in (None, "float", "base64"):
        raise _invalid("encoding_format", "'encoding_format' must be 'float' or 'base64'.")
    return ParsedRequest(
        data=data,
        model=_model(data),
        max_tokens=0,
        input_bound=tokens,
        text_bytes=tokens,
        token_ids=token_ids,
        user=attribution(data.get("user"), "'user'", "user"),
        tags=tags,
    )


def _refuse_unknown(data: dict[str, Any], known: frozenset[str]) -> None:
    for name in data:
        if name not in known:
            raise InvalidRequest(
                f"Unrecognized request argument supplied: {name[:64]!r}.", param=name[:64], code="unknown_parameter"
            )


def _refuse_unpriced(data: dict[str, Any]) -> None:
    for name, why in _UNPRICED.items():
        if data.get(name) is not None:
            raise _unpriced(name, why)
    modalities = data.get("modalities")
    if modalities is not None and modalities != ["text"]:
        raise _unpriced("modalities", "Only text output can be bounded and priced")
    if data.get("prompt_cache_retention") not in _CACHE_RETENTIONS:
        raise _unpriced("prompt_cache_retention", "A cache that is kept for this long has no known price")
    options: object = data.get("prompt_cache_options")
    if options is None:
        return
    if not isinstance(options, dict):
        raise _invalid("prompt_cache_options", "'prompt_cache_options' must be an object.")
    for name, value in cast("dict[str, Any]", options).items():
        if value is not None and value not in _CACHE_OPTIONS.get(name, ()):
            raise _unpriced("prompt_cache_options", f"This {name[:64]!r} of a cache has no known price")


def _unpriced(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{why}, so Treasurer does not pass it on.", param=param, code="not_priced")


def _model(data: dict[str, Any]) -> str:
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise _invalid("model", "'model' must be the name of a model, as a string.")
    if len(model) > 200 or not model.isprintable():
        raise _invalid("model", "'model' must be at most 200 printable characters.")
    return model


def attribution(value: object, what: str, param: str, most: int = MAX_ATTRIBUTION) -> str | None:
    """A caller's text about a call, from a header or the body, without white space at its ends; None if it is empty.

    Raises:
        InvalidRequest: it is not text, is longer than `most`, or has characters that are not printable.
    """
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "":
        return None
    if not isinstance(text, str) or len(text) > most or not text.isprintable() or "\ufffd" in text:  # not UTF-8
        raise _invalid(param, f"{what} must be at most {most} printable characters.")
    return text


def _take_tags(data: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Take the tags out of `metadata.tags`. Users of LiteLLM send tags there for the gateway, and not for a provider."""
    metadata: object = data.get("metadata")
    if metadata is None:
        return data, ()
    if not isinstance(metadata, dict):
        raise _invalid("metadata", "'metadata' must be an object.")
    kept = dict(cast("dict[str, Any]", metadata))
    given: object = kept.get("tags")
    if not isinstance(given, list):  # a text here belongs to OpenAI's own metadata
        return data, ()
    del kept["tags"]
    named = cast("list[object]", given)
    if len(named) > MAX_TAGS or not all(isinstance(tag, str) for tag in named):
        raise _invalid("metadata", f"'metadata.tags' must be an array of at most {MAX_TAGS} strings.")
    tags = (attribution(tag, "Each of 'metadata.tags'", "metadata") for tag in named)
    rest = {name: value for name, value in data.items() if name != "metadata"}
    return rest | ({"metadata": kept} if kept else {}), tuple(dict.fromkeys(tag for tag in tags if tag is not None))


def _flag(data: dict[str, Any], name: str) -> bool:
    value = data.get(name)
    if value is not None and not isinstance(value, bool):
        raise _invalid(name, f"'{name}' must be true or false.")
    return bool(value)


def _count(data: dict[str, Any], name: str, least: int, most: int) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise _invalid(name, f"'{name}' must be an integer.")
    if not least <= value <= most:
        raise _invalid(name, f"'{name}' must be between {least} and {most}; got {value}.")
    return value


def _wants_usage(data: dict[str, Any]) -> bool:
    options: object = data.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _invalid("stream_options", "'stream_options' must be an object.")
    return cast("dict[str, Any]", options).get("include_usage") is True


def _max_tokens(data: dict[str, Any]) -> int | None:
    given = [_count(data, name, 1, MAX_TOKENS_CEILING) for name in ("max_tokens", "max_completion_tokens")]
    named = [value for value in given if value is not None]
    return min(named) if named else None


def _service_tier(data: dict[str, Any]) -> str | None:
    tier = data.get("service_tier")
    if tier not in (None, "auto", "default", "flex", "priority"):
        raise _unpriced("service_tier", "This service tier has no known price")
    return cast("str | None", tier)


def _search_context(data: dict[str, Any]) -> SearchContext | None:
    """The size in `web_search_options`. Other options in it are refused if they can have a price (`search_type`)."""
    options: object = data.get("web_search_options")
    if options is None:
        return None
    if not isinstance(options, dict):
        raise _invalid("web_search_options", "'web_search_options' must be an object.")
    fields = cast("dict[str, Any]", options)
    for name, value in fields.items():
        if name not in ("search_context_size", "user_location") and value is not None:
            raise _unpriced("web_search_options", f"What {name[:64]!r} does to the price of a search is not known")
    location: object = fields.get("user_location")
    if location is not None and not isinstance(location, dict):
        raise _invalid("web_search_options", "'web_search_options.user_location' must be an object.")
    size: object = fields.get("search_context_size")
    if size is None:
        return None
    if size not in SEARCH_CONTEXTS:
        raise _invalid("web_search_options", "'web_search_options.search_context_size' must be low, medium or high.")
    return size


def _tools(data: dict[str, Any]) -> int:
    count = 0
    for name in ("tools", "functions"):
        tools = data.get(name)
        if tools is None:
            continue
        if not isinstance(tools, list):
            raise _invalid(name, f"'{name}' must be an array.")
        for tool in cast("list[object]", tools):
            if not isinstance(tool, dict):
                raise _invalid(name, f"Each of '{name}' must be an object.")
            fields = cast("dict[str, Any]", tool)
            kind: object = fields.get("type")
            if name == "tools" and kind not in ("function", "custom"):
                raise _unpriced(
                    name, "Only tools of type 'function' or 'custom' can be priced; hosted tools are billed separately"
                )
            # Without a definition, LiteLLM would look for a hosted tool among the other fields.
            if name == "tools" and not isinstance(fields.get(str(kind)), dict):
                raise _invalid(name, f"A tool of type {kind!r} must have an object {kind!r}.")
            if name == "functions" and not isinstance(fields.get("name"), str):
                raise _invalid(name, "Each of 'functions' must have a 'name'.")
            count += 1
    return count


def _scan_messages(messages: list[object]) -> tuple[tuple[Medium, ...], int]:
    """The images, recordings and files in the messages, and how many bytes of the body are their data."""
    media: list[Medium] = []
    size = 0
    for message in messages:
        if not isinstance(message, dict):
            raise _invalid("messages", "Each of 'messages' must be an object.")
        fields = cast("dict[str, Any]", message)
        if not isinstance(fields.get("role"), str):
            raise _invalid("messages", "Each of 'messages' must have a 'role'.")
        for name in ("audio", "images"):
            if fields.get(name) is not None:
                raise _unpriced("messages", f"A message's '{name}' cannot be bounded and priced")
        content: object = fields.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise _invalid("messages", "A message's 'content' must be a string or an array of parts.")
        for part in cast("list[object]", content):
            medium, payload = read_part(part)
            if medium is not None:
                media.append(medium)
                size += payload
    return tuple(media), size


def _cache_writes(written: bytes) -> CacheWrites:
    """Whether a request asks for a part of it to be cached, and for how long at most.

    This searches the text of the request. So a request that only quotes such JSON may count, but no such request is
    overlooked.
    """
    if b'"cache_control"' not in written:
        return "none"
    return "5m" if len(_TTL.findall(written)) == len(_TTL_5M.findall(written)) else "1h"
