"""Call ids are UUIDs of version 7 that sort by time."""

from __future__ import annotations

import time
from uuid import RFC_4122

from llm_service.ids import new_call_id


def test_an_id_is_a_version_7_uuid_of_now() -> None:
    before = time.time_ns() // 1_000_000
    made = new_call_id()
    after = time.time_ns() // 1_000_000
    assert (made.version, made.variant) == (7, RFC_4122)
    assert before <= made.int >> 80 <= after


def test_ids_differ_and_those_of_a_later_millisecond_sort_later() -> None:
    first = [new_call_id() for _ in range(1000)]
    time.sleep(0.002)
    second = [new_call_id() for _ in range(1000)]
    assert len({*first, *second}) == 2000
    assert max(first) < min(second)
