"""What a stack is made of: its parts with their commands, ports and environments, decided before any of them starts.

What must hold:
All ports are chosen first, so that the parts can start side by side.
A server that the settings name (`TREASURER_DATABASE_URL` …) is waited for, and not started.
Each process gets in its environment the secrets that it needs, and no others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import yaml
from prometheus_client.multiprocess import mark_process_dead  # pyright: ignore[reportUnknownVariableType]

from gateway.settings import Settings, SettingsError, without_password
from gateway.stack.litellm import NOT_INHERITED, EffectiveConfig, effective_config, own_prices, proxy_command
from gateway.stack.own_folder import FolderNotOurs, own_folder
from gateway.stack.part import Part
from gateway.stack.ports import free_ports, is_free
from gateway.stack.postgres import EmbeddedPostgres, embedded_postgres, postgres_answers
from gateway.stack.probe import http_ok, warnings_of
from gateway.stack.redis import EmbeddedRedis, redis_answers
from gateway.stack.secret_files import StackSecrets, stack_secrets
from gateway.stack.state import StackState
from llm_service.postgres import PostgresTooOld

_ROOT = Path(__file__).resolve().parent.parent.parent
_EXTERNAL_S = 15.0


class PlanError(Exception):
    """The stack cannot be started. The message names the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts, in the order in which they are shown, and what the stack will publish about itself."""

    parts: list[Part]
    state: StackState
    notices: list[str]
    admin_key_is_new: bool
    settings: Settings
    grants: Path
    metrics: Path


@dataclass(frozen=True, slots=True)
class _Ports:
    postgres: int
    redis: int
    proxy: int
    provider: int
    gateway: int
    direct: list[int]
    workers: list[int]


@dataclass(frozen=True, slots=True)
class _Site:
    """The values that the parts are built from."""

    settings: Settings
    data_dir: Path
    secrets: StackSecrets
    ports: _Ports
    database_url: str
    redis_url: str
    proxy_url: str
    effective: EffectiveConfig | None
    environ: Mapping[str, str]

    @property
    def simulates(self) -> bool:
        return self.effective is not None and bool(self.effective.simulated)

    @property
    def metrics(self) -> Path:
        return self.data_dir / "metrics"

    @property
    def gateway_url(self) -> str:
        return f"http://{reachable_host(self.settings.host)}:{self.ports.gateway}"


def make_plan(settings: Settings, environ: Mapping[str, str] = os.environ) -> Plan:
    """Choose ports, make secrets and folders, and lay out the parts. Blocking.

    Raises:
        PlanError, SettingsError, PostgresError, ConfigError: something is missing or wrong; the message names it.
    """
    notices: list[str] = []
    data_dir = settings.data_dir.resolve()
    secrets = stack_secrets(settings)
    ports = _choose_ports(settings, notices)
    postgres = redis = None
    if settings.database_url is None:
        postgres = embedded_postgres(data_dir, ports.postgres, secrets.postgres_password)
    if settings.redis_url is None:
        redis = EmbeddedRedis(data_dir / "redis", ports.redis, secrets.redis_password)
    provider_url = f"http://127.0.0.1:{ports.provider}"
    site = _Site(
        settings=settings,
        data_dir=data_dir,
        secrets=secrets,
        ports=ports,
        database_url=settings.database_url or (postgres.url() if postgres else ""),
        redis_url=settings.redis_url or (redis.url if redis else ""),
        proxy_url=settings.proxy_url or f"http://127.0.0.1:{ports.proxy}",
        effective=_effective(settings, environ, provider_url),
        environ=environ,
    )
    parts = [_postgres_part(site, postgres), _redis_part(site, redis)]
    if site.simulates:
        parts.append(_provider_part(site))
    parts.append(_proxy_part(site))
    parts += [_gateway_part(site, number) for number in range(1, settings.gateways + 1)]
    parts += [_worker_part(site, number) for number in range(1, settings.workers + 1)]
    _make_folders(site)
    return Plan(
        parts,
        _state(site, provider_url),
        notices,
        secrets.admin_key_is_new,
        settings,
        data_dir / "grants",
        site.metrics,
    )


def reachable_host(host: str) -> str:
    """The host under which this machine reaches a server that listens on `host`."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104
    return everywhere.get(host, f"[{host}]" if ":" in host else host)


def _choose_ports(settings: Settings, notices: list[str]) -> _Ports:
    try:
        free_ports(1, settings.host)
    except OSError as error:
        raise PlanError(
            f"The gateway cannot listen on {settings.host}: {error.strerror}. "
            "Give an address of this machine with --host or TREASURER_HOST."
        ) from error
    *parts, spare = free_ports(5 + settings.gateways + settings.workers)
    gateway = settings.port or spare
    if not is_free(settings.host, gateway):
        notices.append(f"Port {gateway} is taken on {settings.host}: the gateway listens on {spare} instead.")
        gateway = spare
    postgres, redis, proxy, provider, *others = parts
    direct, workers = others[: settings.gateways], others[settings.gateways :]
    return _Ports(postgres, redis, proxy, provider, gateway, direct, workers)


def _effective(settings: Settings, environ: Mapping[str, str], provider_url: str) -> EffectiveConfig | None:
    if settings.proxy_url is not None:
        if settings.grant_secret is None or settings.proxy_master_key is None:
            raise SettingsError(
                "TREASURER_PROXY_URL names an external LiteLLM Proxy, so TREASURER_GRANT_SECRET and "
                "TREASURER_PROXY_MASTER_KEY must be set too, to the same values as the proxy's."
            )
        return None
    try:
        config = yaml.safe_load(settings.litellm_config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"There is no {settings.litellm_config}; set TREASURER_LITELLM_CONFIG.") from None
    except yaml.YAMLError as error:
        raise PlanError(f"{settings.litellm_config} is not YAML: {error}") from None
    return effective_config(config or {}, environ, provider_url)


def _make_folders(site: _Site) -> None:
    shutil.rmtree(site.metrics, ignore_errors=True)  # they hold the counters of an earlier start's processes
    for folder in (site.metrics, site.data_dir / "grants", site.data_dir / "spool", site.data_dir / "logs"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _state(site: _Site, provider_url: str) -> StackState:
    direct = [f"http://127.0.0.1:{port}" for port in site.ports.direct]
    return StackState(
        pid=os.getpid(),
        pid_started=psutil.Process().create_time(),
        started_at=datetime.now(UTC),
        data_dir=site.data_dir,
        database_url=site.database_url,
        redis_url=site.redis_url,
        proxy_url=site.proxy_url,
        provider_url=provider_url if site.simulates else None,
        gateway_url=site.gateway_url,
        gateway_urls=direct,
        worker_urls=[f"http://127.0.0.1:{port}" for port in site.ports.workers],
        grant_secret_file=site.secrets.file("grant_secret"),
        proxy_master_key_file=site.secrets.file("proxy_master_key"),
        admin_key_file=site.secrets.file("admin_key"),
        real=site.effective.real if site.effective else [],
        own=site.effective.own if site.effective else [],
        simulated=site.effective.simulated if site.effective else [],
        pids={},
    )


def _postgres_part(site: _Site, server: EmbeddedPostgres | None) -> Part:
    async def bring_up_to_date() -> None:
        # Alembic takes one or two seconds to import, so it is imported only after the first line is shown.
        from gateway.migrations import MigrationFailed, migrate

        try:
            await migrate(site.database_url)
        except PostgresTooOld as error:
            raise PlanError(error.at(without_password(site.database_url))) from error
        except MigrationFailed as error:
            raise PlanError(
                f"The database at {without_password(site.database_url)} cannot be migrated: {error}"
            ) from error

    if server is None:

        async def answers() -> bool:
            return await postgres_answers(site.database_url)

        return Part(
            name="postgres",
            address=without_password(site.database_url),
            ready=answers,
            once_ready=bring_up_to_date,
            once_detail="migrating the database",
            start_timeout_s=_EXTERNAL_S,
        )
    return Part(
        name="postgres",
        address=f"127.0.0.1:{server.port}",
        ready=server.ready,
        command=server.command(),
        environ=server.environ(),
        prepare=server.prepare,
        prepare_detail=""
        if (server.data / "PG_VERSION").exists()
        else "making its data folder (only at the first start)",
        once_ready=bring_up_to_date,
        once_detail="migrating the database",
        identity=server.identity,
        directory=server.data,
        stop_signal=signal.SIGINT,  # PostgreSQL's fast shutdown, which does not wait until clients leave
        start_timeout_s=120,  # after a crash PostgreSQL must recover first
        answers=server.answers,
        stop_timeout_s=15,
    )


def _redis_part(site: _Site, server: EmbeddedRedis | None) -> Part:
    async def answers() -> bool:
        return await redis_answers(site.redis_url)

    if server is None:
        return Part(name="redis", address=without_password(site.redis_url), ready=answers, start_timeout_s=_EXTERNAL_S)
    return Part(
        name="redis",
        address=f"127.0.0.1:{server.port}",
        ready=answers,
        command=server.command(),
        environ=_plain_environ(site),
        prepare=server.prepare,
    )


def _provider_part(site: _Site) -> Part:
    port = site.ports.provider
    arguments = ["--port", str(port)]
    arguments += ["--meter", str(site.data_dir / "simulated-invoice.jsonl")]  # so that no bill is lost in a restart
    arguments += ["--desk", str(site.data_dir / "simulated-desk.jsonl")]
    own, effective = site.data_dir / "simulated-prices.json", site.effective
    arguments += ["--own-prices", str(own)]

    def prepare() -> None:
        own.write_text(json.dumps(own_prices(effective.config) if effective is not None else {}), encoding="utf-8")

    return Part(
        name="simulated-provider",
        address=f"127.0.0.1:{port}",
        ready=lambda: http_ok(f"http://127.0.0.1:{port}/_sim/health"),
        command=[sys.executable, "-m", "gateway.stack.simulated_provider", *arguments],
        environ=_plain_environ(site),
        prepare=prepare,
        directory=_ROOT,
    )


def _proxy_part(site: _Site) -> Part:
    url = f"{site.proxy_url}/health/liveliness"
    if site.effective is None:
        return Part(
            name="litellm-proxy",
            address=without_password(site.proxy_url),
            ready=lambda: http_ok(url),
            start_timeout_s=_EXTERNAL_S,
        )
    folder = site.data_dir / "litellm"
    config, effective = folder / "config.yaml", site.effective.config

    def prepare() -> None:
        try:
            own_folder(folder)
        except FolderNotOurs as error:
            raise PlanError(str(error)) from None
        config.write_text(yaml.safe_dump(effective, sort_keys=False, allow_unicode=True), encoding="utf-8")

    command, extra = proxy_command(
        python=proxy_python(site.settings),
        config_path=config,
        port=site.ports.proxy,
        workers=site.settings.proxy_workers,
    )
    inherited = {name: value for name, value in site.environ.items() if name not in {*NOT_INHERITED, *_OURS}}
    environ = extra | {
        "LITELLM_MASTER_KEY": site.secrets.proxy_master_key,
        "PYTHONPATH": str(_ROOT),
        "TREASURER_GRANT_SECRET": site.secrets.grant_secret,
        "TREASURER_DATABASE_URL": site.database_url,
        "TREASURER_GRANT_DIR": str(site.data_dir / "grants"),
        "TREASURER_SPOOL_DIR": str(site.data_dir / "spool"),
        "TREASURER_STREAMS_PER_WORKER": str(site.settings.streams_per_worker),
    }
    return Part(
        name="litellm-proxy",
        address=f"127.0.0.1:{site.ports.proxy}",
        ready=lambda: http_ok(url),
        command=command,
        environ={**inherited, **environ},
        prepare=prepare,
        start_detail="imports LiteLLM: 10 to 30 s",
        directory=folder,
        start_timeout_s=180,
        stop_timeout_s=4,  # LiteLLM's workers end within a second, and then it waits ten seconds for nothing
    )


def _gateway_part(site: _Site, number: int) -> Part:
    port = site.ports.direct[number - 1]
    environ = {
        "TREASURER_DATA_DIR": str(site.data_dir),
        "TREASURER_HOST": site.settings.host,
        "TREASURER_PORT": str(site.ports.gateway),
        "TREASURER_DIRECT_PORT": str(port),
        "TREASURER_DATABASE_URL": site.database_url,
        "TREASURER_REDIS_URL": site.redis_url,
        "TREASURER_PROXY_URL": site.proxy_url,
        "TREASURER_GRANT_SECRET": site.secrets.grant_secret,
        "TREASURER_PROXY_MASTER_KEY": site.secrets.proxy_master_key,
        "TREASURER_ADMIN_KEY": site.secrets.admin_key,
        "PROMETHEUS_MULTIPROC_DIR": str(site.metrics),
    }
    return Part(
        name=f"gateway-{number}",
        address=site.gateway_url,
        ready=lambda: http_ok(f"http://127.0.0.1:{port}/readyz"),
        remark=lambda: warnings_of(f"http://127.0.0.1:{port}/readyz"),
        command=[sys.executable, "-m", "gateway.serve"],
        listens=(site.settings.host, site.ports.gateway),
        environ={**site.environ, **environ},
        depends_on=("postgres", "redis"),
        on_exit=lambda pid: mark_process_dead(pid, str(site.metrics)),
        start_timeout_s=240,  # a gateway is ready only when the proxy is
        stop_timeout_s=12,
    )


def _worker_part(site: _Site, number: int) -> Part:
    port = site.ports.workers[number - 1]
    url = f"http://127.0.0.1:{port}"
    kept_out = _NOT_FOR_WORKERS if site.effective is None else _NOT_FOR_WORKERS | site.effective.variables
    kept = {name: value for name, value in site.environ.items() if name not in kept_out}
    environ = {
        "TREASURER_DATA_DIR": str(site.data_dir),
        "TREASURER_DATABASE_URL": site.database_url,
        "TREASURER_REDIS_URL": site.redis_url,
        "TREASURER_GATEWAY_URL": site.gateway_url,
        "TREASURER_GRANT_SECRET": site.secrets.grant_secret,
        "TREASURER_WORKER_PORT": str(port),
        "PROMETHEUS_MULTIPROC_DIR": str(site.metrics),  # so that the gateways' /metrics has what workers count
    }
    desk_url = site.settings.desk_url or (f"http://127.0.0.1:{site.ports.provider}/desk" if site.simulates else None)
    if desk_url is not None:
        environ["TREASURER_DESK_URL"] = desk_url
    return Part(
        name=f"worker-{number}",
        address=f"127.0.0.1:{port}",
        ready=lambda: http_ok(f"{url}/readyz"),
        command=[sys.executable, "-m", "gateway.work"],
        environ={**kept, **environ},
        depends_on=("postgres",),
        on_exit=lambda pid: mark_process_dead(pid, str(site.metrics)),
        start_detail="imports the agents",
        start_timeout_s=120,
        stop_timeout_s=12,
        answers=lambda: http_ok(f"{url}/healthz"),
    )


#: Variables that a worker does not get, besides those of providers: it calls models through a gateway only, and changes
#: no configuration.
_NOT_FOR_WORKERS = frozenset({"TREASURER_ADMIN_KEY", "TREASURER_PROXY_MASTER_KEY"})
#: Variables that are meant for our processes, and are not passed on to the proxy.
_OURS = frozenset({"VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", "TREASURER_ADMIN_KEY", "PROMETHEUS_MULTIPROC_DIR"})


def _plain_environ(site: _Site) -> dict[str, str]:
    """The environment of parts that need no secret and no key."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    return {name: site.environ[name] for name in kept if name in site.environ}


def proxy_python(settings: Settings) -> Path:
    python = settings.proxy_python or _ROOT / ".venv-proxy" / "bin" / "python"
    if not python.exists():
        raise PlanError(
            f"LiteLLM Proxy's environment is missing: there is no {python}. "
            "Run `make setup`, or set TREASURER_PROXY_PYTHON to its Python."
        )
    return python.absolute()
