"""The simulated provider as a real process, with prices that are easy to compute with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gateway.stack.simulated_provider.running import Running

PRICES = {
    "gpt-sim": {  # nano-dollars for a token: 1000 for input, 250 for cached input, 4000 for output
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
    "gemini-sim": {"input_cost_per_token": 1.25e-06, "output_cost_per_token": 1e-05},
    "embed-sim": {"input_cost_per_token": 2e-08, "output_cost_per_token": 0.0},
    "gpt-4o-mini": {"input_cost_per_token": 7e-06, "output_cost_per_token": 0},  # other prices than in the list
}


@pytest.fixture(scope="session")
def provider_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files with which a provider is started."""
    folder = tmp_path_factory.mktemp("simulated_provider")
    (folder / "prices.json").write_text(json.dumps(PRICES))
    return folder


@pytest.fixture(scope="session")
def start(provider_files: Path) -> Iterator[Callable[..., Running]]:
    """Starts further providers, with more options."""
    folder = provider_files
    running: list[Running] = []

    def begin(*options: str) -> Running:
        argv = [sys.executable, "-m", "gateway.stack.simulated_provider", "--port", "0"]
        argv += ["--own-prices", str(folder / "prices.json")]
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
