"""`treasurer team`."""

from __future__ import annotations

import json
from collections.abc import Callable

from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.errors import NotFound

Treasurer = Callable[..., Result]


def test_create_and_list(administer: Treasurer) -> None:
    assert administer("organisation", "create", "acme").exit_code == ExitCode.OK
    made = administer("team", "create", "research", "--organisation", "acme")
    assert made.stdout == "Team research created in organisation acme.\n"
    rows = json.loads(administer("team", "list", "--json").stdout)
    assert {row["name"]: row["organisation"] for row in rows} == {"default": "default", "research": "acme"}


def test_an_organisation_that_does_not_exist_is_named(administer: Treasurer) -> None:
    result = administer("team", "create", "research", "--organisation", "nowhere")
    assert isinstance(result.exception, NotFound)
    assert "nowhere" in str(result.exception)
