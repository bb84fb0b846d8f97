"""Prometheus metrics, correct over several processes.

What must hold:
- Money is counted in whole nano-dollars. A series is a float64, and so exact up to 2⁵³ nano-dollars (9.007 million
  dollars for one agent on one model between restarts of the stack). The ledger is exact without limit, and is the
  authority.
- With `PROMETHEUS_MULTIPROC_DIR` in the environment before the process starts, each process writes a
  memory-mapped file there and any of them can `render` the sum. Counters of a dead process stay in the sum; its gauges
  are removed. Without the variable each instance has its own registry. The folder must not be shared between machines
  or containers, because a process counts as alive if its id exists. The stack empties the folder at its start.
- Labels are bounded (`labels.py`), and so is their product: see `MAX_COMBINATIONS`.
- `call` takes only tens of microseconds: the series of a combination are looked up once, and then kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import MutexValue, ValueClass

from llm_service.pricing.belief import same
from llm_service.telemetry.labels import OTHER, UNKNOWN, BoundedLabels
from llm_service.telemetry.record import CallRecord
from llm_service.types import Principal

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
#: How many combinations of (organisation, team, agent, model, provider) have their own series; further ones are counted
#: as `other`. A scrape of this many takes 0.2 to 0.35 s of CPU, in a thread of the process that answers.
MAX_COMBINATIONS = 1_000
_MAX_CACHED = 20_000

_LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_FIRST_TOKEN_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40)
_GROUP_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_GROUP_SECONDS_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHO = ("organisation", "team", "agent")
_LIVE_FILE = re.compile(r"^gauge_live[a-z]*_([0-9]+)\.db$")


class _Call:
    """The metrics of calls with one combination of labels. Rarely needed metrics are made on first use."""

    __slots__ = ("calls", "error", "first_token", "latency", "model", "provider", "spend", "tokens", "who")

    def __init__(self, metrics: Metrics, labels: tuple[str, ...], call: CallRecord) -> None:
        self.who, self.model, self.provider = labels[:3], labels[3], labels[4]
        bounded = metrics.bounded
        status = bounded("status", str(call.status))
        self.calls = metrics.calls.labels(*labels, call.operation, call.state.value, status)
        self.spend = metrics.spend.labels(*labels)
        self.latency = metrics.latency.labels(self.model, self.provider, call.operation, call.outcome)
        self.first_token = metrics.first_token.labels(self.model, self.provider) if call.stream else None
        self.error = None
        if call.outcome == "error":
            code = bounded("code", call.error_code)
            self.error = metrics.upstream_errors.labels(self.model, self.provider, status, code)
        self.tokens: dict[str, Counter] = {}


class Metrics:
    """The metric families, and how a call changes them. A process with the multiprocess folder has only one instance."""

    def __init__(self, *, max_combinations: int = MAX_COMBINATIONS, bounded: BoundedLabels | None = None) -> None:
        disable_created_metrics()  # multiprocess mode has no such series, so leave them out here too
        self._directory = _multiprocess_directory()
        self.registry = CollectorRegistry()
        self.bounded = bounded or BoundedLabels()
        self._models: frozenset[str] | None = None
        self._max_combinations = max_combinations
        self._combinations: set[tuple[str, ...]] = set()
        self._calls: dict[tuple[object, ...], _Call] = {}
        self._refusals: dict[tuple[object, ...], Counter] = {}
        self._define_calls()
        self._define_money()
        self._define_parts()
        self._define_runs()

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"treasurer_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str, mode: str = "livemax") -> Gauge:
        return Gauge(f"treasurer_{name}", help_text, labels, registry=self.registry, multiprocess_mode=mode)  # pyright: ignore[reportArgumentType]  # a Literal there

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"treasurer_{name}", help_text, labels, registry=self.registry, buckets=buckets)

    def _define_calls(self) -> None:
        who = (*_WHO, "model", "provider")
        self.calls = self._counter(
            "calls", "Attempts that ended, by ledger state and status.", *who, "operation", "state", "status"
        )
        self.tokens = self._counter(
            "tokens", "Tokens: input includes cached, cache_write; output includes reasoning.", *_WHO, "model", "kind"
        )
        self.refusals = self._counter(
            "refusals", "Calls that governance refused; nothing was sent upstream.", *_WHO, "model", "reason"
        )
        self.fallbacks = self._counter(
            "fallbacks",
            "Attempts made after another one failed, at the same model or another.",
            "model",
            "to",
            "reason",
        )
        self.breaker_state = self._gauge(
            "breaker_state", "Circuit breakers: 0 closed, 1 half-open, 2 open; the worst of live processes.", "breaker"
        )
        self.breaker_transitions = self._counter("breaker_transitions", "States that breakers took.", "breaker", "to")
        self.breaker_refusals = self._counter("breaker_refusals", "Attempts that a breaker kept out.", "breaker")
        self.latency = self._histogram(
            "latency_seconds",
            "From sending an attempt upstream to the end of its answer.",
            _LATENCY_BUCKETS,
            *("model", "provider", "operation", "outcome"),
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Streams: until the first token.", _FIRST_TOKEN_BUCKETS, "model", "provider"
        )
        self.upstream_errors = self._counter(
            "upstream_errors",
            "Attempts that ended in an error; those that callers left are not counted.",
            "model",
            "provider",
            "status",
            "code",
        )

    def _define_money(self) -> None:
        where = ("model", "provider")
        self.spend = self._counter(
            "spend_nano_dollars",
            "Money posted by this stack's processes, in nano-dollars; exact up to 2^53 in one series.",
            *(*_WHO, *where),
        )
        # These have no labels, so that they exist with 0 from the start: an alert on the first increase needs that.
        self.overshoot_calls = self._counter("hold_overshoot_calls", "Attempts that cost more than was held.")
        self.overshoot_nano = self._counter("hold_overshoot_nano_dollars", "Cost above what was held, in nano-dollars.")
        self.price_books_differ = self._gauge(
            "price_books_differ",
            "Prices of a model in which LiteLLM's map and genai-prices differ; the dearer is held.",
            "model",
        )
        self.compared = self._counter(
            "price_compared_calls", "Attempts that both Treasurer and LiteLLM priced.", *where
        )
        self.different_calls = self._counter(
            "price_difference_calls",
            "Attempts that Treasurer and LiteLLM priced differently, by more than rounding. The higher price was posted.",
            *(*where, "dearer"),
        )
        self.different_nano = self._counter(
            "price_difference_nano_dollars", "Sum of absolute differences, in nano-dollars.", *where, "dearer"
        )

    def _define_parts(self) -> None:
        self.group_size = self._histogram(
            "group_size", "Calls that one statement admitted or settled.", _GROUP_BUCKETS, "kind"
        )
        self.group_seconds = self._histogram(
            "group_seconds", "Duration of one grouped statement.", _GROUP_SECONDS_BUCKETS, "kind"
        )
        self.sweeps = self._counter("sweeps", "Runs of the sweeper.")
        self.swept = self._counter(
            "swept_holds", "Holds that the sweeper ended: expired by policy, or witnessed.", "how"
        )
        self.swept_at = self._gauge("last_sweep_timestamp_seconds", "When the sweeper last ran.", mode="max")
        self.degraded = self._gauge("degraded", "1 while a part has fallen back, in any live process.", "part")
        self.audit_differences = self._gauge(
            "audit_differences", "Differences that the last audit found.", mode="mostrecent"
        )
        self.audited_at = self._gauge("last_audit_timestamp_seconds", "When an audit last ran.", mode="max")
        self.spans = self._counter("spans", "Spans by exporter and what became of them.", "exporter", "outcome")

    def _define_runs(self) -> None:
        self.runs = self._counter("runs", "Runs that ended, by agent and end.", "agent", "state")
        self.run_steps = self._counter("run_steps", "Steps of runs that were recorded.", "kind", "state")
        self.run_takeovers = self._counter("run_takeovers", "Runs taken over from a worker that was gone.")
        self.run_lost_answers = self._counter("run_lost_answers", "Steps whose answer was paid, lost and bought again.")
        self.worker_runs = self._gauge("worker_runs", "Runs that live workers are doing.", mode="livesum")
        self.worker_slots = self._gauge("worker_slots", "Runs that live workers can do at once.", mode="livesum")

    def catalogue(self, models: Mapping[str, int]) -> None:
        """Set the known models. Any other model is labelled `unknown` from now on, so that callers cannot create
        series.

        The number of a model says in how many of its prices the two price books differ.
        """
        for gone in (self._models or frozenset()) - models.keys():
            with suppress(KeyError):
                self.price_books_differ.remove(gone)
        self._models = frozenset(models)
        for model, differences in models.items():
            self.price_books_differ.labels(self.bounded("model", model)).set(differences)

    def _model(self, name: str) -> str:
        if self._models is not None and name not in self._models:
            return UNKNOWN
        return self.bounded("model", name)

    def _combination(self, principal: Principal | None, model: str, provider: str | None) -> tuple[str, ...]:
        bounded = self.bounded
        names = (None,) * 3 if principal is None else (principal.organisation, principal.team, principal.agent)
        who = (bounded(label, name) for label, name in zip(_WHO, names, strict=True))
        labels = (*who, self._model(model), bounded("provider", provider))
        if labels not in self._combinations:
            if len(self._combinations) >= self._max_combinations:
                return (OTHER,) * len(labels)
            self._combinations.add(labels)
        return labels

    def call(self, call: CallRecord) -> None:
        """Count one attempt that ended."""
        who = call.principal
        key = (who.organisation, who.team, who.agent, call.model, call.provider)
        key += (call.operation, call.stream, call.state, call.status, call.error_code)
        children = self._calls.get(key)
        if children is None:
            if len(self._calls) >= _MAX_CACHED:
                self._calls.clear()
            children = _Call(self, self._combination(who, call.model, call.provider), call)
            self._calls[key] = children
        children.calls.inc()
        children.latency.observe(call.latency_ms / 1000)
        if children.first_token is not None and call.first_token_ms is not None:
            children.first_token.observe(call.first_token_ms / 1000)
        if children.error is not None:
            children.error.inc()
        self._tokens(children, call)
        self._money(children, call)

    def _tokens(self, children: _Call, call: CallRecord) -> None:
        usage = call.usage
        for kind, count in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cached", usage.cached_tokens),
            ("cache_write", usage.cache_write_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if count > 0:
                counter = children.tokens.get(kind)
                if counter is None:
                    counter = children.tokens[kind] = self.tokens.labels(*children.who, children.model, kind)
                counter.inc(count)

    def _money(self, children: _Call, call: CallRecord) -> None:
        where = (children.model, children.provider)
        if call.cost_nano > 0:
            children.spend.inc(call.cost_nano)
        if call.cost_nano > call.held_nano:
            self.overshoot_calls.inc()
            self.overshoot_nano.inc(call.cost_nano - call.held_nano)
        own, theirs = call.own_cost_nano, call.proxy_cost_nano
        if own is None or theirs is None:
            return
        self.compared.labels(*where).inc()
        difference = own - theirs
        if not same(own, theirs):
            dearer = "treasurer" if difference > 0 else "litellm"
            self.different_calls.labels(*where, dearer).inc()
            self.different_nano.labels(*where, dearer).inc(abs(difference))

    def refused(self, principal: Principal | None, model: str, reason: str) -> None:
        """Count one call that was refused before anything was sent."""
        who = (None, None, None) if principal is None else (principal.organisation, principal.team, principal.agent)
        key = (*who, model, reason)
        counter = self._refusals.get(key)
        if counter is None:
            if len(self._refusals) >= _MAX_CACHED:
                self._refusals.clear()
            labels = self._combination(principal, model, None)[:4]
            counter = self._refusals[key] = self.refusals.labels(*labels, self.bounded("reason", reason))
        counter.inc()

    def render(self, more: Sequence[Metric] = ()) -> bytes:
        """The text that Prometheus reads: the sum over processes, then `more` once. CPU only; may take milliseconds."""
        if self._directory is None:
            return generate_latest(_Joined(self.registry, more))
        self._directory.mkdir(parents=True, exist_ok=True)  # it may have been removed by somebody
        _forget_dead(self._directory)
        return generate_latest(_Joined(_Processes(self._directory), more))


class _Processes(Collector):
    """Collects the sum over the files of all processes. A file is empty until its process has allocated space in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = [str(file) for file in self._directory.glob("*.db") if file.stat().st_size > 0]
        return cast("Iterable[Metric]", MultiProcessCollector.merge(files))


class _Joined(Collector):
    def __init__(self, first: Collector, more: Sequence[Metric]) -> None:
        self._first, self._more = first, more

    def collect(self) -> Iterable[Metric]:
        yield from self._first.collect()
        yield from self._more


def _multiprocess_directory() -> Path | None:
    if ValueClass is MutexValue:  # prometheus_client decides this when it is imported
        return None
    directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _forget_dead(directory: Path) -> None:
    """Remove the live gauges of processes that are gone. Their counters stay: the counted events did happen."""
    for file in directory.iterdir():
        match = _LIVE_FILE.match(file.name)
        if match is None:
            continue
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)
        except PermissionError:
            continue  # the process is alive, but belongs to another user
