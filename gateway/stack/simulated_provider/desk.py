"""A desk of subscriptions: a simulated service for agents to act on. Its state outlives them, and it counts what was done.

    GET  /desk/subscriptions?customer=NAME
    POST /desk/cancellations               {"subscription": ID}, with the header idempotency-key
    GET  /_sim/desk?customer=NAME          what was cancelled, in order, and how many repetitions were dropped

What must hold: a key cancels once. The same key again gets the first answer, and changes nothing. With a file, each
cancellation is handed to the operating system before it is answered, so that a killed program forgets neither what it did
nor the key. Every customer has the same subscriptions at first, so each test takes a new customer.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from gateway.stack.simulated_provider.ask import BadRequest, Json

_PLANS = {"daily": "4.00", "weekly": "1.50", "archive": "9.00"}
_CUSTOMER = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_MOST_KEY = 200


@dataclass(frozen=True, slots=True)
class Cancellation:
    """An effect. `at` is in seconds since the epoch."""

    key: str
    subscription: str
    at: float


class Desk:
    """The subscriptions of all customers, and what was cancelled."""

    def __init__(self, path: Path | None = None) -> None:
        self._by_key: dict[str, Cancellation] = {}
        self._cancelled: set[str] = set()
        self._repeated: list[str] = []
        self._file: BinaryIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if path.exists() else b""
            length = data.rfind(b"\n") + 1  # a line that a kill has torn was not answered
            for line in data[:length].splitlines():
                self._keep(Cancellation(**orjson.loads(line)))
            self._file = path.open("ab")
            self._file.truncate(length)

    def subscriptions(self, customer: str) -> list[Json]:
        """What a customer has subscribed to.

        Raises:
            BadRequest: this cannot be a customer's name.
        """
        if not _CUSTOMER.fullmatch(customer):
            raise BadRequest(f"There is no customer {customer[:100]!r}.", status=404)
        return [self._shown(f"{customer}-{plan}", plan) for plan in _PLANS]

    def cancel(self, subscription: str, key: str) -> Json:
        """Cancel a subscription, once for each key.

        Raises:
            BadRequest: the subscription does not exist, it is cancelled already, or the key is missing or was another's.
        """
        if not 0 < len(key) <= _MOST_KEY:
            raise BadRequest(f"A cancellation needs an idempotency-key of at most {_MOST_KEY} characters.")
        customer, _, plan = subscription.rpartition("-")
        if plan not in _PLANS or not _CUSTOMER.fullmatch(customer):
            raise BadRequest(f"There is no subscription {subscription[:100]!r}.", status=404)
        done = self._by_key.get(key)
        if done is not None and done.subscription != subscription:
            raise BadRequest(f"This idempotency-key has cancelled {done.subscription}.", status=409)
        if done is not None:
            self._repeated.append(subscription)
        elif subscription in self._cancelled:
            raise BadRequest(f"Subscription {subscription} is cancelled already.", status=409)
        else:
            self._write(Cancellation(key, subscription, round(time.time(), 6)))
        return self._shown(subscription, plan)

    def account(self, customer: str) -> Json:
        """What was done for a customer."""
        own = {f"{customer}-{plan}" for plan in _PLANS}
        return {
            "cancellations": [asdict(each) for each in self._by_key.values() if each.subscription in own],
            "repetitions": sum(each in own for each in self._repeated),
        }

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()

    def _write(self, made: Cancellation) -> None:
        if self._file is not None:
            self._file.write(orjson.dumps(made) + b"\n")
            self._file.flush()
        self._keep(made)

    def _keep(self, made: Cancellation) -> None:
        self._by_key[made.key] = made
        self._cancelled.add(made.subscription)

    def _shown(self, subscription: str, plan: str) -> Json:
        state = "cancelled" if subscription in self._cancelled else "active"
        return {"subscription": subscription, "plan": plan, "dollars_a_month": _PLANS[plan], "state": state}
