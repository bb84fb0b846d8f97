"""A witness reaches Postgres once, or else the spool, and is never lost. No server runs here (see
tests/integration)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from llm_service.litellm_plugin.witness_writer import WitnessWriter
from llm_service.witness import Witness


def lines(spool: Path) -> list[dict[str, object]]:
    return [json.loads(line) for file in sorted(spool.glob("*.jsonl")) for line in file.read_text("utf-8").splitlines()]


async def test_i2_without_postgres_witnesses_are_kept_on_disk(tmp_path: Path, witness: Witness) -> None:
    writer = WitnessWriter("postgresql://nobody@127.0.0.1:1/none", tmp_path / "spool", flush_s=0.01)
    for _ in range(3):
        writer.add(replace(witness, id=UUID(int=_)))
    await writer.close()
    assert [line["id"] for line in lines(tmp_path / "spool")] == [str(UUID(int=number)) for number in range(3)]


async def test_i2_without_a_database_named_witnesses_are_kept_on_disk(tmp_path: Path, witness: Witness) -> None:
    writer = WitnessWriter(None, tmp_path / "spool")
    writer.add(witness)
    await writer.close()
    assert len(lines(tmp_path / "spool")) == 1


async def test_i2_what_does_not_fit_in_memory_goes_to_disk_at_once(tmp_path: Path, witness: Witness) -> None:
    writer = WitnessWriter(None, tmp_path / "spool", batch=2)
    for _ in range(100):
        writer.add(witness)
    assert len(lines(tmp_path / "spool")) == 100
    await writer.close()


async def test_a_spool_that_cannot_be_written_is_said_and_fails_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, witness: Witness
) -> None:
    (tmp_path / "file").touch()
    writer = WitnessWriter(None, tmp_path / "file" / "spool")
    writer.add(witness)
    await writer.close()
    assert "1 witnesses are lost" in caplog.text


async def test_closing_a_writer_that_never_started_is_fine(tmp_path: Path) -> None:
    await WitnessWriter(None, tmp_path).close()
