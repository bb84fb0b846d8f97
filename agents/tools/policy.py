"""How a repetition of a tool's effect is made harmless: what a tool declares of itself (invariant I8).

What must hold: a tool that declares nothing is `ask`, so nothing that nobody thought about is repeated by luck.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.runs.record import Policy

if TYPE_CHECKING:
    from pydantic_ai import Tool

#: The key in a tool's metadata under which its policy stands.
POLICY = "treasurer_policy"


def declared_policy(tool: Tool[Any]) -> Policy:
    """The policy that a tool declares."""
    return Policy((tool.metadata or {}).get(POLICY, Policy.ASK))
