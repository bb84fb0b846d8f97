"""The plugin starts in LiteLLM's environment with no other files of ours than the ground files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-proxy" / "bin" / "python"
#: The modules that both processes may load.
GROUND = ("__init__", "grants", "money", "process", "types", "usage", "used_grants", "witness")
SHIM = "proxy_plugin"

_CHECK = """
import sys
from llm_service.litellm_plugin import hooks
from llm_service import proxy_plugin
assert proxy_plugin.custom_auth is hooks.custom_auth
assert proxy_plugin.witness_logger is hooks.witness_logger
print(*sorted(name for name in sys.modules if name.startswith("llm_service.")))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of our modules that were loaded from a folder with only the allowed files."""
    if not PYTHON.exists():
        pytest.skip("LiteLLM Proxy's environment is not set up: make setup")
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "llm_service").mkdir()
    for name in (*GROUND, SHIM):
        shutil.copy(ROOT / "llm_service" / f"{name}.py", folder / "llm_service")
    shutil.copytree(ROOT / "llm_service" / "litellm_plugin", folder / "llm_service" / "litellm_plugin")
    run = subprocess.run(
        [str(PYTHON), "-c", _CHECK],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return set(run.stdout.splitlines()[-1].split())


def test_the_plugin_needs_nothing_but_the_ground_files_and_each_of_them(loaded: set[str]) -> None:
    outside = {name.removeprefix("llm_service.") for name in loaded if "litellm_plugin" not in name}
    assert outside == {*GROUND, SHIM} - {"__init__"}


def test_the_plugins_former_name_goes_in_the_release_that_it_names(loaded: set[str]) -> None:
    """The program that loads the plugin, above, checks that the old name gives the same objects."""
    (major, minor) = map(int, version("treasurer").split(".")[:2])
    named = re.search(r"It goes in (\d+)\.(\d+)", (ROOT / "llm_service" / f"{SHIM}.py").read_text("utf-8"))
    assert named is not None
    assert (major, minor) < (int(named[1]), int(named[2])), "llm_service/proxy_plugin.py was to go in this release"
    assert f"llm_service.{SHIM}" in loaded
