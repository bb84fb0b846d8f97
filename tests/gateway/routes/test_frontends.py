"""The official JavaScript clients of front-ends, as npm has them, against the gateway over a socket."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.gateway.routes.chatty import Chats

_FOLDER = Path(__file__).with_name("frontends")
_INSTALL_S, _RUN_S = 180, 60
#: Runs a script with the gateway's address and two keys, and returns what it prints.
RunScript = Callable[[str], Awaitable[Any]]


@pytest.fixture(scope="session")
def scripts(request: pytest.FixtureRequest) -> Path:
    """A folder with the scripts and the packages that they need. It is filled once, and kept in pytest's cache."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is not here, so the official clients of front-ends were not run")
    package = (_FOLDER / "package.json").read_bytes()
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir(f"frontends-{hashlib.sha256(package).hexdigest()[:12]}")
    if not (folder / "installed").exists():
        (folder / "package.json").write_bytes(package)
        install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=_INSTALL_S)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"npm could not install the official clients of front-ends: {error} {error.stderr!r:.500}")
        (folder / "installed").touch()
    for script in _FOLDER.glob("*.js"):
        shutil.copy(script, folder)
    return folder


@pytest.fixture
async def run_script(gateway: Any, chats: Chats, scripts: Path) -> AsyncIterator[RunScript]:
    server = uvicorn.Server(uvicorn.Config(gateway.door, port=0, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(20):
        while not server.started:
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    async def run(name: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            "node", name, f"http://127.0.0.1:{port}", "sk-tr-agent", "sk-tr-admin", cwd=scripts, stdout=-1, stderr=-1
        )
        try:
            printed, failed = await asyncio.wait_for(process.communicate(), _RUN_S)
        except TimeoutError:
            process.kill()
            raise
        assert process.returncode == 0, failed.decode()
        return json.loads(printed)

    yield run
    server.should_exit = True
    await serving


async def test_ag_ui(chats: Chats, run_script: RunScript) -> None:
    chats.model.says = [("wipe", {"what": "old"}), "Done.", "You are welcome."]
    told = await run_script("ag_ui.js")
    assert (told["tools"], told["pending"], told["result"]) == (["wipe"], 0, "Done.")
    assert (told["text"], told["last"]) == ("Done.|You are welcome.", ["You are welcome."])
    assert told["roles"] == ["user", "assistant", "tool", "assistant", "user", "assistant"]
    assert chats.wiped == ["old"]
    assert len(chats.store._runs) == 2
    assert {run.session for run in chats.store._runs.values()} == {"t-js"}


async def test_the_ai_sdk(chats: Chats, run_script: RunScript) -> None:
    chats.model.says = [("wipe", {"what": "old"}), "Done.", ("wipe", {"what": "all"}), "Well."]
    told = await run_script("ai_sdk.js")
    assert told["errors"] == []
    assert (told["tool"], told["input"]) == ("wipe", {"what": "old"})
    assert told["answered"]["texts"] == ["Done."]
    assert told["answered"]["states"] == ["step-start", "output-available", "step-start", "done"]
    assert told["answered"]["messages"] == 2  # the run that goes on is the same message
    assert told["denied"] == {"texts": ["Well."], "states": ["step-start", "output-denied", "step-start", "done"]}
    assert told["idle"]
    assert chats.wiped == ["old"]
    assert {run.session for run in chats.store._runs.values()} == {"c-js"}
