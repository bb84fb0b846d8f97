"""What the provider charges for besides text tokens, and how each format reports it. The prices are those of the
list."""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson
import pytest

from gateway.stack.simulated_provider.media import measure
from tests.gateway.stack.simulated_provider.running import Running


def marked(**knobs: Any) -> str:
    return f"Hi [[sim: {orjson.dumps({'output_tokens': 5, **knobs}).decode()}]]"


def ask(provider: Running, face: str, model: str, content: Any = None, **body: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": content or marked()}], **body}
    answer = provider.http.post(f"/{face}/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def gemini(provider: Running, *parts: dict[str, Any], model: str = "gemini-2.5-flash") -> dict[str, Any]:
    body = {"contents": [{"role": "user", "parts": list(parts)}]}
    answer = provider.http.post(f"/google/models/{model}:generateContent", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def claude(provider: Running, content: Any, model: str = "claude-sonnet-5-5", **body: Any) -> dict[str, Any]:
    body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": content}], **body}
    answer = provider.http.post("/anthropic/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + b"\x08\x02\0\0\0" + bytes(8)


def jpeg(width: int, height: int) -> bytes:
    return (
        b"\xff\xd8\xff\xe0\0\x10JFIF\0"
        + bytes(9)
        + b"\xff\xc0\0\x11\x08"
        + struct.pack(">HH", height, width)
        + bytes(20)
    )


def webp(kind: bytes, width: int, height: int) -> bytes:
    sizes = {
        b"VP8X": bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
        b"VP8L": b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little"),
        b"VP8 ": bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", width, height),
    }
    return b"RIFF" + bytes(4) + b"WEBP" + kind + bytes(4) + sizes[kind] + bytes(4)


def wav(seconds: float, rate: int = 8000) -> bytes:
    data = bytes(int(seconds * rate))
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, rate, rate, 1, 8)
    return head + struct.pack("<4sI", b"data", len(data)) + data


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_a_search_model_searches_once_for_each_call(provider: Running) -> None:
    usage = ask(provider, "openai/v1", "gpt-4o-search-preview")["usage"]
    line = provider.line()
    assert line["searches"] == 1
    assert line["cost_nano"] == usage["prompt_tokens"] * 2500 + 5 * 10_000 + 25_000_000


@pytest.mark.parametrize(("size", "nano"), [(None, 5_000_000), ("medium", 8_000_000), ("high", 12_000_000)])
def test_perplexity_charges_a_fee_by_search_context_and_says_what_it_cost(
    provider: Running, size: str | None, nano: int
) -> None:
    options = {"web_search_options": {"search_context_size": size}} if size else {}
    usage = ask(provider, "perplexity", "sonar", **options)["usage"]
    line = provider.line()
    assert usage["search_context_size"] == (size or "low")
    assert line["cost_nano"] == nano + (usage["prompt_tokens"] + 5) * 1000
    assert round(usage["cost"]["total_cost"] * 10**9) == line["cost_nano"]


@pytest.mark.parametrize(
    ("path", "model"), [("perplexity", "sonar"), ("openrouter/v1", "openai/gpt-4o-mini"), ("xai/v1", "grok-4.3")]
)
def test_a_script_keeps_a_provider_from_saying_what_a_call_cost(provider: Running, path: str, model: str) -> None:
    said = {"messages": [{"role": "user", "content": marked(silent_about_cost=True)}]}
    usage = ask(provider, path, model, **said)["usage"]
    assert not usage.keys() & {"cost", "cost_in_usd_ticks"}
    assert provider.line()["cost_nano"] > 0


def test_deep_research_searches_reads_and_thinks_beside_its_answer(provider: Running) -> None:
    usage = ask(provider, "perplexity", "sonar-deep-research", max_tokens=5)["usage"]
    line = provider.line()
    assert (usage["num_search_queries"], usage["citation_tokens"], usage["reasoning_tokens"]) == (24, 4000, 12_000)
    assert usage["completion_tokens"] == 5
    expected = usage["prompt_tokens"] * 2000 + 5 * 8000 + 4000 * 2000 + 12_000 * 3000 + 24 * 5_000_000
    assert line["cost_nano"] == expected


@pytest.mark.parametrize("stream", [False, True])
def test_openrouter_says_what_a_call_cost(provider: Running, stream: bool) -> None:
    body = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": marked(cost_nano=1234)}]}
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = provider.http.post("/openrouter/v1/chat/completions", json={**body, **more})
    last = orjson.loads(answer.text.split("data: ")[-2]) if stream else answer.json()
    assert last["usage"]["cost"] == 1234 / 10**9
    assert provider.line()["cost_nano"] == 1234


def test_xai_says_it_in_ticks_with_reasoning_beside_the_completion(provider: Running) -> None:
    usage = ask(provider, "xai/v1", "grok-4", marked(reasoning_tokens=40))["usage"]
    line = provider.line()
    assert line["cost_nano"] == usage["prompt_tokens"] * 3000 + 45 * 15_000
    assert usage["cost_in_usd_ticks"] == line["cost_nano"] * 10
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 45


def test_a_reported_cost_may_be_a_lie(provider: Running) -> None:
    usage = ask(provider, "openrouter/v1", "openai/gpt-4o-mini", marked(reported_cost_nano=7))["usage"]
    assert usage["cost"] == 7 / 10**9
    assert provider.line()["cost_nano"] > 7


def test_a_project_s_default_tier_is_billed_and_reported(provider: Running) -> None:
    made = ask(provider, "openai/v1", "gpt-4o", marked(tier="priority"))
    assert made["service_tier"] == "priority"
    assert provider.line()["cost_nano"] == made["usage"]["prompt_tokens"] * 4250 + 5 * 17_000


def test_a_workspace_s_region_costs_a_tenth_more_and_is_reported(provider: Running) -> None:
    usage = claude(provider, marked(region="us"))["usage"]
    assert usage["inference_geo"] == "us"
    plain = usage["input_tokens"] * 2000 + 5 * 10_000
    assert provider.line()["cost_nano"] == -(-plain * 11 // 10)
    assert claude(provider, marked())["usage"]["inference_geo"] == "global"


def test_a_request_may_ask_for_the_region(provider: Running) -> None:
    assert claude(provider, marked(), inference_geo="us")["usage"]["inference_geo"] == "us"
    assert provider.line()["region"] == "us"


def test_claude_counts_its_searches(provider: Running) -> None:
    usage = claude(provider, marked(searches=3))["usage"]
    assert usage["server_tool_use"] == {"web_search_requests": 3}
    assert provider.line()["cost_nano"] == usage["input_tokens"] * 2000 + 5 * 10_000 + 30_000_000


def test_gemini_reports_audio_by_modality_and_charges_it(provider: Running) -> None:
    sound = {"inlineData": {"mimeType": "audio/wav", "data": base64.b64encode(wav(10)).decode()}}
    usage = gemini(provider, {"text": marked()}, sound)["usageMetadata"]
    assert {each["modality"]: each["tokenCount"] for each in usage["promptTokensDetails"]}["AUDIO"] == 320
    text = usage["promptTokenCount"] - 320
    assert provider.line()["cost_nano"] == text * 300 + 320 * 1000 + 5 * 2500


def test_a_script_says_how_much_audio_and_image_there_was(provider: Running) -> None:
    script = marked(audio_tokens=9600, image_tokens=258, output_tokens=20, image_output_tokens=15)
    usage = gemini(provider, {"text": script})["usageMetadata"]
    kinds = {each["modality"]: each["tokenCount"] for each in usage["promptTokensDetails"]}
    assert (kinds["AUDIO"], kinds["IMAGE"]) == (9600, 258)
    assert sum(kinds.values()) == usage["promptTokenCount"]
    made = {each["modality"]: each["tokenCount"] for each in usage["candidatesTokensDetails"]}
    assert made == {"TEXT": 5, "IMAGE": 15}


def test_gemini_s_searches_are_in_its_grounding(provider: Running) -> None:
    made = gemini(provider, {"text": marked(searches=2)})
    assert len(made["candidates"][0]["groundingMetadata"]["webSearchQueries"]) == 2
    assert provider.line()["searches"] == 2


def test_openai_reports_audio_in_and_out(provider: Running) -> None:
    usage = ask(provider, "openai/v1", "gpt-audio", marked(audio_tokens=100, audio_output_tokens=3))["usage"]
    assert usage["prompt_tokens_details"]["audio_tokens"] == 100
    assert usage["completion_tokens_details"]["audio_tokens"] == 3
    text = usage["prompt_tokens"] - 100
    assert provider.line()["cost_nano"] == text * 2500 + 100 * 32_000 + 2 * 10_000 + 3 * 64_000


def test_audio_is_audio_in_whatever_field_it_comes(provider: Running) -> None:
    url = data_url("audio/wav", wav(10))
    for part in (
        {"type": "file", "file": {"file_data": url}},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": url.partition(",")[2], "format": "wav"}},
    ):
        ask(provider, "openai/v1", "gpt-audio", [{"type": "text", "text": marked()}, part])
    assert [line["audio_tokens"] for line in provider.lines()] == [320, 320, 320]


def test_a_picture_for_claude_costs_by_its_pixels(provider: Running) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png(1, 1)).decode()}
    claude(provider, [{"type": "text", "text": marked()}, {"type": "image", "source": source}])
    assert provider.line()["image_tokens"] == 1


# For gpt-4o, OpenAI's page counts 765 tokens for 1,024 × 1,024 pixels, 1,105 for 2,048 × 4,096, and 85 for low detail.
# The figures for Claude and Gemini were measured by others
# (https://huggingface.co/datasets/JOHNISKING/image-token-cost), and the prompts' 77 and 65 tokens are subtracted.
@pytest.mark.parametrize(
    ("model", "width", "height", "tokens"),
    [
        ("gpt-4o", 1024, 1024, 765),
        ("gpt-4o", 2048, 4096, 1105),
        ("gpt-4o-mini", 1024, 1024, 25_501),
        ("gpt-4.1-mini", 1024, 1024, 1659),
        ("claude-sonnet-5-5", 256, 256, 100),
        ("claude-sonnet-5-5", 512, 512, 361),
        ("claude-sonnet-5-5", 1920, 1080, 2691),
        ("claude-haiku-4-5", 256, 256, 100),
        ("claude-haiku-4-5", 1024, 1024, 1369),
        ("gemini-2.5-flash", 300, 200, 258),
        ("gemini-2.5-flash", 769, 768, 516),
    ],
)
@pytest.mark.parametrize("make", [png, jpeg])
def test_pictures_cost_what_their_providers_say(model: str, width: int, height: int, tokens: int, make: Any) -> None:
    assert measure(model, "image/png", make(width, height)).image == tokens


@pytest.mark.parametrize("kind", [b"VP8X", b"VP8L", b"VP8 "])
def test_a_webp_s_size_is_read_in_each_of_its_kinds(kind: bytes) -> None:
    assert measure("claude-sonnet-5-5", "image/webp", webp(kind, 256, 512)).image == 10 * 19


def test_low_detail_costs_the_base() -> None:
    assert measure("gpt-4o", "image/png", png(1024, 1024), "low").image == 85


def test_an_unknown_picture_is_never_free() -> None:
    assert measure("claude-haiku-4-5", "", None).image == 1369
    assert measure("gpt-4o", "image/webp", b"RIFF0000WEBPVP8?" + bytes(9)).image == 765


def test_a_document_is_billed_by_its_pages() -> None:
    pdf = b"%PDF-1.4\n" + b"<< /Type /Pages /Count 2 >>" + b"<< /Type /Page >>" * 2
    assert measure("gemini-2.5-flash", "application/pdf", pdf).image == 2 * 258
    assert measure("claude-haiku-4-5", "application/pdf", pdf).text == 2 * (1500 + 1369)


def test_an_mp3_s_length_is_read_from_its_frames() -> None:
    second_of_128_kbps = b"\xff\xfb\x90\x00" + bytes(15_996)
    assert measure("gemini-2.5-flash", "audio/mp3", second_of_128_kbps * 10).audio == 320


def test_deepseek_is_served_at_its_address(provider: Running) -> None:
    usage = ask(provider, "deepseek", "deepseek-flash")["usage"]
    assert provider.line()["cost_nano"] in (
        usage["prompt_tokens"] * 150 + 5 * 600,
        usage["prompt_tokens"] * 300 + 5 * 1200,
    )


@pytest.mark.parametrize("knobs", [{"tier": "gold"}, {"search_context": "huge"}, {"searches": -1}, {"region": 5}])
def test_a_wrong_knob_is_refused(provider: Running, knobs: dict[str, Any]) -> None:
    assert provider.chat(marked(**knobs)).status_code == 400
    assert provider.lines() == []
