"""The catalogue: the models of LiteLLM Proxy by name, as they were last read.

What must hold: before an unknown name is refused, the catalogue is read again. While the proxy does not answer, the old
catalogue stays in use.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from llm_service.errors import ProxyUnavailable, UnknownModel, UnpricedModel, UpstreamError
from llm_service.pricing.model_info import read_models
from llm_service.pricing.models import Model

log = logging.getLogger(__name__)


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
            UnknownModel: the model does not exist, or it has another mode.
            UnpricedModel: its cost cannot be bounded.
            ProxyUnavailable: nothing has been read yet, and the proxy does not answer.
        """
        age = time.monotonic() - self._read_at
        if not self._models or (name not in self._models and age > 1):
            await self.refresh()
        elif age > self._refresh_s and self._reading is None:
            self._reading = asyncio.create_task(self._refresh_quietly())
        model = self._known(name)
        if model.mode != mode and "*" not in name:  # a pattern has no mode
            raise UnknownModel(f"The model {name!r} is a model for {model.mode}, not for {mode}.", param="model")
        return _priced(model)

    async def present(self, name: str) -> Model:
        """The model of this name, of whatever mode, with the prices that the proxy has now. Raises as `get` does."""
        await self.refresh()
        return _priced(self._known(name))

    def _known(self, name: str) -> Model:
        model = self._models.get(name)
        if model is None:
            known = ", ".join(sorted(self._models)[:20])
            raise UnknownModel(f"The model {name!r} does not exist. Known models: {known}.", param="model")
        return model

    async def newer(self, model: Model) -> None:
        """Read the catalogue again, unless this model's prices have already changed in it. Raises as `refresh` does."""
        if self._models.get(model.name) == model:
            await self.refresh()

    async def refresh(self) -> None:
        """Read the catalogue now. Simultaneous callers share one request."""
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


def _priced(model: Model) -> Model:
    if model.unpriced is not None:
        raise UnpricedModel(
            f"The model {model.name!r} is not served, because its cost cannot be bounded: {model.unpriced}.",
            param="model",
        )
    return model
