"""Stand-in until the routing helper's module is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llm_service.catalog import Model
from llm_service.errors import TreasurerError
from llm_service.types import Condition, Route


@dataclass(frozen=True, slots=True)
class Candidate:
    model: str
    on: frozenset[Condition] = frozenset()
    max_share: int = 10_000


@dataclass(frozen=True, slots=True)
class Progress:
    attempts: int
    elapsed_s: float
    spent_nano: int
    tries_here: int


def chain_of(
    route: Route, requested: str, models: Mapping[str, Model], may_use: Callable[[str], bool], mode: str
) -> tuple[Candidate, ...]:
    return (Candidate(requested),)


def next_after(
    chain: tuple[Candidate, ...],
    index: int,
    reason: Condition,
    route: Route,
    progress: Progress,
    blocked: Callable[[str], bool],
    retried_by_proxy: bool,
) -> int | None:
    return None


def condition_of(error: TreasurerError) -> Condition | None:
    return None
