"""What a tool says about its repetition: the policy, and the key by which its receiver knows a repetition.

    @agent.tool(metadata=policy.READ)                   it changes nothing: it is simply called again
    @agent.tool(metadata=policy.KEY)                    it passes policy.once_key() on, and its receiver drops repetitions
    @agent.tool(metadata=policy.verify(was_sent))       was_sent finds out whether it was done
    @agent.tool                                         a person is asked before each call (policy.ASK)
    @agent.tool(metadata=policy.RUNS)                   it starts runs of agents (child_runs.py), and does nothing else

What must hold (invariant I8): a worker may die after a tool's effect and before it is recorded. Nothing can prevent that.
So each tool says how a repetition is harmless. A tool that says nothing is never called without a person's word, neither
the first time nor again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from agents.runs.record import Policy

#: Where a tool's metadata has its policy, and the function that verifies.
POLICY = "treasurer_policy"
_VERIFIES = "treasurer_verify"
_STARTS_RUNS = "treasurer_starts_runs"

READ: dict[str, Any] = {POLICY: Policy.READ.value}
KEY: dict[str, Any] = {POLICY: Policy.KEY.value}
ASK: dict[str, Any] = {POLICY: Policy.ASK.value}
#: A tool that starts runs. It is not a step: each run that it starts is one, and its code is repeated around them.
RUNS: dict[str, Any] = {POLICY: Policy.KEY.value, _STARTS_RUNS: True}


@dataclass(frozen=True, slots=True)
class Happened:
    """The tool was called before, and `result` is what it returned, or would have."""

    result: Any = None


@dataclass(frozen=True, slots=True)
class DidNotHappen:
    """The tool's effect did not happen, so it may be called."""


@dataclass(frozen=True, slots=True)
class NobodyKnows:
    """The effect may have happened: a person has to decide."""


#: Is called with the once key and the tool's arguments, by name.
Verify = Callable[[str, dict[str, Any]], Awaitable[Happened | DidNotHappen | NobodyKnows]]


def verify(check: Verify) -> dict[str, Any]:
    """The metadata of a tool whose effect can be looked up: `check(once_key, arguments)` says whether it happened."""
    return {POLICY: Policy.VERIFY.value, _VERIFIES: check}


@dataclass(frozen=True, slots=True)
class Declared:
    """A tool's policy, as its metadata or an MCP server's annotations declare it. `starts_runs`: it is declared as `RUNS`."""

    policy: Policy
    verify: Verify | None = None
    starts_runs: bool = False


UNDECLARED = Declared(Policy.ASK)


def declared(metadata: Mapping[str, Any] | None) -> Declared:
    """The policy in a tool's metadata. What says nothing, or what is not understood, is `ask`.

    A server of MCP annotates its tools: `readOnlyHint` is `read`, `destructiveHint` is `ask`, `idempotentHint` is `key`. Our own metadata on such a
    tool goes before its server's word.
    """
    if not metadata:
        return UNDECLARED
    if POLICY in metadata:
        try:
            policy = Policy(metadata[POLICY])
        except ValueError:
            return UNDECLARED
        check = metadata.get(_VERIFIES)
        if policy is not Policy.VERIFY:
            return Declared(policy, starts_runs=policy is Policy.KEY and metadata.get(_STARTS_RUNS) is True)
        return UNDECLARED if check is None else Declared(policy, check)
    annotations = metadata.get("annotations")
    if isinstance(annotations, Mapping):
        if annotations.get("readOnlyHint") is True:
            return Declared(Policy.READ)
        if annotations.get("destructiveHint") is True:
            return UNDECLARED  # a person decides first, even if a repetition would destroy nothing more
        if annotations.get("idempotentHint") is True:
            return Declared(Policy.KEY)
    return UNDECLARED


_once_key: ContextVar[str | None] = ContextVar("treasurer_once_key", default=None)


def once_key() -> str:
    """The key of the tool call that is under way: the same one each time that this call is repeated.

    Pass it to the receiver, which drops a repetition by it. Outside a recorded run each call of this is a new key.
    """
    return _once_key.get() or str(uuid4())


@contextmanager
def under_key(key: str) -> Iterator[None]:
    """Within this context `once_key()` is `key`."""
    token = _once_key.set(key)
    try:
        yield
    finally:
        _once_key.reset(token)
