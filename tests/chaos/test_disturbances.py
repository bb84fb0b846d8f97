"""The choice of disturbances by name: a name that none has would disturb nothing, and judge that all is right."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import main
from tests.chaos.disturbances import DISTURBANCES, named


def test_disturbances_are_chosen_by_parts_of_their_names() -> None:
    assert named([]) == list(DISTURBANCES)
    assert {each.name for each in named(["SIGSTOP", "rolling"])} == {
        "SIGSTOP beyond a hold's lifetime",
        "a rolling restart",
    }


def test_a_name_that_no_disturbance_has_is_refused_with_all_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["chaos", "--only", "Redis", "--only", "kill the moon"])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert (ended.value.code, "no disturbance has 'kill the moon' in its name" in told) == (2, True)
    assert [each.name for each in DISTURBANCES if f"  {each.name}\n" not in told] == []
