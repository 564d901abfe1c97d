"""The decision over JSON lines on stdin and stdout, for programs in other languages.

Only translates: samples become readings and events for the same machine that the daemon uses, its state
becomes the answer. Knows no thresholds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, Any

from scaler.errors import ScalerError
from scaler.levels import OFF, RAM, Ladder, Level
from scaler.machine import LevelMachine, Switch
from scaler.policy import Policy
from scaler.readings import Memory, Reading


class Controller:
    """One conversation: a ``hello``, then one answer for each sample."""

    def __init__(self, hello: Mapping[str, Any], policy: Policy) -> None:
        """``policy``: the tier's; what ``hello`` names of its thresholds goes before. Raises ConfigError."""
        asked = hello.get("thresholds", {})
        named = {"scale_at": "scale_at", "critical_at": "critical_at", "upgrade_dwell_s": "dwell_s"}
        changes: dict[str, Any] = {ours: asked[theirs] for theirs, ours in named.items() if theirs in asked}
        changes["exhausted_at"] = max(policy.exhausted_at, changes.get("critical_at", policy.critical_at))
        changes["dwell_max_s"] = max(policy.dwell_max_s, changes.get("dwell_s", policy.dwell_s))
        self.policy = replace(policy, **changes)
        self.ladder = Ladder(
            [
                Level(level["name"], {RAM: int(level["memory_bytes"])}, level["quality"], level["load_s"])
                for level in hello["levels"]
                if level["name"] != OFF
            ]
        )
        self._machine: LevelMachine | None = None
        self._reason = "settled"
        self._known = frozenset((OFF, *self.ladder.names))

    def _entered(self, switch: Switch) -> None:
        self._reason = switch.decision.reason

    def step(self, sample: Mapping[str, Any]) -> tuple[str, bool, str]:
        """Answer one sample with (target level, urgent, reason)."""
        at_s = float(sample["t"])
        model = sample["model"]
        machine = self._machine
        if machine is None:
            machine = self._machine = LevelMachine(
                self.ladder, self.policy, self._entered, initial=model["level"] or OFF
            )
        event = sample.get("event")
        if event is not None:
            self._tell(machine, event, at_s)
        elif machine.settled and model["loading"] is None and model["level"] != machine.state:
            machine.died(machine.state, at_s)
        machine.observe(_reading(sample, at_s))
        target = machine.state
        if machine.switch is not None and not machine.settled and model["loading"] is None and model["level"] == target:
            # Back to what serves before anything was begun: nothing has to be loaded.
            machine.switched(machine.switch.ticket, at_s)
        if machine.settled:
            self._reason = "settled"
        urgent = not machine.settled and machine.switch is not None and machine.switch.drain_s == 0
        return target, urgent, self._reason

    def _tell(self, machine: LevelMachine, event: Mapping[str, Any], at_s: float) -> None:
        if event["type"] == "died":
            machine.died(machine.state, at_s)
        elif machine.switch is not None:
            if event.get("ok", True):
                machine.switched(machine.switch.ticket, at_s)
            else:
                machine.switch_failed(machine.switch.ticket, event.get("level") or OFF, at_s)


def _reading(sample: Mapping[str, Any], at_s: float) -> Reading:
    memory, own = sample.get("memory"), sample["model"].get("rss_bytes")
    if memory is None or own is None:
        return Reading(at_s)
    used, total = memory.get("used_bytes"), memory.get("total_bytes")
    if used is None or total is None or not (math.isfinite(used) and math.isfinite(total) and math.isfinite(own)):
        return Reading(at_s)
    return Reading(at_s, None, Memory(int(total), int(total - used)), int(own))


def converse(lines: IO[str], answers: IO[str], policy: Policy) -> None:
    """Read a ``hello`` and samples from ``lines``, write one answer a line; return at the end of the input.

    Raises ScalerError naming the line for input that cannot be understood.
    """
    controller: Controller | None = None
    quoted: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        try:
            message = json.loads(line)
            kind = message["type"]
            if kind == "hello":
                controller = Controller(message, policy)
                answers.write('{"type": "ready"}\n')
            elif kind == "sample" and controller is not None:
                target, urgent, reason = controller.step(message)
                answers.write(
                    f'{{"target": {_quote(target, quoted)}, "urgent": {"true" if urgent else "false"}, '
                    f'"reason": {_quote(reason, quoted)}}}\n'
                )
            else:
                raise ScalerError(f"stdin:{number}: type {kind!r}; expected 'hello' first, then 'sample'")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ScalerError(
                f"stdin:{number}: {type(error).__name__} {error}; expected one JSON object a line, as the protocol has it"
            ) from error
        answers.flush()


def _quote(text: str, quoted: dict[str, str]) -> str:
    """The text as JSON; reasons repeat from sample to sample until the next decision."""
    known = quoted.get(text)
    if known is None:
        quoted.clear()
        known = quoted[text] = json.dumps(text)
    return known
