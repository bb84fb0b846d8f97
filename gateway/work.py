"""One worker process: `python -m gateway.work`, or `treasurer worker`. Any number of them, on any machines, share Postgres.

What must hold:
A worker has the database, the grant secret and the address of a gateway, and no provider's or administrator's key.
Redis it needs only to show text while a model writes it.
Its calls to models go through a gateway, which reads an answer on if this process dies (`llm_service/runs/remote.py`).
At SIGTERM it claims nothing more and hands its runs over, so that another worker takes them up at once.
It says how it is on a port of the loopback interface: alive while its event loop turns, ready while Postgres answers; its metrics
are there, too (/metrics).
An agent whose code cannot be used is named in the log, and its runs are left to workers that have it. Others go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import orjson

from agents.configuration.versions import AgentConfigurations
from agents.registration import AgentRegistration
from agents.registry import BrokenLogic, find_agent, names_of_logic
from agents.runs.executor import RunExecutor
from agents.runs.in_postgres import PostgresRuns
from agents.runs.live_calls import LiveCalls
from agents.runs.live_text import live_text_at
from agents.runs.starting import RunStarter
from agents.runs.step_text import LiveText, NoLiveText
from agents.runs.tracing import RunTraces
from agents.runs.worker import Worker
from agents.services import Services
from agents.services.feeds import FeedReader
from agents.services.subscriptions import SubscriptionDesk
from gateway.pools import open_pool
from gateway.settings import Settings, SettingsError, load_settings
from gateway.stack.state import NotRunning, running_state
from gateway.tracing import open_telemetry
from llm_service import process
from llm_service.administration.principals import Principals
from llm_service.runs.money import RunMoney
from llm_service.runs.remote import RemoteService
from llm_service.telemetry import CONTENT_TYPE, Telemetry, logs
from llm_service.treasury.in_postgres import PostgresTreasury

log = logging.getLogger(__name__)

#: For how long the list of agents that this worker can run is used before it is read again.
_AGENTS_S = 5.0
#: After so many seconds without an answer of Postgres a worker is not ready.
_SILENT_S = 20.0
_MOST_HEAD_BYTES = 8192
_HEAD_S = 5.0


def main() -> None:
    """Work until SIGTERM or SIGINT, then hand the runs over and end."""
    process.forbid_core_dumps()
    os.environ.setdefault("PYDANTIC_AI_NO_BANNER", "1")
    try:
        settings = load_settings()
        addresses = worker_addresses(settings)
    except (SettingsError, NotRunning) as error:
        sys.exit(str(error))
    logs.configure(settings.log_level, settings.log_format)
    asyncio.run(_work(settings, addresses))


@dataclass(frozen=True, slots=True)
class WorkerAddresses:
    """What a worker has to know. The secret signs the tokens by which gateways know its calls."""

    database_url: str
    gateway_url: str
    grant_secret: str
    redis_url: str | None = None  # without it, watchers see the text of a step when the step is done
    desk_url: str | None = None


def worker_addresses(settings: Settings) -> WorkerAddresses:
    """The addresses in the settings. Those that the settings leave out are the running stack's.

    Raises:
        NotRunning: something is left out and no stack runs.
    """
    secret = settings.grant_secret.get_secret_value() if settings.grant_secret is not None else None
    if settings.database_url is not None and settings.gateway_url is not None and secret is not None:
        return WorkerAddresses(
            settings.database_url, settings.gateway_url, secret, settings.redis_url, settings.desk_url
        )
    state = running_state(settings)
    return WorkerAddresses(
        settings.database_url or state.database_url,
        settings.gateway_url or state.gateway_url,
        secret or state.grant_secret,
        settings.redis_url or state.redis_url,
        settings.desk_url or (f"{state.provider_url}/desk" if state.provider_url is not None else None),
    )


async def _work(settings: Settings, addresses: WorkerAddresses) -> None:
    process.collect_between_callbacks()
    async with open_worker(settings, addresses) as worker, _health(settings.worker_port, worker):
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, worker.stop)
        log.info("worker %s does up to %d runs at once", worker.id, worker.slots)
        await worker.run()
    log.info("worker %s has handed over its runs", worker.id)


@asynccontextmanager
async def open_worker(settings: Settings, addresses: WorkerAddresses) -> AsyncIterator[Worker]:
    """A worker with the parts that it needs. Nothing is waited for: while Postgres is away it claims nothing."""
    async with AsyncExitStack() as stack:
        pool = await open_pool(stack, settings, addresses.database_url, "worker", most=6, statement_s=30)
        treasury = PostgresTreasury(addresses.database_url)
        stack.push_async_callback(treasury.close)
        service = RemoteService(
            addresses.gateway_url,
            addresses.grant_secret,
            connect_s=settings.connect_timeout_s,
            total_s=settings.call_timeout_s + settings.hold_margin_s,
        )
        await stack.enter_async_context(service)
        telemetry = open_telemetry(settings, langfuse_sdk=True)
        stack.push_async_callback(telemetry.close)
        traces = RunTraces(telemetry, settings.trace_content)
        principals, configurations, runs = Principals(pool), AgentConfigurations(pool), PostgresRuns(pool, traces)
        live: LiveText = NoLiveText()
        if addresses.redis_url is not None:
            live = await stack.enter_async_context(live_text_at(addresses.redis_url))
        executor = RunExecutor(
            runs,
            LiveCalls(service, live),
            principals,
            RunMoney(treasury.envelopes, principals, freed=treasury.freed, busy_wait_s=settings.busy_wait_s),
            services=Services(
                FeedReader(allow_files=False, allow_private=settings.feeds_allow_private),
                SubscriptionDesk(addresses.desk_url),
            ),
            agents=RunnableAgents(configurations, usable_logic()).names,
            traces=traces,
            starter=RunStarter(runs, principals, configurations),
            register=AgentRegistration(pool).register_logic,
        )
        yield Worker(executor, slots=settings.worker_slots)


def usable_logic() -> frozenset[str]:
    """The names of all logic that can be imported. What cannot be is named in the log."""
    usable: set[str] = set()
    for name in names_of_logic():
        try:
            find_agent(name)
        except BrokenLogic as error:
            log.error("the runs of agents with this logic are left to other workers: %s", error.message)
        else:
            usable.add(name)
    return frozenset(usable)


@dataclass(slots=True)
class RunnableAgents:
    """The agents whose logic is in this process, read again every few seconds."""

    configurations: AgentConfigurations
    logic: frozenset[str]
    _names: frozenset[str] = field(default=frozenset(), init=False)
    _read_at: float = field(default=float("-inf"), init=False)

    async def names(self) -> frozenset[str]:
        """Their names. Raises TreasuryUnavailable: Postgres is away."""
        now = time.monotonic()
        if now - self._read_at > _AGENTS_S:
            self._names = await self.configurations.runnable(self.logic)
            self._read_at = now
        return self._names


# -- how it is


@asynccontextmanager
async def _health(port: int | None, worker: Worker) -> AsyncIterator[None]:
    if port is None:
        yield
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
                observer = worker.executor.traces.spans if _path(head) == b"/metrics" else None
                if isinstance(observer, Telemetry):
                    writer.write(_http("200 OK", CONTENT_TYPE, await observer.render()))
                else:
                    writer.write(health_answer(head, worker))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("somebody who asked how the worker is has left")
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, limit=_MOST_HEAD_BYTES)
    async with server:
        yield


def health_answer(head: bytes, worker: Worker) -> bytes:
    """The answer to a request for /healthz (always well) or /readyz (well while Postgres answers)."""
    path = _path(head)
    silent_s = time.monotonic() - worker.heard_at
    ready = silent_s < _SILENT_S
    status = {b"/healthz": "200 OK", b"/readyz": "200 OK" if ready else "503 Service Unavailable"}.get(path)
    body = orjson.dumps(
        {
            "status": "ready" if ready else "Postgres does not answer",
            "worker": str(worker.id),
            "runs": sorted(map(str, worker.running)),
        }
    )
    return _http(status or "404 Not Found", "application/json", body)


def _path(head: bytes) -> bytes:
    return head.split(b" ", 2)[1] if head.count(b" ") >= 2 else b""


def _http(status: str, content_type: str, body: bytes) -> bytes:
    start = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\n"
    return f"{start}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


if __name__ == "__main__":
    main()
