"""LiteLLM Proxy with its own in-memory budgets: no database, no Redis, one worker for each instance.

What must hold: LiteLLM runs as its documentation describes, with the same speed settings and the same router as under
Treasurer, and nothing of Treasurer's is loaded. Each instance keeps its counters in memory, because that is how its
budgets work without its database. (With Redis, which is not tried here, instances share them.)
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

import yaml

from benchmarks.overspend.adapter import Account, Books, Unsupported, Window
from benchmarks.overspend.processes import Processes
from benchmarks.overspend.provider import ROOT
from gateway.stack.litellm import effective_config, proxy_command
from gateway.stack.ports import free_ports
from gateway.stack.probe import http_ok

_HOOKS = "benchmarks.overspend.adapters.litellm_hooks"
_START_S = 150.0


@dataclass(slots=True)
class _Instance:
    port: int
    process: Process | None = None


class LiteLLM:
    """LiteLLM Proxy. An account is a key whose name contains its budget (see the hooks)."""

    name = "LiteLLM Proxy"
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
        return {"LiteLLM Proxy": f"{found.stdout.strip()}, one worker an instance, no database, no Redis"}

    async def start(self, provider_url: str, folder: Path, replicas: int) -> None:
        self._folder = folder / "litellm"
        (self._folder / "books").mkdir(parents=True)
        (self._folder / "config.yaml").write_text(yaml.safe_dump(_config(provider_url)), encoding="utf-8")
        self._instances = [_Instance(port) for port in free_ports(replicas)]
        await self._start_all()

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


def _config(provider_url: str) -> dict[str, Any]:
    """The models and the router of config/litellm.yaml, with LiteLLM's own budgets in place of Treasurer's plugin."""
    given = yaml.safe_load((ROOT / "config" / "litellm.yaml").read_text(encoding="utf-8"))
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
    """The name under which LiteLLM's counters have a key."""
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
