"""`treasurer up` when it cannot start. tests/integration/test_supervisor.py tests a stack that runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.common import ExitCode

ROOT = Path(__file__).parent.parent.parent.parent


def up(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.cli", "up", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_a_data_folder_that_cannot_be_used_is_named_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("what is here stays")
    for folder in (file, file / "below"):
        ended = up("--data-dir", str(folder))
        assert ended.returncode == ExitCode.FAILED, ended.stderr
        said = ended.stderr.replace("\n", " ")
        assert "cannot be used" in said
        assert "--data-dir" in said
        assert "Traceback" not in said
    assert file.read_text() == "what is here stays"


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-name.invalid", "::zz"])
def test_an_address_that_is_not_this_machines_is_named_in_one_sentence(tmp_path: Path, host: str) -> None:
    ended = up("--data-dir", str(tmp_path / "data"), "--host", host)
    assert ended.returncode == ExitCode.FAILED, ended.stderr
    assert f"cannot listen on {host}" in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr
