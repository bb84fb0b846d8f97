"""Why a store refuses something of a conversation: the same errors from both stores. Pure."""

from __future__ import annotations

from uuid import UUID

from agents.runs.record import NewRun
from llm_service.errors import Conflict, NotFound


def no_conversation(conversation_id: UUID) -> NotFound:
    """The error for a conversation that does not exist."""
    return NotFound(f"There is no conversation {conversation_id}.", param="conversation")


def in_use(conversation_id: UUID, run_id: UUID) -> Conflict:
    """The error for a conversation that cannot be deleted now."""
    return Conflict(
        f"Run {run_id} of conversation {conversation_id} has not ended, so the conversation stays. Cancel the run first.",
        code="conversation_in_use",
        details={"run": str(run_id)},
    )


def check_user(new: NewRun, user: str | None) -> None:
    """Raises Conflict: the conversation of this session belongs to another user than the new run's."""
    if new.on_behalf_of != user:
        asks = "no user" if new.on_behalf_of is None else f"user {new.on_behalf_of!r}"
        raise Conflict(
            f"Session {new.session!r} of agent {new.agent!r} was begun for another user, and {asks} is named now. A "
            "conversation is one user's: use another session.",
            code="session_of_another_user",
            param="session",
        )


def session_busy(new: NewRun, run_id: UUID) -> Conflict:
    """The error for a run whose session has one under way, where that is refused."""
    return Conflict(
        f"Run {run_id} of session {new.session!r} has not ended, and this start says that it is refused then. Nothing was "
        "started. Wait for it, or start with on_session queue or replace.",
        code="session_busy",
        param="session",
        details={"run": str(run_id)},
    )
