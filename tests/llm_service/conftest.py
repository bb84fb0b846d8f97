"""Values that tests of several folders of the service share."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from llm_service.types import Usage
from llm_service.witness import Witness


@pytest.fixture(scope="session")
def witness() -> Witness:
    """The proxy's record of an answer."""
    return Witness(
        call_id=UUID(int=1),
        attempt=2,
        outcome="success",
        model="gpt-4o",
        provider="openai",
        deployment="openai-gpt-4o",
        cost_nano=123,
        usage=Usage(100, 40, 0, 20, 5),
        status=200,
        started_at=datetime(2026, 11, 22, tzinfo=UTC),
        ended_at=datetime(2026, 11, 22, 0, 0, 1, tzinfo=UTC),
    )
