"""Treasurer: the whole embedded stack, as `treasurer up` runs it, or a stack that is already running.

What must hold: calls come over HTTP, as those of any caller. An account is an agent with one budget and one key,
created through the admin API; its books are the ledger and the holds.

If a gateway is killed, its holds live for `call_timeout_s` and a margin. Both are shorter here than by default (five
and a half minutes), so that the test need not wait that long.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import Process
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import aiohttp
import asyncpg
import psutil
import yaml

from benchmarks.overspend.adapter import EVERYTHING, Account, Books, Unsupported, Window
from benchmarks.overspend.models import more_models
from benchmarks.overspend.processes import Processes
from benchmarks.overspend.provider import ROOT
from gateway.stack.litellm import effective_config
from gateway.stack.probe import http_ok
from gateway.stack.state import StackState

_CALL_TIMEOUT_S, _MARGIN_S, _SWEEP_S = 20, 5, 2
_START_S = 120.0
_BOOKS = """
SELECT coalesce(sum(cost_nano), 0)::bigint AS spent, count(*) FILTER (WHERE cost_nano > 0) AS paid,
       (SELECT coalesce(sum(amount_nano), 0)::bigint FROM holds h WHERE h.agent_id = a.id) AS held
FROM agents a LEFT JOIN ledger l ON l.agent_id = a.id WHERE a.name = $1 GROUP BY a.id
"""


class Treasurer:
    """Treasurer. `running` names a running stack whose providers are simulated; such a stack is not stopped."""

    name = "Treasurer"
    serves: frozenset[str] = EVERYTHING

    def __init__(self, processes: Processes, running: StackState | None = None) -> None:
        self.settle_s = _CALL_TIMEOUT_S + _MARGIN_S + 2 * _SWEEP_S + 3.0
        self._processes = processes
        self._state = running
        self._process: Process | None = None
        self._database: asyncpg.Connection | None = None

    @property
    def state(self) -> StackState:
        assert self._state is not None, "not started"
        return self._state

    @property
    def urls(self) -> list[str]:
        return [f"{url}/v1" for url in self.state.gateway_urls]

    def versions(self) -> dict[str, str]:
        return {
            "Treasurer": f"{version('treasurer')}, commit {_commit()}",
            "Python": ".".join(map(str, sys.version_info[:3])),
        }

    async def start(self, provider_url: str, folder: Path, replicas: int) -> None:
        if self._state is not None:
            return
        data, config, log = folder / "treasurer", folder / "litellm.yaml", folder / "treasurer.log"
        config.write_text(yaml.safe_dump(_config(provider_url)), encoding="utf-8")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("TREASURER_") and not name.endswith(("_API_KEY", "_API_BASE"))
        }
        environ = kept | {
            "TREASURER_LITELLM_CONFIG": str(config),
            "TREASURER_WORKERS": "0",
            "TREASURER_CALL_TIMEOUT_S": str(_CALL_TIMEOUT_S),
            "TREASURER_HOLD_MARGIN_S": str(_MARGIN_S),
            "TREASURER_SWEEP_INTERVAL_S": str(_SWEEP_S),
            # Without breakers, as without LiteLLM's cooldowns, because a failing provider must be asked again.
            "TREASURER_BREAKER_FAILURES": "0",
            "TREASURER_BREAKER_MIN_CALLS": "10000",
        }
        command = [sys.executable, "-m", "gateway.cli", "up", "--data-dir", str(data), "--port", "0"]
        command += ["--gateways", str(replicas), "--proxy-workers", "1"]
        self._process = await self._processes.start(
            command, log=log, cwd=ROOT, environ=environ, stop_signal=signal.SIGINT
        )
        deadline = time.monotonic() + _START_S
        while (state := StackState.read(data)) is None:
            if self._process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Treasurer did not start:\n{log.read_text(errors='replace')[-3000:]}")
            await asyncio.sleep(0.2)
        self._state = state

    async def account(self, limit_nano: int, window: Window = "total", *, errors_are_billed: bool = False) -> Account:
        name = f"overspend-{uuid4().hex[:12]}"
        limit = str(Decimal(limit_nano).scaleb(-9))
        await self._admin("agents", {"name": name, "budget": {"limit": limit, "window": window}})
        if errors_are_billed:
            await self._admin("routes", {"agent": name, "model": "*", "bills_errors": True}, method="PUT")
        return Account(name, (await self._admin("keys", {"agent": name}))["secret"])

    async def books(self, account: Account) -> Books | None:
        if self._database is None or self._database.is_closed():
            self._database = await asyncpg.connect(self.state.database_url)
        row = await self._database.fetchrow(_BOOKS, account.name)
        assert row is not None
        return Books(row["spent"], row["paid"], row["held"])

    async def kill_and_restart(self) -> None:
        if self._process is None:
            raise Unsupported("a stack that was already running is not killed")
        state = StackState.read(self.state.data_dir)
        assert state is not None
        before = {name: pid for name, pid in state.pids.items() if name.startswith("gateway-")}
        for pid in before.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        deadline = time.monotonic() + _START_S
        while not await self._serves_anew(before):
            if time.monotonic() > deadline:
                raise RuntimeError("Treasurer did not serve again after kill -9")
            await asyncio.sleep(0.1)

    async def _serves_anew(self, before: dict[str, int]) -> bool:
        """Whether the supervisor has restarted every gateway, and all are ready."""
        state = StackState.read(self.state.data_dir)
        if state is None or any(state.pids.get(name) in (None, pid) for name, pid in before.items()):
            return False
        self._state = state
        return all([await http_ok(f"{url}/readyz") for url in state.gateway_urls])

    async def stop(self) -> None:
        if self._database is not None:
            await self._database.close()
        if self._process is not None:
            await self._processes.end(self._process, 40)

    async def _admin(self, path: str, body: dict[str, object], *, method: str = "POST") -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self.state.admin_key}"}
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, f"{self.state.gateway_url}/admin/v1/{path}", json=body, headers=headers) as response,
        ):
            answer = await response.json()
            if response.status not in (200, 201):
                raise RuntimeError(f"the admin API refused {path}: {answer}")
            return answer


def _commit() -> str:
    """The commit of the code that is tested, if it is in a git repository."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "llm_service", "gateway", "config"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (", with changes" if same.returncode else "")


def _config(provider_url: str) -> dict[str, object]:
    """config/litellm.yaml with this program's provider behind every model. Attempts end before their holds expire."""
    given = yaml.safe_load((ROOT / "config" / "litellm.yaml").read_text(encoding="utf-8"))
    given["model_list"] += more_models()
    config = effective_config(given, {}, provider_url).config
    # Otherwise LiteLLM stops asking the failing provider after the first failures, and the test shows nothing.
    config["router_settings"]["disable_cooldowns"] = True
    config["litellm_settings"]["request_timeout"] = _CALL_TIMEOUT_S
    return config
