"""A call that names a run: whose run it may be, and in which windows the call then counts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from llm_service.call.runs import Runs, no_envelopes
from llm_service.errors import EnvelopeClosed, EnvelopeNotYours
from llm_service.treasury.envelopes import Envelope, Opening
from llm_service.treasury.envelopes_in_memory import InMemoryEnvelopes
from llm_service.treasury.windows_in_memory import InMemoryWindows
from llm_service.types import NO_CONTEXT, CallContext
from tests.llm_service.fakes import PRINCIPAL


class Envelopes(InMemoryEnvelopes):
    """Counts how often a run is read."""

    reads = 0

    async def find(self, envelope_id: UUID) -> Envelope | None:
        self.reads += 1
        return await super().find(envelope_id)


@pytest.fixture
async def envelopes() -> Envelopes:
    return Envelopes(InMemoryWindows({1: 1_000, 2: 1_000}), lambda: datetime.now(UTC))


async def opened(envelopes: Envelopes) -> CallContext:
    run = uuid4()
    await envelopes.open(Opening(run, PRINCIPAL, NO_CONTEXT, 100, 10, 60, ((1, ""), (2, "ann"))))
    return CallContext(envelope=run)


async def test_a_call_without_a_run_reads_nothing(envelopes: Envelopes) -> None:
    assert await Runs(envelopes.find).lines(PRINCIPAL, NO_CONTEXT) == ()
    assert envelopes.reads == 0


async def test_a_runs_lines_are_read_once_for_each_configuration(envelopes: Envelopes) -> None:
    runs, context = Runs(envelopes.find), await opened(envelopes)
    for _ in range(3):
        assert await runs.lines(PRINCIPAL, context) == ((1, ""), (2, "ann"))
    assert envelopes.reads == 1
    await runs.lines(replace(PRINCIPAL, epoch=PRINCIPAL.epoch + 1), context)
    assert envelopes.reads == 2


async def test_the_run_of_another_agent_is_refused_by_name(envelopes: Envelopes) -> None:
    runs, context = Runs(envelopes.find), await opened(envelopes)
    for _ in range(2):  # also from the cache
        with pytest.raises(EnvelopeNotYours, match="is not one of agent 'other'") as refused:
            await runs.lines(replace(PRINCIPAL, agent_id=PRINCIPAL.agent_id + 1, agent="other"), context)
        assert refused.value.status == 403


async def test_a_run_that_does_not_exist_may_not_spend(envelopes: Envelopes) -> None:
    for find in (envelopes.find, no_envelopes):
        with pytest.raises(EnvelopeClosed, match="There is no run"):
            await Runs(find).lines(PRINCIPAL, CallContext(envelope=uuid4()))


async def test_the_cache_is_bounded(envelopes: Envelopes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_service.call.runs._CACHED", 2)
    runs = Runs(envelopes.find)
    contexts = [await opened(envelopes) for _ in range(3)]
    for context in contexts:
        await runs.lines(PRINCIPAL, context)
    await runs.lines(PRINCIPAL, contexts[2])
    assert envelopes.reads == 3
    await runs.lines(PRINCIPAL, contexts[0])
    assert envelopes.reads == 4
