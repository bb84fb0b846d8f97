"""The object to which the service reports events. They become metrics, and spans if an endpoint is configured."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from llm_service.errors import TreasurerError
from llm_service.telemetry.gauges import DatabaseGauges, Pool
from llm_service.telemetry.metrics import Metrics
from llm_service.telemetry.record import CallRecord, SpanPlace, SpanRecord
from llm_service.types import Principal

if TYPE_CHECKING:
    from llm_service.telemetry.traces import Traces

_logger = logging.getLogger(__name__)

CLOSE_S = 2.0


class Telemetry:
    """Metrics and spans. Only `close` and `render` wait, and no method that records raises."""

    def __init__(self, metrics: Metrics, gauges: DatabaseGauges, traces: Traces | None) -> None:
        self.metrics = metrics
        self._gauges = gauges
        self._traces = traces
        self._rendering = asyncio.Lock()
        self._rendered, self._rendered_at = b"", float("-inf")

    @classmethod
    def create(
        cls,
        *,
        pool: Pool | None = None,
        otlp_endpoint: str | None = None,
        langfuse_host: str | None = None,
        langfuse_public_key: str | None = None,
        langfuse_secret_key: str | None = None,
        langfuse_sdk: bool = False,
    ) -> Telemetry:
        """Telemetry for one process. Without an endpoint, OpenTelemetry's SDK is not even imported.

        `langfuse_sdk`: spans reach Langfuse by its SDK, if that is installed.

        Raises:
            ValueError: an endpoint that is not HTTP, or half of Langfuse's keys.
        """
        metrics = Metrics()
        telemetry = cls(metrics, DatabaseGauges(pool), None)
        if otlp_endpoint or langfuse_public_key or langfuse_secret_key:
            from llm_service.telemetry import traces

            found = traces.endpoints(
                otlp_endpoint=otlp_endpoint,
                langfuse_host=langfuse_host,
                langfuse_public_key=langfuse_public_key,
                langfuse_secret_key=langfuse_secret_key,
            )
            sdk = None
            if langfuse_sdk and langfuse_public_key and langfuse_secret_key:
                from llm_service.telemetry import langfuse_sdk as langfuse

                sdk = langfuse.opener(langfuse_host, langfuse_public_key, langfuse_secret_key)
            if sdk is not None:
                found = [each for each in found if each.name != "langfuse"]
            telemetry._traces = traces.Traces.open(found, telemetry._spans, telemetry._exporting, sdk=sdk)
        return telemetry

    def record(self, call: CallRecord) -> None:
        """Count an attempt that has ended and, if configured, export its span."""
        self._safely(lambda: self.metrics.call(call))
        traces = self._traces
        if traces is not None:
            self._safely(lambda: traces.call(call))

    def refused(self, principal: Principal | None, model: str, error: TreasurerError) -> None:
        """Count a refusal by its error's code. `model` may be anything a caller wrote."""
        self._safely(lambda: self.metrics.refused(principal, model, error.code))

    def fell_back(self, model: str, to: str, reason: str) -> None:
        """Count a call's further attempt. Both models must be in the catalogue, because they become labels."""
        self._safely(lambda: self.metrics.fallbacks.labels(model, to, reason).inc())

    def breaker(self, name: str, state: str, own: bool) -> None:
        """Show a breaker's new state: closed, half-open or open. Count it if this process made the change (`own`)."""

        def observe() -> None:
            self.metrics.breaker_state.labels(name).set({"closed": 0, "half-open": 1}.get(state, 2))
            if own:
                self.metrics.breaker_transitions.labels(name, state).inc()

        self._safely(observe)

    def breaker_refused(self, name: str) -> None:
        """Count an attempt that a circuit breaker refused."""
        self._safely(lambda: self.metrics.breaker_refusals.labels(name).inc())

    def group(self, kind: str, size: int, seconds: float) -> None:
        """Observe one grouped statement: `kind` is "admit" or "settle"."""

        def observe() -> None:
            self.metrics.group_size.labels(kind).observe(size)
            self.metrics.group_seconds.labels(kind).observe(seconds)

        self._safely(observe)

    def degraded(self, part: str, active: bool) -> None:
        """Show that a part has fallen back (`active`), or works normally again."""
        part = self.metrics.bounded("part", part)
        self._safely(lambda: self.metrics.degraded.labels(part).set(1 if active else 0))

    def sweep(self, expired: int, witnessed: int) -> None:
        """Count a run of the sweeper, with the holds that it ended by policy and by a witness."""

        def observe() -> None:
            self.metrics.sweeps.inc()
            self.metrics.swept.labels("expired").inc(expired)
            self.metrics.swept.labels("witnessed").inc(witnessed)
            self.metrics.swept_at.set(time.time())

        self._safely(observe)

    def audited(self, differences: int) -> None:
        """Record that an audit has run and found this many differences."""

        def observe() -> None:
            self.metrics.audit_differences.set(differences)
            self.metrics.audited_at.set(time.time())

        self._safely(observe)

    def catalogue(self, models: Mapping[str, int]) -> None:
        """Set the models that exist, with the number of prices in which the two price books differ.

        Any other name that a caller gives is labelled `unknown`.
        """
        self._safely(lambda: self.metrics.catalogue(models))

    def run_ended(self, agent: str, state: str) -> None:
        """Count a run that has ended."""
        self._safely(lambda: self.metrics.runs.labels(self.metrics.bounded("agent", agent), state).inc())

    def run_step(self, kind: str, state: str, lost_nano: int) -> None:
        """Count a step that was recorded, and a paid answer that was lost in it."""

        def observe() -> None:
            self.metrics.run_steps.labels(kind, state).inc()
            if lost_nano:
                self.metrics.run_lost_answers.inc()

        self._safely(observe)

    def run_taken_over(self) -> None:
        """Count a run that was taken over from a worker that is gone."""
        self._safely(self.metrics.run_takeovers.inc)

    def working(self, runs: int, slots: int) -> None:
        """Show how many runs this process is doing, and how many it can do."""

        def observe() -> None:
            self.metrics.worker_runs.set(runs)
            self.metrics.worker_slots.set(slots)

        self._safely(observe)

    @property
    def traced(self) -> bool:
        """Whether spans go anywhere."""
        return self._traces is not None

    def span(self, record: SpanRecord) -> None:
        """Export a span of a run, if configured."""
        traces = self._traces
        if traces is not None:
            self._safely(lambda: traces.span(record))

    def within(self, place: SpanPlace, attributes: Mapping[str, object]) -> AbstractContextManager[None]:
        """What is observed in this context is below the span at `place`."""
        return nullcontext() if self._traces is None else self._traces.within(place, attributes)

    def parent(self, traceparent: str | None) -> SpanPlace | None:
        """The parent of a call's span: the caller's W3C `traceparent`, else the span that is open here."""
        return None if self._traces is None else self._traces.parent(traceparent)

    async def render(self) -> bytes:
        """The metrics of all processes for Prometheus (`CONTENT_TYPE`), with the database's gauges only once.

        The text is made in a thread. Scrapes that wait at the same time share one text, so that many cost no more than
        one.
        """
        asked_at = time.monotonic()
        async with self._rendering:
            if self._rendered_at < asked_at:  # otherwise a text that was begun after this scrape arrived is new enough
                self._rendered_at = time.monotonic()
                more = await self._gauges.families()
                self._rendered = await asyncio.to_thread(self.metrics.render, more)
            return self._rendered

    async def close(self) -> None:
        """Export the spans that still wait, for at most two seconds."""
        if self._traces is not None:
            await self._traces.close(CLOSE_S)

    def _spans(self, exporter: str, outcome: str, count: int) -> None:
        self.metrics.spans.labels(exporter, outcome).inc(count)

    def _exporting(self, exporter: str, healthy: bool) -> None:
        self.degraded(f"spans:{exporter}", not healthy)
        if healthy:
            _logger.info("spans reach %s again", exporter)
        else:
            _logger.warning("spans do not reach %s: they are dropped and counted, calls go on", exporter)

    def _safely(self, observe: Callable[[], None]) -> None:
        """Log a fault in telemetry and suppress it, because it must not affect the call."""
        try:
            observe()
        except Exception:
            _logger.exception("telemetry could not record what happened")
