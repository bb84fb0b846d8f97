"""The assistant: a chat with the staff of a subscription desk. It remembers its conversation, and asks before it cancels.

What must hold:
  It cancels only what list_subscriptions has returned in its conversation: a name that the model made up is not taken.
  A person decides before each cancellation, and the desk drops a repetition by its key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic_ai import Agent, RunContext, ToolFailed
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.tools import ToolDefinition

from agents.definition import AgentDefinition, Task
from agents.services.subscriptions import DeskError, DeskRefused, SubscriptionDesk
from agents.tools import policy

_INSTRUCTIONS = """
You help the staff of a desk that sells subscriptions. Answer briefly.
To know a customer's subscriptions call list_subscriptions. Call cancel_subscription only for one that you have listed and
that you were asked to cancel. A person is asked before it is done: if they refuse, say so, and do not call it again.
"""


class Message(BaseModel):
    """The input of the assistant. What was said before is in its conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    message: str = Field(min_length=1, max_length=20_000)


agent = Agent[SubscriptionDesk, str](
    deps_type=SubscriptionDesk, output_type=str, instructions=_INSTRUCTIONS.strip(), name="assistant"
)


@agent.tool(metadata=policy.READ)
async def list_subscriptions(ctx: RunContext[SubscriptionDesk], customer: str) -> list[dict[str, Any]]:
    """List what a customer has subscribed to."""
    try:
        return await ctx.deps.of(customer)
    except DeskError as error:
        raise ToolFailed(str(error)) from error


async def _only_listed(ctx: RunContext[SubscriptionDesk], definition: ToolDefinition) -> ToolDefinition | None:
    """Offer what was listed. The names come from the conversation, because another process may have listed them."""
    listed = _listed(ctx.messages)
    if not listed:
        return None
    schema = definition.parameters_json_schema
    subscription = {**schema["properties"]["subscription"], "enum": listed}
    return replace(definition, parameters_json_schema={**schema, "properties": {"subscription": subscription}})


@agent.tool(metadata=policy.ASK, prepare=_only_listed)
async def cancel_subscription(ctx: RunContext[SubscriptionDesk], subscription: str) -> dict[str, Any]:
    """Cancel a subscription. This cannot be undone.

    Args:
        subscription: Its name, as list_subscriptions has returned it.
    """
    if subscription not in _listed(ctx.messages):
        raise ToolFailed(f"{subscription} was not listed in this conversation.")
    try:
        return await ctx.deps.cancel(subscription, policy.once_key())
    except DeskRefused as error:  # after another error nobody knows: the run stops
        raise ToolFailed(str(error)) from error


def _listed(messages: Sequence[ModelMessage]) -> list[str]:
    parts = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    found = [
        cast("dict[str, Any]", each)
        for part in parts
        if part.tool_name == list_subscriptions.__name__ and isinstance(part.content, list)
        for each in cast("list[object]", part.content)
        if isinstance(each, dict)
    ]
    return list(dict.fromkeys(str(each["subscription"]) for each in found))


DEFINITION = AgentDefinition(
    name="assistant",
    description="Chats with the staff of a subscription desk.",
    model="gpt-4o-mini",
    input_type=Message,
    agent=agent,
    task=lambda given, services: Task(given.message, services.subscriptions),
    defaults={"budget": "0.05"},
)
