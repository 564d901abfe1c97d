"""The decision over JSON lines on stdin and stdout, for programs in other languages.

Only translates: samples become readings and events for the same machine that the daemon uses, its state
becomes the answer. Knows no thresholds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import IO, Any

from pydantic import ValidationError

from scaler.errors import ConfigError, ScalerError
from scaler.levels import OFF, RAM, Ladder, Level
from scaler.machine import LevelMachine, Switch
from scaler.policy import Policy
from scaler.policy_layers import POLICY
from scaler.readings import Memory, Reading

THRESHOLDS = {"scale_at": "scale_at", "critical_at": "critical_at", "dwell_s": "upgrade_dwell_s"}
"""What `hello` may set of the policy: our name, and the protocol's."""


class Controller:
    """One conversation: a ``hello``, then one answer for each sample."""

    def __init__(self, hello: Mapping[str, Any], policy: Policy) -> None:
        """``policy``: the tier's; what ``hello`` names of its thresholds goes before. Raises ConfigError."""
        self.policy = _policy(hello.get("thresholds", {}), policy)
        self.ladder = Ladder(
            [
                Level(
                    str(level["name"]),
                    {RAM: int(_number(level, "memory_bytes"))},
                    _number(level, "quality"),
                    _number(level, "load_s"),
                )
                for level in hello["levels"]
                if level["name"] != OFF
            ]
        )
        if self.policy.max_level is not None and self.policy.max_level not in self.ladder.names:
            raise ConfigError(
                f"the tier allows {self.policy.max_level!r} at most, which is none of the levels "
                f"{', '.join(self.ladder.names)}; choose another tier"
            )
        self._machine: LevelMachine | None = None
        self._reason = "settled"
        self._known = frozenset((OFF, *self.ladder.names))

    def _entered(self, switch: Switch) -> None:
        self._reason = switch.decision.reason

    def step(self, sample: Mapping[str, Any]) -> tuple[str, bool, str]:
        """Answer one sample with (target level, urgent, reason)."""
        at_s = _number(sample, "t", least=-math.inf)
        model = sample["model"]
        level, idle = self._level(model["level"]), model["loading"] is None
        machine = self._machine
        if machine is None:
            machine = self._machine = LevelMachine(self.ladder, self.policy, self._entered, initial=level)
        event = sample.get("event")
        if event is not None:
            self._tell(machine, event, at_s)
        elif machine.settled and idle and level != machine.state:
            machine.died(machine.state, at_s)
        machine.observe(_reading(sample, at_s))
        target = machine.state
        if machine.switch is not None and not machine.settled and idle and level == target:
            # Back to what serves before anything was begun: nothing has to be loaded.
            machine.switched(machine.switch.ticket, at_s)
        if machine.settled:
            self._reason = "settled"
        urgent = not machine.settled and machine.switch is not None and machine.switch.drain_s == 0
        return target, urgent, self._reason

    def _tell(self, machine: LevelMachine, event: Mapping[str, Any], at_s: float) -> None:
        kind, level = event["type"], self._level(event.get("level"))
        if kind not in ("switched", "died"):
            raise ValueError(f"event.type is {kind!r}; expected 'switched' or 'died'")
        if kind == "died":
            machine.died(machine.state, at_s)
        elif machine.switch is not None and not event.get("ok", True):
            machine.switch_failed(machine.switch.ticket, level, at_s)
        elif machine.switch is not None and level == machine.switch.dest:
            # Any other level was the target of a switch that was overtaken.
            machine.switched(machine.switch.ticket, at_s)

    def _level(self, name: object) -> str:
        level = OFF if name is None else str(name)
        if level not in self._known:
            raise ValueError(f"there is no level {level!r}; expected one of {', '.join(sorted(self._known))}")
        return level


def _policy(thresholds: Mapping[str, Any], tier: Policy) -> Policy:
    asked: dict[str, Any] = {ours: thresholds[theirs] for ours, theirs in THRESHOLDS.items() if theirs in thresholds}
    try:
        policy = {**asdict(tier), **asked}
        policy["exhausted_at"] = max(tier.exhausted_at, policy["critical_at"])
        policy["dwell_max_s"] = max(tier.dwell_max_s, policy["dwell_s"])
        return POLICY.validate_python(policy)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = "".join(f".{THRESHOLDS.get(str(part), part)}" for part in fault["loc"])
        raise ConfigError(f"thresholds{key}: {fault['msg']}") from error


def _number(of: Mapping[str, Any], key: str, least: float = 0.0) -> float:
    value = of[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise ValueError(f"{key} is {value!r}; expected a number{'' if least else ' of 0 or more'}")
    return float(value)


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
        except ConfigError as error:
            raise ConfigError(f"stdin:{number}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ScalerError(
                f"stdin:{number}: {what}; expected one JSON object a line, as the protocol has it"
            ) from error
        answers.flush()


def _quote(text: str, quoted: dict[str, str]) -> str:
    """The text as JSON; reasons repeat from sample to sample until the next decision."""
    known = quoted.get(text)
    if known is None:
        quoted.clear()
        known = quoted[text] = json.dumps(text)
    return known
