"""The shortcuts, against LiteLLM's real classes. Run by run_checks.py."""

# pyright: basic, reportMissingImports=false, reportPrivateUsage=false

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from litellm import Router
from litellm.types.router import Deployment

from llm_service.litellm_plugin import shortcuts


async def check_what_cannot_be_imported_is_not_tried_again() -> None:
    module = "litellm.integrations.otel.logger"
    try:
        importlib.import_module("opentelemetry.sdk")
    except ImportError:
        assert sys.modules[module] is None
        try:
            importlib.import_module(module)
        except ImportError:
            return
        raise AssertionError("it says that it could") from None
    assert sys.modules[module] is not None, "where it can be imported it is left alone"


async def check_a_module_that_breaks_in_any_way_breaks_nothing_else() -> None:
    folder = Path(tempfile.mkdtemp(prefix="treasurer-shortcuts-"))
    (folder / "breaks_when_read.py").write_text("raise RuntimeError('a wrong version of something')\n")
    sys.path.insert(0, str(folder))
    shortcuts._fail_at_once("breaks_when_read")
    assert "breaks_when_read" not in sys.modules, "LiteLLM may try it, as it did"


async def check_a_deployment_with_limits_is_counted_and_one_without_is_looked_at_once() -> None:
    def deployment(name: str, **limits: int) -> dict[str, Any]:
        parameters = {"model": f"openai/{name}", "api_key": "x", **limits}
        return {"model_name": name, "litellm_params": parameters, "model_info": {"id": name}}

    router = Router(model_list=[deployment("gpt-4o"), deployment("gpt-4o-mini", tpm=1000)])
    looked: list[str] = []
    look = router.get_router_model_info

    def looking(deployment: Any, received_model_name: str, *rest: Any) -> Any:
        looked.append(received_model_name)
        return look(deployment, received_model_name, *rest)

    router.get_router_model_info = looking  # type: ignore[method-assign]

    async def count(name: str, tokens: int = 5) -> str | None:
        return await router._increment_deployment_usage(
            deployment_id=name, deployment_name=f"openai/{name}", model_group=name, total_tokens=tokens,
            rpm_increment=1, parent_otel_span=None,
        )  # fmt: skip

    for _ in range(3):
        assert await count("gpt-4o") is None
        assert await count("gpt-4o-mini") is not None
    assert looked.count("gpt-4o") == 1
    assert looked.count("gpt-4o-mini") == 3
    key = await count("gpt-4o-mini")
    assert router.cache.in_memory_cache.get_cache(key) == 20
    router.upsert_deployment(Deployment(**deployment("gpt-4o", rpm=7)))
    assert await count("gpt-4o") is not None, "it has a limit now"
    assert await count("nobody") is None


async def check_settings_of_teams_are_read_where_there_are_some() -> None:
    read: list[str] = []

    def load(_config: Any, team_id: str) -> dict[str, str]:
        read.append(team_id)
        return {"team_id": team_id}

    quick = shortcuts._reading_where_there_are_teams(load)
    teams = {"litellm_settings": {"default_team_settings": [{"team_id": "a"}]}}
    assert quick(SimpleNamespace(config=teams), team_id="a") == {"team_id": "a"}
    for none in ({}, None, {"litellm_settings": None}, {"litellm_settings": {}}):
        assert quick(SimpleNamespace(config=none), "a") == {}
    assert read == ["a"]
