"""How much a call can cost at most, and how much output a smaller hold pays for. Pure.

What must hold (I1): a hold covers any usage that the provider can bill for the request as it is sent. So it covers the
most that the input can cost, plus `max_tokens` of output for each choice. `max_tokens` is always sent to the provider.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_service.errors import InvalidRequest
from llm_service.pricing import rates
from llm_service.pricing.media import MediaTokens
from llm_service.pricing.models import Model
from llm_service.types import Principal
from llm_service.usage import most_tokens
from llm_service.wire.requests import CacheWrites, ParsedRequest


@dataclass(frozen=True, slots=True)
class CostBound:
    """What to hold for a request, in tokens and nano-dollars; `output_tokens` is for one choice.

    `floor_nano` is the least with which the call is worth making: the input, and the agent's floor of output.
    `defaulted`: the request did not set `max_tokens`. `counted`: the text was counted with a tokenizer. `most` has the
    quantities for which the amount was computed, without the output.
    """

    input_tokens: int
    output_tokens: int
    defaulted: bool
    amount_nano: int
    floor_nano: int
    counted: bool = False
    most: rates.Most = rates.NOTHING


def cost_bound(
    model: Model, request: ParsedRequest, principal: Principal, *, counted_input: int | None = None
) -> CostBound:
    """Bound the cost of a request, at the highest rates of a model's deployments.

    `counted_input` is a tokenizer's count with its margin. It is used instead of the bound by bytes if it is smaller.

    Raises:
        InvalidRequest: a part of the request has no bound or no price at this model.
    """
    media = model.media_tokens(request.media)
    _refuse_unpriced(model, request, media)
    text_tokens = request.input_bound if counted_input is None else min(counted_input, request.input_bound)
    input_tokens = text_tokens + media.total
    most = rates.Most(
        text_tokens=text_tokens + media.text,
        image_tokens=media.image,
        audio_tokens=media.audio,
        video_tokens=media.video,
        reasoning_tokens=model.most.reasoning_tokens,
        citation_tokens=model.most.citation_tokens,
        searches=model.most.searches,
        requests=request.choices,
        search_context=request.search_context,
        cache_writes=cache_writes(model, request),
        service_tier=request.service_tier,
    )
    price = rates.output_bound(model.rates_to_hold, most)
    if model.mode == "embedding":
        amount = price.amount_nano(0)
        return CostBound(input_tokens, 0, False, amount, amount, counted_input is not None, most)
    asked = request.max_tokens if request.max_tokens is not None else principal.default_max_tokens
    if model.max_output_tokens is not None:
        asked = min(asked, model.max_output_tokens)
    floor = min(asked, principal.floor_tokens)

    def held(output_tokens: int) -> int:
        return price.amount_nano(output_tokens * request.choices + request.extra_output)

    return CostBound(
        input_tokens, asked, request.max_tokens is None, held(asked), held(floor), counted_input is not None, most
    )


def _refuse_unpriced(model: Model, request: ParsedRequest, media: MediaTokens) -> None:
    """Raises InvalidRequest if the request has a part whose cost at this model is not known."""
    if request.token_ids and not model.reads_token_ids:
        raise InvalidRequest(
            f"{model.name!r} does not read OpenAI's token numbers; send text.", param="input", code="not_priced"
        )
    if request.search_options and not model.takes_search_options:
        raise InvalidRequest(
            f"What 'web_search_options' would cost at {model.name!r} is not known. They are for OpenAI's and Perplexity's "
            "models that search in each call.",
            param="web_search_options",
            code="not_priced",
        )
    for name, tokens, priced in (
        ("Audio", media.audio, model.prices_audio),
        ("Video", media.video, model.prices_video),
    ):
        if tokens and not priced:
            raise InvalidRequest(
                f"{name} has no known price for {model.name!r}, so its cost cannot be bounded.",
                param="messages",
                code="not_priced",
            )
    if request.cache_writes != "none" and model.stores_caches:
        raise InvalidRequest(
            f"'cache_control' would make a stored cache for {model.name!r}, which is billed by the hour; leave it out. "
            "Its caching of prompts without 'cache_control' is not affected.",
            param="messages",
            code="not_priced",
        )


def cache_writes(model: Model, request: ParsedRequest) -> CacheWrites:
    """The caches to which a request may be written. The hold uses the highest price of these. "1h" includes "5m"."""
    if model.caches_only_when_asked or request.cache_writes == "1h":
        return request.cache_writes
    return "5m"


def output_within(model: Model, request: ParsedRequest, bound: CostBound, held_nano: int) -> int:
    """How many output tokens a hold pays for, for each choice: as many as the bound has, or fewer."""
    if held_nano >= bound.amount_nano:
        return bound.output_tokens
    total = rates.affordable_output(model.rates_to_hold, bound.most, held_nano)
    return max(1, min(bound.output_tokens, (total - request.extra_output) // request.choices))


@dataclass(frozen=True, slots=True)
class TextCount:
    """A tokenizer's count of the ASCII part of a text, and the bytes of the rest."""

    ascii_tokens: int
    other_bytes: int

    @property
    def bound(self) -> int:
        """The most tokens that the model's tokenizer may make of the text.

        Text that is not ASCII counts as one token for each byte, because for such text one tokenizer may need several
        times as many tokens as another.
        """
        return most_tokens(self.ascii_tokens) + self.other_bytes


def counted_bound(request: ParsedRequest, count: TextCount) -> int:
    """The bound of a request's input, from a count of its text; never more than the bound by bytes."""
    return min(request.input_bound, count.bound + request.allowance)


def counting_may_help(model: Model, request: ParsedRequest, principal: Principal, left_nano: int) -> bool:
    """Whether a call could fit if its tokens were counted, assuming that eight bytes of text are one token at best."""
    best = counted_bound(request, TextCount(request.text_bytes // 8, 0))
    return cost_bound(model, request, principal, counted_input=best).floor_nano <= left_nano
