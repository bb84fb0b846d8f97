"""deploy/docker/proxy.py without Docker: where it starts LiteLLM, and that no other account's code is beside the
configuration."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.stack.own_folder import FolderNotOurs, own_folder

ROOT = Path(__file__).parent.parent.parent
#: Runs the program, but prints the command that would replace the process in the last step.
_STOPPED = """
import json, os, runpy
def told(path, command, environ):
    print("STARTS " + json.dumps({"command": command, "folder": os.getcwd(), "environ": dict(environ)}))
os.execve = told
runpy.run_path("deploy/docker/proxy.py", run_name="__main__")
"""


def start(**environ: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TREASURER_SIMULATED_URL": "http://simulated:1"}
    given["TREASURER_LITELLM_CONFIG"] = str(ROOT / "config" / "litellm.yaml")
    return subprocess.run(
        [sys.executable, "-c", _STOPPED], cwd=ROOT, env=given | environ, capture_output=True, text=True, check=False
    )


def started(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("STARTS "))
    return json.loads(line.removeprefix("STARTS "))


def test_it_starts_in_a_new_folder_of_its_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    first, second = (started(start(TMPDIR=str(tmp_path))) for _ in range(2))
    assert first["folder"] != second["folder"]
    folder = Path(first["folder"])
    assert (folder.parent, folder.stat().st_uid) == (tmp_path, os.geteuid())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [entry.name for entry in folder.iterdir()] == ["config.yaml"]


def test_address_port_and_folder_are_settings(tmp_path: Path) -> None:
    found = started(
        start(TREASURER_PROXY_DIR=str(tmp_path / "own"), TREASURER_PROXY_HOST="10.1.2.3", TREASURER_PROXY_PORT="4555")
    )
    command = found["command"]
    assert found["folder"] == str(tmp_path / "own")
    assert command[command.index("--host") + 1] == "10.1.2.3"
    assert command[command.index("--port") + 1] == "4555"
    alone = started(start(TREASURER_PROXY_DIR=str(tmp_path / "own")))["command"]
    assert (alone[alone.index("--host") + 1], alone[alone.index("--port") + 1]) == ("127.0.0.1", "4000")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "many"])
def test_a_port_that_is_none_is_named(port: str, tmp_path: Path) -> None:
    done = start(TREASURER_PROXY_DIR=str(tmp_path / "own"), TREASURER_PROXY_PORT=port)
    assert done.returncode == 1
    assert f"TREASURER_PROXY_PORT is '{port}', not a number from 1 to 65535" in done.stderr


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_it_does_not_start_beside_what_others_may_write(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "litellm"
    folder.mkdir()
    folder.chmod(mode)
    (folder / "llm_service").mkdir()
    (folder / "llm_service" / "proxy_plugin.py").write_text("raise SystemExit('planted')")
    done = start(TREASURER_PROXY_DIR=str(folder), TREASURER_GRANT_SECRET="s" * 40)
    assert done.returncode == 1
    assert f"Others may write to {folder}" in done.stderr
    assert "STARTS" not in done.stdout
    assert not (folder / "config.yaml").exists()


# -- the check, which `treasurer up` makes too


def test_a_folder_of_another_account_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_folder(tmp_path / "a")
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with pytest.raises(FolderNotOurs, match=f"belongs to another account \\(user {us}\\)"):
        own_folder(tmp_path / "a")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another account")
def test_what_another_account_has_put_there_is_refused(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "a")
    (folder / "callbacks.py").write_text("")
    own_folder(folder)
    os.chown(folder / "callbacks.py", 12345, 12345)
    with pytest.raises(FolderNotOurs, match=r"callbacks\.py belongs to another account"):
        own_folder(folder)


def test_a_link_and_a_place_that_is_open_to_all_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(own_folder(tmp_path / "there"))
    with pytest.raises(FolderNotOurs, match="not a folder"):
        own_folder(tmp_path / "link")
    shutil.rmtree(tmp_path / "there")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(FolderNotOurs, match="open is open to all"):
        own_folder(tmp_path / "open" / "litellm")
    (tmp_path / "open").chmod(0o1777)
    assert stat.S_IMODE(own_folder(tmp_path / "open" / "litellm").stat().st_mode) == 0o700
