"""What tools call. Built once by the composition root, with its settings, and handed to every agent."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.services.feeds import FeedReader


@dataclass(frozen=True, slots=True)
class Services:
    feeds: FeedReader = field(default_factory=FeedReader)
