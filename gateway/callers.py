"""The caller of a door to runs, and which runs it may see and act on."""

from __future__ import annotations

from agents.runs.record import Run
from agents.runs.refusals import no_run
from llm_service.errors import NotPermitted
from llm_service.types import Principal


class Caller:
    """The caller of a request, and which runs it may see and act on."""

    def __init__(self, owner: Principal | str) -> None:
        self.principal = owner if isinstance(owner, Principal) else None
        self.name = owner if isinstance(owner, str) else f"agent {owner.agent}/{owner.key}"
        #: The first part of the keys of runs that this caller starts, so that no caller can use another's key.
        self.scope = "administrator" if isinstance(owner, str) else f"agent/{owner.agent_id}"

    @property
    def team_id(self) -> int | None:
        """The team whose runs the caller sees; None: it sees all runs."""
        return None if self.principal is None else self.principal.team_id

    @property
    def is_administrator(self) -> bool:
        return self.principal is None

    def check_sees(self, run: Run) -> None:
        """Raises NotFound: the run is another team's."""
        if self.team_id not in (None, run.team_id):
            raise no_run(run.id)

    def check_acts_for(self, agent: str) -> None:
        """Raises NotPermitted: the caller is another agent."""
        if self.principal is not None and self.principal.agent != agent:
            raise NotPermitted(
                f"Key {self.principal.key!r} belongs to agent {self.principal.agent!r}: it starts, cancels, retries and forks "
                "only the runs of this agent. For others it takes an administrator's key (treasurer key create --admin)."
            )
