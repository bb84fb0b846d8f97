"""A wrong setting is named, with what was expected, before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # pyright: ignore[reportUnusedFunction]
    for name in os.environ:
        if name.upper().startswith("TREASURER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # a folder without a .env file


def test_nothing_has_to_be_set() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.database_url) == ("127.0.0.1", 4100, None)
    assert settings.litellm_config.is_absolute()
    assert settings.litellm_config.is_file()
    assert settings.proxy_workers >= 1


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREASURER_PORT", "5000")
    monkeypatch.setenv("treasurer_log_format", "json")
    monkeypatch.setenv("TREASURER_DATABASE_URL", "postgresql://u:p@h/d")
    monkeypatch.setenv("TREASURER_UNKNOWN", "x")
    settings = load_settings()
    assert (settings.port, settings.log_format, settings.database_url) == (5000, "json", "postgresql://u:p@h/d")


def test_a_dot_env_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TREASURER_PORT=5000\nTREASURER_GATEWAYS=2\nOTHER=x\n")
    monkeypatch.setenv("TREASURER_PORT", "6000")
    settings = load_settings()
    assert (settings.port, settings.gateways) == (6000, 2)


def test_options_win_and_options_that_were_not_given_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREASURER_PORT", "5000")
    assert load_settings(port=7000).port == 7000
    assert load_settings(port=None).port == 5000


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PORT", "70000", "65535"),
        ("PORT", "-1", "0"),
        ("PORT", "http", "integer"),
        ("GATEWAYS", "0", "1"),
        ("DATABASE_URL", "mysql://h/d", "postgresql://"),
        ("REDIS_URL", "localhost:6379", "redis://"),
        ("PROXY_URL", "localhost:4000", "http://"),
        ("GRANT_SECRET", "short", "32"),
        ("ADMIN_KEY", "short", "16"),
        ("CALL_TIMEOUT_S", "0", "greater than 0"),
        ("CALL_TIMEOUT_S", "3601", "3600"),
        ("CALL_TIMEOUT_S", "nan", "TREASURER_CALL_TIMEOUT_S"),
        ("HOLD_MARGIN_S", "0", "greater than 0"),
        ("SWEEP_INTERVAL_S", "-1", "greater than 0"),
        ("BUSY_WAIT_S", "-1", "0"),
        ("DEFAULT_SHARE_PERCENT", "0", "1"),
        ("DEFAULT_SHARE_PERCENT", "101", "100"),
        ("MAX_BODY_BYTES", "0", "greater than 0"),
        ("LOG_LEVEL", "loud", "info"),
        ("LOG_FORMAT", "xml", "json"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(f"TREASURER_{name}", value)
    with pytest.raises(SettingsError) as wrong:
        load_settings()
    assert f"TREASURER_{name}: " in str(wrong.value)
    assert expected in str(wrong.value)


@pytest.mark.parametrize("value", ["inf", "1e400"])
@pytest.mark.parametrize(
    "name", ["CONNECT_TIMEOUT_S", "HOLD_MARGIN_S", "SWEEP_INTERVAL_S", "BUSY_WAIT_S", "IDEMPOTENCY_TTL_S"]
)
def test_a_time_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Postgres would get the time as an interval, and intervals cannot be infinite."""
    monkeypatch.setenv(f"TREASURER_{name}", value)
    with pytest.raises(SettingsError, match=name):
        load_settings()


def test_every_wrong_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREASURER_PORT", "x")
    monkeypatch.setenv("TREASURER_GATEWAYS", "0")
    with pytest.raises(SettingsError) as wrong:
        load_settings()
    assert str(wrong.value).count("TREASURER_") == 2


@pytest.mark.parametrize("name", ["grant_secret", "admin_key", "proxy_master_key", "langfuse_secret_key"])
def test_no_print_shows_a_secret(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    secret = "very-secret-" * 4
    monkeypatch.setenv(f"TREASURER_{name.upper()}", secret)
    settings = load_settings()
    assert getattr(settings, name).get_secret_value() == secret
    assert "very-secret" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_a_secret_that_is_wrong_is_not_printed_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREASURER_GRANT_SECRET", "hush-hush")
    with pytest.raises(SettingsError) as wrong:
        load_settings()
    assert "hush" not in str(wrong.value)


@pytest.mark.parametrize("given_as", ["http://h:4000/", "http://h:4000"])
def test_an_address_ends_without_a_slash(given_as: str) -> None:
    assert load_settings(proxy_url=given_as).proxy_url == "http://h:4000"


@pytest.mark.parametrize("url", ["postgresql://h/d", "postgres://h/d"])
def test_addresses_of_postgres(url: str) -> None:
    assert load_settings(database_url=url).database_url == url


@pytest.mark.parametrize("url", ["redis://h", "rediss://h", "unix:///s"])
def test_addresses_of_redis(url: str) -> None:
    assert load_settings(redis_url=url).redis_url == url


def test_every_setting_is_documented_by_its_name_or_a_description() -> None:
    for name, field in Settings.model_fields.items():
        unit = name.endswith(("_s", "_bytes", "_url", "_host", "_key", "_level", "_format"))
        assert field.description or unit, name
