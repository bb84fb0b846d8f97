"""LiteLLM's callbacks, as witnesses: each callback reports one kind of end of one attempt.

What must hold:
  Every attempt at a deployment leaves one witness, whether it succeeded, failed, was retried by the router, or was left by
  its caller in mid-stream (I2).
  A header of an error answer says whether anything can have been billed, and whether the request itself was at fault.
  A stream is charged by the chunks that were seen only if all that the provider had sent was read (I1).
  If the provider's own end of the stream and its report were seen, they are the witness, even if the stream is cut
  after them (I2).
  A fault in this module never costs LiteLLM's caller an answer.

LiteLLM reports a failed request once, however often its router retried, so failures are taken from the callback that
LiteLLM calls for each attempt at a deployment. The end of a stream is found by wrapping the stream's iterator, because
LiteLLM does not report a stream that was cut. Runs inside LiteLLM Proxy, seen with LiteLLM 1.106.
"""
# LiteLLM is in another environment than the type checker's, so its types are unknown here.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUnknownParameterType=false

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal, Protocol

from litellm.integrations.custom_logger import CustomLogger

from llm_service.litellm_plugin.chunk_folding import MOST, fold
from llm_service.litellm_plugin.drain import DrainEnd
from llm_service.litellm_plugin.events import (
    CLAIM,
    COUNTED,
    AttemptEnd,
    causes,
    certainly_unbilled,
    details_of,
    ended_by_litellm,
    grant_name,
    is_own_count,
    metadata_of,
    rebuilt,
    reported_its_end,
    set_own_figure_apart,
    unreadable,
    usage_of,
    witness_of,
)
from llm_service.litellm_plugin.open_requests import OpenRequests
from llm_service.litellm_plugin.worker_streams import WorkerStreams
from llm_service.witness import Witness

_log = logging.getLogger("treasurer.litellm_plugin")

_FREE = "treasurer_free"  # set on a request that failed: "1" if nothing can have been billed
_UNREADABLE = (
    "treasurer_unreadable"  # set on a request that failed: "1" if LiteLLM could not translate it for a provider
)
_WITNESSED = "treasurer_witnessed"  # marks a call, or an exception, whose witness has been written
#: Failures of attempts are kept until their request fails. If another deployment serves the request, it never fails. So
#: beyond this number the oldest failures are dropped.
_MOST_FAILED = 10_000


class WitnessSink(Protocol):
    """Takes witnesses. `add` neither waits nor fails."""

    def add(self, witness: Witness) -> None: ...


class WitnessLogger(CustomLogger):
    """The callbacks of one worker. Its witnesses go to `sink`."""

    def __init__(self, sink: WitnessSink, streams: WorkerStreams, requests: OpenRequests) -> None:
        super().__init__()
        self._sink: WitnessSink = sink
        self._streams: WorkerStreams = streams
        self._requests: OpenRequests = requests
        #: For each grant: whether all of its failed attempts were free, and whether all were unreadable.
        self._failed: dict[str, tuple[bool, bool]] = {}

    # -- before a provider is asked

    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Any, call_type: Any) -> None:
        """If errors are billed, ask only one deployment, because a second one would be a second purchase on one hold."""
        claim: Mapping[str, Any] = (getattr(user_api_key_dict, "metadata", None) or {}).get(CLAIM) or {}
        if claim.get("once"):
            data["num_retries"] = 0

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> None:
        """LiteLLM has chosen a deployment. A request that fails before this (in a cooldown) was sent to no provider."""
        self._requests.sending(grant_name(metadata_of(kwargs).get("user_api_key_metadata")))

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: Any) -> None:
        """LiteLLM is about to ask a provider, so the next stream may begin."""
        metadata = metadata_of(kwargs) or metadata_of(kwargs.get("litellm_params") or {})
        self._streams.provider_is_asked(grant_name(metadata.get("user_api_key_metadata")))

    # -- whole answers, and failures

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """A whole answer was served, or a stream to its end. If the reader had left, LiteLLM may call this twice."""
        if kwargs.get(_WITNESSED):
            return
        kwargs[_WITNESSED] = True
        cost = kwargs.get("response_cost")
        self._record(AttemptEnd("success", kwargs, usage_of(response_obj), cost, start_time, end_time))

    async def async_post_call_failure_deployment_hook(
        self, request_data: Any, exception: Exception, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        """One attempt at one deployment failed before it answered. The router may try another deployment."""
        started = getattr(request_data.get("litellm_logging_obj"), "start_time", None)
        sent = details_of(request_data).get("api_call_start_time") is not None
        free = certainly_unbilled(exception) or not sent
        self._note_failure(
            metadata_of(request_data).get("user_api_key_metadata"), free, not sent and unreadable(exception)
        )
        cost = 0 if free else None
        self._record(AttemptEnd("failure", request_data, cost=cost, started_at=started, error=exception))
        for cause in causes(exception):
            with contextlib.suppress(AttributeError):
                setattr(cause, _WITNESSED, True)

    async def async_post_call_failure_hook(
        self, request_data: Any, original_exception: Exception, user_api_key_dict: Any, traceback_str: str | None = None
    ) -> None:
        """A request failed. Note what its error answer has to say, and write the witness if no other callback did.

        LiteLLM asks some providers (Google) for a stream only when the stream's first chunk is wanted. If that fails,
        the failure comes after the callback for the attempt, and before the stream reaches the wrapper below.
        """
        name = grant_name(getattr(user_api_key_dict, "metadata", None))
        free, was_unreadable = self._failed.pop(name, (None, False))
        if free is None:  # no attempt has failed: LiteLLM refused the request (a cooldown), or its answer broke late
            free = certainly_unbilled(original_exception) or self._requests.never_sent(name)
        request_data[_FREE] = "1" if free else "0"
        request_data[_UNREADABLE] = "1" if was_unreadable else "0"
        witnessed = any(getattr(cause, _WITNESSED, False) for cause in causes(original_exception))
        if not witnessed and certainly_unbilled(original_exception):
            self._record(AttemptEnd("failure", request_data, cost=0, error=original_exception))

    async def async_post_call_response_headers_hook(
        self, data: Any, user_api_key_dict: Any, response: Any, request_headers: Any = None
    ) -> dict[str, str] | None:
        """The headers of an error answer, which the service reads: see `llm_service/upstream/litellm_errors.py`."""
        free = data.get(_FREE) if response is None else None
        return None if free is None else {"x-treasurer-free": free, "x-treasurer-unreadable": data[_UNREADABLE]}

    def _note_failure(self, metadata: Any, free: bool, was_unreadable: bool) -> None:
        name = grant_name(metadata)
        all_free, all_unreadable = self._failed.get(name, (True, True))
        self._failed[name] = free and all_free, was_unreadable and all_unreadable
        if len(self._failed) > _MOST_FAILED:
            del self._failed[next(iter(self._failed))]

    # -- streams

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Pass a stream on. If it breaks, or if its reader leaves and it does not end soon, record the part that was seen."""
        metadata = getattr(user_api_key_dict, "metadata", None) or {}
        claim: Mapping[str, Any] = metadata.get(CLAIM) or {}
        seen = _SeenChunks(response, request_data)
        stream = self._streams.drained(response, seen.add)
        with self._streams.kept(grant_name(metadata)):
            try:
                async for chunk in stream.chunks():
                    if not is_own_count(chunk, response):
                        set_own_figure_apart(chunk, response)
                        yield chunk
            except (GeneratorExit, asyncio.CancelledError):
                end = await stream.drain(to_end=bool(claim.get("drain_on_disconnect")))
                if end is not DrainEnd.ENDED:
                    self._record_cut("cancelled", request_data, seen, None, unread=end is DrainEnd.BEHIND)
                elif stream.error is not None:
                    self._record_broken(request_data, seen, stream.error)
                raise
            except Exception as error:
                self._record_broken(request_data, seen, error)
                raise

    def _record_broken(self, data: Mapping[str, Any], seen: _SeenChunks, error: Exception) -> None:
        unread = bool(seen.chunks) and ended_by_litellm(error)
        self._record_cut("failure", data, seen, error, unread=unread)

    def _record_cut(
        self,
        outcome: Literal["failure", "cancelled"],
        data: Mapping[str, Any],
        seen: _SeenChunks,
        error: Exception | None,
        *,
        unread: bool = False,
    ) -> None:
        call = data.get("litellm_logging_obj")
        details = details_of(data)
        details[_WITNESSED] = True
        started = getattr(call, "start_time", None)
        if reported_its_end(seen.litellms):
            answer, cost = rebuilt(call, details, seen.litellms, data.get("messages"))
            if (usage := usage_of(answer)) is not None:
                self._record(AttemptEnd("success", details or data, usage, cost, started_at=started))
                return
        answer, cost = rebuilt(call, details, seen.chunks, data.get("messages"))
        if not seen.chunks and error is not None and certainly_unbilled(error):
            cost = 0
        usage = getattr(answer, "usage", None)
        self._record(AttemptEnd(outcome, details or data, usage, cost, started_at=started, error=error, unread=unread))

    # -- all of them

    def _record(self, end: AttemptEnd) -> None:
        try:
            witness = witness_of(end)
            if witness is not None:
                self._sink.add(witness)
        except Exception as fault:  # noqa: BLE001  # the event has an unknown shape; the caller still gets its answer
            _log.exception("A witness could not be recorded: %s", type(fault).__name__)


class _SeenChunks:
    """The chunks of one stream. As they come, they are folded both here and in LiteLLM's own list of them."""

    def __init__(self, response: Any, request: Mapping[str, Any]) -> None:
        self.chunks: list[Any] = []
        self._response = response
        self._request = request
        litellms: object = getattr(response, "chunks", None)
        self.litellms: list[Any] = litellms if isinstance(litellms, list) else []
        self._fold_at, self._fold_litellms_at = MOST, MOST

    def add(self, chunk: Any) -> None:
        """Add a chunk. This is also called during a drain, when nobody reads the stream any more."""
        if is_own_count(chunk, self._response):
            details_of(self._request)[COUNTED] = True
        self.chunks.append(chunk)
        try:
            self._fold_at = fold(self.chunks, self._fold_at)
            self._fold_litellms_at = fold(self.litellms, self._fold_litellms_at)
        except Exception as fault:  # noqa: BLE001  # chunks of another shape stay as they are
            self._fold_at = self._fold_litellms_at = sys.maxsize
            _log.warning("The chunks of a stream could not be folded: %s", type(fault).__name__)
