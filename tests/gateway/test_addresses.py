"""Addresses come from the settings, or from the running stack where the settings have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.addresses import Addresses, find_addresses
from gateway.settings import Settings
from gateway.stack.state import NotRunning, StackState


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path,
        database_url="postgresql://given/treasurer",
        redis_url="redis://given/0",
        proxy_url="http://given",
        grant_secret=SecretStr("g" * 32),
    )


@pytest.fixture
def stack(state_of: Callable[..., StackState], tmp_path: Path) -> StackState:
    """The published state of a running stack, with this process as its supervisor."""
    (tmp_path / "grant").write_text("from a file\n")
    state = state_of()
    state.write()
    return state


def test_settings_that_name_everything_need_no_stack(settings: Settings) -> None:
    assert find_addresses(settings) == Addresses(
        "postgresql://given/treasurer", "redis://given/0", "http://given", "g" * 32
    )


@pytest.mark.parametrize("missing", ["database_url", "redis_url", "proxy_url", "grant_secret"])
def test_without_a_stack_nothing_may_be_missing(settings: Settings, missing: str) -> None:
    with pytest.raises(NotRunning, match="treasurer up"):
        find_addresses(settings.model_copy(update={missing: None}))


def test_what_is_missing_is_the_running_stacks(settings: Settings, stack: StackState) -> None:
    found = find_addresses(settings.model_copy(update={"redis_url": None, "grant_secret": None}))
    assert found == Addresses("postgresql://given/treasurer", stack.redis_url, "http://given", "from a file")
