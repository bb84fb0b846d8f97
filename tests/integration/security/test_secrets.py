"""A planted secret is looked for everywhere: it is in none of the places that people, programs or thieves read."""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import openai
import psutil
import pytest
import redis.asyncio

from gateway.stack.state import StackState
from tests.integration.caller import Caller, open_caller, said

PROMPT = f"the-planted-prompt-{uuid4().hex}"
ANSWER = f"the-planted-answer-{uuid4().hex}"


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack, "0.01") as caller:
        yield caller


async def use(caller: Caller) -> dict[str, str]:
    """Calls of every kind of end, with a planted prompt; the error bodies."""
    told: list[str] = []
    for script in ({"text": ANSWER}, {"status": 500}, {"status": 400}, {"cut_before_headers": True}):
        for streamed in (False, True):
            try:
                answer: Any = await caller.client().chat.completions.create(
                    model="gpt-4.1-mini", messages=said(PROMPT, script), max_tokens=30, stream=streamed
                )
                if streamed:
                    async for _ in answer:
                        pass
            except openai.APIError as error:
                told.append(str(error) + json.dumps(getattr(error, "body", None), default=str))
    for secret in (caller.secret[:-1] + "x", "sk-tr-short", caller.stack.admin_key):
        with pytest.raises(openai.APIError) as raised:
            await caller.call(secret=secret)
        told.append(str(raised.value))
    return {"errors": "\n".join(told)}


async def everything(caller: Caller) -> dict[str, bytes]:
    """Every place, by name."""
    stack = caller.stack
    places: dict[str, bytes] = {}
    for file in sorted((stack.data_dir / "logs").glob("*")):
        places[f"log {file.name}"] = file.read_bytes()
    async with caller.http.get(f"{stack.gateway_url}/metrics") as response:
        places["metrics"] = await response.read()
    words: list[str] = []
    for process in psutil.process_iter():
        try:
            words += process.cmdline()
        except psutil.Error:
            continue
    places["process list"] = "\n".join(words).encode()
    tables = await caller.pool.fetch(
        "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname = 'public'"
    )
    for table in tables:
        dump = io.BytesIO()
        async with caller.pool.acquire() as connection:
            raw: Any = connection
            await raw.copy_from_query(f"SELECT * FROM {table['name']}", output=dump)
        places[f"table {table['name']}"] = dump.getvalue()
    async with redis.asyncio.Redis.from_url(stack.redis_url) as client:
        keys = [key async for key in client.scan_iter()]
        places["redis"] = b"\n".join([*keys, *[await client.dump(key) or b"" for key in keys]])
    return places


async def test_no_secret_and_no_prompt_is_anywhere(caller: Caller) -> None:
    errors = await use(caller)
    await asyncio.sleep(1)  # logs and witnesses come in their own time
    places = await everything(caller) | {name: text.encode() for name, text in errors.items()}
    assert any(name.startswith("log gateway") for name in places)
    assert {"table public.ledger", "table public.api_keys", "table public.witnesses"} <= places.keys()
    assert len(places["table public.ledger"]) > 100
    stack = caller.stack
    planted = {
        "an agent's key": caller.secret,
        "the administrator's key": stack.admin_key,
        "the grants' secret": stack.grant_secret,
        "LiteLLM's master key": stack.proxy_master_key,
        "Postgres' password": stack.database_url.split("@")[0].rsplit(":", 1)[1],
        "Redis' password": stack.redis_url.split("@")[0].rsplit(":", 1)[1],
        "a prompt": PROMPT,
        "an answer": ANSWER,
    }
    for what, secret in planted.items():
        assert len(secret) >= 12, what
        found = [name for name, content in places.items() if secret.encode() in content]
        assert found == [], f"{what} is in {found}"


async def test_the_files_that_must_hold_a_secret_are_their_owners_alone(caller: Caller) -> None:
    stack = caller.stack
    secrets = [stack.admin_key, stack.grant_secret, stack.proxy_master_key]
    holding: list[str] = []
    for folder, _, names in os.walk(stack.data_dir):
        if "postgres" in Path(folder).parts:
            continue
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118  # as os.walk gives it
            try:
                with open(path, "rb") as file:  # noqa: PTH123
                    content = file.read()
            except OSError:
                continue
            if any(secret.encode() in content for secret in secrets):
                holding.append(name)
                assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0, path  # noqa: PTH116
    assert len(holding) >= 3
