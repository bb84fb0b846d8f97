"""The tool `read_feed`: the stories of one of the feeds that the run was given.

What must hold:
  An agent reads the feeds that its caller named and no others. A story's text may ask the model to open another
  address, but no tool can do that.
  The model sees the names of feeds, not their addresses, so that a query or a password in an address reaches neither
  the model nor its provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from pydantic_ai import ModelRetry, RunContext, Tool, ToolFailed
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.tools import ToolDefinition

from agents.services.feeds import Feed, FeedError, FeedReader, shown
from agents.tools import policy


@dataclass(slots=True)
class FeedDeps:
    """The feeds of one run, by name: all addresses, the feeds that were read, the errors of the others."""

    reader: FeedReader
    sources: dict[str, str]
    read: dict[str, Feed] = field(default_factory=dict[str, Feed])
    failed: dict[str, FeedError] = field(default_factory=dict[str, FeedError])


def named(sources: Sequence[str]) -> dict[str, str]:
    """A name for each source, without its secrets. Sources that would have the same name are numbered."""
    names: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        name, number = shown(source), 2
        while name in names:
            name, number = f"{shown(source)} ({number})", number + 1
        names[name] = source
    return names


async def read_feed(ctx: RunContext[FeedDeps], feed: str) -> dict[str, Any]:
    """Read the newest stories of a feed.

    Args:
        feed: The feed's name, exactly as the task lists it.
    """
    deps = ctx.deps
    if feed not in deps.sources:
        raise ModelRetry(f"There is no feed {feed!r}. The feeds are: {', '.join(deps.sources)}.")
    try:
        found = await deps.reader.read(deps.sources[feed])
    except FeedError as error:
        deps.failed[feed] = error
        if len(deps.failed) == len(deps.sources):
            raise  # no feed is left to write about, so the run ends before it spends more
        raise ToolFailed(f"{error}. Go on without it.") from error
    deps.read[feed] = found
    stories = [
        {"title": entry.title, "url": entry.url, "published": entry.published, "summary": entry.summary}
        for entry in found.entries
    ]
    return {"feed": found.title, "stories": stories}


def links_in(messages: Sequence[ModelMessage]) -> set[str]:
    """The links of all stories that read_feed returned. They are read from the conversation and not from the feeds that
    this process has read, because a run may be taken up again in another process, which reads no feed a second time."""
    returned = (
        part.content
        for message in messages
        for part in message.parts
        if isinstance(part, ToolReturnPart) and part.tool_name == read_feed.__name__
    )
    stories = (
        story
        for content in returned
        if isinstance(content, dict)
        for story in cast("dict[str, list[dict[str, Any]]]", content).get("stories", [])
    )
    return {str(story["url"]) for story in stories if story.get("url")}


async def _only_these(ctx: RunContext[FeedDeps], definition: ToolDefinition) -> ToolDefinition:
    """List the feeds' names in the tool's schema: the model makes fewer wrong calls, each of which costs a request."""
    schema = definition.parameters_json_schema
    feed = {**schema["properties"]["feed"], "enum": list(ctx.deps.sources)}
    return replace(definition, parameters_json_schema={**schema, "properties": {**schema["properties"], "feed": feed}})


READ_FEED = Tool(read_feed, takes_ctx=True, prepare=_only_these, metadata=policy.READ)
