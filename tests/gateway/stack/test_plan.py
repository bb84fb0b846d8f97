"""The parts of a stack, for the different settings."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml

from gateway.settings import SettingsError, load_settings, without_password
from gateway.stack import plan as plan_module
from gateway.stack.part import Part
from gateway.stack.plan import Plan, PlanError, make_plan, reachable_host
from gateway.stack.ports import free_port, free_ports, is_free

SECRET = "s" * 40


@pytest.fixture
def proxy_python(tmp_path: Path) -> Path:
    """A fake of LiteLLM's Python environment."""
    package = tmp_path / "venv" / "lib" / "python3.11" / "site-packages" / "litellm"
    package.mkdir(parents=True)
    (package / "model_prices_and_context_window_backup.json").write_text("{}")
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    return python


def plan_for(tmp_path: Path, proxy_python: Path | None, environ: dict[str, str] | None = None, **given: object) -> Plan:
    given.setdefault("port", 0)
    settings = load_settings(data_dir=tmp_path / "data", proxy_python=proxy_python, **given)
    return make_plan(settings, environ or {})


def part(plan: Plan, name: str) -> Part:
    return next(part for part in plan.parts if part.name == name)


def test_without_any_setting_everything_is_embedded_and_simulated(tmp_path: Path, proxy_python: Path) -> None:
    plan = plan_for(tmp_path, proxy_python, gateways=2)
    names = ["postgres", "redis", "simulated-provider", "litellm-proxy", "gateway-1", "gateway-2", "worker-1"]
    assert [part.name for part in plan.parts] == names
    assert all(part.command is not None for part in plan.parts)
    assert plan.state.real == []
    assert plan.state.provider_url is not None
    assert len({*plan.state.gateway_urls, *plan.state.worker_urls}) == 3
    assert plan.admin_key_is_new
    assert not plan_for(tmp_path, proxy_python).admin_key_is_new, "it is shown once"


def test_no_secret_is_on_a_command_line_and_each_part_has_its_own_only(tmp_path: Path, proxy_python: Path) -> None:
    plan = plan_for(tmp_path, proxy_python, {"OPENAI_API_KEY": "sk-provider", "PATH": "/bin"})
    state = plan.state
    secrets = [state.grant_secret, state.proxy_master_key, state.admin_key, "sk-provider"]
    secrets.append(state.database_url.split(":")[2].split("@")[0])
    for each in plan.parts:
        line = " ".join(each.command or [])
        assert not any(secret in line for secret in secrets), each.name
    assert not any(secret in str(part(plan, "redis").environ) for secret in secrets)
    assert not any(secret in str(part(plan, "simulated-provider").environ) for secret in secrets)
    assert not any(secret in str(part(plan, "postgres").environ) for secret in secrets)
    assert state.admin_key not in str(part(plan, "litellm-proxy").environ)
    assert part(plan, "litellm-proxy").environ["OPENAI_API_KEY"] == "sk-provider"
    for secret in (state.admin_key, state.proxy_master_key, "sk-provider"):
        assert secret not in str(part(plan, "worker-1").environ)


def test_workers_are_told_of_the_desk(tmp_path: Path, proxy_python: Path) -> None:
    plan = plan_for(tmp_path, proxy_python)
    assert part(plan, "worker-1").environ["TREASURER_DESK_URL"] == f"{plan.state.provider_url}/desk"
    other = plan_for(tmp_path, proxy_python, desk_url="http://desk.example/")
    assert part(other, "worker-1").environ["TREASURER_DESK_URL"] == "http://desk.example"


def test_there_are_as_many_workers_as_are_asked_for(tmp_path: Path, proxy_python: Path) -> None:
    plan = plan_for(tmp_path, proxy_python, workers=2)
    first, second = part(plan, "worker-1"), part(plan, "worker-2")
    assert plan.state.worker_urls == [f"http://{first.address}", f"http://{second.address}"]
    assert first.environ["TREASURER_GATEWAY_URL"] == plan.state.gateway_url
    assert first.environ["TREASURER_WORKER_PORT"] == first.address.rpartition(":")[2]
    assert plan_for(tmp_path, proxy_python, workers=0).state.worker_urls == []


def test_with_every_key_nothing_is_simulated(tmp_path: Path, proxy_python: Path) -> None:
    config = tmp_path / "litellm.yaml"
    model = {"model_name": "m", "litellm_params": {"model": "openai/m", "api_key": "os.environ/SOME_KEY"}}
    config.write_text(yaml.safe_dump({"model_list": [model]}))
    plan = plan_for(tmp_path, proxy_python, {"SOME_KEY": "x"}, litellm_config=config)
    assert plan.state.provider_url is None
    assert plan.state.real == ["m"]
    assert "simulated-provider" not in [part.name for part in plan.parts]


def test_external_servers_are_awaited_and_shown_without_their_passwords(tmp_path: Path) -> None:
    plan = plan_for(
        tmp_path,
        None,
        database_url="postgresql://u:hunter2@db.example:5432/t",
        redis_url="redis://:hunter2@cache.example:6379/0",
        proxy_url="http://proxy.example:4000",
        grant_secret=SECRET,
        proxy_master_key="sk-master",
    )
    for name in ("postgres", "redis", "litellm-proxy"):
        assert part(plan, name).command is None
        assert "hunter2" not in part(plan, name).address
    assert part(plan, "gateway-1").environ["TREASURER_DATABASE_URL"].startswith("postgresql://u:hunter2@db.example")


def test_an_external_proxy_needs_the_secrets_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="TREASURER_GRANT_SECRET"):
        plan_for(tmp_path, None, proxy_url="http://proxy.example:4000")


def test_a_missing_proxy_environment_says_make_setup(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="make setup"):
        plan_for(tmp_path, tmp_path / "nothing" / "python")


def test_a_missing_or_broken_configuration_is_named(tmp_path: Path, proxy_python: Path) -> None:
    with pytest.raises(PlanError, match=r"TREASURER_LITELLM_CONFIG"):
        plan_for(tmp_path, proxy_python, litellm_config=tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(PlanError, match="is not YAML"):
        plan_for(tmp_path, proxy_python, litellm_config=tmp_path / "bad.yaml")


def test_a_taken_port_is_said_and_another_one_is_used(tmp_path: Path, proxy_python: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        plan = plan_for(tmp_path, proxy_python, port=port)
    assert any(f"Port {port} is taken" in notice for notice in plan.notices)
    assert plan.state.gateway_url != f"http://127.0.0.1:{port}"
    free = free_port()
    assert plan_for(tmp_path, proxy_python, port=free).state.gateway_url == f"http://127.0.0.1:{free}"


def test_folders_and_secrets_are_closed_to_others(tmp_path: Path, proxy_python: Path) -> None:
    plan = plan_for(tmp_path, proxy_python)
    secrets = tmp_path / "data" / "secrets"
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in secrets.iterdir()} == {0o600}
    (plan.metrics / "gauge_live_1.db").touch()
    assert not list(plan_for(tmp_path, proxy_python).metrics.iterdir()), "counters of processes that are gone"


def test_a_secret_that_the_settings_fix_wins_and_is_kept(tmp_path: Path, proxy_python: Path) -> None:
    first = plan_for(tmp_path, proxy_python).state.grant_secret
    assert plan_for(tmp_path, proxy_python).state.grant_secret == first
    assert plan_for(tmp_path, proxy_python, grant_secret=SECRET).state.grant_secret == SECRET
    fixed = plan_for(tmp_path, proxy_python, admin_key="an-admin-key-from-outside")
    assert fixed.state.admin_key == "an-admin-key-from-outside"


def test_addresses_for_people() -> None:
    assert reachable_host("0.0.0.0") == "127.0.0.1"
    assert reachable_host("::1") == "[::1]"
    assert reachable_host("example.org") == "example.org"
    assert without_password("postgresql://u:p@h:1/d?sslmode=require") == "postgresql://h:1/d"


def test_free_ports_differ() -> None:
    assert len(set(free_ports(50))) == 50


def test_every_embedded_address_is_on_loopback(tmp_path: Path, proxy_python: Path) -> None:
    plan = plan_for(tmp_path, proxy_python, host="0.0.0.0")
    for name in ("postgres", "redis", "simulated-provider", "litellm-proxy"):
        assert part(plan, name).address.startswith("127.0.0.1:")
    assert "listen_addresses=127.0.0.1" in (part(plan, "postgres").command or [])
    assert plan_module.reachable_host("0.0.0.0") in plan.state.gateway_url


def test_the_proxy_does_not_start_beside_what_others_may_write(tmp_path: Path, proxy_python: Path) -> None:
    """LiteLLM would import any code from that folder, with every secret in its environment."""
    proxy = part(plan_for(tmp_path, proxy_python), "litellm-proxy")
    folder = tmp_path / "data" / "litellm"
    assert proxy.prepare is not None
    proxy.prepare()
    folder.chmod(0o777)
    with pytest.raises(PlanError, match="Others may write to"):
        proxy.prepare()
