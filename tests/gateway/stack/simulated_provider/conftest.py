"""The simulated provider as a real process with prices that are easy to reckon with."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

PRICES = {
    "gpt-sim": {  # 1000 nano-dollars in, 250 cached, 4000 out
        "input_cost_per_token": 1e-06,
        "cache_read_input_token_cost": 2.5e-07,
        "output_cost_per_token": 4e-06,
        "input_cost_per_token_priority": 2e-06,
    },
    "claude-sim": {
        "input_cost_per_token": 3e-06,
        "cache_creation_input_token_cost": 3.75e-06,
        "cache_creation_input_token_cost_above_1hr": 6e-06,
        "cache_read_input_token_cost": 3e-07,
        "output_cost_per_token": 1.5e-05,
    },
    "gemini/gemini-sim": {"input_cost_per_token": 1.25e-06, "output_cost_per_token": 1e-05},
    "embed-sim": {"input_cost_per_token": 2e-08, "output_cost_per_token": 0.0},
    "overridden": {"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06},
}
OVERRIDES = {"overridden": {"input_cost_per_token": 7e-06, "output_cost_per_token": 0}}


class Running:
    """A running provider and its controls."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.process = process
        self.http = httpx2.Client(base_url=url, timeout=20)

    def invoice(self, **query: Any) -> dict[str, Any]:
        return self.http.get("/_sim/invoice", params=query).json()

    def lines(self) -> list[dict[str, Any]]:
        return self.invoice(lines=1)["lines"]

    def line(self) -> dict[str, Any]:
        """The only line."""
        (line,) = self.lines()
        return line

    def awaited_line(self) -> dict[str, Any]:
        """The only line, which appears once the provider has noticed that its client is gone."""
        deadline = time.monotonic() + 5
        while not self.lines() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.line()

    def script(self, *rules: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post("/_sim/script", json=list(rules))
        assert answer.status_code == 200, answer.text
        return answer.json()

    def chat(self, content: str = "Hello there", **body: Any) -> httpx2.Response:
        headers = body.pop("headers", None)
        body = {"model": "gpt-sim", "messages": [{"role": "user", "content": content}], **body}
        return self.http.post("/openai/v1/chat/completions", json=body, headers=headers)

    def stop(self) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Starts providers of their own, with more options."""
    folder = tmp_path_factory.mktemp("simulated_provider")
    (folder / "prices.json").write_text(json.dumps(PRICES))
    (folder / "overrides.json").write_text(json.dumps(OVERRIDES))
    running: list[Running] = []

    def begin(*options: str) -> Running:
        argv = [sys.executable, "-m", "gateway.stack.simulated_provider", "--port", "0"]
        argv += ["--prices", str(folder / "prices.json"), "--price-overrides", str(folder / "overrides.json")]
        root = Path(__file__).parents[4]
        process = subprocess.Popen([*argv, *options], stdout=subprocess.PIPE, text=True, cwd=root)
        assert process.stdout is not None
        running.append(Running(process.stdout.readline().split()[-1], process))
        return running[-1]

    yield begin
    for provider in running:
        if provider.process.poll() is None:
            provider.stop()


@pytest.fixture(scope="session")
def _shared(start: Callable[..., Running]) -> Running:
    return start("--model", "gpt-sim")


@pytest.fixture
def provider(_shared: Running) -> Running:
    """A provider with an empty meter and no script."""
    assert _shared.http.post("/_sim/reset").status_code == 200
    return _shared
