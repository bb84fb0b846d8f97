"""Shared by tests of administration: the fixed administrator's key, errors of the API, and what a command printed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import httpx2

ADMIN = "an-administrators-key-from-the-settings"


class Ran(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return json.loads(self.out)


#: Runs `treasurer` with these arguments (the fixture of that name).
Treasurer = Callable[..., Awaitable[Ran]]


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """The error in OpenAI's shape; an answer in any other shape fails the test."""
    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert answer.json().keys() == {"error"}
    return error
