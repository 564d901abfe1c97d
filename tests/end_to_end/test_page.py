"""The page at `/`, in a real browser, of a daemon that serves a real ladder."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import ConsoleMessage, Page, Route, expect

from scaler.events import DecisionMade
from scaler.manager import ModelManager
from scaler.serving.app import Endpoint
from tests.end_to_end.browser import CHROMIUM, chromium
from tests.end_to_end.conftest import MIB, PATIENCE_S, Machine, Watch
from tests.end_to_end.test_endpoint import MESSAGES, client
from tests.end_to_end.test_ladder import settles_at

Serving = Callable[..., Any]
TOKEN = "correct-horse-battery-staple"
AHEAD_H = 12 - datetime.now(UTC).hour
"""Of UTC, in whole hours: the browser's noon is near, so that no test sees its day end."""
HOSTILE = '<img src=x onerror="window.hurt=1">'

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
expect.set_options(timeout=PATIENCE_S * 1000)


@dataclass
class Seen:
    """A page, with everywhere that it asked and everything that it complained of."""

    page: Page
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._said)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    """A browser with one page, which must not ask anyone but the daemon, whatever it is told."""
    # In Etc's names, hours ahead of UTC are negative.
    with chromium(tmp_path / "profile", zone=f"Etc/GMT{-AHEAD_H:+d}") as context:
        seen = Seen(context.pages[0])
        yield seen
        assert len(seen.hosts) == 1, seen.hosts


def too_wide(page: Page) -> int:
    """By how many pixels the page is wider than a small telephone."""
    page.set_viewport_size({"width": 360, "height": 740})
    expect(page.locator(".stage svg").first).to_have_attribute("viewBox", re.compile(r"0 0 (2\d|3[0-3])\d "))
    return int(page.evaluate("document.documentElement.scrollWidth")) - 360


def tab_to(page: Page, what: str, wanted: str) -> None:
    """Press Tab until the script ``what`` says of the focused element what is ``wanted``."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(what) == wanted:
            return
    pytest.fail(f"no Tab leads to {wanted}")


@needs_chromium
def test_a_step_down_is_seen_as_it_happens(serving: Serving, machine: Machine, seen: Seen) -> None:
    """The level, the reason, the mark in the picture, the suggestion: without a reload and without a complaint."""
    page = seen.page
    with serving() as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        page.goto(url)
        upgrade = page.locator(".next .big")
        expect(page.locator("#level")).to_have_text("large")
        expect(upgrade).to_contain_text("none")
        expect(page.locator("#link")).to_have_text("live")
        machine.other_bytes = 2900 * MIB
        expect(page.locator("#level")).to_have_text("medium")
        # What a screen reader says.
        expect(page.get_by_role("status")).to_contain_text("medium answers now")
        expect(page.locator("#why")).to_contain_text("came from large because usage at large is")
        expect(page.locator("#why")).to_contain_text("the limit is 80 %")
        expect(page.locator("#why li").last).to_have_text(re.compile(r"since \d\d:\d\d:\d\d"))
        expect(upgrade).to_contain_text("large waits for room")
        expect(page.locator("#lacking")).to_contain_text("to climb it must be at most")
        expect(page.locator("#events b").first).to_have_text("large → medium")
        expect(page.locator("#advice li, #advice .nothing").first).to_be_visible()
        expect(page.get_by_role("img", name="RAM over time")).to_be_visible()
        # Each decision is explained to a mouse and to the keyboard.
        mark, tip = page.locator(".mark").last, page.locator(".tip")
        expect(mark).to_have_accessible_name(re.compile("large to medium: usage at large is .*done after"))
        mark.hover()
        expect(tip).to_contain_text("the limit is 80 %")
        mark.focus()
        page.keyboard.press("ArrowLeft")
        expect(tip).to_contain_text("→ large")
        page.keyboard.press("Escape")
        expect(tip).to_be_hidden()
        # And the picture has its table.
        page.locator("#as-table summary").press("Enter")
        expect(page.locator("#table-rows tr").first).to_contain_text("large → medium")
        assert too_wide(page) <= 0
        assert seen.complaints == []


@needs_chromium
def test_a_level_is_pinned_with_the_keyboard_alone(serving: Serving, seen: Seen) -> None:
    """And unpinned; what cannot be is refused with the reason, in the daemon's words."""
    page = seen.page
    with serving() as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        page.goto(url)
        pin = page.get_by_role("button", name="Pin small")
        expect(pin).to_be_visible()
        focused = "document.activeElement.getAttribute('aria-label')"
        tab_to(page, focused, "Pin small")
        page.keyboard.press("Enter")
        expect(page.locator("#level")).to_have_text("small")
        expect(page.locator("#ladder-note")).to_have_text("a person pinned small")
        assert manager.scaler.status().pinned == "small"
        expect(page.locator("#why li").first).to_have_text("a person pinned small; scaler pin --release lets it go")
        expect(page.locator("#why li code")).to_have_text("scaler pin --release")
        expect(page.locator("#lacking")).to_have_text("the level is pinned to small")
        # The button is the same one, and says what it does now.
        assert page.evaluate(focused) == "Unpin small"
        page.keyboard.press("Space")
        expect(page.locator("#ladder-note")).to_have_text("the machine decides")
        assert manager.scaler.status().pinned is None
        assert seen.complaints == []


@needs_chromium
def test_a_pin_to_off_is_let_go_with_the_keyboard_alone(serving: Serving, seen: Seen) -> None:
    """No level has a button for it. Where the focus goes then, a screen reader says what has come of it."""
    page = seen.page
    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        page.goto(url)
        unpin = page.get_by_role("button", name="Unpin")
        expect(page.locator("#ladder-note")).to_have_text("the machine decides")
        expect(unpin).to_have_count(0)
        manager.scaler.pin("off")
        expect(page.locator("#ladder-note")).to_have_text("a person pinned off")
        expect(unpin).to_have_accessible_name("Unpin: let the machine decide")
        expect(page.locator("#level")).to_have_text("off")
        tab_to(page, "document.activeElement.textContent", "Unpin")
        page.keyboard.press("Enter")
        expect(page.locator("#ladder-note")).to_have_text("the machine decides")
        expect(page.locator("#ladder-note")).to_be_focused()
        expect(unpin).to_have_count(0)
        expect(page.locator("#level")).not_to_have_text("off")
        assert manager.scaler.status().pinned is None
        assert seen.complaints == []


@needs_chromium
def test_while_a_switch_goes_on_it_says_what_answers_and_what_goes(serving: Serving, seen: Seen) -> None:
    """The new level answers as soon as it is loaded; an answer of the one before it goes on beside it until it ends."""
    page = seen.page
    limits = {"drain_seconds": 300.0, "drain_tokens": 100_000}
    with serving(levels=("small", "medium"), policy=limits) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        page.goto(url)
        shown, tag = page.locator("#level"), page.locator("#level-tag")
        rungs = page.locator(".rung")
        expect(shown).to_have_text("medium")
        expect(tag).to_be_hidden()
        endless = {"ignore_eos": True}
        with closing(
            client(url).chat.completions.create(model="auto", messages=MESSAGES, stream=True, extra_body=endless)
        ) as answer:
            next(iter(answer))
            manager.scaler.pin("small")
            watch.until(lambda: manager.scaler.status().serving == "small", "small to answer")
            assert not manager.scaler.status().settled
            expect(shown).to_have_text("small")
            expect(tag).to_have_text("finishing the switch")
            expect(page.locator("#why li").first).to_contain_text("a person pinned small")
            expect(rungs.first).to_have_text("mediumfits")
            expect(rungs.last).to_have_text("smallanswers now")
        settles_at(manager, watch, "small")
        expect(tag).to_have_text("pinned")
        with closing(
            client(url).chat.completions.create(model="auto", messages=MESSAGES, stream=True, extra_body=endless)
        ) as answer:
            next(iter(answer))
            manager.scaler.pin("off")
            expect(shown).to_have_text("small")
            expect(tag).to_have_text("being unloaded")
            expect(rungs.last).to_have_text("smallbeing unloaded")
        settles_at(manager, watch, "off")
        expect(shown).to_have_text("off")
        expect(tag).to_have_text("pinned")
        expect(rungs.last).to_have_text("smallfits")
        assert seen.complaints == []


@needs_chromium
def test_other_hours_that_are_asked_for_meanwhile_are_asked_for_after(
    serving: Serving, tmp_path: Path, seen: Seen
) -> None:
    """An answer that is on its way is of other hours: nothing of it is shown below the new title."""
    page = seen.page
    (tmp_path / "journal.jsonl").write_text(
        switches(datetime.now(UTC).timestamp() - 7200, ("off", "large", "up", "two hours ago"))
    )
    held: list[Route] = []
    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        page.goto(url)
        events = page.locator("#events")
        expect(events).to_contain_text("off → small")
        lately = re.compile(r"/history\?last_s=")
        page.route(lately, lambda route: held.append(route))
        with page.expect_request(lately):
            manager.scaler.unpin()
        page.get_by_role("button", name="6 h").click()
        expect(page.locator("#hour-title")).to_have_text("The last 6 hours")
        late = held[0].fetch().json()
        late["events"][-1] |= {"event": "decision", "what": "of the last hour only"}
        with page.expect_request(re.compile(r"/history\?last_s=21600$")):
            held[0].fulfill(json=late)
        expect(events).not_to_contain_text("of the last hour only")
        held[1].continue_()
        expect(events).to_contain_text("off → large")
        expect(page.locator(".mark")).to_have_count(2)
        page.unroute_all()
        assert seen.complaints == []


@needs_chromium
def test_since_when_it_is_this_level_is_right_after_a_night_asleep(serving: Serving, seen: Seen) -> None:
    """The monotonic clock stood still then; the journal knows, also once it was hours ago. And it was not today."""
    page = seen.page
    slept_s, long_ago = 30 * 3600, False

    def status(route: Route) -> None:
        told = route.fetch().json()
        told["reading"]["wall_s"] += slept_s
        route.fulfill(json=told)

    def history(route: Route) -> None:
        told = route.fetch().json()
        told["now"] += slept_s
        route.fulfill(json=told | ({"events": []} if long_ago else {}))

    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        (decided,) = [event for event in watch.told() if isinstance(event, DecisionMade)]
        since = page.locator("#why li").last
        page.goto(url)
        expect(since).to_have_text(f"since {at(decided.wall_s):%H:%M:%S}")
        page.route("**/status", status)
        page.route(re.compile(r"/history\?last_s="), history)
        page.reload()
        then = re.compile(f"^since {at(decided.wall_s):%a,? {at(decided.wall_s).day} %b.?, %H:%M:%S}$")
        expect(since).to_have_text(then)
        long_ago = True
        manager.scaler.unpin()
        expect(page.locator("#events")).to_have_text("nothing in this time")
        expect(since).to_have_text(then)
        page.unroute_all(behavior="wait")
        assert seen.complaints == []


def at(wall_s: float) -> datetime:
    """Then, by the browser's clock, which need not be the daemon's."""
    return datetime.fromtimestamp(wall_s, timezone(timedelta(hours=AHEAD_H)))


@needs_chromium
def test_what_cannot_be_pinned_is_refused_with_the_reason(serving: Serving, machine: Machine, seen: Seen) -> None:
    """In the daemon's words."""
    machine.other_bytes = 3200 * MIB
    with serving() as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        seen.page.goto(url)
        seen.page.get_by_role("button", name="Pin large").click()
        expect(seen.page.locator("#pin-error")).to_contain_text("large")
        assert manager.scaler.status().pinned is None
    # A browser writes down what was refused.
    assert [said for said in seen.complaints if "409" not in said and "ERR_" not in said] == []


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    """A token, as a person makes one."""
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return str(path)


@contextmanager
def daemon(running: Callable[..., Any], port: int = 0) -> Iterator[tuple[str, ModelManager, Watch]]:
    with running() as (manager, watch):
        endpoint = Endpoint(manager, "127.0.0.1", port)
        endpoint.start()
        try:
            yield endpoint.url, manager, watch
        finally:
            endpoint.stop()


@needs_chromium
def test_it_says_that_the_daemon_is_gone_and_goes_on_with_the_next_one(
    running: Callable[..., Any], machine: Machine, seen: Seen
) -> None:
    """A person leaves the page open for weeks; restarts are in them."""
    page = seen.page
    with daemon(running) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        page.goto(url)
        expect(page.locator("#level")).to_have_text("large")
        known = page.locator("#events li").count()
    expect(page.locator("#gone")).to_contain_text("The daemon does not answer. What is shown is of ")
    expect(page.locator("#link")).to_have_text("gone")
    expect(page.locator("#level")).to_have_text("large")
    # All that may not be so any more is dimmed, and all of it alike.
    dimmed = """shown => {
        let opacity = 1;
        for (; shown; shown = shown.parentElement) opacity *= getComputedStyle(shown).opacity;
        return opacity;
    }"""
    shades = {page.locator(one).evaluate(dimmed) for one in ("#level", "#next", "#told", "#hour-title", "#events")}
    assert len(shades) == 1
    assert 0.5 < shades.pop() < 1
    machine.other_bytes = 2500 * MIB
    port = urlsplit(url).port
    assert port is not None
    with daemon(running, port) as (_, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "medium")
        expect(page.locator("#link")).to_have_text("live")
        expect(page.locator("#gone")).to_be_hidden()
        expect(page.locator("#level")).to_have_text("medium")
        # What happened before is still there, and what happened meanwhile has come.
        expect(page.locator("#events b").first).to_have_text("small → medium")
        assert page.locator("#events li").count() > known
        manager.scaler.pin("small")
        expect(page.locator("#level")).to_have_text("small")
    assert [said for said in seen.complaints if "ERR_" not in said] == []


@needs_chromium
def test_that_the_daemon_is_gone_is_read_aloud_once(running: Callable[..., Any], seen: Seen) -> None:
    """And not with every second until the next try. Of a day that is over, what is shown is said to be."""
    page = seen.page
    with daemon(running) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "large")
        page.goto(url)
        expect(page.locator("#level")).to_have_text("large")
    alert = page.get_by_role("alert").filter(has_text="The daemon does not answer.")
    expect(alert).to_have_text(re.compile(r"^The daemon does not answer\. What is shown is of \d\d:\d\d:\d\d\.$"))
    alert.evaluate("""alert => {
        window.spoken = 0;
        const all = { subtree: true, childList: true, characterData: true, attributes: true };
        new MutationObserver(changes => { window.spoken += changes.length; }).observe(alert, all);
    }""")
    left = page.locator("#gone-left")
    expect(left).to_have_attribute("aria-live", "off")
    for _ in range(3):
        expect(left).to_have_text(re.compile(r"^Trying again in \d+ s\.$"))
        expect(left).not_to_have_text(left.inner_text())
    assert page.evaluate("window.spoken") == 0
    page.evaluate("{ const now = Date.now; Date.now = () => now() + 48 * 3600 * 1000; }")
    expect(alert).to_have_text(re.compile(r" is of \w{3},? \d+ \w{3,4}, \d\d:\d\d:\d\d\.$"))
    assert [said for said in seen.complaints if "ERR_" not in said] == []


@needs_chromium
def test_a_link_on_another_site_opens_the_page_and_nothing_else(serving: Serving, tmp_path: Path) -> None:
    """And the site that it stands on gets no hold of it, where it opens it by itself either."""
    site = "https://wiki.example/"
    with (
        serving(levels=("small",)) as (url, manager, watch),
        chromium(tmp_path / "profile") as context,
    ):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        page = context.pages[0]
        links = f'<a href="{url}/">the page</a> <a href="{url}/status">the state</a>'
        page.route(site, lambda route: route.fulfill(content_type="text/html", body=links))
        page.goto(site)
        with page.expect_response(f"{url}/status") as followed:
            page.get_by_role("link", name="the state").click()
        assert followed.value.status == 403
        page.goto(site)
        with page.expect_popup() as opened:
            page.evaluate("url => { window.won = open(url); }", f"{url}/")
        expect(opened.value.locator("#level")).to_have_text("small")
        assert opened.value.evaluate("window.opener") is None
        assert page.evaluate("window.won.closed"), "it is out of reach"
        page.get_by_role("link", name="the page").click()
        expect(page.locator("#level")).to_have_text("small")
        page.reload()
        expect(page.locator("#level")).to_have_text("small")


@needs_chromium
def test_the_token_is_asked_for_once_and_kept_in_the_tab(serving: Serving, token_file: str, seen: Seen) -> None:
    """Not before it is needed, not a second time, and nowhere that outlives the tab."""
    page = seen.page
    with serving(levels=("small",), server={"token_file": token_file}) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        page.goto(url)
        asked = page.get_by_label("Token", exact=True)
        expect(asked).to_be_focused()
        expect(page.locator("#board")).to_be_hidden()
        asked.fill("not-the-token-at-all")
        asked.press("Enter")
        expect(page.locator("#ask-error")).to_have_text("That is not the token.")
        asked.fill(TOKEN)
        asked.press("Enter")
        expect(page.locator("#level")).to_have_text("small")
        page.reload()
        expect(page.locator("#level")).to_have_text("small")
        expect(asked).to_be_hidden()
        page.get_by_role("button", name="Pin small").click()
        expect(page.get_by_role("button", name="Unpin small")).to_be_visible()
        assert TOKEN not in page.content()
        assert TOKEN not in page.url
        assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0
        assert page.evaluate("Object.values(sessionStorage)") == [TOKEN]
    assert [said for said in seen.complaints if "401" not in said and "ERR_" not in said] == []


@needs_chromium
def test_whoevers_words_they_are_they_stay_words(
    serving: Serving, demo_models: dict[str, Path], tmp_path: Path, seen: Seen
) -> None:
    """Names of levels and programs, and reasons, may hold anything; none of it becomes a part of the page."""
    page = seen.page
    died = {"at": datetime.now(UTC).isoformat(), "event": "died", "level": HOSTILE, "reason": HOSTILE}
    (tmp_path / "journal.jsonl").write_text(json.dumps(died) + "\n")
    level = {"model": str(demo_models["small"]), "quality": 0.5, "ram_gib": 0.08, "context_tokens": 2048, "threads": 1}
    names = [HOSTILE, "__proto__", "constructor"]
    ladder = [{**level, "name": name, "ram_gib": 0.08 + place / 10} for place, name in enumerate(names)]
    # What programs run here is not for a test to say.
    advice: dict[str, Any] = {"state": HOSTILE, "lacking": {}, "coming": HOSTILE, "reason": None, "unread": [HOSTILE]}
    advice["suggestions"] = [{"text": f"closing {HOSTILE}, 3.0 GiB, would make room for {HOSTILE}"}]
    page.route("**/advice", lambda route: route.fulfill(json=advice))
    with serving(ladder=ladder) as (url, manager, watch):
        # Before the first reading a pin is refused.
        watch.readings(1)
        manager.scaler.pin(HOSTILE)
        settles_at(manager, watch, HOSTILE)
        page.goto(url)
        expect(page.locator("#level")).to_have_text(HOSTILE)
        expect(page.locator("#advice li")).to_contain_text(f"closing {HOSTILE}")
        expect(page.locator("#events")).to_contain_text(f"{HOSTILE} died")
        expect(page.locator("#ladder li")).to_have_count(3)
        expect(page.get_by_role("button", name="Pin __proto__")).to_be_visible()
        # What ends a line in JavaScript's eyes, and in no one else's.
        manager.scaler.died("constructor", f"\u2028{HOSTILE}")
        expect(page.locator("#told")).to_contain_text(HOSTILE)
        page.locator("#as-table summary").click()
        expect(page.locator("#table-rows tr").first).to_contain_text(HOSTILE)
        page.locator(".mark").last.hover()
        expect(page.locator(".tip")).to_contain_text(HOSTILE)
        assert page.locator("img").count() == 1, "the page's own"
        assert page.evaluate("window.hurt === undefined")
        assert too_wide(page) <= 0
        assert seen.complaints == []


@needs_chromium
def test_what_a_reload_changed_is_told_in_full(serving: Serving, configure: Callable[..., Path], seen: Seen) -> None:
    """As `scaler history` has it: which levels, which figures, what waits for a restart."""
    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        seen.page.goto(url)
        expect(seen.page.locator("#events b").first).to_have_text("off → small")
        configure(levels=("small", "medium"), policy={"scale_at": 0.7}, server={"port": 1})
        manager.reload_sync()
        told = seen.page.locator("#events li", has_text="configuration read anew")
        expect(told).to_contain_text('ladder: ["small"] → ["small", "medium"]; policy.scale_at: 0.8 → 0.7')
        expect(told).to_contain_text("after a restart only: server.port")
        assert seen.complaints == []


@needs_chromium
def test_levels_that_are_no_longer_on_the_ladder_are_told_apart(serving: Serving, tmp_path: Path, seen: Seen) -> None:
    """Which way a step led, as it was decided; and what answered then was not nothing."""
    records: list[dict[str, Any]] = []
    before_s = datetime.now(UTC).timestamp() - 600
    steps = (("off", "huge", "up"), ("huge", "tiny", "down"), ("tiny", "tiny", "same"))
    for ticket, (source, dest, direction) in enumerate(steps, 1):
        at = {"at": datetime.fromtimestamp(before_s + 60 * ticket, UTC).isoformat(), "ticket": ticket, "source": source}
        records.append({**at, "event": "decision", "dest": dest, "direction": direction, "reason": "so"})
        records.append({**at, "event": "switched", "level": dest, "took_s": 0.0, "load_s": None})
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        seen.page.goto(url)
        expect(seen.page.locator(".mark")).to_have_count(4)
        shown = "(all) => all.map((one) => getComputedStyle(one, '::after').content)"
        assert seen.page.locator(".mark").evaluate_all(shown) == ['"▲"', '"▼"', '"●"', '"▲"']
        expect(seen.page.locator("#key > span")).to_have_count(4)
        colours = "(all) => all.map((one) => getComputedStyle(one).backgroundColor)"
        assert len(set(seen.page.locator("#key .swatch").evaluate_all(colours))) == 4
        assert seen.complaints == []


def switches(began_s: float, *steps: tuple[str, str, str, str]) -> str:
    """A journal of decisions 2 s apart that were done at once: each a source, a destination, a direction, a reason."""
    lines = []
    for ticket, (source, dest, direction, reason) in enumerate(steps, 1):
        at = datetime.fromtimestamp(began_s + 2 * ticket, UTC).isoformat()
        told = {"at": at, "ticket": ticket, "source": source}
        lines.append({**told, "event": "decision", "dest": dest, "direction": direction, "reason": reason})
        lines.append({**told, "event": "switched", "level": dest, "took_s": 0.0, "load_s": None})
    return "".join(f"{json.dumps(line)}\n" for line in lines)


@needs_chromium
def test_on_a_telephone_each_decision_is_pointed_at_and_the_table_is_read(
    serving: Serving, tmp_path: Path, seen: Seen
) -> None:
    """Seconds apart they are one place in the picture; and seven columns of figures are wider than the screen."""
    page = seen.page
    page.set_viewport_size({"width": 390, "height": 844})
    steps = [("off", "small", "up", "first"), ("small", "large", "up", "second"), ("large", "medium", "down", "third")]
    steps += [("medium", "medium", "same", "medium has other settings now")]
    (tmp_path / "journal.jsonl").write_text(switches(datetime.now(UTC).timestamp() - 900, *steps))
    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        manager.generate_response_sync("Who are you?")
        page.goto(url)
        expect(page.locator(".rung-figures")).to_have_text(re.compile(r" 1 answer$"))
        marks, tip = page.locator(".mark"), page.locator(".tip")
        expect(marks).to_have_count(5)
        for place, (source, dest, direction, reason) in enumerate(steps):
            marks.nth(place).hover()
            what = f"loading {dest} anew" if direction == "same" else f"{source} → {dest}"
            expect(tip).to_contain_text(what)
            expect(tip).to_contain_text(reason)
        page.locator("#as-table summary").click()
        table = page.get_by_role("region", name="The picture as a table")
        row = table.locator("tbody tr", has_text="large → medium, loading medium anew")
        lines = """cells => cells.map(cell => {
            const text = document.createRange();
            text.selectNodeContents(cell);
            return new Set([...text.getClientRects()].map(line => line.top)).size;
        })"""
        assert set(table.locator("thead th").evaluate_all(lines)) == {1}
        assert set(row.locator("th, td:not(.decided)").evaluate_all(lines)) == {1}
        decided = table.get_by_role("columnheader", name="decided")
        expect(decided).not_to_be_in_viewport()
        table.focus()
        for _ in range(30):
            page.keyboard.press("ArrowRight")
        expect(decided).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert seen.complaints == []


@needs_chromium
def test_of_many_decisions_each_has_a_place_of_its_own_in_their_order(
    serving: Serving, tmp_path: Path, seen: Seen
) -> None:
    """More than there is room for side by side, and some that come into the picture only with more hours."""
    page = seen.page
    page.set_viewport_size({"width": 390, "height": 844})
    steps = [("small", "large", "up", "so"), ("large", "small", "down", "so")] * 30
    began_s = datetime.now(UTC).timestamp() - 3600 - 60
    (tmp_path / "journal.jsonl").write_text(switches(began_s, *steps))
    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        page.goto(url)
        marks = page.locator(".mark")
        expect(marks.last).to_have_accessible_name(re.compile("off to small"))
        assert marks.count() < 61
        page.get_by_role("button", name="6 h").click()
        expect(marks).to_have_count(61)
        page.locator("#pictures").scroll_into_view_if_needed()
        middles = """marks => marks.map(mark => {
            const { left, width, top, height } = mark.getBoundingClientRect();
            const middle = left + width / 2, met = document.elementFromPoint(middle, top + height / 2);
            return [mark.getAttribute("aria-label").slice(0, 8), middle, met === mark];
        })"""
        found = marks.evaluate_all(middles)
        assert all(on_top for *_, on_top in found), found
        told = [time for time, *_ in found]
        assert told[:-1] == [f"{at(began_s + 2 * ticket):%H:%M:%S}" for ticket in range(1, 61)]
        assert [middle for _, middle, _ in found] == sorted(middle for _, middle, _ in found)
        assert too_wide(page) <= 0
        assert seen.complaints == []


@needs_chromium
def test_a_damaged_journal_takes_no_more_from_the_page_than_itself(
    serving: Serving, tmp_path: Path, seen: Seen
) -> None:
    """It says what is wrong with it; the level, the machine and the pins are there."""
    (tmp_path / "journal.jsonl").write_text('{"nonsense": 1}\n')
    with serving(levels=("small",)) as (url, manager, watch):
        manager.scaler.want(True)
        settles_at(manager, watch, "small")
        seen.page.goto(url)
        expect(seen.page.locator("#level")).to_have_text("small")
        expect(seen.page.locator("#trouble")).to_contain_text("a line is no record of scaler's")
        expect(seen.page.locator("#link")).to_have_text("live")
    assert [said for said in seen.complaints if "503" not in said and "ERR_" not in said] == []


def refused(request: urllib.request.Request) -> int:
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=PATIENCE_S)
    with raised.value:
        return raised.value.code


def test_its_files_may_load_nothing_from_elsewhere_and_show_nothing_without_the_token(
    serving: Serving, token_file: str
) -> None:
    """For those who have no browser here: what is sent, and with which rules."""
    with serving(levels=("small",), server={"token_file": token_file}) as (url, _, _):
        paths, found = ["/"], {}
        while paths:
            with urllib.request.urlopen(f"{url}{(path := paths.pop())}", timeout=PATIENCE_S) as answer:
                text = answer.read().decode()
                policy = answer.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
                assert "unsafe" not in policy
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                found[path] = answer.headers["Content-Type"]
            paths += set(re.findall(r'"(/page/[^"]+)"', text)) - found.keys() - set(paths)
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text), path
        assert found["/"] == "text/html; charset=utf-8"
        assert found["/page/page.js"] == "text/javascript; charset=utf-8"
        assert {"/page/page.css", "/page/words.js", "/page/daemon.js", "/page/picture.js", "/page/icon.svg"} < set(
            found
        )
        for path, status in (("/page/nothing.js", 404), ("/page/..%2fpage.py", 404), ("/history", 401)):
            assert refused(urllib.request.Request(f"{url}{path}")) == status, path
        # A page that was made to lead here is a foreign one here too.
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert refused(urllib.request.Request(url, headers=headers)) == 403
