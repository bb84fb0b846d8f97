"""Importing this makes a gateway speak to Postgres as the version before routes and pacing did."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llm_service.treasury import treasury as module


def before(statement: str) -> str:
    """The statement as it was: of the first version of its function, which takes two arrays less."""
    older = re.sub(r",\$\d+[^,]*,\$\d+[^,]*\)$", ")", statement.replace("_v2(", "_v1("))
    assert older.count("$") == statement.count("$") - 2, older
    return older


def _without_two(arrays: Callable[[Any], tuple[object, ...]]) -> Callable[[Any], tuple[object, ...]]:
    return lambda group: arrays(group)[:-2]


module.ADMIT, module._SETTLE = before(module.ADMIT), before(module._SETTLE)
module.admission_arrays = _without_two(module.admission_arrays)
module._settlement_arrays = _without_two(module._settlement_arrays)
_decision = module._decision
module._decision = lambda request, row: _decision(request, (*row, None))  # pyright: ignore[reportArgumentType]  # no pace then
