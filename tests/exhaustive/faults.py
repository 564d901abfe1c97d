"""Planted faults: each a small mistake that somebody could make in the decision, and that a test must catch."""

# ruff: noqa: E501  # what is replaced is quoted as it is

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """In ``file`` of the package, ``old`` (found once) becomes ``new``. ``why_alive``: why nothing can tell."""

    what: str
    file: str
    old: str
    new: str
    why_alive: str = ""


G, E, M = "guards.py", "evidence.py", "machine.py"

FAULTS: tuple[Fault, ...] = (
    # The dwell and the room
    Fault("rested: dwell off by one", G, "        since >= dwell,\n", "        since >= dwell - 1,\n"),
    Fault("rested: > in place of >=", G, "        since >= dwell,\n", "        since > dwell,\n"),
    Fault("rested: always", G, "        since >= dwell,\n", "        True,\n"),
    Fault(
        "room: dwell off by one",
        G,
        "    holds = held >= asked\n",
        "    holds = held >= asked - 1\n",
    ),
    Fault(
        "room: dwell ignored",
        G,
        "    holds = held >= asked\n",
        "    holds = True\n",
    ),
    Fault(
        "room: band ignored in the evidence",
        E,
        "if complete and at_least <= limit - band:",
        "if complete and at_least <= limit:",
    ),
    Fault(
        "room: band ignored in the guard",
        G,
        "limit = evidence.limits[position] - evidence.policy.band\n",
        "limit = evidence.limits[position]\n",
    ),
    Fault(
        "room: < in place of <= in the evidence",
        E,
        "if complete and at_least <= limit - band:",
        "if complete and at_least < limit - band:",
    ),
    Fault(
        "room: an unread resource does not matter",
        E,
        "if complete and at_least <= limit - band:",
        "if at_least <= limit - band:",
    ),
    Fault(
        "room: never broken",
        E,
        "                self.fits_since[position] = None\n            if not complete or at_least > self",
        "                pass\n            if not complete or at_least > self",
    ),
    Fault(
        "room: watched anew at each reading",
        E,
        "                if self.fits_since[position] is None:\n                    self.fits_since[position] = now",
        "                self.fits_since[position] = now",
    ),
    Fault(
        "room: judged by what could be read",
        G,
        "    usage = evidence.projected[position]\n    since = evidence.fits_since[position]",
        "    usage = evidence.at_least[position]\n    since = evidence.fits_since[position]",
    ),
    Fault(
        "dwell: waste does not lengthen it",
        E,
        "2.0 ** min(self.wasted[position], 60)",
        "1.0 ** min(self.wasted[position], 60)",
    ),
    Fault(
        "dwell: lengthened without bound",
        E,
        "        return min(self.policy.dwell_s * 2.0 ** min(self.wasted[position], 60), self.policy.dwell_max_s)",
        "        return self.policy.dwell_s * 2.0 ** min(self.wasted[position], 60)",
    ),
    Fault("waste: never counted", M, "            evidence.wasted[before] += 1", "            pass"),
    Fault(
        "waste: counted for any step down",
        M,
        'undone = trigger == "observe" and after < before == self._climbed_to',
        'undone = trigger == "observe" and after < before',
    ),
    Fault(
        "waste: counted however late",
        M,
        "if undone and now - self._served_since < self.policy.wasted_within_s:",
        "if undone:",
    ),
    Fault("waste: never forgiven", M, "            evidence.wasted[evidence.state] = 0", "            pass"),
    # Pressure
    Fault(
        "over: total usage of what is loaded in place of projected",
        E,
        "share = (part.other_bytes + need) / part.total_bytes\n                if (scale",
        "share = (part.other_bytes + part.own_bytes) / part.total_bytes\n                if (scale",
    ),
    Fault(
        "over: the others' use without the footprint",
        E,
        "share = (part.other_bytes + need) / part.total_bytes\n                if (scale",
        "share = part.other_bytes / part.total_bytes\n                if (scale",
    ),
    Fault("over: >= in place of >", E, "            if at_least > limit:\n", "            if at_least >= limit:\n"),
    Fault(
        "over: watched anew at each reading",
        E,
        "                if since is None:\n                    over[position] = now\n",
        "                over[position] = now\n",
    ),
    Fault(
        "over: never over again",
        E,
        "                self.needles[position].ended(since, now)\n                over[position] = None",
        "                self.needles[position].ended(since, now)",
    ),
    Fault("debounce: none", G, "        held >= debounce_s(evidence, position, usage),", "        True,"),
    Fault(
        "debounce: > in place of >=",
        G,
        "        held >= debounce_s(evidence, position, usage),",
        "        held > debounce_s(evidence, position, usage),",
    ),
    Fault("debounce: does not shrink", G, "    return min(asked, policy.debounce_s)", "    return policy.debounce_s"),
    Fault(
        "debounce: shrinks the wrong way",
        G,
        "max(0.0, (policy.critical_at - usage) /",
        "max(0.0, (usage - policy.scale_at) /",
    ),
    Fault(
        "debounce: needles are never waited for", G, "if asked < policy.needle_s and evidence", "if False and evidence"
    ),
    Fault(
        "debounce: not bounded where caution lowers the limit",
        G,
        "    return min(asked, policy.debounce_s)",
        "    return asked",
    ),
    Fault(
        "critical: > in place of >=",
        G,
        '        usage is not None and usage >= limit,\n        usage,\n        limit,\n        "usage at {level} is {usage} of {total}; {threshold} is critical"',
        '        usage is not None and usage > limit,\n        usage,\n        limit,\n        "usage at {level} is {usage} of {total}; {threshold} is critical"',
    ),
    Fault("fits: < in place of <=", G, "(usage <= limit if at_limit else usage < limit)", "(usage < limit)"),
    Fault(
        "fits under critical: <= in place of <",
        G,
        "(usage <= limit if at_limit else usage < limit)",
        "(usage <= limit)",
        "the look ahead, which is never below usage now, refuses what is critical as well",
    ),
    Fault(
        "fits: compared with critical-at",
        G,
        "return _room(evidence, position, evidence.limits[position], at_limit=True)",
        "return _room(evidence, position, evidence.policy.critical_at, at_limit=True)",
    ),
    Fault(
        "fits: a rise does not matter",
        G,
        "if now and ahead is not None and ahead.usage >= critical_at:",
        "if False and ahead is not None:",
    ),
    Fault(
        "fits: > in place of >= for a rise",
        G,
        "if now and ahead is not None and ahead.usage >= critical_at:",
        "if now and ahead is not None and ahead.usage > critical_at:",
    ),
    Fault("forecast over: > in place of >=", G, "        ahead.usage >= limit,\n", "        ahead.usage > limit,\n"),
    Fault("forecast over: never", G, "        ahead.usage >= limit,\n", "        False,\n"),
    Fault(
        "forecast over: at critical-at already",
        G,
        "    limit, horizon = policy.exhausted_at, policy.switch_margin_s\n",
        "    limit, horizon = policy.critical_at, policy.switch_margin_s\n",
    ),
    Fault(
        "forecast over: a pin does not matter",
        G,
        '    if evidence.pinned == position:\n        return Verdict(False, None, policy.critical_at, "{level} is pinned',
        '    if False:\n        return Verdict(False, None, policy.critical_at, "{level} is pinned',
    ),
    Fault(
        "pinned: gives way at the limit",
        G,
        "            usage >= policy.critical_at,\n            usage,\n            policy.critical_at,",
        "            True,\n            usage,\n            policy.critical_at,",
    ),
    Fault(
        "pinned: never gives way",
        G,
        "            usage >= policy.critical_at,\n            usage,\n            policy.critical_at,",
        "            False,\n            usage,\n            policy.critical_at,",
    ),
    Fault(
        "squeeze: ease does not matter",
        G,
        "holds = here is not None and there is not None and there < here",
        "holds = here is not None and there is not None",
    ),
    Fault(
        "squeeze: eases with <=",
        G,
        "holds = here is not None and there is not None and there < here",
        "holds = here is not None and there is not None and there <= here",
    ),
    Fault(
        "no lower fits: a back-off does not matter",
        G,
        "        fits_under_critical(evidence, lower).holds and not backing_off(evidence, lower).holds\n        for lower in range(position)",
        "        fits_under_critical(evidence, lower).holds\n        for lower in range(position)",
    ),
    Fault(
        "no lower fits: always",
        G,
        "    return Verdict(\n        holds,\n        None,\n        evidence.policy.critical_at,",
        "    return Verdict(\n        True,\n        None,\n        evidence.policy.critical_at,",
    ),
    Fault(
        "no lower fits: the smallest is not asked",
        G,
        "        for lower in range(position)\n    )\n    return Verdict(\n        holds,",
        "        for lower in range(1, position)\n    )\n    return Verdict(\n        holds,",
    ),
    Fault("gives way first: never asked", G, "    if not over and not rising:\n", "    if True:\n"),
    Fault(
        "gives way first: a rise does not matter",
        G,
        "    if rising or critical(evidence, here).holds or _eased",
        "    if critical(evidence, here).holds or _eased",
    ),
    Fault(
        "gives way first: takes more does not matter",
        G,
        " or _eased_below(evidence) or _takes_more(evidence, position):",
        " or _eased_below(evidence):",
    ),
    Fault(
        "gives way first: a level below does not matter",
        G,
        " or _eased_below(evidence) or _takes_more(evidence, position):",
        " or _takes_more(evidence, position):",
    ),
    # Forecasts of a climb
    Fault(
        "climb: a rise does not matter",
        G,
        "    if ahead is not None and ahead.usage > limit:\n        rising",
        "    if False:\n        rising",
    ),
    Fault(
        "climb: >= in place of > for a rise",
        G,
        "    if ahead is not None and ahead.usage > limit:\n        rising",
        "    if ahead is not None and ahead.usage >= limit:\n        rising",
    ),
    Fault("climb: the expected peak does not matter", G, "        expected.at_most <= limit,\n", "        True,\n"),
    Fault(
        "climb: < in place of <= for the peak",
        G,
        "        expected.at_most <= limit,\n",
        "        expected.at_most < limit,\n",
    ),
    Fault("climb: stalls do not matter", G, "        stalled <= limit, stalled,", "        True, stalled,"),
    Fault(
        "climb: needles break nothing, for ever",
        E,
        "            return now - since < self.policy.needle_s\n",
        "            return True\n",
    ),
    Fault(
        "climb: needles last one reading longer",
        E,
        "            return now - since < self.policy.needle_s\n",
        "            return now - since <= self.policy.needle_s\n",
    ),
    Fault(
        "climb: whatever rises is a needle",
        E,
        "        if not self.needles[position].trusted(now):\n            return False\n",
        "",
    ),
    # Off
    Fault(
        "recovery: off by one",
        G,
        "    holds = since is not None and held >= asked\n",
        "    holds = since is not None and held >= asked - 1\n",
    ),
    Fault(
        "recovery: > in place of >=",
        G,
        "    holds = since is not None and held >= asked\n",
        "    holds = since is not None and held > asked\n",
    ),
    Fault(
        "recovery: at once", G, "    holds = since is not None and held >= asked\n", "    holds = since is not None\n"
    ),
    Fault(
        "recovery: a rise does not matter",
        G,
        "    if since is not None and ahead is not None and ahead.usage > limit:\n",
        "    if False:\n",
    ),
    Fault(
        "recovery: at critical-at for all levels",
        E,
        "        return self.limits[position] - policy.band if position else policy.critical_at - policy.recovery_band",
        "        return policy.critical_at - policy.recovery_band",
    ),
    Fault(
        "recovery: without its band",
        E,
        "if position else policy.critical_at - policy.recovery_band",
        "if position else policy.critical_at",
    ),
    Fault(
        "recovery: in a switch",
        M,
        'RECOVER = ("wanted", "settled", "recovers", "allowed")',
        'RECOVER = ("wanted", "recovers", "allowed")',
    ),
    Fault(
        "recovery: unasked",
        M,
        'RECOVER = ("wanted", "settled", "recovers", "allowed")',
        'RECOVER = ("settled", "recovers", "allowed")',
    ),
    Fault(
        "recovery: whatever is allowed",
        M,
        'RECOVER = ("wanted", "settled", "recovers", "allowed")',
        'RECOVER = ("wanted", "settled", "recovers")',
    ),
    # The table
    Fault("table: a climb in a switch", M, 'CLIMB = ("settled", "fits_below_band"', 'CLIMB = ("fits_below_band"'),
    Fault(
        "table: a climb does not rest",
        M,
        '"fits_below_band", "rested", "stays_allowed"',
        '"fits_below_band", "stays_allowed"',
    ),
    Fault("table: a climb need not be allowed", M, '"rested", "stays_allowed", "calm"', '"rested", "calm"'),
    Fault(
        "table: a climb does not look ahead", M, '"calm", "forecast_fits", "gives_no_way")', '"calm", "gives_no_way")'
    ),
    Fault(
        "table: a climb forgets the back-off",
        M,
        '            yield Row("observe", here, there, CLIMB, ("backing_off",))',
        '            yield Row("observe", here, there, CLIMB)',
    ),
    Fault(
        "table: off forgets the back-off",
        M,
        '        yield Row("observe", OFF, there, RECOVER, ("backing_off",))',
        '        yield Row("observe", OFF, there, RECOVER)',
    ),
    Fault(
        "table: a step down forgets the back-off",
        M,
        '                yield Row("observe", here, there, way, ("backing_off",))',
        '                yield Row("observe", here, there, way)',
    ),
    Fault(
        "table: a squeeze forgets the back-off",
        M,
        '            yield Row("observe", here, there, SQUEEZE, ("backing_off",))',
        '            yield Row("observe", here, there, SQUEEZE)',
    ),
    Fault(
        "table: the smallest that fits first",
        M,
        '            for there in reversed(lower):\n                yield Row("observe", here, there, way',
        '            for there in lower:\n                yield Row("observe", here, there, way',
    ),
    Fault(
        "table: the next larger one first",
        M,
        "        for there in reversed(higher):\n",
        "        for there in higher:\n",
    ),
    Fault(
        "table: no squeeze",
        M,
        '            yield Row("observe", here, there, SQUEEZE, ("backing_off",))',
        "            continue",
    ),
    Fault(
        "table: no way off",
        M,
        '        yield Row("observe", here, OFF, ("over_limit", "critical", "no_lower_fits"))\n',
        "",
    ),
    Fault(
        "table: off without being critical",
        M,
        '("over_limit", "critical", "no_lower_fits")',
        '("over_limit", "no_lower_fits")',
    ),
    Fault(
        "table: a rise leads off with a level that fits", M, '("forecast_over", "no_lower_fits")', '("forecast_over",)'
    ),
    Fault(
        "table: what failed is fallen back on",
        M,
        '            yield Row("switch_failed", here, there, (), ("backing_off",))',
        '            yield Row("switch_failed", here, there)',
    ),
    Fault(
        "table: off where a level still serves",
        M,
        '                yield Row("switch_failed", here, there, ("still_serves",))',
        "                continue",
    ),
    Fault(
        "table: what died is followed by the next lower one",
        M,
        '            yield Row("died", here, there, ("stands_by",))',
        '            yield Row("died", here, there)',
    ),
    Fault(
        "table: a degraded level may be backing off",
        M,
        '            yield Row("degrade", here, there, (), ("backing_off",))',
        '            yield Row("degrade", here, there)',
    ),
    Fault(
        "table: a pin to what is critical",
        M,
        '("pinned",) if there == OFF else ("pinned", "fits_under_critical")',
        '("pinned",)',
        "the method refuses such a pin before the table is asked",
    ),
    # Failures
    Fault(
        "back-off: none",
        E,
        "        self.backoff_until_s[position] = now_s + pause",
        "        self.backoff_until_s[position] = now_s",
    ),
    Fault(
        "back-off: does not double",
        E,
        "2.0 ** min(self.failures[position], 60)",
        "1.0 ** min(self.failures[position], 60)",
    ),
    Fault("back-off: failures are not counted", E, "        self.failures[position] += 1\n", ""),
    Fault(
        "back-off: without bound",
        E,
        "        pause = min(self.policy.backoff_s * 2.0 ** min(self.failures[position], 60), self.policy.backoff_max_s)",
        "        pause = self.policy.backoff_s * 2.0 ** min(self.failures[position], 60)",
    ),
    Fault("back-off: one reading too long", G, "    if not left > 0:\n", "    if not left >= 0:\n"),
    Fault("back-off: never over", G, "    if not left > 0:\n", "    if evidence.failures[position] == 0:\n"),
    Fault("back-off: never forgiven", M, "            evidence.failures[evidence.state] = 0", "            pass"),
    Fault(
        "failed switch: its level does not back off",
        M,
        "            evidence.fail(evidence.state, evidence.changed_at_s)",
        "            pass",
    ),
    Fault(
        "failed switch: what serves is not noted",
        M,
        "        self._settle(at_s)\n        evidence.serving = position if position >= 0 else None\n",
        "        self._settle(at_s)\n",
    ),
    Fault(
        "failed switch: not settled",
        M,
        "        self._settle(at_s)\n        evidence.serving = position if position >= 0 else None\n",
        "        evidence.serving = position if position >= 0 else None\n",
    ),
    Fault(
        "failed switch: whoever failed",
        M,
        '    def switch_failed(self, ticket: int, still_serving: str, at_s: float) -> None:\n        """The switch ``ticket`` failed; ``still_serving`` answers, or ``off``. Its level backs off."""\n        if self.switch is None or ticket != self.switch.ticket or self.settled:',
        '    def switch_failed(self, ticket: int, still_serving: str, at_s: float) -> None:\n        """The switch ``ticket`` failed; ``still_serving`` answers, or ``off``. Its level backs off."""\n        if self.switch is None or self.settled:',
    ),
    Fault(
        "done: whichever switch",
        M,
        "        if self.switch is None or ticket != self.switch.ticket or self.settled:\n            return\n        evidence = self.evidence\n        self._settle(at_s)",
        "        if self.switch is None or self.settled:\n            return\n        evidence = self.evidence\n        self._settle(at_s)",
    ),
    Fault(
        "done: what serves is not noted",
        M,
        "        evidence.serving = evidence.state if evidence.state >= 0 else None\n        self._served_since",
        "        self._served_since",
    ),
    Fault(
        "died: it does not back off",
        M,
        "        evidence.fail(position, max(at_s, evidence.now_s))\n        if evidence.serving",
        "        if evidence.serving",
    ),
    Fault(
        "died: serves still", M, "        if evidence.serving == position:\n            evidence.serving = None\n", ""
    ),
    Fault(
        "died: whoever died, the state changes",
        M,
        '        if evidence.state == position:\n            self._settle(at_s)\n            self._trigger("died")',
        '        self._settle(at_s)\n        self._trigger("died")',
    ),
    # Time
    Fault(
        "change: its time is not noted",
        M,
        "        evidence.changed_at_s = now\n        self.last_decision = decision",
        "        self.last_decision = decision",
    ),
    Fault(
        "change: settled while it switches", M, "        evidence.settled = False\n        drain_s", "        drain_s"
    ),
    Fault(
        "settled: its time is not noted",
        M,
        "evidence.changed_at_s = self._event_at_s = max(at_s, evidence.now_s, evidence.changed_at_s)",
        "self._event_at_s = max(at_s, evidence.now_s, evidence.changed_at_s)",
    ),
    Fault(
        "reading: from the past as well",
        E,
        "        if not now > self.now_s or not -FARTHEST_S <",
        "        if not -FARTHEST_S <",
    ),
    Fault(
        "reading: of the same moment as well",
        E,
        "        if not now > self.now_s or not -FARTHEST_S <",
        "        if not now >= self.now_s or not -FARTHEST_S <",
    ),
    Fault(
        "reading: without RAM as well",
        E,
        "        if usage[0] is None:\n            return False\n        if now -",
        "        if now -",
    ),
    Fault(
        "reading: late ones break nothing",
        E,
        "        if now - self.now_s > self.policy.stale_after_s:\n            self._break()\n",
        "",
    ),
    Fault(
        "reading: late one reading early",
        E,
        "        if now - self.now_s > self.policy.stale_after_s:\n",
        "        if now - self.now_s >= self.policy.stale_after_s:\n",
    ),
    Fault(
        "reading: late ones do not break the recovery",
        E,
        "        self.recovers_since = [None] * count\n        for trend",
        "        for trend",
    ),
    Fault(
        "reading: late ones do not break the dwell",
        E,
        "        self.fits_since = [None] * count\n        self.recovers_since = [None] * count\n        for trend",
        "        self.recovers_since = [None] * count\n        for trend",
    ),
    # Pins, battery
    Fault(
        "pin: climbs above it",
        G,
        "    if evidence.pinned is not None and position > evidence.pinned:\n",
        "    if False:\n",
    ),
    Fault(
        "pin: may be critical",
        M,
        "            if not verdict.holds:\n                raise PinRefused",
        "            if False:\n                raise PinRefused",
    ),
    Fault(
        "pin: lasts beyond unpin",
        M,
        '        self.evidence.pinned = None\n        self._trigger("unpin")',
        '        self._trigger("unpin")',
    ),
    Fault(
        "pin: above what the tier allows",
        M,
        "        if position > evidence.highest_allowed:\n            raise",
        "        if False:\n            raise",
    ),
    Fault(
        "tier: above its largest level",
        G,
        "    if position > evidence.highest_allowed:\n        return Verdict(False",
        "    if False:\n        return Verdict(False",
    ),
    Fault(
        "battery: at once",
        G,
        "    return Verdict(held >= asked, held, asked, _lowered(evidence, ceiling) + waits, held, asked)",
        "    return Verdict(True, held, asked, _lowered(evidence, ceiling) + waits, held, asked)",
    ),
    Fault(
        "battery: never lowers",
        G,
        "    return Verdict(held >= asked, held, asked, _lowered(evidence, ceiling) + waits, held, asked)",
        "    return Verdict(False, held, asked, _lowered(evidence, ceiling) + waits, held, asked)",
    ),
    Fault("battery: a pin does not matter", G, "    if evidence.pinned is not None:\n        return []\n", ""),
    Fault(
        "battery: climbs as soon as it is plugged in",
        G,
        "            verdict = Verdict(held >= asked, None, None, words, held, asked)",
        "            verdict = Verdict(True, None, None, words, held, asked)",
    ),
    Fault(
        "battery: the ceiling itself is forbidden",
        G,
        "if position > ceiling.highest]",
        "if position >= ceiling.highest]",
    ),
    # Draining
    Fault(
        "drain: not shortened when critical",
        M,
        "            serving is not None and critical(self.evidence, serving).holds\n",
        "            False\n",
    ),
    Fault(
        "drain: what is in use does not matter",
        M,
        " or self.evidence.in_use >= policy.critical_at:\n",
        ":\n",
    ),
    Fault(
        "drain: not ended when exhausted",
        M,
        "        if serving is not None and exhausted(self.evidence, serving).holds:\n",
        "        if False:\n",
    ),
    Fault(
        "drain: ended at the first exhausted reading",
        G,
        "        since is not None and held >= policy.exhausted_s,\n",
        "        since is not None,\n",
    ),
    Fault(
        "drain: hurried to take longer",
        M,
        "        if drain_s < switch.drain_s or drain_tokens < switch.drain_tokens:",
        "        if drain_s != switch.drain_s or drain_tokens != switch.drain_tokens:",
    ),
    Fault(
        "drain: never hurried",
        M,
        "        if drain_s < switch.drain_s or drain_tokens < switch.drain_tokens:",
        "        if False:",
    ),
    # What a GPU brings
    Fault(
        "GPU: the least tight resource counts",
        E,
        "                if share > at_least:\n                    at_least = share",
        "                if share > at_least or index:\n                    at_least = share",
    ),
    Fault(
        "GPU: unread, a smaller level is not judged by the rest",
        E,
        "        if usage is not None or position > highest:\n",
        "        if usage is not None or position >= 0:\n",
    ),
    Fault(
        "GPU: unread, a larger level is judged by the rest",
        E,
        "need > most[index] for most in granted):\n                return None\n",
        "need > most[index] for most in granted):\n                continue\n",
    ),
)

SAMPLE = (
    "rested: dwell off by one",
    "room: band ignored in the evidence",
    "over: the others' use without the footprint",
    "critical: > in place of >=",
    "table: off forgets the back-off",
    "failed switch: its level does not back off",
    "recovery: off by one",
    "pin: climbs above it",
)
"""What continuous integration plants: one of each kind."""
