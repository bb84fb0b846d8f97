"""What a request truly used, and what its answer reports: two things, because a script may lie.

What must hold: without a script both are the same. Both are in `prices.Used`'s convention (input includes cached,
output includes reasoning); each wire format turns them into its own.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.stack.simulated_provider.ask import Ask
from gateway.stack.simulated_provider.prices import Terms, Used
from gateway.stack.simulated_provider.script import Knobs

#: The name of a field of `Used`, by its name in a script.
FIELDS = {
    "prompt_tokens": "input",
    "completion_tokens": "output",
    "cached_tokens": "cached",
    "cache_write_tokens": "cache_write",
    "cache_write_1h_tokens": "cache_write_1h",
    "reasoning_tokens": "reasoning",
    "audio_tokens": "audio",
    "cached_audio_tokens": "cached_audio",
    "image_tokens": "image",
    "video_tokens": "video",
    "audio_output_tokens": "audio_output",
    "image_output_tokens": "image_output",
    "citation_tokens": "citations",
    "searches": "searches",
}


def true_input(ask: Ask, knobs: Knobs) -> Used:
    """The input of a request, and what is billed beside its tokens. No part is larger than its whole.

    Tokens of audio, images and video that a script sets replace those counted in the request.
    """
    audio = ask.audio if knobs.audio_tokens is None else knobs.audio_tokens
    image = ask.image if knobs.image_tokens is None else knobs.image_tokens
    video = ask.video if knobs.video_tokens is None else knobs.video_tokens
    total = ask.input_tokens - ask.audio - ask.image - ask.video + audio + image + video
    cached = min(knobs.cached_tokens, total - audio - image - video)
    write = min(max(knobs.cache_write_tokens, knobs.cache_write_1h_tokens), total - audio - image - video - cached)
    return Used(
        input=total,
        cached=cached,
        cache_write=write,
        cache_write_1h=min(knobs.cache_write_1h_tokens, write),
        audio=audio,
        image=image,
        video=video,
        citations=knobs.citation_tokens,
        searches=knobs.searches,
    )


def with_output(used: Used, output: int, reasoning: int, knobs: Knobs) -> Used:
    """The same usage with `output` generated tokens, which include `reasoning`."""
    reasoning = min(reasoning, output)
    audio = min(knobs.audio_output_tokens, output - reasoning)
    image = min(knobs.image_output_tokens, output - reasoning - audio)
    return replace(used, output=output, reasoning=reasoning, audio_output=audio, image_output=image)


def terms(ask: Ask, knobs: Knobs, at: float) -> Terms:
    """The terms on which a request is billed: those that it names, unless a script sets others."""
    return Terms(
        tier=knobs.tier if knobs.tier is not None else ask.tier,
        search_context=knobs.search_context if knobs.search_context is not None else ask.search_context,
        region=knobs.region if knobs.region is not None else ask.region,
        at=at,
    )


def reported(used: Used, knobs: Knobs) -> Used | None:
    """The usage that the answer reports. None: it reports none."""
    if knobs.usage == "missing":
        return None
    if knobs.usage == "zero":
        return Used()
    return _changed(used, knobs.usage) if isinstance(knobs.usage, dict) else used


def billed(used: Used, full: Used, knobs: Knobs) -> Used | None:
    """What goes on the invoice for a request that used `used` of the planned `full`; None: no line."""
    if knobs.billed == "none":
        return None
    if knobs.billed == "full":
        return full
    return _changed(used, knobs.billed) if isinstance(knobs.billed, dict) else used


def _changed(used: Used, changes: dict[str, int]) -> Used:
    return replace(used, **{FIELDS[name]: value for name, value in changes.items()})
