"""Run by LiteLLM Proxy's own Python (see test_no_retries.py): how often LiteLLM sends one request to a provider.

Prints one JSON object: with and without LiteLLM's fast handler, for each way to fail and each provider, the number of
requests that the provider has read completely, and whether the plugin considers the failure certainly unbilled.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import tempfile

os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    TREASURER_SPOOL_DIR=tempfile.mkdtemp(prefix="treasurer-sending-"),
)

import litellm
from litellm import Router
from litellm.integrations.custom_logger import CustomLogger

import llm_service.litellm_plugin.hooks  # noqa: F401 (takes the retries out, as in the proxy)
from llm_service.litellm_plugin.events import certainly_unbilled

ANSWERS = {
    "anthropic": b'{"id":"m","type":"message","role":"assistant","model":"c","content":[],"stop_reason":"end_turn"}',
    "gemini": b'{"candidates":[{"content":{"parts":[{"text":"x"}],"role":"model"},"finishReason":"STOP"}]}',
}
WAYS = ("closes", "resets", "cuts", "refuses", "hangs", "is away", "leaves usage out")


class Provider:
    """Reads a whole request, and then fails in one way."""

    way = ""
    model = ""
    requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        self.requests += 1
        if self.way == "resets":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif self.way == "cuts":
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{"id":')
        elif self.way == "refuses":
            writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n{}")
        elif self.way == "hangs":
            await asyncio.sleep(1)
        elif self.way == "leaves usage out":
            answer = ANSWERS[self.model]
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))
        writer.close()


class Failures(CustomLogger):
    free: bool | None = None

    async def async_post_call_failure_deployment_hook(
        self, request_data: object, exception: Exception, call_type: object, fallback_depth: int | None = None
    ) -> None:
        self.free = certainly_unbilled(exception)


Found = dict[str, tuple[int, bool | None]]


async def main() -> None:
    failures = Failures()
    litellm.callbacks = [failures]
    found: dict[str, Found] = {}
    for fast_handler in ("true", "false"):
        os.environ["EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER"] = fast_handler  # LiteLLM reads it at each call
        found[fast_handler] = await every_failure(failures)
    print(json.dumps(found))


async def every_failure(failures: Failures) -> Found:
    provider = Provider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    found: Found = {}
    for way in WAYS:
        port = 1 if way == "is away" else server.sockets[0].getsockname()[1]
        base = f"http://127.0.0.1:{port}"
        router = Router(
            model_list=[
                {"model_name": name, "litellm_params": {"model": model, "api_key": "x", "api_base": base + path}}
                for name, model, path in (
                    ("openai", "openai/gpt-4o-mini", "/v1"),
                    ("anthropic", "anthropic/claude-haiku-4-5", ""),
                    ("gemini", "gemini/gemini-2.5-flash", ""),
                    ("embeddings", "openai/text-embedding-3-small", "/v1"),
                )
            ],
            num_retries=0,
            disable_cooldowns=True,
            timeout=0.5 if way == "hangs" else 5,
        )
        for name in ANSWERS if way == "leaves usage out" else ("openai", "anthropic", "gemini", "embeddings"):
            provider.way, provider.model, provider.requests, failures.free = way, name, 0, None
            try:
                if name == "embeddings":
                    await router.aembedding(model=name, input="x")
                else:
                    await router.acompletion(model=name, messages=[{"role": "user", "content": "x"}], max_tokens=5)
            except Exception:  # noqa: BLE001 (each of LiteLLM's kinds of failure is welcome)
                found[f"{way}: {name}"] = (provider.requests, failures.free)
    server.close()
    return found


asyncio.run(main())
