"""The decision over JSON lines on stdin and stdout, for programs in other languages.

Only translates: samples become readings and events for the same machine that the daemon uses, its state
becomes the answer. Knows no thresholds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, BinaryIO

from pydantic import ValidationError
from pydantic_core import from_json

from scaler.errors import ConfigError, ScalerError
from scaler.levels import OFF, RAM, Ladder, Level
from scaler.machine import LevelMachine
from scaler.policy import Policy
from scaler.policy_layers import POLICY
from scaler.readings import FARTHEST_S, Memory, Reading

THRESHOLDS = {"scale_at": "scale_at", "critical_at": "critical_at", "dwell_s": "upgrade_dwell_s"}
"""What `hello` may set of the policy: our name, and the protocol's."""


SETTLED = "settled"
"""The reason that is given while no switch goes on."""


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
        for level in self.policy.largest_levels.values():
            if level not in self.ladder.names:
                raise ConfigError(
                    f"the tier allows {level!r} at most, which is none of the levels "
                    f"{', '.join(self.ladder.names)}; choose another tier"
                )
        self._machine: LevelMachine | None = None
        self._known = frozenset((OFF, *self.ladder.names))

    def step(self, sample: Mapping[str, Any]) -> tuple[str, bool, str]:
        """Answer one sample with (target level, urgent, reason)."""
        at_s = _number(sample, "t", least=-math.inf)
        if not -FARTHEST_S < at_s < FARTHEST_S:
            raise ValueError(f"t is {at_s!r}; expected seconds")
        model = sample["model"]
        level, idle = model["level"], model["loading"] is None
        if level not in self._known:
            level = self._level(level)
        machine = self._machine
        if machine is None:
            machine = self._machine = LevelMachine(self.ladder, self.policy, lambda _: None, initial=level)
        event = sample.get("event")
        if event is not None:
            self._tell(machine, event, at_s)
        elif machine.settled and idle and level != machine.state:
            machine.died(machine.state, at_s)
        machine.observe(_reading(sample, at_s))
        target, switch = machine.state, machine.switch
        if switch is None or machine.settled:
            return target, False, SETTLED
        if idle and level == target:
            # Back to what serves before anything was begun: nothing has to be loaded.
            machine.switched(switch.ticket, at_s)
            return target, False, SETTLED
        return target, switch.drain_s == 0, switch.decision.reason

    def _tell(self, machine: LevelMachine, event: Mapping[str, Any], at_s: float) -> None:
        kind, level = event["type"], self._level(event.get("level"))
        if kind not in ("switched", "died"):
            raise ValueError(f"event.type is {kind!r}; expected 'switched' or 'died'")
        if kind == "died":
            machine.died(machine.state, at_s)
        elif machine.switch is not None and not event.get("ok", True):
            machine.switch_failed(machine.switch.ticket, level, at_s)
        elif machine.switch is not None and level == machine.switch.dest:
            machine.switched(machine.switch.ticket, at_s)
        else:
            machine.serves(level)

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
    # One look at the sum: it is finite only if each of them is.
    if used is None or total is None or not math.isfinite(used + total + own):
        return Reading(at_s)
    return Reading(at_s, None, Memory(int(total), int(total - used)), int(own))


def converse(lines: Iterable[bytes], answers: BinaryIO, policy: Policy) -> None:
    """Read a ``hello`` and samples from ``lines``, write one answer a line; return at the end of the input.

    Raises ScalerError naming the line for input that cannot be understood.
    """
    controller: Controller | None = None
    known: tuple[object, ...] = ()
    answer = b""
    for number, line in enumerate(lines, start=1):
        try:
            # Of the libraries that are here anyway, pydantic's parser takes a third of the standard library's time.
            message = from_json(line)
            kind = message["type"]
            if kind == "sample" and controller is not None:
                wish = controller.step(message)
                # Most answers are the one before.
                if wish != known:
                    known = wish
                    answer = json.dumps(dict(zip(("target", "urgent", "reason"), wish, strict=True))).encode() + b"\n"
                answers.write(answer)
            elif kind == "hello":
                controller = Controller(message, policy)
                answers.write(b'{"type": "ready"}\n')
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
