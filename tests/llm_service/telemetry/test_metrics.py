from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from llm_service.errors import BudgetExhausted, NotAuthenticated
from llm_service.telemetry import CallRecord, Telemetry
from llm_service.telemetry.gauges import DatabaseGauges
from llm_service.telemetry.metrics import Metrics
from llm_service.types import LedgerState, UsageSource

MakeRecord = Callable[..., CallRecord]


def samples(text: bytes) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Sample name → labels → value."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(text: bytes, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels."""
    wanted = set(labels.items())
    return sum(number for key, number in samples(text).get(name, {}).items() if wanted <= set(key))


async def test_a_call_moves_spend_calls_tokens_and_times(make_record: MakeRecord):
    telemetry = Telemetry.create()
    telemetry.record(make_record())
    telemetry.record(make_record(cost_nano=766))
    text = await telemetry.render()
    who = {"organisation": "acme", "team": "research", "agent": "digest", "model": "gpt-small"}
    assert value(text, "treasurer_spend_nano_dollars_total", **who, provider="openai") == 2_000
    assert value(text, "treasurer_calls_total", **who, state="posted", status="200", operation="chat") == 2
    kinds = {"input": 200, "cached": 80, "cache_write": 20, "output": 100, "reasoning": 40}
    assert {kind: value(text, "treasurer_tokens_total", **who, kind=kind) for kind in kinds} == kinds
    assert value(text, "treasurer_latency_seconds_sum", model="gpt-small", outcome="ok") == 3.0
    assert value(text, "treasurer_time_to_first_token_seconds_bucket", le="0.1") == 0
    assert value(text, "treasurer_time_to_first_token_seconds_bucket", le="0.25") == 2
    assert value(text, "treasurer_upstream_errors_total") == 0


async def test_spend_is_exact_to_the_nano_dollar_up_to_2_53(make_record: MakeRecord):
    telemetry = Telemetry.create()
    telemetry.record(make_record(cost_nano=2**53 - 2, held_nano=2**53))
    telemetry.record(make_record(cost_nano=1))
    assert int(value(await telemetry.render(), "treasurer_spend_nano_dollars_total")) == 2**53 - 1


async def test_instances_do_not_share_their_counts(make_record: MakeRecord):
    one, two = Telemetry.create(), Telemetry.create()
    one.record(make_record())
    assert value(await two.render(), "treasurer_calls_total") == 0


async def test_a_failed_attempt_counts_as_an_error_and_costs_nothing(make_record: MakeRecord):
    telemetry = Telemetry.create()
    failed = make_record(status=502, error_code="upstream_error", state=LedgerState.VOIDED, cost_nano=0)
    telemetry.record(replace(failed, proxy_cost_nano=None, usage_source=UsageSource.NONE, first_token_ms=None))
    text = await telemetry.render()
    assert value(text, "treasurer_upstream_errors_total", code="upstream_error", status="502", provider="openai") == 1
    assert value(text, "treasurer_calls_total", state="voided") == 1
    assert value(text, "treasurer_spend_nano_dollars_total") == 0
    assert value(text, "treasurer_latency_seconds_count", outcome="error") == 1


async def test_a_caller_that_left_is_no_error_of_the_provider(make_record: MakeRecord):
    telemetry = Telemetry.create()
    telemetry.record(make_record(status=499, error_code="client_left"))
    text = await telemetry.render()
    assert value(text, "treasurer_upstream_errors_total") == 0
    assert value(text, "treasurer_latency_seconds_count", outcome="left") == 1
    assert value(text, "treasurer_spend_nano_dollars_total") == 1_234


async def test_i1_cost_above_the_hold_moves_the_overshoot_counters(make_record: MakeRecord):
    telemetry = Telemetry.create()
    before = await telemetry.render()
    # The metric exists before it is counted up.
    assert samples(before)["treasurer_hold_overshoot_nano_dollars_total"] == {(): 0}
    telemetry.record(make_record(held_nano=1_000, cost_nano=1_250, proxy_cost_nano=1_250))
    text = await telemetry.render()
    assert value(text, "treasurer_hold_overshoot_nano_dollars_total") == 250
    assert value(text, "treasurer_hold_overshoot_calls_total") == 1


async def test_prices_are_compared_and_a_difference_is_never_averaged(make_record: MakeRecord):
    telemetry = Telemetry.create()
    telemetry.record(make_record())
    telemetry.record(make_record(cost_nano=1_244, proxy_cost_nano=1_244))  # LiteLLM's cost is 10 more, so it is posted
    telemetry.record(make_record(proxy_cost_nano=1_224))  # LiteLLM's cost is 10 less: the sum of both is 0
    telemetry.record(make_record(proxy_cost_nano=1_235))  # within the rounding of LiteLLM's floating-point sums
    telemetry.record(make_record(proxy_cost_nano=None))
    # Not compared: an estimate, or a provider's own figure.
    telemetry.record(make_record(proxy_cost_nano=9, own_cost_nano=None))
    text = await telemetry.render()
    assert value(text, "treasurer_price_compared_calls_total") == 4
    assert value(text, "treasurer_price_difference_calls_total", dearer="litellm") == 1
    assert value(text, "treasurer_price_difference_calls_total", dearer="treasurer") == 1
    assert value(text, "treasurer_price_difference_nano_dollars_total") == 20


async def test_refusals_are_counted_by_reason_also_without_a_principal(make_record: MakeRecord):
    telemetry = Telemetry.create()
    for _ in range(3):
        telemetry.refused(make_record().principal, "gpt-small", BudgetExhausted("spent"))
    telemetry.refused(None, "gpt-small", NotAuthenticated("who?"))
    text = await telemetry.render()
    assert value(text, "treasurer_refusals_total", reason="insufficient_quota", agent="digest") == 3
    assert value(text, "treasurer_refusals_total", reason="invalid_api_key", agent="unknown") == 1


async def test_models_that_callers_invent_make_no_series(make_record: MakeRecord):
    telemetry = Telemetry.create()
    telemetry.catalogue({"gpt-small": 2})
    for number in range(50):
        telemetry.refused(make_record().principal, f"made-up-{number}\ud800\n", BudgetExhausted("spent"))
    telemetry.refused(make_record().principal, "gpt-small", BudgetExhausted("spent"))
    refusals = samples(await telemetry.render())["treasurer_refusals_total"]
    assert {dict(labels)["model"]: count for labels, count in refusals.items()} == {"unknown": 50, "gpt-small": 1}


async def test_models_whose_price_books_differ_are_shown_while_they_exist():
    telemetry = Telemetry.create()
    telemetry.catalogue({"gpt-small": 2, "gpt-large": 0})
    telemetry.catalogue({"gpt-small": 1})
    shown = samples(await telemetry.render())["treasurer_price_books_differ"]
    assert {dict(labels)["model"]: count for labels, count in shown.items()} == {"gpt-small": 1}


async def test_without_a_catalogue_invented_models_are_bounded_too(make_record: MakeRecord):
    telemetry = Telemetry.create()
    for number in range(1_000):
        telemetry.refused(make_record().principal, f"made-up-{number}", BudgetExhausted("spent"))
    refusals = samples(await telemetry.render())["treasurer_refusals_total"]
    assert len(refusals) == 201
    assert sum(refusals.values()) == 1_000


def test_combinations_of_labels_are_bounded_and_the_sum_stays_true(make_record: MakeRecord):
    metrics = Metrics(max_combinations=10)
    principal = make_record().principal
    for number in range(40):
        metrics.call(make_record(principal=replace(principal, agent=f"agent-{number}")))
    spend = samples(metrics.render())["treasurer_spend_nano_dollars_total"]
    assert len(spend) == 11
    assert sum(spend.values()) == 40 * 1_234


async def test_groups_sweeps_audits_and_degraded_parts():
    telemetry = Telemetry.create()
    telemetry.group("admit", 17, 0.003)
    telemetry.sweep(expired=2, witnessed=5)
    telemetry.degraded("redis", True)
    telemetry.audited(3)
    text = await telemetry.render()
    assert value(text, "treasurer_group_size_bucket", kind="admit", le="32.0") == 1
    assert value(text, "treasurer_group_size_bucket", kind="admit", le="16.0") == 0
    assert value(text, "treasurer_group_seconds_sum", kind="admit") == 0.003
    assert value(text, "treasurer_swept_holds_total", how="witnessed") == 5
    assert abs(value(text, "treasurer_last_sweep_timestamp_seconds") - time.time()) < 60
    assert value(text, "treasurer_degraded", part="redis") == 1
    assert value(text, "treasurer_audit_differences") == 3
    telemetry.degraded("redis", False)
    assert value(await telemetry.render(), "treasurer_degraded", part="redis") == 0


async def test_breakers():
    telemetry = Telemetry.create()
    for state, own, shown in (("open", True, 2), ("half-open", True, 1), ("open", False, 2), ("closed", True, 0)):
        telemetry.breaker("model:m", state, own)
        assert value(await telemetry.render(), "treasurer_breaker_state", breaker="model:m") == shown
    telemetry.breaker_refused("model:m")
    text = await telemetry.render()
    assert value(text, "treasurer_breaker_transitions_total", breaker="model:m", to="open") == 1
    assert value(text, "treasurer_breaker_transitions_total", breaker="model:m", to="closed") == 1
    assert value(text, "treasurer_breaker_refusals_total", breaker="model:m") == 1


async def test_recording_never_raises_and_says_that_it_failed(
    make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    telemetry = Telemetry.create()

    def broken(call: CallRecord) -> None:
        raise RuntimeError("no room for metrics")

    monkeypatch.setattr(telemetry.metrics, "call", broken)
    telemetry.record(make_record())
    assert "no room for metrics" in caplog.text


async def test_nothing_configured_does_no_tracing_work(make_record: MakeRecord):
    telemetry = Telemetry.create()
    assert telemetry.parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") is None
    await telemetry.close()


async def test_scrapes_at_once_share_one_rendering(make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch):
    telemetry = Telemetry.create()
    rendered = 0
    render = telemetry.metrics.render

    def counted(more: Sequence[Metric] = ()) -> bytes:
        nonlocal rendered
        rendered += 1
        time.sleep(0.02)
        return render(more)

    monkeypatch.setattr(telemetry.metrics, "render", counted)
    await asyncio.gather(*(telemetry.render() for _ in range(20)))
    assert rendered <= 2
    telemetry.record(make_record())
    assert value(await telemetry.render(), "treasurer_calls_total") == 1


class _Away:
    """A database that is unavailable, or does not answer."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked = 0

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[object]:
        self.asked += 1
        if self.error is None:
            await asyncio.sleep(60)
            return []
        raise self.error


@pytest.mark.parametrize("error", [None, ConnectionRefusedError("no database"), OSError("gone")])
async def test_without_the_database_metrics_go_on_and_say_so(error: Exception | None, make_record: MakeRecord):
    pool = _Away(error)
    telemetry = Telemetry(Metrics(), DatabaseGauges(pool, timeout_s=0.05), None)  # pyright: ignore[reportArgumentType]
    telemetry.record(make_record())
    text = await telemetry.render()
    assert samples(text)["treasurer_database_readable"] == {(): 0}
    assert "treasurer_budget_limit_nano_dollars" not in samples(text)
    assert value(text, "treasurer_calls_total") == 1
    await asyncio.gather(*(telemetry.render() for _ in range(10)))
    assert pool.asked == 1  # not every scrape asks an unavailable database again


def test_recording_costs_little(make_record: MakeRecord):
    """The limit is generous: a shared machine takes 13 to 20 µs. The test finds work that grows with time, or that
    waits."""
    metrics, call = Metrics(), make_record()
    metrics.call(call)
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        for _ in range(500):
            metrics.call(call)
        best = min(best, (time.process_time() - started) / 500)
    assert best < 120e-6
