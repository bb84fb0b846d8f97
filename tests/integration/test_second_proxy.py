"""One more proxy on the stack's database: a grant is served once by all proxies, and its prices change while a gateway
uses it.

What must hold:
- A grant that one proxy has used is refused by every other (I3).
- From the first call after prices changed in the proxy, holds and costs are at the new prices, and a model that was
  removed is answered with 404 (I1). (Without a change, a gateway reads the catalogue once a minute.)
- After a price was wrong, the past is corrected by entries, and then the ledger equals the provider's invoice (I4).

LiteLLM takes long to start, so these tests share one more proxy, which is started twice.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
import yaml
from openai import NotFoundError

from gateway.stack.ports import free_port
from gateway.stack.state import StackState
from llm_service.grants import PRICES_STAMP, Grant, digest_of, for_service, sign
from llm_service.used_grants import revoke
from tests.integration.administering import Treasurer
from tests.integration.caller import HOUSE_RATES, Caller, open_caller
from tests.integration.gateways import another_gateway
from tests.integration.proxies import ROOT, another_proxy, configuration

CHAT = "/v1/chat/completions"
MODEL, GONE = "local/llama-3.3-70b", "gpt-4o"
#: The models of config/litellm.yaml. (The stack has more, and some have no price.)
SHIPPED = {each["model_name"] for each in yaml.safe_load((ROOT / "config" / "litellm.yaml").read_text())["model_list"]}
#: Nano-dollars for a token of MODEL: the wrong price of its input and output, and the right prices.
WRONG, (RIGHT_INPUT, RIGHT_OUTPUT) = 10, HOUSE_RATES["llama-3.3-70b"]
MAX_TOKENS = 20


@dataclass
class SecondProxy:
    """A proxy at an address that stays the same while the proxy is started again with another configuration."""

    stack: StackState
    stop_with_us: Callable[[int], None]
    folder: Path
    port: int
    running: ExitStack

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, config: dict[str, Any]) -> None:
        self.running.close()
        self.running.enter_context(another_proxy(self.stack, self.stop_with_us, self.folder, self.port, config))


@pytest.fixture(scope="module")
def proxy(
    stack: StackState, stop_with_us: Callable[[int], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecondProxy]:
    """A second proxy, in which MODEL has a price that is too low."""
    with ExitStack() as running:
        folder = tmp_path_factory.mktemp("second-proxy") / "proxy"
        second = SecondProxy(stack, stop_with_us, folder, free_port(), running)
        second.start(with_price(configuration(stack), WRONG / 10**9))
        yield second


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack) as caller:
        yield caller


def with_price(config: dict[str, Any], per_token: float) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    for deployment in changed["model_list"]:
        if deployment["model_name"] == MODEL:
            deployment["litellm_params"] |= {"input_cost_per_token": per_token, "output_cost_per_token": per_token}
    return changed


# -- a grant and two proxies


async def post(url: str, body: bytes, token: str) -> tuple[int, str | None]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession() as session, session.post(f"{url}{CHAT}", data=body, headers=headers) as answer:
        await answer.read()
        return answer.status, answer.headers.get("x-treasurer-refused")


@pytest.mark.timeout(600)
async def test_i3_a_grant_is_served_by_one_proxy_of_all(stack: StackState, proxy: SecondProxy, caller: Caller) -> None:
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "once"}], "max_tokens": 5}
    body, now = json.dumps(asked).encode(), int(time.time())
    grant, revoked = (
        Grant(uuid4(), 0, 1, "a", "t", "o", 1, "gpt-4o-mini", CHAT, digest_of(body), now, now + 60) for _ in range(2)
    )
    token = sign(stack.grant_secret, grant)
    assert await post(stack.proxy_url, body, token) == (200, None)
    for url in (proxy.url, stack.proxy_url, proxy.url):
        assert await post(url, body, token) == (401, "grant_used")
    assert await revoke(caller.pool, revoked.call_id, revoked.attempt)
    assert await post(proxy.url, body, sign(stack.grant_secret, revoked)) == (401, "grant_used")
    # The call has no hold, so the witness must go.
    await caller.witness(grant.call_id)
    await caller.pool.execute("DELETE FROM witnesses WHERE call_id = $1", grant.call_id)


# -- prices that change


async def stamps(proxy: SecondProxy) -> dict[str, str]:
    """The version of each model's prices, by the proxy."""
    path = "/model/info"
    headers = {"Authorization": f"Bearer {sign(proxy.stack.grant_secret, for_service(path))}"}
    async with aiohttp.ClientSession() as session, session.get(f"{proxy.url}{path}", headers=headers) as answer:
        entries: list[dict[str, Any]] = (await answer.json())["data"]
    found = {entry["model_name"]: entry["model_info"].get(PRICES_STAMP) for entry in entries}
    without = {name for name in SHIPPED & found.keys() if not found[name]}
    assert without == set(), "models without a version"
    return {name: stamp for name, stamp in found.items() if name in SHIPPED}


@pytest.mark.timeout(600)
async def test_i1_i4_a_changed_price_counts_from_the_first_call_on_and_the_past_is_corrected(
    caller: Caller,
    proxy: SecondProxy,
    treasurer_on_stack: Treasurer,
    monkeypatch: pytest.MonkeyPatch,
    stop_with_us: Callable[[int], None],
    tmp_path: Path,
) -> None:
    """The command shows the correction, and the admin API makes it."""
    monkeypatch.setenv("TREASURER_PROXY_URL", proxy.url)  # for the command
    since = (await caller.pool.fetchval("SELECT now()")).isoformat()
    environ = {"TREASURER_PROXY_URL": proxy.url, "TREASURER_ADMIN_KEY": proxy.stack.admin_key}
    gateway = another_gateway(proxy.stack, stop_with_us, tmp_path / "gateway.log", environ)

    async def reprice(*arguments: str) -> list[dict[str, Any]]:
        ran = await treasurer_on_stack("reprice", MODEL, "--since", since, "--json", *arguments)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)

    with ExitStack() as gateways:
        url, _ = await asyncio.to_thread(gateways.enter_context, gateway)
        before = await stamps(proxy)
        assert await cost_of_a_call(caller, url, WRONG, WRONG) > 0
        async for _ in await caller.call(url, model=MODEL, stream=True):
            pass
        await caller.settled()
        wrong_nano, billed_nano = await caller.posted_nano(), await caller.billed_nano()
        assert 0 < wrong_nano < billed_nano / 10

        right = configuration(proxy.stack)
        right["model_list"] = [each for each in right["model_list"] if each["model_name"] != GONE]
        await asyncio.to_thread(proxy.start, right)
        after = await stamps(proxy)
        assert {name for name in after if after[name] != before[name]} == {MODEL}
        assert before.keys() - after.keys() == {GONE}

        assert await cost_of_a_call(caller, url, RIGHT_INPUT, RIGHT_OUTPUT) > 0
        await caller.settled()
        attempts = await caller.pool.fetch(
            "SELECT state, cost_nano, held_nano FROM ledger WHERE call_id = $1 ORDER BY attempt", caller.last.call_id
        )
        assert [row["state"] for row in attempts] == ["voided", "posted"], "the first hold was at the old price"
        tokens, rest = divmod(attempts[0]["held_nano"], WRONG)  # of input and output, which had one price
        assert rest == 0
        dearer_nano = attempts[1]["held_nano"] - tokens * RIGHT_INPUT
        output_tokens, rest = divmod(dearer_nano, RIGHT_OUTPUT - RIGHT_INPUT)
        assert (rest, MAX_TOKENS <= output_tokens < tokens) == (0, True)
        with pytest.raises(NotFoundError):
            await caller.call(url, model=GONE)
        assert await caller.held() == 0

        [shown] = await reprice()
        assert (shown["attempts"], shown["posted_nano"], shown["right_nano"]) == (2, wrong_nano, billed_nano)
        assert await caller.posted_nano() == wrong_nano + attempts[1]["cost_nano"]
        terms = {"model": MODEL, "since": since, "apply": True, "note": "a tenth of the price"}
        made = await caller.admin("POST", "repricings", terms, url=url)
        assert (made["attempts"], made["difference_nano"]) == (2, billed_nano - wrong_nano)
        assert await caller.posted_nano() == await caller.billed_nano()
        faults = await caller.faults()
        assert len(faults) == made["attempts_above_hold"]
        assert all("overshoot" in fault for fault in faults), faults
        [again] = await reprice("--apply", "--note", "once more")
        assert (again["attempts"], again["id"]) == (0, None)
        assert await caller.posted_nano() == await caller.billed_nano()


async def cost_of_a_call(caller: Caller, url: str, input_nano: int, output_nano: int) -> int:
    """Make a call, and check that it costs what its tokens cost at these prices."""
    usage = (await caller.call(url, model=MODEL, max_tokens=MAX_TOKENS)).usage
    cost_nano = caller.last.cost_nano
    assert cost_nano == usage.prompt_tokens * input_nano + usage.completion_tokens * output_nano
    return cost_nano
