"""Every knob of a script, and what it does to the invoice."""

import asyncio
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.gateway.stack.simulated_provider.running import Running

INPUT = 8  # tokens of a plain "Hello there"
BODY: dict[str, Any] = {"model": "gpt-sim", "messages": [{"role": "user", "content": "Hello there"}]}


def rule(**do: Any) -> dict[str, Any]:
    return {"do": do}


def text_of(answer: httpx2.Response) -> str:
    return answer.json()["choices"][0]["message"]["content"]


def test_a_marker_makes_an_error_that_costs_nothing(provider: Running) -> None:
    answer = provider.chat('Hi [[sim: {"status": 429, "retry_after": 2}]]')
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert provider.lines() == []


def test_a_script_keeps_the_request_as_it_arrived(provider: Running) -> None:
    provider.chat('Hi [[sim: {"keep_request": true, "mark": "k7"}]]', seed=5)
    provider.chat('Hi [[sim: {"mark": "k7"}]]')
    (kept,) = provider.http.get("/_sim/requests", params={"mark": "k7"}).json()["requests"]
    assert (kept["face"], kept["path"], kept["body"]["seed"]) == ("openai", "/openai/v1/chat/completions", 5)
    assert provider.http.get("/_sim/requests", params={"mark": "k8"}).json() == {"requests": []}


def test_a_marker_may_work_so_often_only(provider: Running) -> None:
    prompt = 'Hi [[sim: {"status": 500, "times": 2}]]'
    assert [provider.chat(prompt).status_code for _ in range(4)] == [500, 500, 200, 200]
    assert list(provider.http.get("/_sim/script").json()["markers"].values()) == [2]


def test_a_header_works_too_and_a_marker_wins_over_it(provider: Running) -> None:
    header = {"x-sim-script": '{"text": "from the header", "output_tokens": 3}'}
    assert text_of(provider.chat(headers=header)) == "from the header"
    assert text_of(provider.chat('[[sim: {"text": "from the marker"}]]', headers=header)) == "from the marker"


def test_the_first_rule_that_matches_and_has_times_left_is_used(provider: Running) -> None:
    provider.script(
        {"model": "other*", "do": {"status": 500}},
        {"api_key": "sk-a*", "headers": {"X-Team": "blue"}, "times": 1, "do": {"status": 503}},
        {"contains": "please", "operation": "chat", "face": "openai", "do": {"text": "polite"}},
    )
    keyed = {"authorization": "Bearer sk-abc", "x-team": "blue"}
    assert provider.chat(headers={"authorization": "Bearer sk-abc"}).status_code == 200
    assert [provider.chat("please", headers=keyed).status_code for _ in range(2)] == [503, 200]
    assert text_of(provider.chat("please")) == "polite"
    assert [rule["matched"] for rule in provider.http.get("/_sim/script").json()["rules"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"do": {}}, "list"),
        ([{"status": 500}], '"do"'),
        ([{"do": {}, "modle": "x"}], "modle"),
        ([rule(latency=1)], "latency"),
        ([rule(latency_s="1")], "latency_s"),
        ([rule(latency_s=-1)], "latency_s"),
        ([rule(tokens_per_s=0)], "tokens_per_s"),
        ([rule(cut_after_tokens=True)], "cut_after_tokens"),
        ([rule(usage="wrong")], "usage"),
        ([rule(billed={"tokens": 1})], "billed"),
        ([rule(status=200)], "status"),
    ],
)
def test_a_wrong_rule_is_refused_by_name_and_changes_nothing(provider: Running, rules: Any, said: str) -> None:
    provider.script(rule(text="kept"))
    answer = provider.http.post("/_sim/script", json=rules)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert text_of(provider.chat()) == "kept"


@pytest.mark.parametrize("marker", ['{"nonsense": 1}', "{not json}"])
def test_a_wrong_marker_is_a_400(provider: Running, marker: str) -> None:
    assert provider.chat(f"[[sim: {marker}]]").status_code == 400


def test_length_text_and_calls(provider: Running) -> None:
    provider.script(rule(output_tokens=500))
    assert provider.chat().json()["usage"]["completion_tokens"] == 500
    assert provider.chat(max_tokens=40).json()["usage"]["completion_tokens"] == 40
    provider.script(rule(text="Déjà vu 😀!"))
    assert text_of(provider.chat()) == "Déjà vu 😀!"
    provider.script(rule(tool_calls=[{"name": "f", "arguments": {"a": 1}}]))
    call = provider.chat().json()["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call == {"name": "f", "arguments": '{"a":1}'}


def test_an_error_body_may_be_given_and_billed(provider: Running) -> None:
    provider.script(rule(status=500, error={"oops": 1}, billed={"prompt_tokens": 5, "completion_tokens": 2}))
    assert provider.chat().json() == {"oops": 1}
    assert provider.line()["cost_nano"] == 5 * 1000 + 2 * 4000


def test_usage_may_be_missing_zero_or_wrong_while_the_bill_is_true(provider: Running) -> None:
    for lie, shown in (("missing", None), ("zero", (0, 0)), ({"prompt_tokens": 9999}, (9999, 10))):
        provider.script(rule(usage=lie, output_tokens=10))
        usage = provider.chat().json().get("usage")
        assert (usage and (usage["prompt_tokens"], usage["completion_tokens"])) == shown
        streamed = provider.chat(stream=True, stream_options={"include_usage": True}).text
        assert streamed.count('"usage":{') == (0 if shown is None else 1)
    assert {line["cost_nano"] for line in provider.lines()} == {INPUT * 1000 + 10 * 4000}
    assert len(provider.lines()) == 6


def test_the_bill_may_be_a_lie(provider: Running) -> None:
    provider.script(rule(billed={"completion_tokens": 1000}, output_tokens=10))
    assert provider.chat().json()["usage"]["completion_tokens"] == 10
    assert provider.line()["cost_nano"] == INPUT * 1000 + 1000 * 4000
    provider.script(rule(billed="none"))
    provider.chat()
    assert len(provider.lines()) == 1


def test_cached_and_thought_tokens(provider: Running) -> None:
    provider.script(rule(cached_tokens=6, reasoning_tokens=30, output_tokens=10))
    usage = provider.chat().json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 6
    assert usage["completion_tokens"] == 40
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 30
    assert provider.line()["cost_nano"] == 2 * 1000 + 6 * 250 + 40 * 4000
    short = provider.chat(max_tokens=25).json()
    assert short["usage"]["completion_tokens"] == 25
    assert short["choices"][0]["message"]["content"] == ""
    assert short["choices"][0]["finish_reason"] == "length"
    provider.script(rule(cached_tokens=10**6))
    assert provider.chat().json()["usage"]["prompt_tokens_details"]["cached_tokens"] == INPUT


@pytest.mark.parametrize(
    ("knobs", "least"),
    [
        ({"latency_s": 0.2}, 0.2),
        ({"first_token_s": 0.2}, 0.2),
        ({"tokens_per_s": 50, "output_tokens": 10}, 0.2),
        ({"hang_s": 0.2}, 0.2),
        ({"latency_s": 0.2, "status": 500}, 0.2),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_slowness(provider: Running, knobs: dict[str, Any], least: float, stream: bool) -> None:
    provider.script(rule(**knobs))
    began = time.monotonic()
    provider.chat(stream=stream)
    assert time.monotonic() - began >= least


def test_a_slow_body_arrives_whole(provider: Running) -> None:
    provider.script(rule(slow_body_s=0.3))
    began = time.monotonic()
    assert provider.chat().json()["usage"]
    assert time.monotonic() - began >= 0.3
    assert provider.line()["state"] == "complete"


async def test_first_token_and_pace_of_a_stream(provider: Running) -> None:
    provider.script(rule(first_token_s=0.2, tokens_per_s=40, output_tokens=8))
    began = time.monotonic()
    async with openai.AsyncOpenAI(base_url=f"{provider.url}/openai/v1", api_key="k", max_retries=0) as client:
        messages: Any = BODY["messages"]
        stream = await client.chat.completions.create(model="gpt-sim", messages=messages, stream=True)
        headers_at = time.monotonic() - began
        times = [time.monotonic() - began async for chunk in stream if chunk.choices[0].delta.content]
    assert times[0] - headers_at > 0.1
    assert len(times) == 8
    assert 0.15 <= times[-1] - times[0] < 0.8


@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_cut_before_the_headers_costs_nothing(provider: Running, stream: bool) -> None:
    provider.script(rule(cut_before_headers=True))
    with pytest.raises(httpx2.RemoteProtocolError):
        provider.chat(stream=stream)
    assert provider.lines() == []
    provider.script(rule(cut_before_headers=True, billed="full", output_tokens=10))
    with pytest.raises(httpx2.RemoteProtocolError):
        provider.chat(stream=stream)
    assert provider.line()["cost_nano"] == INPUT * 1000 + 10 * 4000
    assert provider.line()["state"] == "cut"


@pytest.mark.parametrize(("cut", "generated"), [(0, 0), (5, 5), (99, 20)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_in_mid_answer_is_billed_until_there(provider: Running, stream: bool, cut: int, generated: int) -> None:
    provider.script(rule(cut_after_tokens=cut, output_tokens=20))
    parts: list[bytes] = []
    post = provider.http.stream("POST", "/openai/v1/chat/completions", json={**BODY, "stream": stream})
    with post as answer, pytest.raises(httpx2.RemoteProtocolError):
        parts.extend(answer.iter_bytes())
    got = b"".join(parts)
    if stream:
        assert got.count(b'"delta":{"content":') == generated
        assert b"[DONE]" not in got
    line = provider.line()
    assert (line["state"], line["output_tokens"]) == ("cut", generated)
    assert line["cost_nano"] == INPUT * 1000 + generated * 4000


def test_a_client_that_leaves_a_stream_pays_for_what_was_generated(provider: Running) -> None:
    provider.script(rule(tokens_per_s=50, output_tokens=1000))
    got = b""
    with provider.http.stream("POST", "/openai/v1/chat/completions", json={**BODY, "stream": True}) as answer:
        for part in answer.iter_bytes():
            got += part
            if got.count(b'"delta":{"content":') >= 5:
                break
    line = provider.awaited_line()
    assert line["state"] == "client_left"
    assert 5 <= line["output_tokens"] <= 30
    assert line["cost_nano"] == INPUT * 1000 + line["output_tokens"] * 4000


def test_a_client_that_leaves_a_fast_stream_does_not_pay_for_all(provider: Running) -> None:
    provider.script(rule(output_tokens=400_000))
    with provider.http.stream("POST", "/openai/v1/chat/completions", json={**BODY, "stream": True}) as answer:
        next(answer.iter_bytes())
    line = provider.awaited_line()
    assert line["state"] == "client_left"
    assert 0 < line["output_tokens"] < 400_000


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_waits_pays_for_the_input(provider: Running, stream: bool) -> None:
    provider.script(rule(hang_s=30))
    with pytest.raises(httpx2.ReadTimeout):
        provider.http.post(
            "/openai/v1/chat/completions", json={**BODY, "stream": stream}, timeout=httpx2.Timeout(10, read=0.2)
        )
    line = provider.awaited_line()
    assert (line["state"], line["cost_nano"]) == ("client_left", INPUT * 1000)


def test_a_client_that_leaves_an_unstreamed_answer_pays_for_the_pace_so_far(provider: Running) -> None:
    provider.script(rule(tokens_per_s=100, output_tokens=1000))
    with pytest.raises(httpx2.ReadTimeout):
        provider.http.post("/openai/v1/chat/completions", json=BODY, timeout=httpx2.Timeout(10, read=0.3))
    assert 15 <= provider.awaited_line()["output_tokens"] <= 100


def test_a_provider_may_bill_all_though_the_client_left(provider: Running) -> None:
    provider.script(rule(hang_s=30, output_tokens=70, billed="full"))
    with pytest.raises(httpx2.ReadTimeout):
        provider.http.post("/openai/v1/chat/completions", json=BODY, timeout=httpx2.Timeout(10, read=0.2))
    assert provider.awaited_line()["cost_nano"] == INPUT * 1000 + 70 * 4000


def test_a_stream_may_hang_in_the_middle(provider: Running) -> None:
    provider.script(rule(hang_s=0.4, hang_after_tokens=6, output_tokens=20))
    got, gaps, last = b"", [], time.monotonic()
    with provider.http.stream("POST", "/openai/v1/chat/completions", json={**BODY, "stream": True}) as answer:
        for part in answer.iter_bytes():
            gaps.append((time.monotonic() - last, got.count(b'"delta":{"content":')))
            last = time.monotonic()
            got += part
    assert max(gaps)[0] >= 0.35
    assert max(gaps)[1] == 6
    assert provider.line()["state"] == "complete"


def test_chunks_may_hold_more_tokens(provider: Running) -> None:
    provider.script(rule(chunk_tokens=5, output_tokens=20))
    assert provider.chat(stream=True).text.count('"delta":{"content":') == 4


def test_a_mark_is_on_the_invoice_of_every_face(provider: Running) -> None:
    text = 'Hi [[sim: {"mark": "call-7"}]]'
    provider.chat(text)
    provider.chat(text, stream=True)
    provider.http.post("/openai/v1/embeddings", json={"model": "embed-sim", "input": text})
    ask = {"model": "gpt-sim", "max_tokens": 9, "messages": [{"role": "user", "content": text}]}
    provider.http.post("/anthropic/v1/messages", json=ask)
    provider.http.post(
        "/google/v1beta/models/gpt-sim:generateContent",
        json={"contents": [{"role": "user", "parts": [{"text": text}]}]},
    )
    provider.chat()
    assert [line["mark"] for line in provider.lines()] == [*["call-7"] * 5, ""]


def test_embeddings_obey_scripts(provider: Running) -> None:
    ask = {"model": "embed-sim", "input": 'Hi [[sim: {"status": 503}]]'}
    assert provider.http.post("/openai/v1/embeddings", json=ask).status_code == 503
    provider.script({"operation": "embeddings", "do": {"usage": "missing"}})
    assert "usage" not in provider.http.post("/openai/v1/embeddings", json={**ask, "input": "Hi"}).json()
    assert provider.line()["operation"] == "embeddings"


def test_own_prices_and_unpriced_models_on_the_invoice(provider: Running) -> None:
    provider.script(rule(output_tokens=5))
    provider.chat(model="gpt-4o-mini")
    provider.chat(model="home-made")
    invoice = provider.invoice()
    assert invoice["total_nano"] == INPUT * 7000
    assert invoice["unpriced"] == ["home-made"]
    assert provider.invoice(since=1)["total_nano"] == 0
    assert provider.http.get("/_sim/invoice", params={"since": "x"}).status_code == 400


async def test_an_invoice_under_many_callers_is_the_sum_of_the_usage_in_their_answers(provider: Running) -> None:
    async with httpx2.AsyncClient(base_url=provider.url, timeout=30) as client:

        async def call(number: int) -> int:
            body = {**BODY, "messages": [{"role": "user", "content": f"call {number}"}]}
            usage = (await client.post("/openai/v1/chat/completions", json=body)).json()["usage"]
            return usage["prompt_tokens"] * 1000 + usage["completion_tokens"] * 4000

        costs = await asyncio.gather(*(call(number) for number in range(150)))
    invoice = provider.invoice(lines=1)
    assert invoice["total_nano"] == sum(costs)
    assert invoice["requests"] == len({line["id"] for line in invoice["lines"]}) == 150


def test_a_large_body_is_read_whole(provider: Running) -> None:
    text = "word " * 1_000_000
    usage = provider.chat(text).json()["usage"]
    assert 1_000_000 <= usage["prompt_tokens"] <= 1_000_010


def test_health(provider: Running) -> None:
    assert provider.http.get("/_sim/health").json()["status"] == "ok"


def test_the_meter_survives_a_kill_and_another_seed_says_something_else(
    start: Callable[..., Running], provider: Running, tmp_path: Path
) -> None:
    first = start("--meter", str(tmp_path / "meter.jsonl"), "--seed", "7")
    said = text_of(first.chat())
    total = first.invoice()["total_nano"]
    assert said != text_of(provider.chat())
    first.http.close()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(5)
    assert first.process.stdout is not None
    first.process.stdout.close()
    second = start("--meter", str(tmp_path / "meter.jsonl"), "--seed", "7")
    assert second.invoice()["total_nano"] == total > 0
    assert text_of(second.chat()) == said
    assert second.invoice()["last_seq"] == 2
    second.stop()
    assert len((tmp_path / "meter.jsonl").read_text().splitlines()) == 2


def test_a_stop_in_mid_stream_bills_what_was_generated(start: Callable[..., Running], tmp_path: Path) -> None:
    running = start("--meter", str(tmp_path / "meter.jsonl"))
    running.script(rule(tokens_per_s=20, output_tokens=1000))
    with running.http.stream("POST", "/openai/v1/chat/completions", json={**BODY, "stream": True}) as answer:
        parts = answer.iter_bytes()
        next(parts)
        running.process.terminate()
        with pytest.raises(httpx2.RemoteProtocolError):
            for _ in parts:
                pass
    running.stop()
    (line,) = (tmp_path / "meter.jsonl").read_text().splitlines()
    assert json.loads(line)["input_tokens"] == INPUT
    assert json.loads(line)["output_tokens"] > 0
