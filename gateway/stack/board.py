"""What `treasurer up` shows: a live board on a terminal; elsewhere, a line for each change.

What must hold:
Nobody can mistake a simulated provider for a real one.
While the user has to wait, the board shows for what.
"""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from gateway.stack.part import PartState, PartStatus
from gateway.stack.plan import Plan
from gateway.stack.state import StackState
from gateway.stack.supervisor import Progress

_COLOUR = {
    PartState.READY: "green",
    PartState.DOWN: "bold red",
    PartState.FAILED: "bold red",
    PartState.STOPPED: "dim",
    PartState.WAITING: "dim",
}
#: The colour of a part's detail text. A part that is ready shows a detail only as a warning.
_DETAIL_COLOUR = {PartState.DOWN: "red", PartState.READY: "yellow"}


def duration(seconds: float) -> str:
    """Seconds in units that people read easily: 42 s, 3 min 5 s, 2 h 7 min."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def provider_words(real: list[str], simulated: list[str], own: list[str]) -> tuple[str, str] | None:
    """Clear sentences about which providers answer, and their colour. None if an external proxy decides that.

    `own` are the models of `real` that only servers on this machine serve.
    """
    if not real and not simulated:
        return None
    if own:
        paid = [name for name in real if name not in own]
        sentences = [
            f"REAL, costing real money: {', '.join(paid)}." if paid else "",
            f"YOUR OWN servers on this machine, which cost only what they ask of others: {', '.join(own)}.",
            f"SIMULATED, made up on this machine, free of charge: {', '.join(simulated)}." if simulated else "",
        ]
        return "\n".join(sentence for sentence in sentences if sentence), "magenta" if paid else "cyan"
    if not simulated:
        return f"REAL providers serve every model, and real money is spent: {', '.join(real)}.", "red"
    if not real:
        return (
            "SIMULATED: no real provider is asked and no money is spent. Every answer is made up on this machine, "
            "because no provider's key (OPENAI_API_KEY, ANTHROPIC_API_KEY …) is set. "
            f"Simulated models: {', '.join(simulated)}.",
            "yellow",
        )
    return (
        f"REAL, costing real money: {', '.join(real)}.\n"
        f"SIMULATED, made up on this machine, free of charge: {', '.join(simulated)}.",
        "magenta",
    )


def _words(plan: Plan) -> tuple[str, str] | None:
    return provider_words(plan.state.real, plan.state.simulated, plan.state.own)


class Board:
    """Shows a stack's progress on a console. Enter it, and pass `progress` and `plan` to `running_stack`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parts: dict[str, PartStatus] = {}
        self._notices: deque[str] = deque(maxlen=5)
        self._plan: Plan | None = None
        self._gateway_url: str | None = None
        self._doing = "starting"
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4)

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def plan(self, plan: Plan) -> None:
        """Note which parts will be started, and show which providers answer."""
        self._plan = plan
        words = _words(plan)
        if self._live is None and words is not None:
            self._line(words[0])

    def progress(self, change: Progress) -> None:
        """Show a part's change, or a notice."""
        if isinstance(change, str):
            self._notices.append(change)
            self._line(change)
            return
        known = self._parts.get(change.name)
        self._parts[change.name] = change
        if known is not None:
            self._line(self._sentence(change))

    def ready(self, state: StackState) -> None:
        """Show that everything runs."""
        self._gateway_url = state.gateway_url
        self._line(f"Treasurer is ready: {state.gateway_url}/v1  (stop it with Ctrl-C)")

    def render(self) -> RenderableType:
        """The board as it is now."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("part", "state", "address", "pid", "restarts", "for", ""):
            table.add_column(heading, justify="right" if heading in {"pid", "restarts", "for"} else "left")
        for part in self._parts.values():
            state = "external, ready" if part.external and part.state is PartState.READY else part.state.value
            table.add_row(
                part.name,
                Text(state, style=_COLOUR.get(part.state, "cyan")),
                part.address,
                str(part.pid or ""),
                str(part.restarts or ""),
                duration(time.monotonic() - part.since),
                Text(part.detail, style=_DETAIL_COLOUR.get(part.state, "dim")),
            )
        shown: list[RenderableType] = [table]
        words = _words(self._plan) if self._plan is not None else None
        if words is not None:
            shown.append(Panel(Text(words[0]), border_style=words[1], box=box.HEAVY, title="who answers"))
        shown += [Text(notice, style="yellow") for notice in self._notices]
        if self._gateway_url is not None:
            line = Text.assemble(
                ("Treasurer is ready: ", "bold green"), f"{self._gateway_url}/v1", ("  Ctrl-C stops it", "dim")
            )
            shown.append(line)
        else:
            self._spinner.update(text=f"{self._doing} …")
            shown.append(self._spinner)
        return Group(*shown)

    def stopping(self) -> None:
        """Show that the stack is being stopped."""
        self._gateway_url, self._doing = None, "stopping"
        self._line("Stopping …")

    def _sentence(self, part: PartStatus) -> str:
        pid = f" (process {part.pid})" if part.pid else ""
        return f"{part.name:<18} {part.state.value:<9} {part.address}{pid}" + (
            f": {part.detail}" if part.detail else ""
        )

    def _line(self, text: str) -> None:
        if self._live is None:
            self._console.print(Text(f"{time.strftime('%H:%M:%S')} {text}"), soft_wrap=True)
