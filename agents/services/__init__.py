"""The services that tools call. The composition root builds them once, from the settings, for all agents."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.services.feeds import FeedReader
from agents.services.subscriptions import SubscriptionDesk


@dataclass(frozen=True, slots=True)
class Services:
    feeds: FeedReader = field(default_factory=FeedReader)
    subscriptions: SubscriptionDesk = field(default_factory=SubscriptionDesk)
