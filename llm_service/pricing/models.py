"""A model that callers can name: its rate cards, its limits, and what is known about its providers. Pure.

What must hold (I1): if the deployments of a model differ in price, a call is bounded by the highest price, and charged
at the price of the deployment that answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from llm_service.pricing.built_in_search import searching
from llm_service.pricing.media import MediaTokens, media_tokens
from llm_service.pricing.providers import (
    AUDIO_COSTS_AS_TEXT,
    CHOOSE_SERVICE_TIER,
    READ_TOKEN_IDS,
    REASON_WHEN_ASKED,
    STORE_CACHES,
    TAKE_SEARCH_OPTIONS,
    VIDEO_COSTS_AS_TEXT,
    WRITE_CACHES_WHEN_ASKED,
    bills_to_the_end,
)
from llm_service.pricing.rates import FREE, NOTHING_BEYOND, MostBeyondTokens, Rates, cost_at
from llm_service.pricing.stored_rates import dump_rates
from llm_service.types import Usage
from llm_service.wire.media import Medium
from llm_service.wire.requests import SearchContext


@dataclass(frozen=True, slots=True)
class Model:
    """A model that callers can name, with all of its deployments. `rates` is by deployment id."""

    name: str
    mode: str  # "chat" or "embedding", in LiteLLM's words
    provider: str
    rates: Mapping[str, Rates]
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    capabilities: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()  # the names of its deployments at their providers: "openai/gpt-4o"
    names_by_deployment: Mapping[str, str] = field(default_factory=dict[str, str])
    unpriced: str | None = None  # why it cannot be served, with advice for an operator; None: it can be
    deployments: Mapping[str, str] = field(default_factory=dict[str, str])  # deployment id → provider
    quality: int | None = None  # 0 to 100, from config/litellm.yaml (model_info: treasurer_quality)
    dearest: Mapping[str, Rates] = field(default_factory=dict[str, Rates])  # `rates`, or higher by the second book
    differences: tuple[str, ...] = ()  # where the two price books differ, in words
    rate_card: str = "{}"  # `rates` as text. It is stored with a hold, which is settled at these prices
    uses_shared: bool = False  # the proxy writes each grant's use to the database before it asks a provider
    adds_caches: bool = True  # the proxy may ask for caches that a request does not ask for
    retried_statuses: frozenset[int] = frozenset()  # statuses after which the proxy itself tries another deployment
    most: MostBeyondTokens = NOTHING_BEYOND  # the most that one call can use of things that no request limits
    always_thinks: bool = False  # it reasons in every call, whatever the request asks for
    prices: str | None = None  # the version of its prices and bounds (price_book.py); None: the proxy does not give one

    @property
    def providers(self) -> frozenset[str]:
        """The providers of the model's deployments."""
        return frozenset({self.provider, *self.deployments.values()})

    @property
    def prices_differ_by_tier(self) -> bool:
        """Whether the model's providers may choose another service tier than their default, at another price."""
        differ = any(rates.priority or rates.flex for rates in self.rates.values())
        return differ and bool(self.deployments) and CHOOSE_SERVICE_TIER.issuperset(self.deployments.values())

    @property
    def prices_audio(self) -> bool:
        """Whether audio input has a price at each deployment: its own, or the price of text if the provider says so."""
        return self.free or all(
            AUDIO_COSTS_AS_TEXT.match(self.names_by_deployment.get(deployment, ""))
            or all(tier.audio_input is not None for tier in rates.default)
            for deployment, rates in self.rates.items()
        )

    @property
    def prices_video(self) -> bool:
        """Whether video input has a price: a separate one, or the price of text if the provider's page says so.

        The sound of a video is billed as audio, so audio must have a price, too.
        """
        own = all(tier.video_input is not None for rates in self.rates.values() for tier in rates.default)
        return (own or self.providers <= VIDEO_COSTS_AS_TEXT) and self.prices_audio

    @property
    def bills_to_the_end(self) -> bool:
        """Whether one of the model's providers bills a whole stream even if the reader has left."""
        return any(map(bills_to_the_end, self.providers))

    @property
    def reasons_when_asked(self) -> bool:
        """Whether the model reasons only when a request asks for that; otherwise it may reason in every call."""
        return self.provider in REASON_WHEN_ASKED and not self.always_thinks

    @property
    def caches_only_when_asked(self) -> bool:
        """Whether input is written to a cache, which has its own price, only if the request asks for it."""
        return not self.adds_caches and WRITE_CACHES_WHEN_ASKED.issuperset(self.providers)

    @property
    def stores_caches(self) -> bool:
        """Whether a request that asks for a cache creates one that is billed by the hour."""
        return not STORE_CACHES.isdisjoint(self.providers)

    @property
    def takes_search_options(self) -> bool:
        """Whether a request may name the size of the search context. LiteLLM would give any other model a search tool."""
        return self.providers <= TAKE_SEARCH_OPTIONS and all(searching(name) is not None for name in self.names)

    @property
    def reads_token_ids(self) -> bool:
        """Whether input may be given as token ids of OpenAI's tokenizers."""
        return self.provider in READ_TOKEN_IDS

    @property
    def rates_to_hold(self) -> Iterable[Rates]:
        """The rate cards by which a call is bounded. They have the higher price wherever the two price books differ."""
        return {**self.rates, **self.dearest}.values()

    @property
    def free(self) -> bool:
        """Whether the operator has marked the model as free."""
        return bool(self.rates) and all(rates == FREE for rates in self.rates.values())

    def provider_of(self, deployment: str | None) -> str:
        """The provider of a deployment. For an unknown deployment, the provider of the model's first one."""
        return self.deployments.get(deployment or "", self.provider)

    def name_of(self, deployment: str | None) -> str | None:
        """A deployment's name at its provider. For an unknown deployment, the name of the model's first one."""
        return self.names_by_deployment.get(deployment or "", self.names[0] if self.names else None)

    def cost(
        self,
        deployment: str | None,
        usage: Usage,
        service_tier: str | None = None,
        served: tuple[datetime, datetime] | None = None,
    ) -> int:
        """The cost of a usage at the deployment that answered, in nano-dollars.

        If that deployment is not known, the most expensive one is used.

        `served` is when the call began and ended.
        """
        return cost_at(self.rates, deployment, usage, service_tier, served)

    def rate_card_for(self, search_context: SearchContext | None) -> str:
        """The `rate_card` for a request with this size of search context (None: the request names none)."""
        if search_context is None:
            return self.rate_card
        return dump_rates({name: rates.asked_for_context(search_context) for name, rates in self.rates.items()})

    def retried_upstream(self, status: int) -> bool:
        """Whether the upstream itself tries another deployment after an answer with this status."""
        return status in self.retried_statuses

    def media_tokens(self, media: Sequence[Medium]) -> MediaTokens:
        """The most tokens that these images, recordings and files can be, at any of the model's deployments.

        Raises:
            InvalidRequest: the tokens of a part cannot be bounded.
        """
        return media_tokens(self.names or (self.name,), media, self.max_input_tokens)
