"""The status as plain JSON, for the endpoint and for `--json`, and its sentences: one form for all who show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from scaler.advice import Advice
from scaler.levels import OFF
from scaler.proactive import Preflight, ResourceTrend, Status
from scaler.reloading import Reload
from scaler.words import percent

ELSEWHERE = "requests are only sent there: nothing of it is loaded or unloaded here"


def status_report(status: Status, trends: Mapping[str, ResourceTrend]) -> dict[str, Any]:
    """Everything about the moment; sizes in bytes, ratios 0..1, times in seconds."""
    return {**asdict(status), "trends": {name: asdict(trend) for name, trend in trends.items()}}


def preflight_report(preflight: Preflight) -> dict[str, Any]:
    """The pre-flight check."""
    return asdict(preflight)


def advice_report(advice: Advice) -> dict[str, Any]:
    """What would make room for a larger level; sizes in bytes."""
    return asdict(advice)


def reload_report(reload: Reload) -> dict[str, Any]:
    """What became of a reload; values as text, null where they are not shown."""
    return asdict(reload)


def status_words(report: dict[str, Any], *, former: str | None = None) -> dict[str, Any]:
    """The status for people: what ``answers`` requests, None if nothing does; ``why``, the sentences about the level;
    ``next``, the level that can be climbed to first, with what it waits for, and ``then``, those that come after it.

    ``former`` is the level of the configuration before whose model answers until the next level does.
    """
    answers = report["serving"] if report["serving"] != OFF else None
    if answers is None and former is not None:
        answers = f"{former} of the configuration before"
    return {"answers": answers, "why": list(_why(report, answers)), "next": _next(report)}


def _why(report: dict[str, Any], answers: str | None) -> Iterator[str]:
    """Which level it is, then what made it so, a sentence each."""
    state, pinned, decision = report["state"], report["pinned"], report["last_decision"]
    if state == OFF:
        gone = answers is None and report["settled"]
        yield "off is the level now: " + ("nothing is loaded" if gone else f"{answers or 'what was loaded'} is let go")
    elif answers == state:
        yield f"{state} is the level now"
    else:
        yield f"{state} is the level now (being loaded)"
        yield f"{answers or 'nothing'} answers until then"
    if pinned is not None:
        yield f"a person pinned {pinned}; `scaler pin --release` lets it go"
    if decision is not None and (pinned is None or decision["trigger"] != "pin"):
        anew = decision["source"] == decision["dest"]
        way = f"the model of {decision['dest']} had to be loaded anew" if anew else f"came from {decision['source']}"
        yield f"{way} because {decision['reason']}"
    level = next((one for one in report["effective"] if one["level"] == state), None)
    usage = report["projected"].get(state)
    if level is not None and not level["takes"]:
        yield ELSEWHERE
    elif level is not None and usage is not None:
        way = f"; as it is pinned, it gives way from {percent(level['critical_at'])} on" if pinned == state else ""
        yield f"usage at {state} is {percent(usage)}{way}"
    # What would have been acted on, had there been anywhere to go.
    findings = [found for outlook in report["outlooks"] for found in outlook["findings"] if found["holds"]]
    if lowered := next((found["sentence"] for found in findings if found["guard"] == "over_ceiling"), None):
        yield f"{lowered}; no smaller level that is allowed fits"


def _next(report: dict[str, Any]) -> dict[str, Any]:
    """The level that can be climbed to first, with what it waits for, and ``then``, the larger ones that can come only
    after it; no level where a person or the tier forbids every one, and what does.
    """
    state, rank = report["state"], {name: position for position, name in enumerate(report["projected"])}
    higher = [one for one in report["outlooks"] if state == OFF or rank[one["level"]] > rank[state]]

    def order(outlook: dict[str, Any]) -> tuple[float, bool, int]:
        """Of levels that can come at the same time the largest does; if room is lacking, the one that needs least."""
        lacks_room, position = outlook["wait_s"] is None, rank[outlook["level"]]
        return outlook["earliest_s"], lacks_room, position if lacks_room or state == OFF else -position

    soonest = min((one for one in higher if one["earliest_s"] is not None), key=order, default=None)
    if soonest is None:
        bars = ("wanted", "allowed", "stays_allowed")
        findings = [found for outlook in higher for found in outlook["findings"] if found["guard"] in bars]
        barred = dict.fromkeys(found["sentence"] for found in findings if not found["holds"])
        return {"level": None, "waits_for": list(barred) or [f"{state} is the largest level"], "then": []}
    # From off it goes to one that fits, and up from there.
    then = [name for name in rank if rank[name] > rank[soonest["level"]]] if state == OFF else []
    return {"level": soonest["level"], "waits_for": soonest["lacking"], "then": then}
