"""One run's steps, in the order in which it does them: what is recorded is replayed, the rest is done and recorded.

What must hold:
  I8  The intent to have an effect is written, under the fence, before the effect. A step whose intent is written and whose
      end is not is repeated only as its policy allows: `read` and `key` simply, `verify` if the effect did not happen,
      `ask` if a person said so.
  I8  A tool whose policy is `ask` is called only as a person has decided (`decisions.py`).
  A step that is done is never done again. Its result is that of the first time.
  A model's request carries the step's once key, so the service answers a repetition with the kept answer. If that is lost,
      it is bought again once for each step, and what the lost one cost is counted, or the run fails: by the agent's policy.
  A run that this run starts is started once, whichever worker does that: its key is the step's, with the fence under which the
      step was begun.
  What is recorded has been redacted, and the run goes on with what is recorded (`agents/redaction.py`).
  Once the run has to wait for others, no further step is done.
  A run that takes another way than it is recorded fails, and the error names the step, what it was and what it is now.
  Steps come one after another. Their number and the size of each result are limited.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from agents.approvals.record import Why
from agents.configuration.terms import LostAnswer
from agents.recorded_json import digest_of, to_json
from agents.redaction import Redact, RedactionFailed, Seen, redacted, redacted_error
from agents.runs.decisions import Decisions
from agents.runs.failures import Diverged, RunFailed, RunsUnderWay, as_json, describe
from agents.runs.record import Claim, Kind, Policy, Step, StepEnd, StepHead, StepState
from agents.runs.store import LEASE_S, RunStore
from agents.runs.tracing import StepTraces
from agents.tools.child_runs import starting_with
from agents.tools.policy import Declared, DidNotHappen, Happened, under_key
from llm_service.errors import IdempotencyConflict, TreasurerError, TreasuryUnavailable
from llm_service.model import Receipt

_Result = TypeVar("_Result")

#: What a step's body returns: JSON, as PydanticAI's codec makes it.
Body = Callable[[], Awaitable[object]]

#: While Postgres is away a step is not given up at once, because the lease lives on for so long.
_PATIENCE_S = LEASE_S - 3.0
#: What the results of steps are for a redaction; those of other steps are results.
_SEEN = {Kind.MODEL: Seen.ANSWER}
#: An effect is begun only if its intent was written less than so long ago. Leases are renewed early enough to last longer.
_FRESH_S = 3.0
_INTENTS = 3
_CALLS = (Kind.TOOL, Kind.MCP, Kind.CHILD)
_COUNTED = (Kind.MODEL, Kind.TOOL, Kind.MCP, Kind.CHILD)
#: Steps of all kinds are at most so many for each step that counts: a run that does nothing but list tools ends too.
_ALL_PER_COUNTED = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a run's journal, and whether it buys a lost answer again."""

    steps: int
    result_bytes: int
    lost_answer: LostAnswer


@dataclass(frozen=True, slots=True)
class Child:
    """A run that this run has started, as it is now. `end` is what the step records of its end; None: it is under way."""

    end: dict[str, Any] | None
    succeeded: bool = False


@dataclass(slots=True)
class _Spent:
    """What the requests of the step that is under way have cost."""

    call: Receipt | None = None
    cost_nano: int = 0
    lost_nano: int = 0


@dataclass(slots=True)
class Journal:
    """The steps of a run that this process has claimed. `recorded` are those of earlier claims, by their positions."""

    store: RunStore
    claim: Claim
    recorded: Mapping[int, Step]
    limits: Limits
    decisions: Decisions
    trace: StepTraces
    redact: Redact | None = None
    position: int = 0
    awaits: set[UUID] = field(default_factory=set[UUID])  # the runs for which this one has to wait
    uncertain: bool = False  # the step that it is at may have been done, and nobody knows
    _counted: int = 0
    _spent: _Spent = field(default_factory=_Spent)
    _key: str | None = None
    _requests: int = 0
    _bought_again: bool = False
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    # -- for the model: each of its requests has a key, and its receipt is counted

    def next_key(self) -> str | None:
        """The idempotency key of the next request to a model: one for each request of a step."""
        if self._key is None:
            return None
        self._requests += 1
        key = self._key if self._requests == 1 else f"{self._key}.{self._requests}"
        return f"{key}~again" if self._bought_again else key

    def paid(self, receipt: Receipt) -> None:
        """Count a request that was answered."""
        self._spent.call = receipt
        self._spent.cost_nano += receipt.cost_nano

    # -- steps

    async def model(self, name: str, body: Body) -> object:
        """A request to a model. Its answer is bought once, however often a worker asks."""

        async def request() -> object:
            try:
                return await body()
            except IdempotencyConflict as error:
                if error.code == "idempotency_conflict":
                    raise Diverged(
                        "diverged",
                        f"Step {self.position} ({name}) sends the model another request than the first time, which was "
                        "answered and not recorded. Something that the agent sends (a prompt, a tool's description) has "
                        "changed or depends on the moment. Fork the run at the step before.",
                        step=self.position,
                    ) from error
                if error.code != "idempotency_answer_lost" or self._bought_again:
                    raise
                if self.limits.lost_answer is LostAnswer.FAIL:
                    raise RunFailed(
                        "answer_lost",
                        f"The answer to step {self.position} ({name}) was paid for and is lost, and this agent does not buy "
                        f"it again. {error.message}",
                        step=self.position,
                    ) from error
                lost_nano = int(error.details.get("cost_nano", 0))
                self._spent.lost_nano += lost_nano
                self._spent.cost_nano += lost_nano
                self._bought_again, self._requests = True, 0
                return await body()

        return await self._step(name, Kind.MODEL, Declared(Policy.KEY), request, is_effect=False)

    async def tool(
        self,
        name: str,
        kind: Kind,
        declared: Declared,
        body: Body,
        *,
        tool: str | None,
        arguments: Mapping[str, Any] | None,
        as_result: Callable[[object], object] = lambda result: result,
    ) -> object:
        """A tool call. Its intent is written first, unless it changes nothing.

        `as_result` makes what a `verify` function has found into what `body` would have returned.
        """
        is_effect = declared.policy is not Policy.READ
        return await self._step(
            name, kind, declared, body, is_effect=is_effect, tool=tool, arguments=arguments, as_result=as_result
        )

    def announce(self, tool: str, arguments: Mapping[str, Any], schema: dict[str, Any] | None) -> dict[str, Any] | None:
        """Announce the tool call that comes next. Returns and raises as `Decisions.announce` does."""
        shown = redacted(self.redact, Seen.ARGUMENTS, as_json(arguments))
        return self.decisions.announce(self.position + 1, tool, shown, schema)

    async def other(self, name: str, declared: Declared, body: Body) -> object:
        """A step that PydanticAI wants recorded beside requests and tool calls, such as the list of a server's tools."""
        is_effect = declared.policy is not Policy.READ
        return await self._step(name, Kind.OTHER, declared, body, is_effect=is_effect)

    async def child(
        self,
        name: str,
        agent: str,
        arguments: Mapping[str, Any],
        *,
        find: Callable[[str], Awaitable[Child | None]],
        start: Callable[[str], Awaitable[Child]],
    ) -> tuple[str, dict[str, Any] | None]:
        """A run that this run starts: its key, and its end; None: it is under way.

        `find` looks for the run with a key, and `start` starts one. That may be repeated. A run that has failed, of a step that
        a person has decided to do again, is started anew.
        """
        async with self._turn:
            head = self._next(name, Kind.CHILD, Policy.KEY, agent, arguments)
            earlier = self.recorded.get(head.position)
            if earlier is not None:
                _check_same(earlier.head, head)
                head = earlier.head
                if earlier.result is not None:
                    return _child_key(head, earlier.fence), json.loads(earlier.result)
            began = time.monotonic()
            key = _child_key(head, self.claim.fence if earlier is None else earlier.fence)
            child = None if earlier is None else await find(key)
            failed = child is not None and child.end is not None and not child.succeeded
            if earlier is None or (earlier.again and (child is None or failed)):
                await self._begin(head)
                key, child = _child_key(head, self.claim.fence), None
            if child is None:
                child = await self._patiently(lambda: start(key))
            return key, None if child.end is None else await self._done(head, child.end, began)

    def wait_for(self, runs: Collection[UUID]) -> NoReturn:
        """Stop here until these runs have ended. Raises RunsUnderWay."""
        self.awaits.update(runs)
        raise RunsUnderWay

    async def _step(
        self,
        name: str,
        kind: Kind,
        declared: Declared,
        body: Body,
        *,
        is_effect: bool,
        tool: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        as_result: Callable[[object], object] = lambda result: result,
    ) -> object:
        async with self._turn:  # two steps at a time would be numbered by chance
            head = self._next(name, kind, declared.policy, tool, arguments)
            earlier = self.recorded.get(head.position)
            self.uncertain = is_effect and earlier is not None and earlier.result is None
            if earlier is not None:
                _check_same(earlier.head, head)
                head = earlier.head
                if earlier.result is not None:
                    return json.loads(earlier.result)
            answered = await self._settle(head, earlier, declared, arguments)
            if answered is not None:
                return await self._done(head, as_result(answered.result), time.monotonic())
            if is_effect:
                await self._begin(head)
                self.uncertain = True
            return await self._do(head, body)

    def _next(
        self, name: str, kind: Kind, policy: Policy, tool: str | None, arguments: Mapping[str, Any] | None
    ) -> StepHead:
        if self.awaits:
            raise RunsUnderWay
        self.position += 1
        self._counted += kind in _COUNTED
        if self._counted > self.limits.steps or self.position > self.limits.steps * _ALL_PER_COUNTED:
            raise RunFailed(
                "step_limit",
                f"The run has done {self.limits.steps} steps, which is its limit.",
                limit=self.limits.steps,
            )
        once_key = f"{self.claim.run_id}/{self.position}"
        self._key, self._requests, self._bought_again, self._spent = once_key, 0, False, _Spent()
        shown = None if arguments is None else redacted(self.redact, Seen.ARGUMENTS, as_json(arguments))
        digest = None if arguments is None else digest_of(shown)
        return StepHead(self.position, name, kind, policy, once_key, tool, shown, digest)

    async def _settle(
        self, head: StepHead, earlier: Step | None, declared: Declared, arguments: Mapping[str, Any] | None
    ) -> Happened | None:
        """What to do with a step that is not done: do it (None), or answer with what is returned.

        The policy is today's: a tool that is declared anew is treated as it is declared now.
        """
        if declared.policy in (Policy.READ, Policy.KEY):
            return None
        if earlier is None:
            asks = declared.policy is Policy.ASK and head.kind in _CALLS
            return self.decisions.of(head, Why.BEFORE) if asks else None
        if declared.verify is not None:
            found = await declared.verify(earlier.head.once_key, dict(as_json(arguments or {})))
            if isinstance(found, Happened):
                return found
            if isinstance(found, DidNotHappen):
                return None
        if earlier.again:
            return None
        if earlier.state is not StepState.UNKNOWN:
            await self._record(earlier.head, StepEnd(StepState.UNKNOWN))
        return self.decisions.of(earlier.head, Why.UNKNOWN)

    async def _begin(self, head: StepHead) -> None:
        """Write the intent, and know that the run is still this worker's now: a process that was stopped while it waited for
        the answer may have lost the run since, so after a late answer it asks again.
        """
        asked_at = 0.0

        async def begin() -> None:
            nonlocal asked_at
            asked_at = time.monotonic()
            await self.store.begin(self.claim, head)

        for _ in range(_INTENTS):
            await self._patiently(begin)
            if time.monotonic() - asked_at < _FRESH_S:
                return
        raise TreasuryUnavailable("Postgres answers too late for an effect to be begun. Nothing was done.")

    async def _do(self, head: StepHead, body: Body) -> object:
        began = time.monotonic()
        try:
            with under_key(head.once_key), starting_with(None), self.trace.within(head.position):
                result = await body()
        except TreasurerError as error:
            if head.kind is not Kind.MODEL:
                await self._failed(head, error, began)
            raise  # a refusal cost nothing, and the step is still to be done
        except Exception as error:
            await self._failed(head, error, began)
            raise
        return await self._done(head, result, began)

    async def _done(self, head: StepHead, result: object, began: float) -> Any:
        try:
            text = to_json(result)
            if self.redact is not None:
                text = to_json(redacted(self.redact, _SEEN.get(head.kind, Seen.RESULT), json.loads(text)))
        except RedactionFailed as failure:
            await self._failed(head, failure, began)
            raise
        except (TypeError, ValueError) as error:
            failure = RunFailed(
                "not_json",
                f"Step {head.position} ({head.tool or head.name}) returned what is not JSON, so it cannot be recorded: {error}.",
                step=head.position,
            )
            await self._failed(head, failure, began)
            raise failure from error
        if len(text) > self.limits.result_bytes:
            failure = RunFailed(
                "result_too_large",
                f"Step {head.position} ({head.tool or head.name}) returned {len(text):,} bytes; at most "
                f"{self.limits.result_bytes:,} are recorded. Let the tool return a reference to what is large.",
                step=head.position,
            )
            await self._failed(head, failure, began)
            raise failure
        await self._record(head, self._end(StepState.DONE, began, result=text))
        self.uncertain = False
        return json.loads(text)

    async def _failed(self, head: StepHead, error: Exception, began: float) -> None:
        error_ = describe(error) if isinstance(error, RedactionFailed) else redacted_error(self.redact, describe(error))
        await self._record(head, self._end(StepState.FAILED, began, error=error_))

    def _end(self, state: StepState, began: float, **outcome: Any) -> StepEnd:
        spent = self._spent
        return StepEnd(
            state,
            call_id=None if spent.call is None else spent.call.call_id,
            cost_nano=spent.cost_nano,
            lost_nano=spent.lost_nano,
            took_s=time.monotonic() - began,
            **outcome,
        )

    async def _record(self, head: StepHead, end: StepEnd) -> None:
        await self._patiently(lambda: self.store.record(self.claim, head, end))
        self.trace.step(head, end)

    async def _patiently(self, write: Callable[[], Awaitable[_Result]]) -> _Result:
        """Try a write again while Postgres is away, as long as the lease may live."""
        give_up, pause_s = time.monotonic() + _PATIENCE_S, 0.1
        while True:
            try:
                return await write()
            except TreasuryUnavailable:
                if time.monotonic() + pause_s > give_up:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 2.0)


def _child_key(head: StepHead, fence: int) -> str:
    """The key of the run that a step starts, if the step was begun under this fence."""
    return f"{head.once_key}/{fence}"


def _check_same(then: StepHead, now: StepHead) -> None:
    """Raises Diverged, unless the step is what it was when it was recorded."""
    if (then.name, then.kind) != (now.name, now.kind):
        what_then, what_now = f"{then.kind} {then.tool or then.name}", f"{now.kind} {now.tool or now.name}"
    elif then.arguments_digest != now.arguments_digest:
        what_then, what_now = (f"{head.tool or head.name} with {to_json(head.arguments)[:300]}" for head in (then, now))
    else:
        return
    raise Diverged(
        "diverged",
        f"Step {now.position} was {what_then}, and is {what_now} now: the agent's code, its tools or their order have changed "
        "since. Run it with the code that it began with, or fork it at the step before.",
        step=now.position, then=what_then, now=what_now,
    )  # fmt: skip
