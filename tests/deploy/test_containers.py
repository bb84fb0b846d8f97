"""The description of the containers: the files that it names exist, and its variables are settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import Settings

ROOT = Path(__file__).parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
#: Variables that only the containers' own entry points read.
_OF_CONTAINERS = {
    "TREASURER_GRANT_DIR",
    "TREASURER_SPOOL_DIR",
    "TREASURER_SIMULATED_URL",
    "TREASURER_PROXY_WORKERS",
    "TREASURER_PROXY_HOST",
    "TREASURER_PROXY_PORT",
}


def test_every_image_is_built_from_a_file_that_is_there() -> None:
    assert set(COMPOSE["services"]) >= {"gateway", "proxy", "postgres", "redis", "migrate", "edge"}
    for name, service in COMPOSE["services"].items():
        assert "image" in service, name
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file(), name
    assert COMPOSE["services"]["postgres"]["image"] == "pgvector/pgvector:pg18"


def test_services_wait_for_services_that_exist() -> None:
    for name, service in COMPOSE["services"].items():
        for other, how in service.get("depends_on", {}).items():
            assert other in COMPOSE["services"], name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in COMPOSE["services"][other], f"{name} waits for the health of {other}"


def test_only_the_edge_is_published_so_that_gateways_scale() -> None:
    assert [name for name, service in COMPOSE["services"].items() if "ports" in service] == ["edge"]
    assert "container_name" not in COMPOSE["services"]["gateway"]
    for volume in COMPOSE["services"]["edge"]["volumes"]:
        assert (ROOT / volume.split(":")[0]).exists()


def test_no_secret_has_a_default_and_each_is_in_the_example() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    example = (ROOT / "deploy" / "docker" / "env.example").read_text()
    secrets = {"POSTGRES_PASSWORD", "TREASURER_GRANT_SECRET", "TREASURER_PROXY_MASTER_KEY", "TREASURER_ADMIN_KEY"}
    for secret in secrets:
        assert set(re.findall(rf"\$\{{{secret}([^}}]*)\}}", text)) == {":?set it in .env"}, secret
        assert re.search(rf"^{secret}=$", example, re.MULTILINE), secret


def test_settings_that_the_containers_set_exist() -> None:
    known = {f"TREASURER_{name.upper()}" for name in Settings.model_fields} | _OF_CONTAINERS
    for name, service in COMPOSE["services"].items():
        given = {variable for variable in service.get("environment", {}) if variable.startswith("TREASURER_")}
        assert given <= known, name


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_an_image_copies_is_there(file: Path) -> None:
    for line in file.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                if source in {"README.md", "LICENSE"} and not (ROOT / source).exists():
                    pytest.skip(f"{source} is not written yet")
                assert (ROOT / source).exists(), line


def test_images_run_without_root_and_from_hashes() -> None:
    for file in DOCKERFILES:
        text = file.read_text()
        assert re.search(r"^USER (?!root)", text, re.MULTILINE), file.name
        assert text.count("--require-hashes") == 2, file.name
