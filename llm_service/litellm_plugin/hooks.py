"""What LiteLLM Proxy loads of ours: the check of grants, and the witness of each attempt.

What must hold: LiteLLM serves nothing without a valid grant, used once (invariant I3), except its
own health routes; every attempt at a deployment leaves a witness, whether it succeeded, failed, was
retried by the router or was left by its caller in mid-stream (I2); an error answer says whether anything can
have been billed (`x-treasurer-free`); one attempt is one request to a provider (I1); and a fault in here never takes a served answer away: only the check of grants may refuse.

`config/litellm.yaml` names `custom_auth` and `witness_logger`. Runs in LiteLLM's environment, so it
imports only the standard library, LiteLLM, asyncpg, PyJWT and modules of ours that need no more.
Environment: TREASURER_GRANT_SECRET, TREASURER_GRANT_DIR, TREASURER_SPOOL_DIR,
TREASURER_DATABASE_URL, TREASURER_STREAMS_PER_WORKER.
"""
# LiteLLM is in another environment than the type checker's, and its objects are what they are at run time.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportUnknownParameterType=false

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import ProxyException, UserAPIKeyAuth
from litellm.proxy.common_utils.http_parsing_utils import read_request_body
from litellm.types.utils import is_litellm_owned_kwarg

from llm_service import process
from llm_service.grants import (
    CALL_PATHS,
    GRANT_USED,
    GRANTS_UNAVAILABLE,
    PRICES_CHANGED,
    READ_PATHS,
    Grant,
    GrantError,
    GrantTimeError,
    UsedGrants,
    verify,
)
from llm_service.litellm_plugin.chunk_folding import MOST, fold
from llm_service.litellm_plugin.drain import LastRead
from llm_service.litellm_plugin.events import (
    CLAIM,
    COUNTED,
    causes,
    certainly_unbilled,
    details_of,
    ended_by_litellm,
    estimate,
    grant_name,
    is_own_count,
    metadata_of,
    unreadable,
    usage_of,
    witness_of,
)
from llm_service.litellm_plugin.log_redaction import QuietLogs
from llm_service.litellm_plugin.memory_release import settle_in
from llm_service.litellm_plugin.no_retries import send_once
from llm_service.litellm_plugin.price_book import PriceBook
from llm_service.litellm_plugin.shortcuts import take_shortcuts
from llm_service.litellm_plugin.witness_writer import WitnessWriter
from llm_service.litellm_plugin.worker_streams import WorkerStreams
from llm_service.used_grants import SharedUses, UsesUnknown
from llm_service.witness import Outcome

_log = logging.getLogger("treasurer.litellm_plugin")

_FREE = "treasurer_free"  # set on a request that failed: "1" if nothing can have been billed
#: A stream that the service has left is read on, in rounds of so many seconds. After each round it is looked at whether all
#: that the provider has sent was read: then the provider is told to stop.
_LINGER_S = 2.0
#: Reading on ends after so many seconds, though more was sent than was read.
_BEHIND_S = 60.0
#: Where a provider bills a stream to its end whoever reads it, its end is waited for, for so many seconds.
_FINISH_S = 300.0
_MOST_FAILED = 10_000
_UNREADABLE = "treasurer_unreadable"  # set on a request that LiteLLM could not put into any provider's words
_ENDED = "treasurer_witnessed"  # set on a stream that did not end by itself, and on a failure: its witness is written

#: Fields of a body that steer LiteLLM, or a provider past LiteLLM, to what was not held for: another model, another
#: address, more output than `max_tokens` (Gemini obeys `max_output_tokens` over it, and `candidateCount` multiplies).
#: LiteLLM's own parameters are refused with these. The service lets none of them through; this is the second lock.
_STEERING = frozenset(
    {
        "additional_drop_params",
        "best_of",
        "candidateCount",
        "candidate_count",
        "content_policy_fallbacks",
        "context_window_fallbacks",
        "drop_params",
        "extra_body",
        "extra_headers",
        "extra_query",
        "generationConfig",
        "generation_config",
        "maxOutputTokens",
        "max_new_tokens",
        "max_output_tokens",
        "max_tokens_to_sample",
        "mock_testing_content_policy_fallbacks",
        "mock_testing_context_fallbacks",
        "mock_testing_fallbacks",
        "mock_testing_rate_limit_error",
        "modify_params",
        "num_retries_per_request",
    }
)
_HARMLESS = frozenset({"metadata", "tags"})
#: Headers that steer LiteLLM (`x-litellm-num-retries`), or that it passes on to a provider (`anthropic-beta`).
_STEERING_HEADERS = ("x-litellm-", "litellm-", "anthropic-", "openai-", "x-mcp-")


def _folder(name: str, fallback: str) -> Path:
    return Path(os.environ.get(name) or fallback)


_secret = os.environ.get("TREASURER_GRANT_SECRET", "")
_quiet = QuietLogs()
_database_url = os.environ.get("TREASURER_DATABASE_URL")
_used = UsedGrants(_folder("TREASURER_GRANT_DIR", ".treasurer/grants"))
_streams = WorkerStreams(int(os.environ.get("TREASURER_STREAMS_PER_WORKER") or 0))
_shared = SharedUses(_database_url) if _database_url else None
_prices = PriceBook(registers=_shared is not None)


def _refusal(message: str, *, status: int, kind: str, code: str) -> ProxyException:
    told = {  # for the service: it was us, and no model
        "x-treasurer-refused": code,
        "x-treasurer-time": f"{time.time():.3f}",
    }
    if code == "proxy_busy":
        told["retry-after"] = "1"
    return ProxyException(message=message, type=kind, param=None, code=status, openai_code=code, headers=told)


def _not_granted(reason: str, *, code: str = "invalid_grant") -> ProxyException:
    return _refusal(
        f"Refused: {reason}. LiteLLM Proxy serves only Treasurer; send this request to Treasurer's gateway.",
        status=401,
        kind="authentication_error",
        code=code,
    )


async def custom_auth(request: Any, api_key: str) -> UserAPIKeyAuth:
    """Admit a request that carries the grant for exactly itself, once.

    Raises:
        ProxyException: 401 without a valid grant or for its second use, 400 for a body that steers LiteLLM,
            409 for a grant of other prices than this worker's, 503 when a use cannot be remembered, or for one
            stream too many.
    """
    _quiet.begin()
    path = str(request.scope.get("path", ""))
    if path not in CALL_PATHS and path not in READ_PATHS:
        raise _not_granted("no grant opens this path")
    _check_surroundings(request)
    if len(_secret) < 32:
        raise _refusal(
            "TREASURER_GRANT_SECRET is not set, so that no grant can be checked",
            status=503, kind="service_unavailable_error", code=GRANTS_UNAVAILABLE,
        )  # fmt: skip
    body: bytes = await request.body()
    fields: Mapping[str, Any] = await read_request_body(request) if body else {}
    try:
        grant = verify(_secret, api_key or "", path=path, model=fields.get("model"), body=body)
    except GrantTimeError as error:
        raise _not_granted(error.reason, code="clock") from None
    except GrantError as error:
        raise _not_granted(error.reason) from None
    if path in CALL_PATHS:
        _check_steering(fields)
        # First what leaves the grant as it is. Then its use: whatever is refused after it, another sending of the same
        # request is known for what it is.
        if streams := bool(fields.get("stream")):
            _take_a_place(grant)
        await _use_once(grant)
        _check_prices(grant)
        if streams:
            await _streams.begin(grant.jti)
    else:
        _prices.stamp()  # before /model/info is served
    return _identity(grant)


def _check_surroundings(request: Any) -> None:
    """A grant names a path and a body, and LiteLLM reads more than these: `?model=` goes before the body's model."""
    if request.scope.get("query_string"):
        raise _not_granted("a granted request has no query")
    if steering := sorted(name for name in request.headers if name.lower().startswith(_STEERING_HEADERS)):
        raise _not_granted(f"a granted request has no header {steering[0][:40]}")
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _not_granted("a granted request is JSON")


def _check_steering(fields: Mapping[str, Any]) -> None:
    steering = sorted(
        name for name in fields if name in _STEERING or (name not in _HARMLESS and is_litellm_owned_kwarg(name))
    )
    if steering:
        raise _refusal(
            f"The body may not carry {', '.join(steering)}: that steers LiteLLM away from what was held for",
            status=400, kind="invalid_request_error", code="field_not_allowed",
        )  # fmt: skip


def _take_a_place(grant: Grant) -> None:
    if not _streams.take(grant.jti):
        raise _refusal(
            f"This worker has {_streams.most} streams under way, the most it takes (TREASURER_STREAMS_PER_WORKER)",
            status=503, kind="service_unavailable_error", code="proxy_busy",
        )  # fmt: skip


def _check_prices(grant: Grant) -> None:
    if _prices.refuses(grant.model, grant.prices):
        raise _refusal(
            f"The prices of {grant.model!r} have changed since this call was held for: read /model/info again",
            status=409, kind="invalid_request_error", code=PRICES_CHANGED,
        )  # fmt: skip


async def _use_once(grant: Grant) -> None:
    """At this proxy by way of its files, which is cheap, then at all proxies of the database."""
    try:
        first = _used.use(grant) and (_shared is None or await _shared.use(grant))
    except UsesUnknown as error:
        raise _refusal(
            f"Postgres does not say whether this grant was used ({error}), so it is not served",
            status=503, kind="service_unavailable_error", code=GRANTS_UNAVAILABLE,
        ) from None  # fmt: skip
    except OSError as error:
        raise _refusal(
            f"A grant's use cannot be remembered ({error.strerror}): check TREASURER_GRANT_DIR",
            status=503, kind="service_unavailable_error", code=GRANTS_UNAVAILABLE,
        ) from None  # fmt: skip
    if not first:
        raise _not_granted("the grant has been used before", code=GRANT_USED)


def _identity(grant: Grant) -> UserAPIKeyAuth:
    """The agent, team and tags as LiteLLM's own logs and metrics name them."""
    return UserAPIKeyAuth(
        api_key=f"treasurer-agent-{grant.agent_id}",
        key_alias=grant.agent,
        team_id=grant.team,
        team_alias=grant.team,
        org_id=grant.organisation,
        end_user_id=grant.user,
        metadata={
            CLAIM: {
                "call_id": str(grant.call_id),
                "attempt": grant.attempt,
                "drain_on_disconnect": grant.drain_on_disconnect,
                "once": grant.once,
            },
            "agent": grant.agent,
            "run": grant.run,
            "session": grant.session,
            "tags": list(grant.tags),
        },
    )


class WitnessLogger(CustomLogger):
    """Turns LiteLLM's events into witnesses. Each hook is one kind of end of one attempt.

    LiteLLM's own failure event comes once a request, however often the router retried, so failures are
    taken from the hook of each deployment's attempt. A stream's end is seen by wrapping its iterator:
    when it does not end by itself, neither of LiteLLM's events tells what had been served.
    """

    def __init__(self, writer: WitnessWriter) -> None:
        super().__init__()
        self._writer: WitnessWriter = writer
        #: By grant: whether all of its attempts that failed were free, and whether all were unreadable.
        self._failed: dict[str, tuple[bool, bool]] = {}

    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Any, call_type: Any) -> None:
        """Where errors are billed, one deployment is asked: a second one would be a second purchase on one hold."""
        claim: Mapping[str, Any] = (getattr(user_api_key_dict, "metadata", None) or {}).get(CLAIM) or {}
        if claim.get("once"):
            data["num_retries"] = 0

    def log_pre_api_call(self, model: Any, messages: Any, kwargs: Any) -> None:
        """A provider is about to be asked."""
        metadata = metadata_of(kwargs) or metadata_of(kwargs.get("litellm_params") or {})
        _streams.asks_provider(grant_name(metadata.get("user_api_key_metadata")))

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """An answer was served whole (a stream: to its end). LiteLLM may tell it twice, if the reader had left."""
        if kwargs.get(_ENDED):
            return
        kwargs[_ENDED] = True
        self._record("success", kwargs, usage_of(response_obj), kwargs.get("response_cost"), start_time, end_time)

    async def async_post_call_failure_deployment_hook(
        self, request_data: Any, exception: Exception, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        """One attempt at one deployment failed before it answered; the router may try another."""
        started = getattr(request_data.get("litellm_logging_obj"), "start_time", None)
        sent = details_of(request_data).get("api_call_start_time") is not None
        free = certainly_unbilled(exception) or not sent
        self._remember(metadata_of(request_data).get("user_api_key_metadata"), free, not sent and unreadable(exception))
        cost = 0 if free else None
        self._record("failure", request_data, None, cost, started, None, exception)
        for cause in causes(exception):
            with contextlib.suppress(AttributeError):
                setattr(cause, _ENDED, True)

    async def async_post_call_failure_hook(
        self, request_data: Any, original_exception: Exception, user_api_key_dict: Any, traceback_str: str | None = None
    ) -> None:
        """A request failed. Some providers (Google) are asked for a stream only when its first chunk is: after the
        hook above, and before the one below."""
        free, unread = self._failed.pop(grant_name(getattr(user_api_key_dict, "metadata", None)), (None, False))
        if free is None:  # no attempt failed: LiteLLM refused it before (a cooldown), or a stream broke late
            free = certainly_unbilled(original_exception) or not request_data.get("stream")
        request_data[_FREE] = "1" if free else "0"
        request_data[_UNREADABLE] = "1" if unread else "0"
        told = any(getattr(cause, _ENDED, False) for cause in causes(original_exception))
        if not told and certainly_unbilled(original_exception):
            self._record("failure", request_data, None, 0, None, None, original_exception)

    async def async_post_call_response_headers_hook(
        self, data: Any, user_api_key_dict: Any, response: Any, request_headers: Any = None
    ) -> dict[str, str] | None:
        """An error answer says whether anything can have been billed, and whether the request itself was at fault."""
        free = data.get(_FREE) if response is None else None
        return None if free is None else {"x-treasurer-free": free, "x-treasurer-unreadable": data[_UNREADABLE]}

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """Pass a stream through; if it breaks, or its reader leaves and it does not end soon, record what came."""
        metadata = getattr(user_api_key_dict, "metadata", None) or {}
        claim: Mapping[str, Any] = metadata.get(CLAIM) or {}
        seen: list[Any] = []
        received = getattr(response, "chunks", None)
        fold_at = [MOST, MOST]

        def saw(chunk: Any) -> None:
            """Also of a stream that is read on after its reader has left."""
            if is_own_count(chunk, response):
                details_of(request_data)[COUNTED] = True
            seen.append(chunk)
            try:
                fold_at[0] = fold(seen, fold_at[0])
                if isinstance(received, list):
                    fold_at[1] = fold(received, fold_at[1])
            except Exception as fault:  # noqa: BLE001  # of chunks of another shape: they stay as they are
                fold_at[:] = [sys.maxsize, sys.maxsize]
                _log.warning("The chunks of a stream could not be folded: %s", type(fault).__name__)

        stream = _streams.reading(response, saw)
        with _streams.kept(grant_name(metadata)):
            try:
                async for chunk in stream.chunks():
                    if not is_own_count(chunk, response):
                        yield chunk
            except (GeneratorExit, asyncio.CancelledError):
                ended = await (
                    stream.finish(_FINISH_S)
                    if claim.get("drain_on_disconnect")
                    else stream.finish(_BEHIND_S, _LINGER_S)
                )
                if ended is not LastRead.ENDED:
                    self._record_cut("cancelled", request_data, seen, None, unread=ended is LastRead.BEHIND)
                elif stream.error is not None:
                    self._record_broken(request_data, seen, stream.error)
                raise
            except Exception as error:
                self._record_broken(request_data, seen, error)
                raise

    def _remember(self, metadata: Any, free: bool, unread: bool) -> None:
        name = grant_name(metadata)
        all_free, all_unread = self._failed.get(name, (True, True))
        self._failed[name] = free and all_free, unread and all_unread
        if len(self._failed) > _MOST_FAILED:  # of requests that another deployment served after all
            del self._failed[next(iter(self._failed))]

    def _record_broken(self, data: Mapping[str, Any], chunks: list[Any], error: Exception) -> None:
        # Before its first chunk nobody knows whether there is anything to pay for: that is for the agent's policy.
        self._record_cut("failure", data, chunks, error, unread=bool(chunks) and ended_by_litellm(error))

    def _record_cut(
        self,
        outcome: Literal["failure", "cancelled"],
        data: Mapping[str, Any],
        chunks: list[Any],
        error: Exception | None,
        *,
        unread: bool = False,
    ) -> None:
        call = data.get("litellm_logging_obj")
        details = details_of(data)
        details[_ENDED] = True
        usage, cost = estimate(call, details, chunks, data.get("messages"))
        started_at = getattr(call, "start_time", None)
        self._record(outcome, details or data, usage, cost, started_at, None, error, unread=unread)

    def _record(
        self,
        outcome: Outcome,
        call: Mapping[str, Any],
        usage: Any,
        cost: Any,
        started_at: Any,
        ended_at: Any,
        error: Exception | None = None,
        *,
        unread: bool = False,
    ) -> None:
        """Hand a witness over. Whatever is wrong with an event must not reach LiteLLM's caller."""
        try:
            witness = witness_of(outcome, call, usage, cost, started_at, ended_at, error)
            if witness is not None:
                self._writer.add(replace(witness, unread=unread))
        except Exception as fault:  # noqa: BLE001 (whatever LiteLLM hands over, its caller gets the answer)
            _log.exception("A witness could not be recorded: %s", type(fault).__name__)


process.forbid_core_dumps()
send_once()
take_shortcuts()
settle_in()
witness_logger = WitnessLogger(
    WitnessWriter(os.environ.get("TREASURER_DATABASE_URL"), _folder("TREASURER_SPOOL_DIR", ".treasurer/spool"))
)
with contextlib.suppress(RuntimeError):
    # Loaded inside the worker's loop: what an earlier process left in the spool is replayed without waiting for a call.
    process.collect_between_callbacks()
    witness_logger._writer.start()  # pyright: ignore[reportPrivateUsage]  # same module
