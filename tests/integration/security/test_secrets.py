"""Secrets are planted, and then searched for in all places that people, programs or thieves can read. None is found."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import openai
import psutil
import pytest
import redis.asyncio

from gateway.stack.postgres import embedded_postgres
from gateway.stack.state import StackState
from tests.collector import Collector
from tests.integration.caller import PATIENCE_S, Caller, open_caller, said
from tests.integration.gateways import another_gateway

PROMPT = f"the-planted-prompt-{uuid4().hex}"
ANSWER = f"the-planted-answer-{uuid4().hex}"
LANGFUSE = f"sk-lf-{uuid4().hex}"

#: The files under the data folder that must hold a secret, because other processes read it there.
HOLDERS = {
    "stack.json", "redis/redis.conf", "secrets/admin_key", "secrets/grant_secret", "secrets/postgres_password",
    "secrets/proxy_master_key", "secrets/redis_password",
}  # fmt: skip
_READ: Mapping[bytes, tuple[object, ...]] = {
    b"string": ("GET",), b"hash": ("HGETALL",), b"list": ("LRANGE", 0, -1), b"set": ("SMEMBERS",),
    b"zset": ("ZRANGE", 0, -1), b"stream": ("XRANGE", "-", "+"),
}  # fmt: skip

#: A program: a gateway in which GET /v1/models fails with a key in a local variable and in the error's message.
BROKEN = """
from gateway.routes import models
async def caller(request):
    given = request.headers["authorization"]
    raise RuntimeError(f"the planted fault met {given}")
models._caller = caller
from gateway.serve import main
main()
"""


@dataclass(frozen=True)
class Traced:
    """One more gateway that exports its traces, and what the collector got."""

    url: str
    pid: int
    log: Path
    collector: Collector

    @property
    def exported(self) -> bytes:
        return b"".join(request.SerializeToString() for _, _, request in self.collector.requests)


@pytest.fixture(scope="module")
def traced(stack: StackState, stop_with_us: Callable[[int], None], service_dir: Path) -> Iterator[Traced]:
    collector, log = Collector(), service_dir / "traced-gateway.log"
    environ = {
        "TREASURER_OTLP_ENDPOINT": f"{collector.url}/v1/traces",
        "TREASURER_LANGFUSE_HOST": collector.url,
        "TREASURER_LANGFUSE_PUBLIC_KEY": "pk-lf-planted",
        "TREASURER_LANGFUSE_SECRET_KEY": LANGFUSE,
        "TREASURER_LOG_LEVEL": "debug",
        "TREASURER_BREAKER_FAILURES": "0",
    }
    try:
        with another_gateway(stack, stop_with_us, log, environ, BROKEN) as (url, pid):
            yield Traced(url, pid, log, collector)
    finally:
        collector.stop()


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack, "0.01") as caller:
        # A limit makes the limiter write to Redis.
        await caller.admin("PUT", "limits", {"agent": caller.agent, "requests_per_minute": 60})
        yield caller


async def use(caller: Caller, url: str) -> str:
    """Make calls that end in every way, with a planted prompt. Returns all error texts."""
    told: list[str] = []
    for script in ({"text": ANSWER}, {"status": 500}, {"status": 400}, {"cut_before_headers": True}):
        for streamed in (False, True):
            try:
                answer: Any = await caller.client(url).chat.completions.create(
                    model="gpt-4.1-mini", messages=said(PROMPT, script), max_tokens=30, stream=streamed
                )
                if streamed:
                    async for _ in answer:
                        pass
            except openai.APIError as error:
                told.append(str(error) + json.dumps(getattr(error, "body", None), default=str))
    for secret in (caller.secret[:-1] + "x", "sk-tr-short", caller.stack.admin_key):
        with pytest.raises(openai.APIError) as raised:
            await caller.call(url, secret=secret)
        told.append(str(raised.value))
    # For a call with an idempotency key, the answer is stored, but not the prompt.
    keyed = {"Idempotency-Key": uuid4().hex}
    await caller.call(url, messages=said(PROMPT, {"text": "kept"}), extra_headers=keyed)
    return "\n".join(told)


async def everything(caller: Caller, traced: Traced) -> dict[str, bytes]:
    """The content of every place, by name."""
    stack = caller.stack
    # Redis comes first, because it forgets a limit that is not used for a while.
    places = {"Redis": await content_of_redis(stack)}
    places |= {f"file {name}": content for name, content in files(stack.data_dir) if name not in HOLDERS}
    places["log of the traced gateway"] = traced.log.read_bytes()
    places["traces"] = traced.exported
    for url in (*stack.gateway_urls, traced.url):
        async with caller.http.get(f"{url}/metrics") as response:
            places[f"metrics of {url}"] = await response.read()
    places["process list"] = "\n".join(word for process in processes() for word in process.cmdline()).encode()
    places["a dump of the database"] = await asyncio.to_thread(dump_of, stack)
    places["statements under way"] = str(await caller.pool.fetch("SELECT query FROM pg_stat_activity")).encode()
    return places


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The content of every file, by its path in the folder."""
    for at, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(at, name)
            with suppress(FileNotFoundError):  # PostgreSQL may have deleted the file meanwhile
                if path.is_file():
                    yield path.relative_to(folder).as_posix(), path.read_bytes()


def processes() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            process.cmdline()
            process.environ()
        except psutil.Error:
            continue
        yield process


def dump_of(stack: StackState) -> bytes:
    """All databases and roles, as `pg_dumpall` writes them."""
    url = urlsplit(stack.database_url)
    command = [str(embedded_postgres(stack.data_dir, 0, "").binaries / "pg_dumpall"), "--no-password"]
    command += ["-h", str(url.hostname), "-p", str(url.port), "-U", str(url.username), "-l", url.path.strip("/")]
    run = subprocess.run(command, env={"PGPASSWORD": str(url.password)}, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout


async def content_of_redis(stack: StackState) -> bytes:
    async with redis.asyncio.Redis.from_url(stack.redis_url) as client:
        raw: Any = client
        found: list[object] = [await raw.execute_command("SLOWLOG", "GET", 100), await raw.client_list()]
        async for key in raw.scan_iter():
            kind: bytes = await raw.type(key)
            if kind != b"none":  # the Redis key may have expired meanwhile
                command, *arguments = _READ[kind]
                found += [key, await raw.execute_command(command, key, *arguments)]
        return repr(found).encode()


def forms(secret: str) -> set[bytes]:
    """A secret unchanged, and as it would be written in other formats."""
    plain = secret.encode()
    encoded = {plain, plain.hex().encode(), quote(secret, safe="").encode()}
    for before in range(3):  # base64 depends on the offset of the secret
        text = base64.b64encode(b"\0" * before + plain)
        encoded.add(text[(before * 8 + 5) // 6 : (before + len(plain)) * 8 // 6])
    return encoded


def planted(caller: Caller) -> dict[str, str]:
    stack = caller.stack
    return {
        "an agent's key": caller.secret,
        "the administrator's key": stack.admin_key,
        "the grants' secret": stack.grant_secret,
        "LiteLLM's master key": stack.proxy_master_key,
        "Postgres' password": str(urlsplit(stack.database_url).password),
        "Redis' password": str(urlsplit(stack.redis_url).password),
        "Langfuse's key": LANGFUSE,
        "a prompt": PROMPT,
        "an answer": ANSWER,
    }


async def test_no_secret_and_no_prompt_is_anywhere(caller: Caller, traced: Traced) -> None:
    errors = [await use(caller, url) for url in (caller.stack.gateway_url, traced.url)]
    errors.append(str([answer.headers for answer in caller.responses]))
    await asyncio.sleep(2.5)  # logs, witnesses and traces are written with a delay
    async with asyncio.timeout(PATIENCE_S):
        while caller.agent.encode() not in traced.exported:
            await asyncio.sleep(0.1)
    places = await everything(caller, traced) | {"errors": "\n".join(errors).encode()}
    # First check that the places exist and are not empty.
    assert {"file logs/gateway-1.log", "file logs/litellm-proxy.log", "file logs/postgres.log"} <= places.keys()
    assert any(name.startswith("file postgres/pg_wal/") for name in places)
    for name in ("traces", "a dump of the database", "process list", "Redis", "log of the traced gateway"):
        assert len(places[name]) > 500, name
    assert caller.agent.encode() in places["traces"]
    assert caller.agent.encode() in places["a dump of the database"]
    assert f"agent:{caller.agent_id}".encode() in places["Redis"]
    for what, secret in planted(caller).items():
        assert len(secret) >= 12, what
        found = [name for name, content in places.items() if any(form in content for form in forms(secret))]
        assert found == [], f"{what} is in {found}"


async def test_a_fault_logs_neither_the_key_in_its_message_nor_its_variables(caller: Caller, traced: Traced) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        await caller.client(traced.url).models.list()
    assert "planted fault" not in str(raised.value)
    log = traced.log.read_text()
    assert "RuntimeError: the planted fault met Bearer sk-tr-[redacted]" in log
    assert caller.secret not in log


async def test_only_who_needs_a_secret_has_it_in_its_environment(caller: Caller, traced: Traced) -> None:
    stack = StackState.read(caller.stack.data_dir)
    assert stack is not None
    parts: dict[int, str] = {}
    for name, pid in stack.pids.items():
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            parts[process.pid] = name.partition("-")[0]
    need = {
        "the administrator's key": {"gateway"},
        "Redis' password": {"gateway", "worker"},
        "the grants' secret": {"gateway", "litellm", "worker"},
        "LiteLLM's master key": {"gateway", "litellm"},
        "Postgres' password": {"gateway", "litellm", "worker"},
    }
    for what, secret in planted(caller).items():
        have = {
            parts.get(process.pid, process.name())
            for process in processes()
            if process.pid != traced.pid and any(secret in value for value in process.environ().values())
        }
        assert have == need.get(what, set()), what


async def test_the_files_that_must_hold_a_secret_are_their_owners_alone(caller: Caller) -> None:
    data_dir = caller.stack.data_dir
    secrets = [secret.encode() for secret in planted(caller).values()]
    holding = {name for name, content in files(data_dir) if any(secret in content for secret in secrets)}
    assert holding == HOLDERS
    for name in HOLDERS:
        assert stat.S_IMODE((data_dir / name).stat().st_mode) & 0o077 == 0, name


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="only Linux tells the limits of other processes")
async def test_no_process_leaves_a_core_dump(caller: Caller, traced: Traced) -> None:
    """Neither the processes that the supervisor starts, nor a gateway that was started without it."""
    stack = StackState.read(caller.stack.data_dir)
    assert stack is not None
    supervisor = psutil.Process(stack.pid)
    started = {process.pid for process in (supervisor, *supervisor.children(recursive=True))} | {traced.pid}
    assert started > set(stack.pids.values())
    for pid in started:
        [limit] = re.findall(r"^Max core file size +(\w+ +\w+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
        assert set(limit.split()) <= {"0", "1"}, pid
