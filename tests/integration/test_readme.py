"""The README's examples, run without changes against the real stack; only the address and the key are inserted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import asyncpg

from gateway.stack.state import StackState
from llm_service.administration.budgets import NewBudget, create_budget
from llm_service.administration.inputs import read_input
from llm_service.administration.keys import NewKey, create_key
from llm_service.administration.organisations import NewAgent, create_agent

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    found = re.search(rf"<!-- tested: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found is not None, name
    return found.group(1)


def run(code: str, state: StackState) -> str:
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TREASURER_DATA_DIR": str(state.data_dir)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, env=environ
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_examples_of_the_readme_run(stack: StackState) -> None:
    async with asyncpg.create_pool(stack.database_url, min_size=1, max_size=2) as pool:
        await create_agent(pool, read_input(NewAgent, {"name": "news"}))
        terms = {"agent": "news", "limit": "5", "window": "day", "time_zone": "Europe/Berlin"}
        await create_budget(pool, read_input(NewBudget, terms))
        key = (await create_key(pool, read_input(NewKey, {"agent": "news"}))).secret

        through_http = example("openai").replace("http://127.0.0.1:4100", stack.gateway_url).replace("sk-tr-…", key)
        assert len(run(through_http, stack).split()) > 3
        in_process = run(example("pydantic-ai"), stack)
        assert int(in_process.split()[-1]) > 0  # the cost, in nano-dollars

        rows = await pool.fetch(
            "SELECT l.run_id, l.tags, l.state FROM ledger l JOIN agents a ON a.id = l.agent_id WHERE a.name = 'news' ORDER BY l.started_at"
        )
        assert len(rows) == 2
        assert (rows[0]["run_id"], rows[0]["tags"]) == ("morning", ["newsletter"])
        assert {row["state"] for row in rows} == {"posted"}
