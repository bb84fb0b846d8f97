"""Metrics and traces of governed calls. They only report what a call costs; nothing here decides it.

What must hold: telemetry never delays, fails or changes a call. `Telemetry.record` runs after the
caller has its answer, does no I/O that blocks, and never raises.
"""

from __future__ import annotations

from llm_service.telemetry.metrics import CONTENT_TYPE
from llm_service.telemetry.record import CallRecord
from llm_service.telemetry.telemetry import Telemetry

__all__ = ["CONTENT_TYPE", "CallRecord", "Telemetry"]
