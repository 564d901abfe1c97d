"""The daemon's metrics, as Prometheus reads them: through a switch, with a token, and under requests nobody meant."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from scaler.courses import OUTCOMES, PART_OUTCOMES
from scaler.guards import GUARDS
from tests.end_to_end.conftest import MIB, PATIENCE_S, Machine, Watch
from tests.end_to_end.test_ladder import settles_at
from tests.serving.test_metrics import expressions

Serving = Callable[..., Any]
SHIPPED = Path(__file__).parents[2] / "config"
RULES, DASHBOARD = SHIPPED / "prometheus-rules.yaml", SHIPPED / "grafana-dashboard.json"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed; Debian has it in prometheus")
LEVELS = {"off", "small", "medium", "large"}
LABELS: dict[str, set[str]] = {
    "level": LEVELS,
    "resource": {"ram"},
    "whose": {"own", "other"},
    "direction": {"up", "down", "same"},
    "trigger": {"observe", "pin", "degrade", "switch_failed", "died", "reload"},
    "outcome": {"done", "failed", "overtaken", *OUTCOMES, *PART_OUTCOMES},
    "reason": {"gave_way", "failed"},
    "kind": {"downgrade", "upgrade", "failure"},
    "sensor": {"memory", "own_bytes", "model"},
    "guard": {*GUARDS, "not_backing_off"},
    "tier": {"mid_range"},
}
"""Every label whose values are of the configuration or of a fixed set, with those there are here."""


def scrape(url: str, **headers: str) -> str:
    with urlopen(Request(f"{url}/metrics", headers=headers), timeout=30) as answer:
        told: str = answer.read().decode()
        return told


def series(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families(text)
        for sample in family.samples
    }


def families(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


def value(text: str, name: str, **labels: str) -> float | None:
    return series(text).get((name, frozenset(labels.items())))


def checked(text: str) -> None:
    """Have Prometheus' own tool look at it: the format, the names, the units."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_promtool
def test_prometheus_own_tool_finds_nothing_to_complain_of(serving: Serving, machine: Machine) -> None:
    """Before anything was asked, and after a step down with an answer handed over."""
    with serving() as (url, manager, watch):
        checked(scrape(url))
        manager.generate_response_sync("Who are you?")
        settles_at(manager, watch, "large")
        machine.other_bytes = 2900 * MIB
        settles_at(manager, watch, "medium")
        text = scrape(url)
        checked(text)
        assert value(text, "scaler_tokens_total", level="small", outcome="completed")
        assert value(text, "scaler_decisions_total", trigger="observe", direction="down") == 1


@needs_promtool
def test_the_shipped_alerts_are_rules() -> None:
    """As Prometheus reads them."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_dashboard_asks_in_prometheus_language(tmp_path: Path) -> None:
    """Every expression of it, with the values that Grafana fills in."""
    assert PROMTOOL is not None
    filled = [
        one.replace("$instance", ".*").replace("$resource", "ram").replace("$__interval", "1m")
        for one in expressions(json.loads(DASHBOARD.read_text("utf-8")))
        if not one.startswith("label_values(")
    ]
    rules = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(filled)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([PROMTOOL, "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(filled)} rules found" in done.stdout


def test_openmetrics_is_told_to_whoever_asks_for_it(serving: Serving) -> None:
    """Its own parser takes it, and is strict."""
    with serving(levels=("small",)) as (url, manager, _):
        manager.generate_response_sync("Who are you?")
        request = Request(f"{url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        with urlopen(request, timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
            strict = openmetrics_families(answer.read().decode())  # type: ignore[no-untyped-call]
            told = {family.name for family in strict}
        plain = {family.name for family in families(scrape(url))}
        assert {"scaler_level", "scaler_requests"} <= told
        assert {re.sub(r"_(total|info)$", "", name) for name in plain} == {
            re.sub(r"_(total|info)$", "", name) for name in told
        }


def test_who_has_no_token_is_told_nothing(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The door is the same as for everything else."""
    monkeypatch.setenv("SCALER_TOKEN", "correct-horse-battery-staple")
    with serving(levels=("small",)) as (url, _, _):
        with pytest.raises(HTTPError, match="401"):
            scrape(url)
        assert "scaler_level" in scrape(url, Authorization="Bearer correct-horse-battery-staple")


def test_a_sensor_that_fails_takes_its_series_away(serving: Serving, machine: Machine) -> None:
    """A graph with a gap is right; one that goes on with the last figure is not, nor is one that falls to 0."""
    with serving(levels=("small",)) as (url, _, watch):
        watch.readings(2)
        assert value(scrape(url), "scaler_usage_ratio", resource="ram", whose="other") == pytest.approx(400 / 4096)
        machine.missing = True
        watch.readings(2)
        text = scrape(url)
        assert value(text, "scaler_sensor_missing", sensor="memory") == 1
        assert value(text, "scaler_sensor_losses_total", sensor="memory") == 1
        told = {name for name, _ in series(text)}
        assert not told & {
            *("scaler_usage_ratio", "scaler_usage_bytes", "scaler_limit_bytes", "scaler_projected_usage_ratio"),
            *("scaler_forecast_usage_ratio", "scaler_expected_peak_ratio"),
        }


ASKED = st.fixed_dictionaries(
    {"messages": st.just([{"role": "user", "content": "x"}]), "max_tokens": st.just(2)},
    optional={
        "model": st.sampled_from(["auto", "small", "no such", 'a"}\nscaler_level{level="forged"} 1\n#', "large"]),
        "user": st.text(max_size=20),
        "temperature": st.sampled_from([0, 1, "hot", 1e308]),
        "stream": st.booleans(),
        "tools": st.sampled_from([[], [{"type": "nonsense"}], "x"]),
        "grammar": st.sampled_from(["root ::= (", 'root ::= "yes"']),
    },
)


def test_no_request_makes_a_label(serving: Serving) -> None:
    """Else a client could fill Prometheus' memory, or write what it likes into somebody's graphs."""
    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        statuses: set[int] = set()

        @seed(20261129)
        @settings(
            max_examples=40,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            ASKED,
            st.sampled_from(["/v1/chat/completions", "/api/chat", "/metrics", "/no such/{level}"]),
            st.sampled_from(["", "curl", 'x="1"', "application/openmetrics-text; version=9.9; escaping=dots"]),
        )
        def ask(body: dict[str, Any], path: str, header: str) -> None:
            headers = {"Content-Type": "application/json", "Accept": header, "User-Agent": header, "x-scaler": header}
            data = None if path == "/metrics" else json.dumps(body).encode()
            query = f"?{quote(header)}&name[]={quote(header)}"
            try:
                with urlopen(Request(f"{url}{quote(path)}{query}", data, headers), timeout=30) as answer:
                    answer.read()
            except HTTPError as error:
                statuses.add(error.code)
                error.close()

        ask()
        assert {400, 404} <= statuses <= {400, 404, 503}
        labels: dict[str, set[str]] = {}
        for family in families(scrape(url)):
            for sample in family.samples:
                for label, told in sample.labels.items():
                    labels.setdefault(label, set()).add(told)
        for ours in ("le", "version", "python_version"):
            labels.pop(ours)
        assert {label: told - LABELS[label] for label, told in labels.items() if told - LABELS[label]} == {}
        assert labels["level"] == {"off", "small"}


class Prometheus:
    """A real one, that scrapes one daemon five times a second."""

    def __init__(self, url: str, watch: Watch) -> None:
        self.url, self._watch = url, watch

    def ask(self, query: str) -> list[dict[str, Any]] | None:
        """What it answers; None while it is still coming up."""
        try:
            with urlopen(f"{self.url}/api/v1/query?query={quote(query)}", timeout=30) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                return found
        except URLError as error:
            if isinstance(error, HTTPError):
                error.close()
        return None

    def until(self, query: str, holds: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """What it answers once that holds; asked again after every reading of the machine."""
        found: list[dict[str, Any]] | None = None
        for _ in range(int(PATIENCE_S / 0.05)):
            found = self.ask(query)
            if found is not None and holds(found):
                return found
            self._watch.readings(1)
        raise AssertionError(f"{query}: {found}")


@contextmanager
def scraping(url: str, watch: Watch, folder: Path) -> Iterator[Prometheus]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "scaler", "static_configs": [{"targets": [url.removeprefix("http://")]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    assert PROMETHEUS is not None
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield Prometheus(f"http://127.0.0.1:{port}", watch)
        finally:
            process.terminate()


def names(found: list[dict[str, Any]]) -> list[str]:
    return [one["metric"]["level"] for one in found]


@pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed; Debian has it in the package prometheus")
def test_prometheus_sees_the_level_give_way_under_pressure(serving: Serving, machine: Machine, tmp_path: Path) -> None:
    """The level before and after, why it had to be, and how long it took: by the queries of the dashboard."""
    with serving() as (url, manager, watch), scraping(url, watch, tmp_path) as prometheus:
        manager.scaler.want(True)
        prometheus.until("scaler_level == 1", lambda found: names(found) == ["large"])
        (usage,) = prometheus.until('scaler_usage_ratio{whose="other"}', lambda found: bool(found))
        assert float(usage["value"][1]) == pytest.approx(400 / 4096)
        machine.other_bytes = 2900 * MIB
        prometheus.until("scaler_level == 1", lambda found: names(found) == ["medium"])
        prometheus.until(
            'scaler_switch_seconds_count{direction="down", outcome="done"}',
            lambda found: [one["value"][1] for one in found] == ["1"],
        )
        (over,) = prometheus.until('scaler_projected_usage_ratio{level="large"} > 0.8', lambda found: len(found) == 1)
        assert over["metric"]["job"] == "scaler"
        (served,) = prometheus.until('max_over_time(scaler_level{level="large"}[1m])', lambda found: bool(found))
        assert served["value"][1] == "1"
        assert prometheus.ask("scrape_samples_scraped < 400")
