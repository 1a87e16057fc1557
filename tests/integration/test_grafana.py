"""The dashboard and the alert rules ask for nothing that the collector does not tell."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

import promql
from nanolimit.metrics import prometheus
from tools import at_hand
from watched import Table

GRAFANA = Path(__file__).resolve().parents[2] / "docs" / "grafana"
# What Prometheus itself adds to whatever it scrapes.
TARGET = {"job", "instance"}

# The labels of each sample of a metric.
Exported = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def exported() -> Exported:
    """What a scrape has, of a limiter for which there is everything to tell."""
    registry = CollectorRegistry()
    prometheus.register(Table("t", ("mallory", 9)), registry=registry)
    found: Exported = {}
    for family in registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    assert len(found) == 11
    return found


@pytest.fixture
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(at_hand(GRAFANA / "nanolimit.json").read_text("utf-8"))
    return found


@pytest.fixture
def alerts() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(at_hand(GRAFANA / "alerts.yml").read_text("utf-8"))
    return found


# What is wrong with an expression


def labels_of(metric: str, exported: Exported) -> set[str]:
    return set().union(*exported[metric]) | TARGET


def faults(
    expression: str, exported: Exported, variables: AbstractSet[str] = frozenset()
) -> list[str]:
    """Say what the expression asks for that there is not."""
    for variable in re.findall(r"\$(?:\{(\w+)\}|(\w+))", expression):
        if "".join(variable) not in variables:
            return [f"no variable ${''.join(variable)}"]
    try:
        query = promql.read(expression)
    except ValueError as error:
        return [f"{expression}: {error}"]
    if not query.selectors:
        return [f"{expression} asks for no metric"]
    found = []
    for selector in query.selectors:
        if selector.metric not in exported:
            found.append(f"no metric {selector.metric}")
            continue
        for label, (operator, text) in selector.matchers.items():
            if label not in labels_of(selector.metric, exported):
                found.append(f"{selector.metric} has no label {label}")
            elif label == "result" and text not in ("allowed", "denied"):
                found.append(f"{selector.metric} has no {label} {operator} {text}")
            elif operator == "=" and label not in TARGET and "$" not in text:
                values = {labels.get(label) for labels in exported[selector.metric]}
                if text not in values:
                    found.append(f"{selector.metric} has no {label} {text}")
    for grouping in query.groupings:
        for selector in query.selectors:
            if selector.metric in exported:
                missing = grouping - labels_of(selector.metric, exported)
                found += [f"{selector.metric} has no label {label}" for label in sorted(missing)]
    return found


def test_a_wrong_expression_is_found(exported: Exported) -> None:
    right = (
        'sum by (limiter) (rate(nanolimit_decisions_total{result="denied"}[5m] offset 1h)) > 0.1'
    )
    assert faults(right, exported) == []
    for before, after in [
        ("nanolimit_decisions_total", "nanolimit_decisions"),
        ("nanolimit_decisions_total", "nanolimit_requests_total"),
        ("result=", "outcome="),
        ('"denied"', '"refused"'),
        ("by (limiter)", "by (name)"),
        ("by (limiter)", "by (limiter, key)"),
        ("rate(", "rates("),
        ("[5m]", "[$__interval]"),
        ("))", ")"),
        ("nanolimit_decisions_total{", "{"),
        (" > 0.1", " > limit"),
    ]:
        assert faults(right.replace(before, after), exported), after


@pytest.mark.parametrize(
    ("expression", "metrics"),
    [
        ("a{b=\"c{d}\", e=~`f\"g`, h!='i\\'j'}[5m:1m]", ["a"]),
        ("sum without (b, c) (a) # d", ["a"]),
        ("sum(a) by (b) / on (c) group_left d", ["a", "d"]),
        ("a and on () b or c unless ignoring (d) e", ["a", "b", "c", "e"]),
        ("1e3 + 0x1F * .5 - Inf + a offset 1h30m", ["a"]),
        ("a > bool 1 @ 1609746000", ["a"]),
        ("job:a:rate5m == rate", ["job:a:rate5m", "rate"]),
        ("topk(5, max by (b) (a{}))", ["a"]),
        ("count (a)", ["a"]),
    ],
)
def test_metrics_are_told_from_all_else(expression: str, metrics: list[str]) -> None:
    assert [each.metric for each in promql.read(expression).selectors] == metrics


# The dashboard


def panels_of(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def everything(thing: Any) -> Iterator[dict[str, Any]]:
    """All the objects in a file, wherever they are."""
    if isinstance(thing, dict):
        yield thing
        for each in thing.values():
            yield from everything(each)
    elif isinstance(thing, list):
        for each in thing:
            yield from everything(each)


def variable_faults(variable: dict[str, Any], exported: Exported, names: set[str]) -> list[str]:
    asked = variable["query"]["query"]
    if asked != variable["definition"]:
        return [f"{variable['name']} has two queries"]
    call = re.fullmatch(r"label_values\((?P<selector>.+), *(?P<label>\w+)\)", asked)
    if call is None:
        return [f"{asked} is not understood"]
    found = faults(call["selector"], exported, names)
    (selector,) = promql.read(call["selector"]).selectors
    if not found and call["label"] not in labels_of(selector.metric, exported):
        found.append(f"{selector.metric} has no label {call['label']}")
    return found


def dashboard_faults(dashboard: dict[str, Any], exported: Exported) -> list[str]:
    """Say what a dashboard asks for that there is not, and what it lacks."""
    found = []
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    names = {*variables, "__rate_interval", "__range"}
    queries = [each for each in everything(dashboard) if "expr" in each]
    targets = [each for panel in panels_of(dashboard) for each in panel.get("targets", ())]
    if len(queries) != len(targets):
        found.append("there are queries outside of panels")
    for target in targets:
        found += faults(target["expr"], exported, names)
        legend = set(re.findall(r"\{\{ *(\w+) *\}\}", target["legendFormat"]))
        try:
            query = promql.read(target["expr"])
        except ValueError:
            continue  # it is told already
        kept = set().union(*query.groupings) if query.groupings else set()
        if legend - kept:
            found.append(f"{target['expr']} leaves no label {sorted(legend - kept)}")
        refers = {
            name for pair in re.findall(r"\$(?:\{(\w+)\}|(\w+))", target["expr"]) for name in pair
        }
        if not {"limiter", "instance"} <= refers:
            found.append(f"{target['expr']} does not go by the variables")
    for name, variable in variables.items():
        if variable["type"] == "query":
            found += variable_faults(variable, exported, names)
        elif (variable["type"], variable["query"]) != ("datasource", "prometheus"):
            found.append(f"variable {name} is not understood")
    for each in everything(dashboard):
        source = each.get("datasource")
        if isinstance(source, dict) and source != {"type": "prometheus", "uid": "${datasource}"}:
            found.append(f"{source} is not whatever the variable says")
    seen: set[int] = set()
    for panel in panels_of(dashboard):
        title = panel["title"]
        if panel["id"] in seen:
            found.append(f"{title} has the id of another panel")
        seen.add(panel["id"])
        if panel["type"] == "row":
            continue
        if not panel["fieldConfig"]["defaults"].get("unit"):
            found.append(f"{title} has no unit")
        if not panel.get("description"):
            found.append(f"{title} has no description")
        if len({target["refId"] for target in panel["targets"]}) != len(panel["targets"]):
            found.append(f"{title} has two queries of one refId")
    return found


def test_the_dashboard_asks_for_what_there_is(
    dashboard: dict[str, Any], exported: Exported
) -> None:
    assert dashboard_faults(dashboard, exported) == []


def test_the_dashboard_shows_every_metric(dashboard: dict[str, Any], exported: Exported) -> None:
    shown = {
        selector.metric
        for panel in panels_of(dashboard)
        for target in panel["targets"]
        for selector in promql.read(target["expr"]).selectors
    }
    assert shown == set(exported)


def test_the_dashboard_can_be_imported(dashboard: dict[str, Any]) -> None:
    """What Grafana itself makes, and takes from others."""
    assert dashboard["id"] is None
    assert re.fullmatch(r"[a-z0-9-]{1,40}", dashboard["uid"])
    assert dashboard["schemaVersion"] >= 38  # Grafana 10's
    assert dashboard["title"] == "nanolimit"
    required = {each["id"] for each in dashboard["__requires"] if each["type"] == "panel"}
    assert required == {panel["type"] for panel in panels_of(dashboard)}
    taken: set[tuple[int, int]] = set()
    for panel in panels_of(dashboard):
        at = panel["gridPos"]
        assert 0 <= at["x"] <= at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on another panel"
                taken.add((x, y))


def plant(dashboard: dict[str, Any], number: int) -> None:
    """Put a fault in."""
    panels = dashboard["panels"]
    target = panels[0]["targets"][0]
    variable = dashboard["templating"]["list"][2]
    match number:
        case 0:
            target["expr"] = target["expr"].replace("nanolimit_decisions_total", "nanolimit_total")
        case 1:
            target["expr"] = target["expr"].replace('"allowed"', '"passed"')
        case 2:
            target["expr"] = target["expr"].replace("$limiter", "$name")
        case 3:
            variable["definition"] = variable["query"]["query"] = (
                "label_values(nanolimit_key, limiter)"
            )
        case 4:
            variable["definition"] = variable["query"]["query"] = (
                "label_values(nanolimit_keys, key)"
            )
        case 5:
            panels[1]["id"] = panels[0]["id"]
        case 6:
            del panels[0]["fieldConfig"]["defaults"]["unit"]
        case 7:
            panels[0]["targets"].append(target)
        case 8:
            target["datasource"] = {"type": "prometheus", "uid": "P1809F7CD0C75ACF3"}
        case 9:
            target["legendFormat"] = "{{limiter}}"
        case 10:
            dashboard["annotations"]["list"].append({"expr": "changes(nanolimit_keys[5m])"})
        case 11:
            target["expr"] = "sum(rate(nanolimit_decisions_total[5m]))"
        case 12:
            row = {"id": 99, "type": "row", "title": "More", "panels": [copy.deepcopy(panels[0])]}
            row["panels"][0]["id"] = 100
            row["panels"][0]["targets"][0]["expr"] = 'up{instance=~"$instance", job=~"$limiter"}'
            panels.append(row)


@pytest.mark.parametrize("number", range(13))
def test_a_fault_of_a_dashboard_is_found(
    number: int, dashboard: dict[str, Any], exported: Exported
) -> None:
    plant(dashboard, number)
    assert dashboard_faults(dashboard, exported)


# Alert rules


def alert_faults(alerts: dict[str, Any], exported: Exported) -> list[str]:
    """Say what alert rules ask for that there is not, and what they lack."""
    found = []
    known = dict(exported)
    seen: set[str] = set()
    for group in alerts["groups"]:
        for rule in group["rules"]:
            found += faults(rule["expr"], known)
            if "record" in rule:
                # What it groups by is what is left.
                (labels,) = {frozenset(each) for each in promql.read(rule["expr"]).groupings}
                known[rule["record"]] = [dict.fromkeys(labels, "")]
                continue
            name = rule["alert"]
            if name in seen or not re.fullmatch(r"Nanolimit[A-Za-z]+", name):
                found.append(f"{name} is not the name of one alert")
            seen.add(name)
            if not {"summary", "description"} <= rule["annotations"].keys():
                found.append(f"{name} does not say what is up")
            metrics = [each.metric for each in promql.read(rule["expr"]).selectors]
            for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
                found += [
                    f"{metric} has no label {label}"
                    for metric in metrics
                    if metric in known and label not in labels_of(metric, known)
                ]
    return found


def test_the_alerts_ask_for_what_there_is(alerts: dict[str, Any], exported: Exported) -> None:
    assert alert_faults(alerts, exported) == []
    names = {
        rule["alert"] for group in alerts["groups"] for rule in group["rules"] if "alert" in rule
    }
    assert names == {
        "NanolimitDenialsSpike",
        "NanolimitTableNearlyFull",
        "NanolimitLogMemoryNearlyFull",
        "NanolimitOverflows",
        "NanolimitStalled",
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("nanolimit_overflows_total[", "nanolimit_overflowed_total["),
        ("nanolimit_keys /", "nanolimit_keys_total /"),
        ("- record: limiter:nanolimit_denied:ratio_rate5m", "- record: limiter:denied:ratio"),
        ('result="denied"', 'result="deny"'),
        ("$labels.limiter }} is {{", "$labels.name }} is {{"),
        ("by (job, limiter) (rate", "by (job, name) (rate"),
        ("alert: NanolimitStalled", "alert: NanolimitOverflows"),
        (
            '        annotations:\n          summary: "requests',
            '        annotations:\n          title: "requests',
        ),
    ],
)
def test_a_fault_of_alerts_is_found(before: str, after: str, exported: Exported) -> None:
    text = at_hand(GRAFANA / "alerts.yml").read_text("utf-8")
    assert before in text
    assert alert_faults(yaml.safe_load(text.replace(before, after)), exported)


def test_the_tests_of_the_alerts_are_about_what_there_is(
    alerts: dict[str, Any], exported: Exported
) -> None:
    """promtool runs them; this sees that their numbers are those of our metrics, and none lacks."""
    tests = yaml.safe_load(at_hand(GRAFANA / "alerts_test.yml").read_text("utf-8"))
    assert tests["rule_files"] == ["alerts.yml"]
    tried: set[str] = set()
    for test in tests["tests"]:
        for series in test["input_series"]:
            (selector,) = promql.read(series["series"]).selectors
            assert selector.matchers.keys() == labels_of(selector.metric, exported)
        tried |= {each["alertname"] for each in test["alert_rule_test"] if each["exp_alerts"]}
    rules = {rule.get("alert") for group in alerts["groups"] for rule in group["rules"]}
    assert tried == rules - {None}


PROMTOOL = shutil.which("promtool")

if PROMTOOL is not None:  # Debian's package prometheus brings it; it is no part of CI

    def test_the_alerts_do_what_their_tests_say() -> None:
        for arguments in (["check", "alerts.yml"], ["test", "alerts_test.yml"]):
            command = [str(PROMTOOL), arguments[0], "rules", arguments[1]]
            done = subprocess.run(
                command, cwd=GRAFANA, capture_output=True, text=True, check=False, timeout=120
            )
            assert done.returncode == 0, done.stdout + done.stderr
