"""`treasurer conversations`: what the runs of a session said: list them, read one, delete one.

What must hold:
The words of a model are printed as plain text, so that they cannot control a terminal.
"""

from __future__ import annotations

import json as json_
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import command_group, emit
from gateway.cli.database import AsJson, print_more, read_uuid, with_runs
from gateway.cli.reports import printable
from llm_service.administration.paging import page_of, to_fetch

if TYPE_CHECKING:
    from agents.conversations.record import Conversation, Message
    from agents.runs.in_postgres import PostgresRuns

commands = command_group("Conversations: what was said in the sessions of agents.")

_Id = Annotated[str, typer.Argument(metavar="CONVERSATION", help="The conversation's id.")]


@commands.command("list")
def list_conversations(
    agent: Annotated[str | None, typer.Option("--agent", help="Only this agent's.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Only this session's.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only this user's.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")] = 50,
    after: Annotated[
        int | None, typer.Option("--after", min=1, help="Continue after the conversation with this number.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List conversations, the newest first."""
    from agents.conversations.record import ConversationFilter
    from agents.conversations.views import conversation_view

    wanted = ConversationFilter(agent=agent, session=session, user=user, before=after, most=to_fetch(limit))
    found = with_runs(lambda store: store.conversations.page(wanted))
    page = page_of(found, limit, lambda each: each)
    print_more(page, lambda each: each.number)
    if json:
        emit([conversation_view(each).model_dump(mode="json") for each in page], json=True)
        return
    rows = [
        {
            "number": each.number,
            "conversation": each.id,
            "agent": printable(each.agent),
            "session": printable(each.session),
            "user": printable(each.on_behalf_of or ""),
            "turns": each.turns,
            "last": each.changed_at,
            "kept until": each.forget_at,
        }
        for each in page
    ]
    emit(rows, empty="There are no conversations.")


@commands.command("show")
def show(conversation: _Id, json: AsJson = False) -> None:
    """Print what was said."""
    from agents.conversations.history import MOST_MESSAGES
    from agents.conversations.views import conversation_view, message_view

    conversation_id = read_uuid(conversation, "conversation")

    async def read(store: PostgresRuns) -> tuple[Conversation, list[Message]]:
        found = await store.conversations.find(conversation_id)
        return found, await store.conversations.messages(conversation_id, most=MOST_MESSAGES)

    found, messages = with_runs(read)
    if json:
        shown = conversation_view(found).model_dump(mode="json")
        shown["messages"] = [message_view(each).model_dump(mode="json") for each in messages]
        emit([shown], json=True)
        return
    typer.echo("\n".join(format_conversation(found, messages)))


@commands.command("delete")
def delete(
    conversation: _Id,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
) -> None:
    """Delete what was said, with the inputs, outputs and results of its runs. What they did and cost stays."""
    conversation_id = read_uuid(conversation, "conversation")
    if not yes:
        typer.confirm(f"Delete conversation {conversation_id} and the texts of its runs?", abort=True)
    with_runs(lambda store: store.conversations.delete(conversation_id))
    typer.echo(f"Conversation {conversation_id} is deleted.")


def format_conversation(conversation: Conversation, messages: list[Message]) -> list[str]:
    """A conversation as text for people."""
    from agents.conversations.views import message_view

    whose = "" if conversation.on_behalf_of is None else f" of user {printable(conversation.on_behalf_of)}"
    lines = [
        f"Conversation {conversation.id} (number {conversation.number}): session {printable(conversation.session)} of agent "
        f"{printable(conversation.agent)}{whose}, {conversation.turns} turns, kept until {conversation.forget_at:%Y-%m-%d %H:%M} UTC."
    ]
    turn = 0
    for message in map(message_view, messages):
        if message.turn != turn:
            turn = message.turn
            lines.append(f"turn {turn}, run {message.run}")
        for part in message.parts:
            who = f"{part.role or part.kind}" if part.tool is None else f"{part.role} {printable(part.tool)}"
            lines.append(f"  {who}: {_text(part.content)}")
    return lines


def _text(content: object) -> str:
    return printable(content if isinstance(content, str) else json_.dumps(content, ensure_ascii=False))
