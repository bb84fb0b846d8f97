"""/agents/conversations: what the runs of a session said, which is listed, read and deleted.

What must hold:
An agent's key sees the conversations of its team, and nothing shows that another team's conversation exists. It deletes those
of its own agent only.
There is no way to write what somebody said: a conversation has only what runs have said.
"""

from __future__ import annotations

from typing import Annotated, Protocol
from uuid import UUID

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel

from agents.conversations.history import MOST_MESSAGES
from agents.conversations.record import Conversation, ConversationFilter
from agents.conversations.refusals import no_conversation
from agents.conversations.views import ConversationView, MessageView, conversation_view, message_view
from agents.runs.store import RunStore
from gateway.callers import Caller
from gateway.routes.admin.common import Listing, listing
from gateway.routes.agents import MOST_ROWS, Who, agents_router, answer
from llm_service.administration.inputs import MAX_ID
from llm_service.administration.paging import page_of, to_fetch
from llm_service.wire.requests import attribution


class ConversationsRuntime(Protocol):
    """The part of a gateway that these routes need (`GatewayRuntime` has it)."""

    @property
    def runs(self) -> RunStore: ...


class MessageListing(BaseModel):
    """The messages of a conversation, the oldest first."""

    object: str = "list"
    data: list[MessageView]


def _runtime(request: Request) -> ConversationsRuntime:
    return request.app.state.runtime


Runtime = Annotated[ConversationsRuntime, Depends(_runtime)]
_Text = Annotated[str | None, Query(max_length=256)]

router = agents_router("conversations", ("agent", "session", "user", "limit", "after"))


@router.get("/conversations", response_model=Listing[ConversationView])
async def list_conversations(
    runtime: Runtime,
    caller: Who,
    agent: _Text = None,
    session: _Text = None,
    user: _Text = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 50,
    after: Annotated[
        int | None, Query(ge=1, le=MAX_ID, description="The number of the last conversation of the page before.")
    ] = None,
) -> Response:
    """Conversations, the newest first: those of the key's team, or all for an administrator."""
    wanted = ConversationFilter(
        agent=attribution(agent, "agent", "agent"),
        team_id=caller.team_id,
        session=attribution(session, "session", "session"),
        user=attribution(user, "user", "user"),
        before=after,
        most=to_fetch(limit),
    )
    found = await runtime.runs.conversations.page(wanted)
    return answer(listing(page_of(found, limit, conversation_view), lambda each: each.number))


@router.get("/conversations/{conversation_id}", response_model=ConversationView)
async def get_conversation(runtime: Runtime, caller: Who, conversation_id: UUID) -> Response:
    """A conversation: whose it is, and until when it is kept."""
    return answer(conversation_view(await _seen(runtime, caller, conversation_id)))


@router.get("/conversations/{conversation_id}/messages", response_model=MessageListing)
async def list_messages(runtime: Runtime, caller: Who, conversation_id: UUID) -> Response:
    """What was said, the oldest first."""
    await _seen(runtime, caller, conversation_id)
    messages = await runtime.runs.conversations.messages(conversation_id, most=MOST_MESSAGES)
    return answer(MessageListing(data=[message_view(each) for each in messages]))


@router.delete("/conversations/{conversation_id}", status_code=204)
async def delete_conversation(runtime: Runtime, caller: Who, conversation_id: UUID) -> Response:
    """Delete what was said, with the inputs, outputs and results of its runs. What they did and cost stays."""
    conversation = await _seen(runtime, caller, conversation_id)
    caller.check_acts_for(conversation.agent)
    await runtime.runs.conversations.delete(conversation_id)
    return Response(status_code=204)


async def _seen(runtime: ConversationsRuntime, caller: Caller, conversation_id: UUID) -> Conversation:
    conversation = await runtime.runs.conversations.find(conversation_id)
    if caller.team_id not in (None, conversation.team_id):
        raise no_conversation(conversation_id)
    return conversation
