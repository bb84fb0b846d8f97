"""Reads models from the entries of LiteLLM Proxy's page `/model/info`. Pure.

What must hold (I1):
  A model is served only if each of its deployments has a price, or an operator marked it as free
      (`model_info: {treasurer_free: true}` in config/litellm.yaml).
  A pattern (`openai/*`) is never served, nor is a model that only fits one, whatever price an operator gives the
      pattern: the cost of a call depends on the name that the caller writes.
  The reason why a model is not served says what an operator can do about it.
  A deployment is priced by LiteLLM's map and by its own configuration, never by another deployment's, although LiteLLM
      shares some settings between the deployments of one model of a provider.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from llm_service.grants import (
    BASE_STAMP,
    CACHES_STAMP,
    ENTRY_STAMP,
    PATTERN_STAMP,
    PRICES_STAMP,
    RETRIES_STAMP,
    SHARED_STAMP,
    USES_STAMP,
)
from llm_service.pricing.built_in_search import searching
from llm_service.pricing.litellm_prices import HOW_TO_PRICE, read_rates
from llm_service.pricing.models import Model
from llm_service.pricing.price_names import fields_of, is_price, split
from llm_service.pricing.rates import FREE, NOTHING_BEYOND, MostBeyondTokens, Rates, RatesError, most_beyond
from llm_service.pricing.second_book import compare
from llm_service.pricing.stored_rates import dump_rates

#: Fields of LiteLLM's map that would replace an entry's prices of input and output. An operator's own price overrides
#: them.
_OVERRIDDEN = frozenset({"tiered_pricing", "off_peak_pricing"})
_UPLIFT: Final = "regional_processing_uplift_multiplier_"
_PATTERN: Final = "it is a pattern and not a model; list each model by its name"
#: OpenAI's addresses: one for each region, and one without a region.
_OPENAI_HOST: Final = re.compile(r"^https?://(?:([a-z]+)\.)?api\.openai\.com(?:[:/]|$)")


def read_models(entries: Sequence[Mapping[str, Any]]) -> dict[str, Model]:
    """Models from the `data` of LiteLLM Proxy's `GET /model/info`: one entry for each deployment."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for entry in _patterns_marked(entries):
        by_name.setdefault(_pattern_of(entry) or str(entry["model_name"]), []).append(entry)
    return {name: _model(name, deployments) for name, deployments in by_name.items()}


def _patterns_marked(entries: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The entries, with a mark on each that comes from a pattern. An older plugin does not set this mark itself.

    LiteLLM's page shows a pattern as many models, which all have the id of the pattern's deployment.
    """
    models: dict[str, set[object]] = {}
    for entry in entries:
        models.setdefault(_id_of(entry), set()).add(fields_of(entry.get("litellm_params")).get("model"))
    for entry in entries:
        several = len(models[_id_of(entry)]) > 1 and not _pattern_of(entry)
        marked = {PATTERN_STAMP: str(entry["model_name"])} if several else {}
        yield {**entry, "model_info": {**fields_of(entry.get("model_info")), **marked}}


def _id_of(entry: Mapping[str, Any]) -> str:
    return str(fields_of(entry.get("model_info")).get("id"))


def _pattern_of(entry: Mapping[str, Any]) -> str | None:
    """The pattern that an entry comes from. LiteLLM's page shows a pattern as all models that fit it."""
    name = fields_of(entry.get("model_info")).get(PATTERN_STAMP)
    return str(name) if name else None


def _model(name: str, entries: Sequence[Mapping[str, Any]]) -> Model:
    infos = [_info(entry) for entry in entries]
    rates: dict[str, Rates] = {}
    dearest: dict[str, Rates] = {}
    differences: list[str] = []
    unpriced = None
    for entry, info in zip(entries, infos, strict=True):
        try:
            card = rates[str(info["id"])] = _priced(entry)
            if not _operators_own(entry, info):
                dearest[str(info["id"])], found = compare(card, _provider(entry, info), _name_at_provider(entry, info))
                differences += map(str, found)
        except RatesError as error:
            unpriced = str(error)
    inputs = [int(info["max_input_tokens"]) for info in infos if info.get("max_input_tokens")]
    outputs = [int(info["max_output_tokens"]) for info in infos if info.get("max_output_tokens")]
    providers = {str(info["id"]): _provider(entry, info) for entry, info in zip(entries, infos, strict=True)}
    names = {str(info["id"]): _name_at_provider(entry, info) for entry, info in zip(entries, infos, strict=True)}
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
        names=tuple(dict.fromkeys(names.values())),
        names_by_deployment=names,
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
        most=most_beyond(rates.values()) if unpriced is None else NOTHING_BEYOND,
        uses_shared=all(info.get(USES_STAMP) is True for info in infos),
    )


def _name_at_provider(entry: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """A deployment's name with its provider as a prefix. A configuration may leave this prefix out."""
    name = str(fields_of(entry.get("litellm_params")).get("model") or entry["model_name"])
    return name if "/" in name else f"{_provider(entry, info)}/{name}"


def _provider(entry: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """LiteLLM's name of a deployment's provider. The page may lack it if the map does not know the model."""
    parameters = fields_of(entry.get("litellm_params"))
    prefix, slash, _ = str(parameters.get("model") or "").partition("/")
    named = info.get("litellm_provider") or parameters.get("custom_llm_provider") or (slash and prefix)
    return str(named or "unknown")


def _info(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """A deployment's entry in LiteLLM's page, with the map's values in place of settings of other deployments."""
    shown = fields_of(entry.get("model_info"))
    shared, listed = _names(shown.get(SHARED_STAMP)), fields_of(shown.get(ENTRY_STAMP))
    own = {name: value for name, value in shown.items() if name not in shared}
    return own | {name: listed[name] for name in shared if name in listed}


def _version(infos: Sequence[Mapping[str, Any]]) -> str | None:
    """The version of a model's prices. None: its deployments name different versions, and the proxy will check none."""
    versions = {info.get(PRICES_STAMP) for info in infos}
    version = versions.pop()
    return version if not versions and isinstance(version, str) else None


def _retried(infos: Sequence[Mapping[str, Any]]) -> frozenset[int]:
    """The statuses after which the proxy's router tries another deployment; none if the model has only one."""
    if len(infos) == 1:
        return frozenset()
    stamps = [info.get(RETRIES_STAMP) for info in infos]
    lists = [cast("list[object]", each) for each in stamps if isinstance(each, list)]
    return frozenset(status for each in lists for status in each if isinstance(status, int))


def _quality(infos: Sequence[Mapping[str, Any]]) -> int | None:
    """The lowest quality of a model's deployments."""
    qualities = [info["treasurer_quality"] for info in infos if isinstance(info.get("treasurer_quality"), int)]
    return min(qualities, default=None)


def _operators_own(entry: Mapping[str, Any], info: Mapping[str, Any]) -> bool:
    """Whether an operator has set a price of this deployment. Such a price overrides both price books."""
    own = bool(info.get("pricing_overrides")) or any(map(is_price, fields_of(entry.get("litellm_params"))))
    return own or info.get("treasurer_free") is True


def _priced(entry: Mapping[str, Any]) -> Rates:
    """The rate card of one deployment, from its entry of `/model/info`."""
    info, parameters = _info(entry), fields_of(entry.get("litellm_params"))
    if _pattern_of(entry) or "*" in str(entry["model_name"]):
        raise RatesError(_PATTERN)
    most = _most(info)
    if info.get("treasurer_free") is True:
        return FREE
    listed = dict(fields_of(info.get(ENTRY_STAMP)))
    # The page shows the prices that LiteLLM uses. An operator's prices override those of LiteLLM's map, which has more
    # prices than the page shows.
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
    if set_here & {"input_cost_per_token", "output_cost_per_token"}:  # they would override the operator's prices
        maps = {name for name in _OVERRIDDEN - set_here if prices.get(name) == listed.get(name)}
        prices = {name: value for name, value in prices.items() if name not in maps}
    prices = {name: value for name, value in prices.items() if not _below_own(name, value, prices, set_here)}
    rates = read_rates(prices, searching=how, everywhere=_everywhere(info, parameters))
    if rates.default[0].highest_input == 0 and rates.default[0].highest_output == 0:
        # The page shows 0 for a model that is not in LiteLLM's map.
        raise RatesError(f"its price is zero, and it is not marked free; {HOW_TO_PRICE}")
    return replace(rates, beyond=most)


def _below_own(name: str, value: object, prices: Mapping[str, Any], set_here: set[str]) -> bool:
    """Whether a price of the map for long prompts, or for the tier `priority`, is lower than an operator's price of the
    same unit. Such a price is not used: no provider charges less for these.
    """
    base, thousands, tier = split(name)
    own = prices.get(base)
    if name in set_here or base not in set_here or not (thousands or tier == "priority"):
        return False
    numbers = (int, float)
    return isinstance(value, numbers) and isinstance(own, numbers) and tier in ("", "priority") and value < own


def _names(value: object) -> list[str]:
    return [each for each in cast("list[object]", value) if isinstance(each, str)] if isinstance(value, list) else []


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

    https://platform.openai.com/docs/guides/your-data (a region has its own host; if the map does not name the region,
    its most expensive region is assumed);
    https://cloud.google.com/vertex-ai/generative-ai/pricing (all locations but the global one).
    """
    base = parameters.get("api_base") or parameters.get("base_url") or info.get(BASE_STAMP) or ""
    host = _OPENAI_HOST.match(str(base).lower())
    names: list[str] = []
    if host is not None and host[1]:
        names = [_UPLIFT + host[1]] if host[1] in ("eu", "us") else _dearest_uplift(info)
    if str(info.get("litellm_provider")).startswith("vertex_ai") and parameters.get("vertex_location") != "global":
        names.append("regional_endpoint_uplift_multiplier")
    return tuple(names)


def _dearest_uplift(info: Mapping[str, Any]) -> list[str]:
    """The name of the highest surcharge for a region of OpenAI. Empty: the model has none."""
    listed = {**fields_of(info.get(ENTRY_STAMP)), **info}
    uplifts = {
        name: value for name, value in listed.items() if name.startswith(_UPLIFT) and isinstance(value, float | int)
    }
    return [max(uplifts, key=lambda name: uplifts[name])] if uplifts else []
