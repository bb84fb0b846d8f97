"""The record of an attempt that ended, in which each test changes some fields."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import pytest

from llm_service.telemetry import CallRecord
from llm_service.types import CallContext, LedgerState, Principal, Usage, UsageSource

PRINCIPAL = Principal(
    organisation_id=1,
    organisation="acme",
    team_id=2,
    team="research",
    agent_id=3,
    agent="digest",
    key_id=4,
    key="laptop",
    epoch=1,
)


def record(**changes: object) -> CallRecord:
    values: dict[str, object] = {
        "call_id": UUID(int=7),
        "attempt": 1,
        "operation": "chat",
        "stream": True,
        "principal": PRINCIPAL,
        "context": CallContext(run="run-1", user="ada", session="s-9", tags=("news", "daily")),
        "requested_model": "fast",
        "model": "gpt-small",
        "provider": "openai",
        "deployment": "openai-eu",
        "status": 200,
        "error_code": None,
        "state": LedgerState.POSTED,
        "held_nano": 5_000,
        "cost_nano": 1_234,
        "proxy_cost_nano": 1_234,
        "usage": Usage(
            input_tokens=100, cached_tokens=40, cache_write_tokens=10, output_tokens=50, reasoning_tokens=20
        ),
        "usage_source": UsageSource.PROVIDER,
        "started_at": datetime(2026, 11, 22, 9, 30, tzinfo=UTC),
        "latency_ms": 1_500,
        "first_token_ms": 200,
        "parent": None,
        "own_cost_nano": 1_234,
    }
    return CallRecord(**{**values, **changes})  # pyright: ignore[reportArgumentType]


@pytest.fixture
def make_record() -> Callable[..., CallRecord]:
    return record
