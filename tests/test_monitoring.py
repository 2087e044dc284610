"""The files of deploy/monitoring: every metric and label that they name exists, with the meaning that they take for granted."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value
from .zebra import neighbours

FOLDER = Path(__file__).parent.parent / "deploy" / "monitoring"


def loaded(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def expressions() -> list[tuple[str, str]]:
    """(where, PromQL) of every rule and panel."""
    rules = [
        (f"alert {rule['alert']}", rule["expr"]) for group in loaded("alerts.yml")["groups"] for rule in group["rules"]
    ]
    panels = [panel for panel in json.loads((FOLDER / "grafana.json").read_text())["panels"] if panel["type"] != "row"]
    return rules + [(f"panel {panel['title']}", target["expr"]) for panel in panels for target in panel["targets"]]


@pytest.fixture
def known(yard18: Yard) -> dict[str, set[str]]:
    """The labels of every metric, from a yard with something of all."""
    two = neighbours(yard18)
    db = two.admin
    db.execute("set role taskyard_owner")
    db.execute(
        """
        insert into provider_limits (provider, account, window_name, state, used_percent, until)
        values ('claude', 'me', 'five_hour', 'hot', 50, now() + interval '1 hour') on conflict do nothing;
        insert into counters (name, labels, value) values
        ('attempts', '{"scope": "x", "agent": "x", "provider": "x", "outcome": "failed"}', 1), ('lost_attempts', '{}', 1),
        ('attempt_seconds', '{"scope": "x", "agent": "x", "provider": "x"}', 1),
        ('tokens', '{"provider": "x", "direction": "input"}', 1), ('cost_dollars', '{"scope": "x", "provider": "x"}', 1)
        on conflict do nothing
        """
    )
    db.execute("reset role")
    db.execute("select tick()")
    found: dict[str, set[str]] = {}
    for row in rows(db, "select name, labels from metrics()"):
        found.setdefault(row["name"], set()).update(row["labels"])
    return found


def test_every_metric_and_label_that_is_named_exists(known: dict[str, set[str]]) -> None:
    assert len(expressions()) > 25
    used: set[str] = set()
    for where, expression in expressions():
        names = set(re.findall(r"\btaskyard_\w+", expression))
        assert names and names <= known.keys(), (where, names - known.keys())
        used |= names
        labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", expression))
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            labels |= {label.strip() for label in group.split(",")}
        for label in labels:
            assert all(label in known[name] for name in names), (where, label)
    assert (
        known.keys() - used == set()
    )  # a number that nobody looks at is either missing from the dashboard or not needed


def test_texts_name_labels_that_their_expression_leaves(known: dict[str, set[str]]) -> None:
    for group in loaded("alerts.yml")["groups"]:
        for rule in group["rules"]:
            names = set(re.findall(r"\btaskyard_\w+", rule["expr"]))
            left = {label for name in names for label in known[name] if all(label in known[other] for other in names)}
            for text in rule["annotations"].values():
                assert set(re.findall(r"\$labels\.(\w+)", text)) <= left, rule["alert"]
    for panel in json.loads((FOLDER / "grafana.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            names = set(re.findall(r"\btaskyard_\w+", target["expr"]))
            labels = {label for name in names for label in known[name]}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, panel["title"]


def test_outcomes_that_a_rule_leaves_out_exist(yard18: Yard) -> None:
    (rule,) = [expression for where, expression in expressions() if where == "alert TaskyardAttemptsFail"]
    (left_out,) = re.findall(r'outcome!~"([^"]*)"', rule)
    outcomes = column(yard18.connect(), "select unnest(enum_range(null::attempt_outcome))::text")
    assert set(left_out.split("|")) <= set(outcomes), set(left_out.split("|")) - set(outcomes)


def test_the_queries_of_the_exporter_give_the_columns_that_it_is_told(yard18: Yard, known: dict[str, set[str]]) -> None:
    (query,) = loaded("postgres_exporter.yml").values()
    viewer: Connection[DictRow] = yard18.connect("viewer")
    columns = [found.name for found in viewer.execute(query["query"]).description or []]
    told = {name: entry["usage"] for metric in query["metrics"] for name, entry in metric.items()}
    assert columns == ["name", "value", *(name for name in told if name not in ("name", "value"))]
    assert {name for name, usage in told.items() if usage == "GAUGE"} == {"value"}
    assert set(told) - {"name", "value"} == {label for names in known.values() for label in names}


def test_the_panels_of_the_dashboard_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads((FOLDER / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells


def test_a_rule_says_what_to_do(yard18: Yard) -> None:
    """What its text calls works: a view, a function, a command."""
    db = yard18.connect()
    for group in loaded("alerts.yml")["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("info", "warning", "critical")
            description = rule["annotations"]["description"]
            for statement in re.findall(r"select [^;]*;", description):
                db.execute(statement)
            for view in re.findall(r"from (\w+)", description):
                assert value(db, "select to_regclass(%s)", f"taskyard.{view}") is not None, view
