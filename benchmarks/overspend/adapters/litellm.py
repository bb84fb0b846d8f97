"""LiteLLM Proxy with its own budgets, one worker for each instance, in two configurations: as it comes, and at its best.

What must hold: LiteLLM runs as its documentation describes, with the same speed settings and the same router as under
Treasurer, and nothing of Treasurer's is loaded. As it comes, each instance keeps its counters in memory. At its best
they are in a separate Redis, which all instances share, and `fail_closed_budget_enforcement` refuses what does not
fit. Neither configuration has LiteLLM's database, whose client downloads a binary when it is installed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import subprocess
import time
from asyncio.subprocess import Process
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import redis.asyncio
import yaml

from benchmarks.overspend.adapter import EVERYTHING, Account, Books, Unsupported, Window
from benchmarks.overspend.models import more_models
from benchmarks.overspend.processes import Processes
from benchmarks.overspend.provider import ROOT
from gateway.stack.litellm import effective_config, proxy_command
from gateway.stack.ports import free_port, free_ports
from gateway.stack.probe import http_ok
from gateway.stack.redis import EmbeddedRedis

_HOOKS = "benchmarks.overspend.adapters.litellm_hooks"
_START_S = 150.0


@dataclass(slots=True)
class _Instance:
    port: int
    process: Process | None = None


class LiteLLM:
    """LiteLLM Proxy as it comes. An account is a key whose name contains its budget (see the hooks)."""

    name = "LiteLLM Proxy"
    how = "no database, no Redis"
    serves: frozenset[str] = EVERYTHING
    settle_s = 4.0

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._folder = Path()
        self._instances: list[_Instance] = []
        self._master_key = "sk-" + secrets.token_urlsafe(32)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{instance.port}/v1" for instance in self._instances]

    def versions(self) -> dict[str, str]:
        command = [str(_python()), "-c", "from importlib.metadata import version; print(version('litellm'))"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return {"LiteLLM Proxy": f"{found.stdout.strip()}, one worker an instance, {self.how}"}

    async def start(self, provider_url: str, folder: Path, replicas: int) -> None:
        self._folder = folder / "litellm"
        (self._folder / "books").mkdir(parents=True)
        (self._folder / "config.yaml").write_text(yaml.safe_dump(self._config(provider_url)), encoding="utf-8")
        self._instances = [_Instance(port) for port in free_ports(replicas)]
        await self._start_all()

    def _config(self, provider_url: str) -> dict[str, Any]:
        return _config(provider_url)

    async def account(self, limit_nano: int, window: Window = "total", *, errors_are_billed: bool = False) -> Account:
        if window != "total":
            raise Unsupported("LiteLLM resets budgets from its database")
        name = secrets.token_hex(8)
        return Account(name, f"sk-overspend-{limit_nano}-{name}")

    async def books(self, account: Account) -> Books | None:
        token = _counted_as(account.key)
        spent, paid = 0, 0
        for instance in self._instances:
            file = self._folder / "books" / f"{_pid(instance)}.json"
            if file.exists():
                said = json.loads(file.read_text(encoding="utf-8"))
                spent += _nano(said["spent"].get(token, 0))
                paid += said["paid"].get(token, 0)
        return Books(spent, paid)

    async def kill_and_restart(self) -> None:
        for instance in self._instances:
            if instance.process is not None:
                await self._processes.kill(instance.process)
        await self._start_all()

    async def stop(self) -> None:
        for instance in self._instances:
            if instance.process is not None:
                await self._processes.end(instance.process, 2)

    async def _start_all(self) -> None:
        for instance in self._instances:
            instance.process = await self._start(instance)
        deadline = time.monotonic() + _START_S
        for instance in self._instances:
            while not await http_ok(f"http://127.0.0.1:{instance.port}/health/liveliness"):
                ended = instance.process is None or instance.process.returncode is not None
                if ended or time.monotonic() > deadline:
                    raise RuntimeError(f"LiteLLM Proxy did not start:\n{_log(self._folder)[-3000:]}")
                await asyncio.sleep(0.2)

    async def _start(self, instance: _Instance) -> Process:
        config = self._folder / "config.yaml"
        command, extra = proxy_command(python=_python(), config_path=config, port=instance.port, workers=1)
        environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | extra
        environ |= {
            "LITELLM_MASTER_KEY": self._master_key,
            "PYTHONPATH": str(ROOT),
            "OVERSPEND_BOOKS": str(self._folder / "books"),
        }
        return await self._processes.start(command, log=self._folder / "log", cwd=self._folder, environ=environ)


class LiteLLMAtItsBest(LiteLLM):
    """LiteLLM Proxy with Redis, which refuses calls that do not fit the budget."""

    name = "LiteLLM Proxy at its best"
    how = "Redis, fail_closed_budget_enforcement, no database"

    def __init__(self, processes: Processes) -> None:
        super().__init__(processes)
        self._redis: EmbeddedRedis | None = None

    async def start(self, provider_url: str, folder: Path, replicas: int) -> None:
        self._redis = EmbeddedRedis(folder / "redis", free_port(), secrets.token_urlsafe(16))
        self._redis.prepare()
        await self._processes.start(self._redis.command(), log=folder / "redis.log", cwd=folder)
        deadline = time.monotonic() + 10
        while not await self._redis.ready():
            if time.monotonic() > deadline:
                raise RuntimeError("Redis did not start")
            await asyncio.sleep(0.1)
        await super().start(provider_url, folder, replicas)

    def _config(self, provider_url: str) -> dict[str, Any]:
        assert self._redis is not None
        config = _config(provider_url)
        config["general_settings"]["coordination_redis"] = {"url": self._redis.url}
        config["general_settings"]["fail_closed_budget_enforcement"] = True
        return config

    async def books(self, account: Account) -> Books | None:
        """The amount is that of the shared counter; each instance counts its calls separately."""
        assert self._redis is not None
        own = await super().books(account)
        client = redis.asyncio.Redis.from_url(self._redis.url, decode_responses=True)
        try:
            counted = await client.get(f"spend:key:{_counted_as(account.key)}")
        finally:
            await client.aclose()
        return Books(round(Decimal(str(counted or 0)).scaleb(9)), own.paid_calls if own is not None else None)


def _config(provider_url: str) -> dict[str, Any]:
    """The models and the router of config/litellm.yaml, with LiteLLM's own budgets in place of Treasurer's plugin."""
    given = yaml.safe_load((ROOT / "config" / "litellm.yaml").read_text(encoding="utf-8"))
    given["model_list"] += more_models()
    config = effective_config(given, {}, provider_url).config
    # Otherwise LiteLLM stops asking the failing provider after the first failures, and the test shows nothing.
    config["router_settings"]["disable_cooldowns"] = True
    config["litellm_settings"]["callbacks"] = [f"{_HOOKS}.cost_logger", f"{_HOOKS}.paid"]
    config["general_settings"] = {
        "custom_auth": f"{_HOOKS}.custom_auth",
        "custom_auth_run_common_checks": True,
        "master_key": "os.environ/LITELLM_MASTER_KEY",
    }
    return config


def _python() -> Path:
    return ROOT / ".venv-proxy" / "bin" / "python"


def _counted_as(key: str) -> str:
    """The name of a key in LiteLLM's counters."""
    return hashlib.sha256(key.encode()).hexdigest()


def _nano(dollars: float) -> int:
    """LiteLLM's amounts are floats; this is the nearest nano-dollar."""
    return round(Decimal(repr(dollars)).scaleb(9))


def _pid(instance: _Instance) -> int | None:
    """The process that serves. With one worker, it is the process of LiteLLM's command itself."""
    return None if instance.process is None else instance.process.pid


def _log(folder: Path) -> str:
    file = folder / "log"
    return file.read_text(errors="replace") if file.exists() else ""
