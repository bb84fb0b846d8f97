"""How many tokens a request truly used, and how many its answer reports: two things, because a script may lie.

What must hold: without a script both are the same. Reported tokens are in OpenAI's convention here (input
includes cached, output includes reasoning); each wire format turns them into its own.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.stack.simulated_provider.prices import Tokens
from gateway.stack.simulated_provider.script import Knobs

_FIELDS = {
    "prompt_tokens": "input",
    "completion_tokens": "output",
    "cached_tokens": "cached",
    "cache_write_tokens": "cache_write",
    "cache_write_1h_tokens": "cache_write_1h",
    "reasoning_tokens": "reasoning",
}


def true_input(input_tokens: int, knobs: Knobs) -> Tokens:
    """The input of a request: cached and written parts are never more than there is."""
    cached = min(knobs.cached_tokens, input_tokens)
    write = min(max(knobs.cache_write_tokens, knobs.cache_write_1h_tokens), input_tokens - cached)
    return Tokens(
        input=input_tokens, cached=cached, cache_write=write, cache_write_1h=min(knobs.cache_write_1h_tokens, write)
    )


def with_output(tokens: Tokens, output: int, reasoning: int) -> Tokens:
    """The same input with so much generated; `output` includes `reasoning`."""
    return replace(tokens, output=output, reasoning=min(reasoning, output))


def reported(tokens: Tokens, knobs: Knobs) -> Tokens | None:
    """The usage that the answer reports. None: it reports none."""
    if knobs.usage == "missing":
        return None
    if knobs.usage == "zero":
        return Tokens()
    return _changed(tokens, knobs.usage) if isinstance(knobs.usage, dict) else tokens


def billed(tokens: Tokens, full: Tokens, knobs: Knobs) -> Tokens | None:
    """What goes on the invoice for a request that used `tokens` of the planned `full`; None: no line."""
    if knobs.billed == "none":
        return None
    if knobs.billed == "full":
        return full
    return _changed(tokens, knobs.billed) if isinstance(knobs.billed, dict) else tokens


def _changed(tokens: Tokens, changes: dict[str, int]) -> Tokens:
    return replace(tokens, **{_FIELDS[name]: value for name, value in changes.items()})
