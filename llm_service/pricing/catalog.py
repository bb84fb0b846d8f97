"""The catalogue: which models there are, what they cost, and how long their input and output may be.

It is read from LiteLLM Proxy.

What must hold:
  A model is served only if each of its deployments has a price, or an operator marked it as free
      (`model_info: {treasurer_free: true}` in config/litellm.yaml).
  A pattern (`openai/*`) is never served, and opens no model, whatever price an operator gives it: what a call costs
      depends on the name that a caller writes.
  The reason why a model is not served says what an operator can do about it.
  Where the deployments of a model differ in price, a call is bounded at the highest price and charged at the price of the
      deployment that answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from llm_service.errors import ProxyUnavailable, UnknownModel, UnpricedModel, UpstreamError
from llm_service.grants import CACHES_STAMP, ENTRY_STAMP, PATTERN_STAMP, PRICES_STAMP, RETRIES_STAMP, USES_STAMP
from llm_service.pricing.built_in_search import searching
from llm_service.pricing.litellm_prices import HOW_TO_PRICE, read_rates
from llm_service.pricing.media import MediaTokens, media_tokens
from llm_service.pricing.price_names import fields_of, is_price
from llm_service.pricing.providers import (
    BILL_TO_THE_END,
    CHOOSE_SERVICE_TIER,
    READ_TOKEN_IDS,
    REASON_WHEN_ASKED,
    STORE_CACHES,
    VIDEO_COSTS_AS_TEXT,
    WRITE_CACHES_WHEN_ASKED,
)
from llm_service.pricing.rates import FREE, Rates, RatesError, cost_at, dump_rates
from llm_service.pricing.second_book import compare
from llm_service.types import Usage
from llm_service.wire.media import Medium

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MostBeyondTokens:
    """The most that one call can use of the things that no parameter of a request limits, such as searches.

    An operator sets it in `model_info: treasurer_most`, for a model that decides itself how long it works.
    `reasoning_tokens` are those that are billed in addition to the output.
    """

    searches: int = 0
    citation_tokens: int = 0
    reasoning_tokens: int = 0


NOTHING_BEYOND = MostBeyondTokens()
#: Fields of LiteLLM's map that replace an entry's prices of input and output. An operator's own price overrides them.
_OVERRIDDEN = frozenset({"tiered_pricing", "off_peak_pricing"})


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
    underlying: str = ""
    names: tuple[str, ...] = ()  # of its deployments at their providers: "openai/gpt-4o"
    unpriced: str | None = None  # why it cannot be served, and what an operator can do; None: it can
    deployments: Mapping[str, str] = field(default_factory=dict[str, str])  # deployment id → provider
    quality: int | None = None  # 0 to 100, from config/litellm.yaml (model_info: treasurer_quality)
    dearest: Mapping[str, Rates] = field(default_factory=dict[str, Rates])  # `rates`, or higher by the second book
    differences: tuple[str, ...] = ()  # where the two price books differ, in words
    rate_card: str = "{}"  # `rates` as text, which is stored with a hold so that it is settled at these
    uses_shared: bool = False  # the proxy writes each grant's use to the database before it asks a provider
    adds_caches: bool = True  # the proxy may ask for caches that a request does not ask for
    retried_statuses: frozenset[int] = frozenset()  # after these the proxy itself tries another deployment
    most: MostBeyondTokens = NOTHING_BEYOND  # the most of what no request limits
    always_thinks: bool = False  # it reasons in every call, whatever the request asks for
    prices: str | None = None  # the version of its prices and bounds (price_book.py); None: the proxy does not give one

    @property
    def providers(self) -> frozenset[str]:
        """The providers of its deployments."""
        return frozenset({self.provider, *self.deployments.values()})

    @property
    def prices_differ_by_tier(self) -> bool:
        """Whether its providers may choose another service tier than their default, at another price."""
        differ = any(rates.priority or rates.flex for rates in self.rates.values())
        return differ and bool(self.deployments) and CHOOSE_SERVICE_TIER.issuperset(self.deployments.values())

    @property
    def prices_audio(self) -> bool:
        """Whether each of its deployments has a price for audio input."""
        return all(tier.audio_input is not None for rates in self.rates.values() for tier in rates.default) or self.free

    @property
    def prices_video(self) -> bool:
        """Whether video input has a price. That is its own price, or the price of text if the provider's page says so.

        The sound of a video is billed as audio, so audio must have a price, too.
        """
        own = all(tier.video_input is not None for rates in self.rates.values() for tier in rates.default)
        return (own or self.providers <= VIDEO_COSTS_AS_TEXT) and self.prices_audio

    @property
    def bills_to_the_end(self) -> bool:
        """Whether one of its providers bills a whole stream even if its reader has left."""
        return not BILL_TO_THE_END.isdisjoint(self.providers)

    @property
    def reasons_when_asked(self) -> bool:
        """Whether it reasons only when a request asks for that; else it may reason in every call."""
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
    def reads_token_ids(self) -> bool:
        """Whether input may be given as token ids of OpenAI's tokenizers."""
        return self.provider in READ_TOKEN_IDS

    @property
    def rates_to_hold(self) -> Iterable[Rates]:
        """The rate cards by which a call is bounded: where the price books differ, the dearer price counts."""
        return {**self.rates, **self.dearest}.values()

    @property
    def free(self) -> bool:
        """Whether the operator has said that it costs nothing."""
        return bool(self.rates) and all(rates == FREE for rates in self.rates.values())

    def provider_of(self, deployment: str | None) -> str:
        """The provider of a deployment; of the model's first one if it is not known."""
        return self.deployments.get(deployment or "", self.provider)

    def cost(
        self,
        deployment: str | None,
        usage: Usage,
        service_tier: str | None = None,
        served: tuple[datetime, datetime] | None = None,
    ) -> int:
        """What a usage costs at the deployment that answered, in nano-dollars.

        If that deployment is not known, the most expensive one counts.

        `served` is when the call began and ended.
        """
        return cost_at(self.rates, deployment, usage, service_tier, served)

    def retried_upstream(self, status: int) -> bool:
        """Whether the upstream itself has tried another deployment after this status of an answer."""
        return status in self.retried_statuses

    def media_tokens(self, media: Sequence[Medium]) -> MediaTokens:
        """The most tokens that these images, recordings and files can be, at any of its deployments.

        Raises:
            InvalidRequest: something cannot be bounded.
        """
        return media_tokens(self.names or (self.name,), media, self.max_input_tokens)


class Catalog:
    """The models by name. Read from the proxy every `refresh_s` seconds, and when an unknown name is asked for.

    `observe` is called with the models after each reading.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[list[dict[str, Any]]]],
        *,
        refresh_s: float = 60.0,
        observe: Callable[[Mapping[str, Model]], None] = lambda _models: None,
    ) -> None:
        self._read = read
        self._observe = observe
        self._refresh_s = refresh_s
        self._models: dict[str, Model] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    @property
    def models(self) -> Mapping[str, Model]:
        """The models as they were last read."""
        return self._models

    async def get(self, name: str, *, mode: str = "chat") -> Model:
        """The model of this name.

        Raises:
            UnknownModel: there is no such model, or its mode is another one.
            UnpricedModel: its cost cannot be bounded.
            ProxyUnavailable: nothing has been read yet, and the proxy does not answer.
        """
        age = time.monotonic() - self._read_at
        if not self._models or (name not in self._models and age > 1):
            await self.refresh()
        elif age > self._refresh_s and self._reading is None:
            self._reading = asyncio.create_task(self._refresh_quietly())
        model = self._models.get(name)
        if model is None:
            known = ", ".join(sorted(self._models)[:20])
            raise UnknownModel(f"The model {name!r} does not exist. Known models: {known}.", param="model")
        if model.mode != mode and "*" not in name:  # a pattern has no mode of its own
            raise UnknownModel(f"The model {name!r} is a model for {model.mode}, not for {mode}.", param="model")
        if model.unpriced is not None:
            raise UnpricedModel(
                f"The model {name!r} is not served, because its cost cannot be bounded: {model.unpriced}.",
                param="model",
            )
        return model

    async def newer(self, model: Model) -> None:
        """Read the catalogue again, unless this model's prices have already changed in it. Raises as `refresh` does."""
        if self._models.get(model.name) == model:
            await self.refresh()

    async def refresh(self) -> None:
        """Read the catalogue now. Callers at the same time share one request."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._load())
        await asyncio.shield(self._reading)

    async def _load(self) -> None:
        try:
            models = read_models(await self._read())
            for model in models.values():
                known = self._models.get(model.name)
                if model.differences and (known is None or known.differences != model.differences):
                    words = "; ".join(model.differences)
                    log.warning("the price books differ on %s, and the dearer price is held: %s", model.name, words)
            self._models = models
            self._read_at = time.monotonic()
            self._observe(models)
        finally:
            self._reading = None

    async def _refresh_quietly(self) -> None:
        try:
            await self._load()
        except (ProxyUnavailable, UpstreamError) as error:
            self._read_at = time.monotonic() - self._refresh_s + 5
            log.warning("the catalogue could not be refreshed; the last one stays in use: %s", error)


def read_models(entries: Sequence[Mapping[str, Any]]) -> dict[str, Model]:
    """Models from the `data` of LiteLLM Proxy's `GET /model/info`: one entry for each deployment."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_name.setdefault(_pattern_of(entry) or str(entry["model_name"]), []).append(entry)
    return {name: _model(name, deployments) for name, deployments in by_name.items()}


def _pattern_of(entry: Mapping[str, Any]) -> str | None:
    """The pattern that an entry comes from: LiteLLM's page shows a pattern as the models that it can stand for."""
    name = fields_of(entry.get("model_info")).get(PATTERN_STAMP)
    return str(name) if name else None


def _model(name: str, entries: Sequence[Mapping[str, Any]]) -> Model:
    infos: list[Mapping[str, Any]] = [cast("Mapping[str, Any]", entry.get("model_info") or {}) for entry in entries]
    rates: dict[str, Rates] = {}
    dearest: dict[str, Rates] = {}
    differences: list[str] = []
    unpriced = None
    for entry, info in zip(entries, infos, strict=True):
        try:
            card = rates[str(info["id"])] = _priced(entry)
            if not _operators_own(entry, info):
                dearest[str(info["id"])], found = compare(
                    card, str(info.get("litellm_provider")), _name_at_provider(entry, info)
                )
                differences += map(str, found)
        except RatesError as error:
            unpriced = str(error)
    inputs = [int(info["max_input_tokens"]) for info in infos if info.get("max_input_tokens")]
    outputs = [int(info["max_output_tokens"]) for info in infos if info.get("max_output_tokens")]
    providers = {str(info["id"]): str(info.get("litellm_provider") or "unknown") for info in infos}
    parameters = cast("Mapping[str, Any]", entries[0].get("litellm_params") or {})
    underlying = str(parameters.get("model") or name)
    return Model(
        name=name,
        mode=str(infos[0].get("mode") or "chat"),
        provider=next(iter(providers.values())),
        rates=rates,
        max_input_tokens=max(inputs) if len(inputs) == len(infos) else None,
        max_output_tokens=min(outputs) if outputs else None,
        capabilities=frozenset(
            key.removeprefix("supports_") for key, value in infos[0].items() if key.startswith("supports_") and value
        ),
        underlying=underlying,
        names=tuple(dict.fromkeys(_name_at_provider(entry, info) for entry, info in zip(entries, infos, strict=True))),
        unpriced=unpriced,
        deployments=providers,
        quality=_quality(infos),
        dearest=dearest,
        differences=tuple(dict.fromkeys(differences)),
        rate_card=dump_rates(rates),
        retried_statuses=_retried(infos),
        adds_caches=not all(info.get(CACHES_STAMP) is False for info in infos),
        always_thinks=any(info.get("thinking_always_on") is True for info in infos),
        prices=_version(infos),
        most=_dearest_most(infos) if unpriced is None else NOTHING_BEYOND,
        uses_shared=all(info.get(USES_STAMP) is True for info in infos),
    )


def _name_at_provider(entry: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """A deployment's name with its provider in front, which a configuration may leave out."""
    name = str(cast("Mapping[str, Any]", entry.get("litellm_params") or {}).get("model") or entry["model_name"])
    return name if "/" in name else f"{info.get('litellm_provider') or 'unknown'}/{name}"


def _version(infos: Sequence[Mapping[str, Any]]) -> str | None:
    """The version of a model's prices that all of its deployments name. None: they differ, and the proxy compares nothing."""
    versions = {info.get(PRICES_STAMP) for info in infos}
    version = versions.pop()
    return version if not versions and isinstance(version, str) else None


def _retried(infos: Sequence[Mapping[str, Any]]) -> frozenset[int]:
    """The statuses after which the proxy's router tries another deployment. A model with one deployment has no other."""
    if len(infos) == 1:
        return frozenset()
    stamps = [info.get(RETRIES_STAMP) for info in infos]
    lists = [cast("list[object]", each) for each in stamps if isinstance(each, list)]
    return frozenset(status for each in lists for status in each if isinstance(status, int))


def _quality(infos: Sequence[Mapping[str, Any]]) -> int | None:
    """The lowest quality of its deployments."""
    qualities = [info["treasurer_quality"] for info in infos if isinstance(info.get("treasurer_quality"), int)]
    return min(qualities, default=None)


def _operators_own(entry: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    """Whether an operator has set a price of this deployment. Such a price overrides both price books."""
    own = bool(info.get("pricing_overrides")) or any(map(is_price, fields_of(entry.get("litellm_params"))))
    return own or info.get("treasurer_free") is True


def _priced(entry: Mapping[str, Any]) -> Rates:
    """The rate card of one deployment, from its entry of `/model/info`."""
    info = cast("Mapping[str, Any]", entry.get("model_info") or {})
    parameters = cast("Mapping[str, Any]", entry.get("litellm_params") or {})
    if _pattern_of(entry) or "*" in str(entry["model_name"]):
        raise RatesError("it is a pattern and not a model; list each model by its name")
    most = _most(info)
    if info.get("treasurer_free") is True:
        return FREE
    listed = dict(fields_of(info.get(ENTRY_STAMP)))
    # LiteLLM shows the prices that it uses. The operator's prices override those of its map. The map has more prices
    # than LiteLLM shows.
    given = {name: value for name, value in parameters.items() if is_price(name)}
    shown = {name: value for name, value in info.items() if value is not None and not name.startswith("treasurer_")}
    how = searching(_name_at_provider(entry, info))
    if how is not None and not how.once and not most.searches:
        raise RatesError(
            "it searches as often as it likes, and nothing bounds that; name the most for one call in model_info: "
            "treasurer_most: {searches: …, citation_tokens: …, reasoning_tokens: …}"
        )
    prices = listed | given | shown
    set_here = {*given, *_names(info.get("pricing_overrides"))}
    if set_here & {"input_cost_per_token", "output_cost_per_token"}:  # the map's tiers and hours would override them
        maps = {name for name in _OVERRIDDEN - set_here if prices.get(name) == listed.get(name)}
        prices = {name: value for name, value in prices.items() if name not in maps}
    rates = read_rates(prices, searching=how, everywhere=_everywhere(info, parameters))
    if rates.default[0].highest_input == 0 and rates.default[0].highest_output == 0:
        # LiteLLM reports 0 for a model that its map does not know.
        raise RatesError(f"its price is zero, and it is not marked free; {HOW_TO_PRICE}")
    return rates


def _names(value: object) -> list[str]:
    return [each for each in cast("list[object]", value) if isinstance(each, str)] if isinstance(value, list) else []


def _dearest_most(infos: Sequence[Mapping[str, Any]]) -> MostBeyondTokens:
    """The highest limits of its deployments, field by field."""
    each = [_most(info) for info in infos]
    return MostBeyondTokens(
        *(max(getattr(most, name) for most in each) for name in MostBeyondTokens.__dataclass_fields__)
    )


def _most(info: Mapping[str, Any]) -> MostBeyondTokens:
    named = info.get("treasurer_most")
    if named is None:
        return NOTHING_BEYOND
    fields = fields_of(named) or {"treasurer_most": named}
    known = MostBeyondTokens.__dataclass_fields__
    wrong = [name for name, value in fields.items() if name not in known or type(value) is not int or value < 0]
    if wrong:
        raise RatesError(f"treasurer_most has {wrong[0]!r}, and must have numbers for {', '.join(known)}")
    return MostBeyondTokens(**fields)


def _everywhere(info: Mapping[str, Any], parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The multipliers that apply to every call because of the deployment's location.

    https://platform.openai.com/docs/guides/your-data (a region has its own host);
    https://cloud.google.com/vertex-ai/generative-ai/pricing (all locations but the global one).
    """
    base = str(parameters.get("api_base") or "")
    regions = [region for region in ("eu", "us") if f"//{region}.api.openai.com" in base]
    names = [f"regional_processing_uplift_multiplier_{region}" for region in regions]
    if str(info.get("litellm_provider")).startswith("vertex_ai") and parameters.get("vertex_location") != "global":
        names.append("regional_endpoint_uplift_multiplier")
    return tuple(names)
