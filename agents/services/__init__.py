"""The services that tools call. The composition root builds them once, from the settings, for all agents."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.services.feeds import FeedReader


@dataclass(frozen=True, slots=True)
class Services:
    feeds: FeedReader = field(default_factory=FeedReader)
