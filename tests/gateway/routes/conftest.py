"""A gateway with an agent that chats, for the tests of the doors to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pydantic_ai.models import override_allow_model_requests

from tests.gateway.routes.chatty import Chats, chats_at


@pytest.fixture
def models_may_be_called() -> Iterator[None]:
    """Lets PydanticAI call models, which are simulated here."""
    with override_allow_model_requests(True):
        yield


@pytest.fixture
async def chats(gateway: Any, models_may_be_called: None) -> AsyncIterator[Chats]:
    """The chats of the gateway, with a worker that does what is queued."""
    chats = chats_at(gateway.runtime)
    async with chats.at_work():
        yield chats
