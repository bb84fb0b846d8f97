"""`treasurer up` under signals, kills, a second start, taken ports and external servers.

LiteLLM Proxy is replaced by a stand-in here (an external proxy, as `TREASURER_PROXY_URL` allows), so that a start takes
seconds. Even so a start takes ten seconds of a processor, so some tests check several things on one stack. The whole
real stack is tested in `test_stack_starts.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from gateway.stack.state import StackState

ROOT = Path(__file__).parent.parent.parent


class StandIn(BaseHTTPRequestHandler):
    """A server that answers every request with success."""

    def do_GET(self) -> None:
        info = b'{"id": "1", "mode": "chat", "treasurer_free": true}'
        body = b'{"data": [{"model_name": "m", "litellm_params": {"model": "openai/m"}, "model_info": %b}]}' % info
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def proxy_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Up:
    """A running `treasurer up`."""

    def __init__(self, data_dir: Path, proxy_url: str, *arguments: str, **environ: str) -> None:
        self.data_dir = data_dir
        data_dir.mkdir(exist_ok=True)
        self.log = data_dir.with_name(f"{data_dir.name}.log")
        self.environ = os.environ | {
            "TREASURER_PROXY_URL": proxy_url,
            "TREASURER_GRANT_SECRET": "g" * 40,
            "TREASURER_PROXY_MASTER_KEY": "sk-master",
            **environ,
        }
        self.command = [sys.executable, "-m", "gateway.cli", "up", "--data-dir", str(data_dir), *arguments]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=out, env=self.environ, cwd=ROOT, start_new_session=True
            )

    def ready(self) -> StackState:
        deadline = time.monotonic() + 60
        while (state := StackState.read(self.data_dir)) is None or state.pid != self.process.pid:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)
        return state

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def watchdog(self) -> psutil.Process:
        return next(each for each in self.family() if any("watchdog.py" in word for word in each.cmdline()))


Starter = Callable[..., Up]


@pytest.fixture
def up(
    memory_dir: Path, proxy_url: str, stop_with_us: Callable[[int], None], request: pytest.FixtureRequest
) -> Iterator[Starter]:
    """Starts supervisors, and stops those that still run after the test."""
    started: list[Up] = []

    def start(*arguments: str, name: str = request.node.name, **environ: str) -> Up:
        started.append(Up(memory_dir / name, proxy_url, "--port", "0", *arguments, **environ))
        stop_with_us(started[-1].process.pid)
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.terminate()
            each.process.wait(30)


def assert_gone(family: list[psutil.Process], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while left := [each for each in family if _lives(each)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_stopped_by(running: Up, state: StackState, number: signal.Signals) -> None:
    """Send a signal. Everything must end, and only the first start may show the administrator's key."""
    family = running.family()
    assert len(family) >= 5  # the watchdog, Postgres, Redis, a gateway, a worker or another gateway
    running.process.send_signal(number)
    assert running.process.wait(30) == 0, running.said
    assert_gone(family, 1)
    assert StackState.read(running.data_dir) is None
    assert "Treasurer has stopped." in running.said
    assert running.said.count("Administrator's key, shown this once") == 1
    assert state.admin_key in running.said


def test_a_taken_port_is_said_and_ctrl_c_stops_everything(up: Starter) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = up("--gateways", "2", "--port", str(port))
        state = running.ready()
    assert not state.gateway_url.endswith(f":{port}")
    assert f"Port {port} is taken" in running.said
    assert_stopped_by(running, state, signal.SIGINT)


def test_a_second_up_on_the_same_data_says_that_one_runs_and_sigterm_stops_the_first(up: Starter) -> None:
    running = up(name="twice")
    state = running.ready()
    second = subprocess.run(running.command, env=running.environ, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert second.returncode == 5
    assert f"already running on {running.data_dir} (process {running.process.pid} at {state.gateway_url})" in (
        second.stderr.replace("\n", " ")
    )
    assert running.process.poll() is None
    assert_stopped_by(running, state, signal.SIGTERM)


def test_a_signal_while_it_starts_stops_everything(up: Starter) -> None:
    running = up()
    deadline = time.monotonic() + 60
    while "postgres " not in running.said:
        assert time.monotonic() < deadline, running.said
        time.sleep(0.05)
    family = running.family()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0, running.said
    assert_gone(family)


def test_kill_9_of_the_supervisor_leaves_no_process_behind(up: Starter) -> None:
    """Its watchdog stops the others at once. If the watchdog was killed too, they are stopped at the next start."""
    running = up("--gateways", "2")
    state = running.ready()
    family = running.family()
    watchdog = running.watchdog()
    running.process.send_signal(signal.SIGSTOP)  # so that it cannot restart the part
    watchdog.kill()
    running.process.kill()
    running.process.wait()
    time.sleep(0.5)
    assert _lives(psutil.Process(state.pids["postgres"])), "this is what must be cleared away"
    again = up("--gateways", "2")
    again.ready()
    assert_gone(family, 1)
    family = again.family()
    again.process.kill()
    again.process.wait()
    assert_gone(family)


def test_parts_that_die_are_started_again_and_so_is_the_watchdog(up: Starter) -> None:
    running = up()
    before = running.ready()
    watchdog = running.watchdog()
    for pid in (*before.pids.values(), watchdog.pid):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        state = StackState.read(running.data_dir)
        if state is not None and not set(state.pids.values()) & set(before.pids.values()) and len(state.pids) == 4:
            break
        assert time.monotonic() < deadline, running.said
        time.sleep(0.1)
    assert running.said.count("killed by SIGKILL; starting again in") >= 4
    assert "The watchdog died, and is started again." in running.said
    family = running.family()
    running.process.kill()
    running.process.wait()
    assert_gone(family)


def test_external_servers_are_used_and_none_is_started(up: Starter, empty_database_url: str, redis_url: str) -> None:
    running = up(TREASURER_DATABASE_URL=empty_database_url, TREASURER_REDIS_URL=redis_url)
    state = running.ready()
    assert set(state.pids) == {"gateway-1", "worker-1"}
    assert state.database_url == empty_database_url
    assert empty_database_url.split(":")[2].split("@")[0] not in running.said, "a password is never shown"


def test_a_part_that_cannot_start_ends_the_start_with_its_last_words(up: Starter) -> None:
    running = up(TREASURER_DATABASE_URL="postgresql://nobody:x@127.0.0.1:1/none")
    assert running.process.wait(90) == 1
    assert "postgres at postgresql://127.0.0.1:1/none did not answer within" in running.said
    assert not running.data_dir.joinpath("stack.json").exists()


def test_a_wrong_setting_is_named(up: Starter) -> None:
    running = up(TREASURER_DATABASE_URL="mysql://u:p@h/d")
    assert running.process.wait(30) == 2
    assert "TREASURER_DATABASE_URL" in running.said
    assert "expected postgresql://" in running.said


def test_migrate_without_a_stack_says_what_to_do(service_dir: Path) -> None:
    with contextlib.suppress(KeyError):
        del os.environ["TREASURER_DATABASE_URL"]
    environ = os.environ | {"TREASURER_DATA_DIR": str(service_dir / "nothing")}
    command = [sys.executable, "-m", "gateway.cli", "migrate"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 3
    assert "start it with `treasurer up`" in done.stderr.replace("\n", " ")
