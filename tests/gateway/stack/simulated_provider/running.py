"""A running simulated provider, and its controls."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import httpx2


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
        """The invoice's only line."""
        (line,) = self.lines()
        return line

    def awaited_line(self) -> dict[str, Any]:
        """The invoice's only line, which is written once the provider has noticed that its client has left."""
        deadline = time.monotonic() + 20
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
