"""The store in memory passes the tests that every store of runs must pass."""

from __future__ import annotations

import pytest

from agents.runs.in_memory import InMemoryRuns
from tests.agents.conversations.contract import ConversationContract, SessionContract
from tests.agents.runs.contract import PassTime, StoreContract


@pytest.fixture
def store() -> InMemoryRuns:
    return InMemoryRuns()


@pytest.fixture
def pass_time(store: InMemoryRuns) -> PassTime:
    async def forward(seconds: float) -> None:
        store.pass_time(seconds)

    return forward


class TestInMemory(StoreContract, ConversationContract, SessionContract):
    """The test cases are inherited."""
