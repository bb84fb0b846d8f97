"""A caller's permission is checked until its call is sent, and before a kept answer is repeated."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from llm_service.call import sending
from llm_service.call.idempotency import Claim
from llm_service.errors import ModelNotAllowed, NotAuthenticated, NotPermitted, Paused, RateLimited, TreasurerError
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.types import NO_CONTEXT, LedgerState, Principal, Route
from tests.llm_service.fakes import DAILY, PRINCIPAL, FakeStream, chat_body
from tests.llm_service.serving import EVENTS, KEYED, Parts, collect

BUSY = Denial(DenialKind.BUSY, DAILY.id, "", 10, 0, 10, None)


def expiring(after_s: float, principal: Principal = PRINCIPAL) -> Principal:
    return replace(principal, ends_at=time.monotonic() + after_s)


async def ask(parts: Parts, principal: Principal, context: Any = NO_CONTEXT, *, streamed: bool = False) -> bytes:
    """Make one call, whole or streamed, and return its answer."""
    if not streamed:
        return (await parts.service.complete(chat_body(), principal, context)).body
    parts.upstream.stream = FakeStream(EVENTS)
    return await collect(await parts.service.stream(chat_body(stream=True), principal, context))


# -- a key that expires while its call waits


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_key_that_expires_in_the_queue_of_a_budget_is_not_served(streamed: bool) -> None:
    parts = Parts()
    parts.treasury.outcomes = [BUSY] * 1000
    patient = replace(PRINCIPAL, routes=(Route(queue_s=30),))
    with pytest.raises(NotAuthenticated) as refused:
        await ask(parts, expiring(0.05, patient), streamed=streamed)
    assert refused.value.details == {"reason": "expired"}
    assert parts.upstream.sent == []
    assert parts.refused.told == [("m", "invalid_api_key")]
    parts.nothing_is_held()


async def test_a_key_that_expires_in_the_queue_of_a_rate_limit_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts()
    acquire, waits = parts.limiter.acquire, iter([RateLimited("slow down", retry_after=0.06)])

    async def once_refused(*arguments: Any) -> Any:
        for error in waits:
            raise error
        return await acquire(*arguments)

    monkeypatch.setattr(parts.limiter, "acquire", once_refused)
    with pytest.raises(NotAuthenticated):
        await ask(parts, expiring(0.05, replace(PRINCIPAL, routes=(Route(queue_s=30),))))
    assert parts.treasury.asked == []
    parts.nothing_is_held()


async def test_a_key_that_expires_between_its_hold_and_its_sending_is_not_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = Parts()

    async def slow(_claim: Claim) -> None:
        later = time.monotonic() + 61
        monkeypatch.setattr(sending, "time", SimpleNamespace(monotonic=lambda: later))

    monkeypatch.setattr(parts.idempotency, "confirm", slow)
    with pytest.raises(NotAuthenticated):
        await ask(parts, expiring(60), KEYED)
    assert parts.upstream.sent == []
    assert (parts.settled.state, parts.settled.cost_nano) == (LedgerState.VOIDED, 0)
    assert parts.idempotency.released == ["k1"]
    parts.nothing_is_held()


async def test_a_key_that_lasts_is_served() -> None:
    parts = Parts()
    await ask(parts, expiring(60))
    assert len(parts.upstream.sent) == 1


# -- a kept answer

REFUSED = [
    ({"models": ("e",)}, ModelNotAllowed),
    ({"paused": "team research"}, Paused),
    ({"ends_at": 0.0}, NotAuthenticated),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("changed", "kind"), REFUSED)
async def test_a_kept_answer_is_only_for_who_may_make_the_call(
    changed: dict[str, Any], kind: type[TreasurerError], streamed: bool
) -> None:
    parts = Parts()
    first = await ask(parts, PRINCIPAL, KEYED, streamed=streamed)
    await parts.service.close()
    assert await ask(parts, PRINCIPAL, KEYED, streamed=streamed) == first
    with pytest.raises(kind):
        await ask(parts, replace(PRINCIPAL, **changed), KEYED, streamed=streamed)
    assert len(parts.upstream.sent) == 1
    assert len(parts.refused.told) == 1, "a refusal is counted for the reports"


async def test_an_agent_that_is_paused_while_a_repetition_waits_gets_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = Parts()
    await ask(parts, PRINCIPAL, KEYED)

    async def renew(principal: Principal) -> Principal:
        return replace(principal, paused="agent digest")

    monkeypatch.setattr(parts, "renew", renew)
    with pytest.raises(Paused):
        await ask(parts, PRINCIPAL, KEYED)


async def test_an_answer_of_a_stand_in_is_not_for_a_key_that_may_not_use_the_stand_in() -> None:
    parts = Parts()
    await ask(parts, PRINCIPAL, KEYED)
    kept = parts.idempotency.rows[PRINCIPAL.agent_id, "k1"]
    assert kept is not None
    kept.headers["x-treasurer-model"] = "other"
    with pytest.raises(NotPermitted, match="may not use 'other'"):
        await ask(parts, replace(PRINCIPAL, models=("m",)), KEYED)
    assert await ask(parts, PRINCIPAL, KEYED) == kept.body
