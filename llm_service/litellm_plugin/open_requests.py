"""The requests under way in this worker of LiteLLM Proxy, and whether LiteLLM has chosen a deployment for each.

What must hold (I1):
  A request counts as never sent only if it is known here, and no deployment was chosen for it.
  A request is known from the check of its grant until the task that serves it ends.

Runs inside LiteLLM Proxy: standard library only.
"""

from __future__ import annotations

import asyncio


class OpenRequests:
    """The requests of one worker, named after their grants."""

    def __init__(self) -> None:
        self._sent: dict[str, bool] = {}

    def begin(self, name: str) -> None:
        """A request was admitted. The task that calls this also serves it."""
        task = asyncio.current_task()
        if task is not None:
            self._sent[name] = False
            task.add_done_callback(lambda _task: self._sent.pop(name, None))

    def sending(self, name: str) -> None:
        """A deployment was chosen, so from now on the request may have been sent to it."""
        if name in self._sent:
            self._sent[name] = True

    def never_sent(self, name: str) -> bool:
        """Whether LiteLLM has certainly asked no deployment for this request."""
        return self._sent.get(name) is False
