"""SQL is kept in files: each file is loaded, each query is complete, and Python contains no long SQL."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import llm_service
from llm_service.treasury.audit.checks import RULES
from llm_service.treasury.queries import load_query

SERVICE = Path(llm_service.__file__).parent
SQL = SERVICE / "treasury" / "sql"
#: All query files; not the schema's files, which migrations run.
QUERIES = [path for path in SQL.rglob("*.sql") if path.parent.name not in ("sql", "functions", "migrations")]
#: Modules that LiteLLM's process loads too. They may not load files of the treasury, so their SQL is in Python.
BOTH_PROCESSES = {SERVICE / "used_grants.py", SERVICE / "witness.py"}
MODULES = [path for path in SERVICE.rglob("*.py") if path not in BOTH_PROCESSES]
#: A module that composes its SQL from parts that a request names.
COMPOSED = SERVICE / "treasury" / "reports" / "reports.py"
#: More lines than this are hard to read between Python's quotes.
FEW = 5


def test_a_query_is_its_file_without_the_lines_of_comment() -> None:
    assert load_query("sweep/expired", holds="SELECT 1 FROM holds h") == (
        "SELECT 1 FROM holds h\nWHERE h.expires_at < clock_timestamp()\nORDER BY h.expires_at LIMIT $1"
    )


@pytest.mark.parametrize("parts", [{}, {"holds": "x", "another": "y"}, {"another": "y"}])
def test_a_part_that_is_missing_or_not_in_the_file_is_an_error(parts: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="sweep/expired"):
        load_query("sweep/expired", **parts)


def test_a_query_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        load_query("sweep/nothing")


def test_each_file_is_loaded_by_a_module_and_each_rule_is_named_like_its_file() -> None:
    loaded = {name for path in MODULES for name in re.findall(r'load_query\(\s*"([\w/]+)"', path.read_text("utf-8"))}
    assert loaded == {path.relative_to(SQL).with_suffix("").as_posix() for path in QUERIES}
    parts = {"table_is_as_logged", "acknowledged_prices", "price_differences"}  # parts of other rules' queries
    assert {path.stem for path in QUERIES if path.parent.name == "audit"} - parts <= {rule.name for rule in RULES}


def test_a_query_begins_with_sql_and_has_no_end_mark() -> None:
    """A query may be put into another one, in parentheses."""
    for path in QUERIES:
        lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("--")]
        assert ";" not in "".join(lines), path
        assert "--" not in lines[-1], path


def long_sql(source: str) -> list[int]:
    """The numbers of the lines at which long statements begin."""
    found: list[int] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr | ast.Constant) or (node.end_lineno or 0) - node.lineno < FEW:
            continue
        text = ast.get_source_segment(source, node) or ""
        if re.search(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM)\b[\s\S]*\b(FROM|VALUES|SET)\b", text):
            found.append(node.lineno)
    return found


def test_long_statements_are_in_files() -> None:
    assert {
        str(path): lines for path in MODULES if path != COMPOSED and (lines := long_sql(path.read_text("utf-8")))
    } == {}


def test_the_check_sees_a_long_statement() -> None:
    assert long_sql(COMPOSED.read_text("utf-8"))
