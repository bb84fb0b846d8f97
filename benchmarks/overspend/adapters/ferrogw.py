"""Ferro Labs AI Gateway (`ferrogw`, from PyPI) with its budget plugin.

What must hold: the gateway runs with the configuration that its documentation gives for a budget: the plugin at both
stages of a request, with one store. The plugin has one limit and one set of rates for all keys and models. So each
account is a gateway that is started anew with the account's limit and with the rates of gpt-4o-mini. Scenarios that
need other rates are not played. What the gateway has counted is only in its memory, and no API shows it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import time
from asyncio.subprocess import Process
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from benchmarks.overspend.adapter import Account, Books, Unsupported, Window
from benchmarks.overspend.processes import Processes
from benchmarks.overspend.provider import ROOT
from gateway.stack.ports import free_ports
from gateway.stack.probe import http_ok

_START_S = 20.0
#: Dollars for a million tokens of gpt-4o-mini: https://platform.openai.com/docs/pricing
_RATES = {"input_per_m_tokens": 0.15, "output_per_m_tokens": 0.6, "cache_read_per_m_tokens": 0.075}


class FerroGateway:
    """An account is a gateway with the account's limit; its key is the gateway's master key."""

    name = "Ferro Labs AI Gateway"
    serves: frozenset[str] = frozenset(("one rate",))
    settle_s = 0.0

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._running: list[Process] = []
        self._ports: list[int] = []
        self._provider_url = ""
        self._folder = Path()
        self._key = ""

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}/v1" for port in self._ports]

    def versions(self) -> dict[str, str]:
        said = subprocess.run([str(_program()), "version"], capture_output=True, text=True, check=True, timeout=30)
        return {"ferrogw": f"{said.stdout.split()[1]}, budget plugin, rates of gpt-4o-mini, state in memory"}

    async def start(self, provider_url: str, folder: Path, replicas: int) -> None:
        self._provider_url, self._folder = provider_url, folder / "ferrogw"
        self._folder.mkdir()
        self._ports = free_ports(replicas)

    async def account(self, limit_nano: int, window: Window = "total", *, errors_are_billed: bool = False) -> Account:
        if window != "total":
            raise Unsupported("its budgets have no windows")
        self._key = "fgw_" + secrets.token_hex(16)
        (self._folder / "config.yaml").write_text(yaml.safe_dump(_config(limit_nano)), encoding="utf-8")
        await self._end_all()
        await self._start_all()
        return Account("overspend", self._key)

    async def books(self, account: Account) -> Books | None:
        return None

    async def kill_and_restart(self) -> None:
        for process in self._running:
            await self._processes.kill(process)
        self._running = []
        await self._start_all()

    async def stop(self) -> None:
        await self._end_all()

    async def _end_all(self) -> None:
        for process in self._running:
            await self._processes.end(process, 5)
        self._running = []

    async def _start_all(self) -> None:
        log = self._folder / "log"
        for port in self._ports:
            environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {
                "GATEWAY_CONFIG": str(self._folder / "config.yaml"),
                "MASTER_KEY": self._key,
                "PORT": str(port),
                "OPENAI_API_KEY": "simulated-no-key-needed",
                "OPENAI_BASE_URL": f"{self._provider_url}/openai",
            }
            command = [str(_program()), "serve"]
            self._running.append(await self._processes.start(command, log=log, cwd=self._folder, environ=environ))
        deadline = time.monotonic() + _START_S
        for port in self._ports:
            while not await http_ok(f"http://127.0.0.1:{port}/readyz"):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"ferrogw did not start:\n{log.read_text(errors='replace')[-2000:]}")
                await asyncio.sleep(0.1)


def _program() -> Path:
    program = ROOT / ".venv-ferrogw" / "bin" / "ferrogw"
    if not program.exists():
        raise RuntimeError("ferrogw is not installed: run `make overspend-peers`")
    return program


def _config(limit_nano: int) -> dict[str, Any]:
    limit = float(Decimal(limit_nano).scaleb(-9))
    plugin = {"name": "budget", "type": "ratelimit", "enabled": True}
    budget = {"store_id": "overspend", "spend_limit_usd": limit, **_RATES}
    stages = ("before_request", "after_request")
    return {
        "strategy": {"mode": "single"},
        "targets": [{"virtual_key": "openai", "retry": {"attempts": 1}}],
        "plugins": [{**plugin, "stage": stage, "config": dict(budget)} for stage in stages],
    }
