"""The files for Prometheus and Grafana: they parse, and every metric that they name exists in the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_service.telemetry.gauges import _BudgetLine, _families, _Snapshot
from llm_service.telemetry.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/treasurer.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())["groups"] for rule in group["rules"]
]


def exported() -> dict[str, set[str]]:
    """Every sample name that can be exported, with its labels."""
    line = _BudgetLine(labels=("b", "team", "day"), limit_nano=1, posted_nano=0, pending_nano=0, overshoot_nano=0)
    snapshot = _Snapshot(holds=0, held_nano=0, overdue=0, budgets=1, overshoot_nano=0, lines=(line,))
    metrics = Metrics()
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    found: dict[str, set[str]] = {}
    for collector in metrics.registry._collector_to_names:
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            for suffix in suffixes[family.type]:
                found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    for family in _families(snapshot):
        found[family.name] = {label for sample in family.samples for label in sample.labels}
    return found


def dashboard_expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        yield variable["definition"]


EXPRESSIONS = [rule["expr"] for rule in RULES] + list(dashboard_expressions())


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_that_is_asked_for_exists(expression: str):
    known = exported()
    names = set(re.findall(r"\btreasurer_[a-z0-9_]+", expression))
    assert names or expression.startswith("up{")
    assert names <= known.keys()
    for name, matchers in re.findall(r"\b(treasurer_[a-z0-9_]+)\{([^}]*)\}", expression):
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert asked <= known[name], name
    by = {label.strip() for labels in re.findall(r"\bby\s*\(([^)]*)\)", expression) for label in labels.split(",")}
    assert by <= set().union(*(known[name] for name in names))
    assert expression.count("(") == expression.count(")")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]):
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"]
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}


def test_the_alerts_that_the_design_asks_for_are_there():
    names = {rule["alert"] for rule in RULES}
    assert len(names) == len(RULES)
    asked = "BudgetOvershoot HoldOvershoot Degraded AuditDifference RefusalsSpike PriceDifference"
    assert {f"Treasurer{name}" for name in asked.split()} <= names


def test_prometheus_scrapes_the_gateway_and_reads_the_rules():
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert config["rule_files"] == ["rules.yml"]
    [job] = config["scrape_configs"]
    assert (job["job_name"], job["metrics_path"]) == ("treasurer", "/metrics")


def test_the_dashboard_is_provisioned_on_the_provisioned_datasource():
    provisioning = DEPLOY / "grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/treasurer.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards/treasurer.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {source["uid"]}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
