"""MLflow's AI gateway (from PyPI) with a budget policy that rejects.

What must hold: the server runs as its documentation describes, on SQLite, with one worker, and with usage tracking on,
which its budgets need. Private addresses are allowed for the provider, because the simulated one has no other. A
policy can apply to the whole gateway, to an endpoint or to a signed-in user; here each applies to the whole gateway. So
an account is a new policy. Its amount is the account's limit plus what MLflow has counted as spent today.
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

import aiohttp

from benchmarks.overspend.adapter import Account, Books, Unsupported, Window
from benchmarks.overspend.processes import Processes
from benchmarks.overspend.provider import ROOT
from gateway.stack.ports import free_port
from gateway.stack.probe import http_ok

_START_S = 180.0
_MODELS = ("gpt-4o-mini", "gpt-5-mini", "text-embedding-3-small", "gpt-4o-search-preview")


class MLflowGateway:
    """One server, and one policy after the other. It asks for no key."""

    name = "MLflow AI gateway"
    serves: frozenset[str] = frozenset(("one rate", "openai"))
    settle_s = 6.0

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._process: Process | None = None
        self._folder = Path()
        self._port = 0
        self._policy = ""
        self._before = 0  # nano-dollars that were spent before the account
        self._passphrase = secrets.token_hex(16)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{self._port}/gateway/openai/v1"]

    def versions(self) -> dict[str, str]:
        said = subprocess.run([str(_program()), "--version"], capture_output=True, text=True, check=True, timeout=60)
        return {"MLflow": f"{said.stdout.split()[-1]}, one worker, SQLite, budget policy REJECT for the whole gateway"}

    async def start(self, provider_url: str, folder: Path, replicas: int) -> None:
        self._folder, self._port = folder / "mlflow", free_port()
        self._folder.mkdir()
        await self._start()
        secret = {
            "secret_name": "openai",
            "secret_value": {"api_key": "simulated-no-key-needed"},
            "provider": "openai",
            "auth_config": {"api_base": f"{provider_url}/openai/v1"},
        }
        secret_id = (await self._ask("POST", "secrets/create", secret))["secret"]["secret_id"]
        for model in _MODELS:
            definition = {"name": model, "secret_id": secret_id, "provider": "openai", "model_name": model}
            made = await self._ask("POST", "model-definitions/create", definition)
            config = {"model_definition_id": made["model_definition"]["model_definition_id"], "linkage_type": "PRIMARY"}
            await self._ask("POST", "endpoints/create", {"name": model, "model_configs": [{**config, "weight": 1.0}]})

    async def account(self, limit_nano: int, window: Window = "total", *, errors_are_billed: bool = False) -> Account:
        if window != "total":
            raise Unsupported("its windows of a minute count from the traces of the whole gateway")
        if self._policy:
            await self._ask("DELETE", "budgets/delete", {"budget_policy_id": self._policy})
        policy = {
            "budget_unit": "USD",
            "budget_amount": 1000.0,
            "duration": {"unit": "DAYS", "value": 1},
            "target_scope": "GLOBAL",
            "budget_action": "REJECT",
        }
        made = await self._ask("POST", "budgets/create", policy)
        self._policy = made["budget_policy"]["budget_policy_id"]
        self._before = await self._spent()
        amount = float(Decimal(self._before + limit_nano).scaleb(-9))
        await self._ask("POST", "budgets/update", {**policy, "budget_policy_id": self._policy, "budget_amount": amount})
        return Account("overspend", "no-key-needed")

    async def books(self, account: Account) -> Books | None:
        return Books(await self._spent() - self._before)

    async def kill_and_restart(self) -> None:
        assert self._process is not None
        await self._processes.kill(self._process)
        await self._start()

    async def stop(self) -> None:
        if self._process is not None:
            await self._processes.end(self._process, 10)

    async def _spent(self) -> int:
        """What the policy's window counts as spent today."""
        windows = (await self._ask("GET", "budgets/windows")).get("windows", [])
        spent = next((row.get("current_spend", 0) for row in windows if row["budget_policy_id"] == self._policy), 0)
        return round(Decimal(repr(spent)).scaleb(9))

    async def _start(self) -> None:
        environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {
            "MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS": "true",
            "MLFLOW_GATEWAY_API_BASE_ALLOWED_SCHEMES": "http,https",
            "MLFLOW_CRYPTO_KEK_PASSPHRASE": self._passphrase,
        }
        store = ["--backend-store-uri", f"sqlite:///{self._folder}/db.sqlite"]
        place = ["--default-artifact-root", str(self._folder / "artifacts")]
        address = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        command = [str(_program()), "server", *address, *store, *place]
        log = self._folder / "log"
        self._process = await self._processes.start(command, log=log, cwd=self._folder, environ=environ)
        deadline = time.monotonic() + _START_S
        while not await http_ok(f"http://127.0.0.1:{self._port}/health"):
            if self._process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow did not start:\n{log.read_text(errors='replace')[-2000:]}")
            await asyncio.sleep(0.3)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        address = f"http://127.0.0.1:{self._port}/api/3.0/mlflow/gateway/{path}"
        async with aiohttp.ClientSession() as http, http.request(method, address, json=body) as response:
            answer = await response.json(content_type=None)
            if response.status != 200:
                raise RuntimeError(f"MLflow refused {path}: {answer}")
            return answer or {}


def _program() -> Path:
    program = ROOT / ".venv-mlflow" / "bin" / "mlflow"
    if not program.exists():
        raise RuntimeError("MLflow is not installed: run `make overspend-peers`")
    return program
