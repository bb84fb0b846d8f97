"""Settings: one class, read from the environment (`TREASURER_…`) and an optional `.env` file.

What must hold:
A wrong setting is named, with what was expected, before anything starts.
Secrets are `SecretStr`, so that no log or traceback shows them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Every setting of Treasurer. Times end in `_s` (seconds), sizes in `_bytes`."""

    model_config = SettingsConfigDict(env_prefix="TREASURER_", env_file=".env", extra="ignore", allow_inf_nan=False)

    data_dir: Path = Field(default=Path(".treasurer"), description="where the embedded stack keeps its data")
    host: str = Field(default="127.0.0.1", description="address that the gateway listens on")
    port: int = Field(default=4100, ge=0, le=65535, description="the gateway's port; if taken, another; 0: any free")
    listen_fd: int | None = Field(default=None, ge=3, description="descriptor of an open socket; none: open one")
    gateways: int = Field(default=1, ge=1, le=64, description="gateway processes, sharing the port")
    direct_port: int | None = Field(default=None, ge=0, le=65535, description="one process's own loopback port")
    proxy_workers: int = Field(default=min(2, os.cpu_count() or 1), ge=1, le=64, description="LiteLLM Proxy workers")

    workers: int = Field(default=1, ge=0, le=64, description="processes that do runs of agents, in the embedded stack")
    worker_slots: int = Field(default=32, ge=1, le=10_000, description="runs that one worker does at once")
    worker_port: int | None = Field(
        default=None, ge=1, le=65535, description="loopback port on which a worker says how it is; none: it does not"
    )
    gateway_url: str | None = Field(default=None, description="the gateway that a worker calls; none: the stack's own")

    streams_per_worker: int = Field(
        default=200, ge=0, le=10_000, description="streams at a time in each LiteLLM Proxy worker; 0: unlimited"
    )

    database_url: str | None = Field(default=None, description="an external PostgreSQL; none: embedded")
    redis_url: str | None = Field(default=None, description="an external Redis; none: embedded")
    proxy_url: str | None = Field(default=None, description="an external LiteLLM Proxy; none: embedded")

    litellm_config: Path = Field(default=_ROOT / "config" / "litellm.yaml", description="models and deployments")
    proxy_python: Path | None = Field(default=None, description="Python of LiteLLM's environment; none: .venv-proxy")

    grant_secret: SecretStr | None = Field(default=None, min_length=32, description="signs grants; none: made and kept")
    proxy_master_key: SecretStr | None = Field(default=None, description="LiteLLM's master key; none: made and kept")
    admin_key: SecretStr | None = Field(
        default=None, min_length=16, description="an administrator's key, fixed from outside"
    )

    call_timeout_s: float = Field(default=300, gt=0, le=3600, description="the longest that one call may take")
    connect_timeout_s: float = Field(default=5, gt=0)
    first_token_timeout_s: float | None = Field(
        default=None, gt=0, le=3600, description="how long a stream's first token may take; none: call_timeout_s"
    )
    silence_timeout_s: float = Field(
        default=120, gt=0, le=3600, description="the longest silence between two events of a stream"
    )
    hold_margin_s: float = Field(default=30, gt=0, description="how long a hold lasts beyond call_timeout_s")
    breaker_failures: int = Field(
        default=5, ge=0, le=1000, description="failures in a row that open a breaker; 0: no breakers"
    )
    breaker_window_s: float = Field(default=30, gt=0, le=3600, description="the window of a breaker's failure rate")
    breaker_rate_percent: int = Field(default=50, ge=1, le=100, description="failures that open it, in percent")
    breaker_min_calls: int = Field(default=20, ge=1, le=10_000, description="calls in the window before it can open")
    breaker_open_s: float = Field(default=10, gt=0, le=3600, description="how long it stays open at first; then longer")
    sweep_interval_s: float = Field(default=5, gt=0)
    window_retention_s: float = Field(
        default=172_800, ge=3600, description="how long ended windows shorter than a day are kept; their sums remain"
    )
    new_subjects_per_minute: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="new users, runs, sessions or tags that one budget takes a minute",
    )
    audit_interval_s: float = Field(default=300, ge=0, description="how often the gateways audit the books; 0: never")
    busy_wait_s: float = Field(default=2, ge=0, description="how long a call waits for held money before it is refused")
    default_share_percent: int = Field(
        default=25,
        ge=1,
        le=100,
        description="the most of what is left of a budget that a call without max_tokens may hold, in percent",
    )
    max_body_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    body_timeout_s: float = Field(default=60, gt=0, le=3600, description="how long a request's body may take to arrive")
    stalled_timeout_s: float = Field(
        default=60, gt=0, le=3600, description="how long a caller may read nothing from a stream before it is ended"
    )
    spool_dir: Path | None = Field(
        default=None,
        description="its subfolder settlements keeps settlements while Postgres is away; none: in data_dir",
    )
    idempotency_ttl_s: float = Field(default=86_400, gt=0)

    feeds_allow_private: bool = Field(default=False, description="agents may read feeds within a private network")

    desk_url: str | None = Field(
        default=None, description="the desk of subscriptions of agent `assistant`; none: the simulated one, if it runs"
    )

    otlp_endpoint: str | None = Field(default=None, description="OTLP/HTTP traces endpoint, for example …/v1/traces")
    langfuse_host: str | None = None
    langfuse_public_key: str | None = None
    langfuse_secret_key: SecretStr | None = None
    trace_content: bool = Field(
        default=False, description="the spans of runs have inputs, outputs and arguments (the first 1,024 characters)"
    )

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("expected postgresql://user:password@host:port/database")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("expected redis://host:port/0, rediss://… or unix://…")
        return value

    @field_validator("proxy_url", "gateway_url", "desk_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("expected http://host:port")
        return value.rstrip("/") if value is not None else None


def without_password(url: str) -> str:
    """An address without its user name and password, fit for messages."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


class SettingsError(Exception):
    """At least one setting is wrong. The message names each of them, and what was expected."""


def load_settings(**overrides: object) -> Settings:
    """Read the settings; `overrides` (from command-line options) win over the environment.

    Raises:
        SettingsError: one line for each wrong setting.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"TREASURER_{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
        raise SettingsError("Settings are wrong:\n  " + "\n  ".join(lines)) from None
