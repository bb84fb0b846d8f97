"""The version of the agents' code, which each run records: that of the package."""

from __future__ import annotations

from importlib.metadata import version

CODE_VERSION = version("treasurer")
