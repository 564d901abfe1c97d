"""`scaler demo`: the point of it in two minutes, on this machine."""

from __future__ import annotations

import argparse
import sys
import time

from scaler import extras
from scaler.cli import EXIT_FAILED, EXIT_OK, Command
from scaler.cli.colour import coloured
from scaler.events import DecisionMade, SwitchDone
from scaler.levels import OFF
from scaler.proactive import Event
from scaler.words import counted, gib, switched


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plain", action="store_true", help="lines instead of a picture")


def _run(args: argparse.Namespace) -> int:
    with extras.importing("demo", "llama", "server"):
        from rich.console import Console
        from rich.live import Live

        from scaler.demo.count import Count
        from scaler.demo.picture import OTHER_LINES, Moment, Picture
        from scaler.demo.stage import DWELL_S, Chat, demo_config, play
    from scaler.manager import ModelManager

    console = Console(no_color=not coloured())
    began = time.monotonic()
    lines: list[str] = []

    def say(event: Event) -> None:
        if isinstance(event, DecisionMade):
            decision = event.switch.decision
            change = switched(decision.source, decision.dest)
            lines.append(f"{time.monotonic() - began:5.1f} s  {change}: {decision.reason}")
        elif isinstance(event, SwitchDone):
            serves = f"{event.level} serves" if event.level != OFF else "nothing is loaded"
            lines.append(f"{time.monotonic() - began:5.1f} s  {serves}, after {event.took_s:.1f} s")

    with demo_config() as config, ModelManager(config) as manager:
        scaler = manager.scaler
        reading = scaler.monitor.read_now()
        assert reading.memory is not None  # demo_config has read it
        total = reading.memory.total_bytes
        policy = scaler.policy
        console.print(
            f"This is the real thing on this machine: llama.cpp, {gib(total)} of RAM, another process that takes "
            f"memory.\nFor the show, the limit is so low that some hundred MiB are enough (used now "
            f"{gib(total - reading.memory.available_bytes)}, limit {gib(policy.scale_at * total)}),\nand the waits are "
            f"short: room must stay for {DWELL_S:.0f} s before a climb (the dwell), not for five minutes.\n",
            highlight=False,
        )
        picture = Picture(
            scaler.ladder.names,
            policy.scale_at * total,
            policy.critical_at * total,
            max(40, console.width - 26),
            # A picture that is higher than the terminal would lose its end, where the answers are.
            min(9, max(1, console.height - OTHER_LINES)),
        )
        # Not as rich has it, by which FORCE_COLOR makes a terminal of a file.
        live = sys.stdout.isatty() and not args.plain
        shown, told = 0, ""

        def show(title: str, held: int, chat: Chat, count: Count) -> None:
            nonlocal shown, told
            status = scaler.status()
            usage = status.usage.get("ram")
            if live:
                if usage is not None:
                    picture.add(Moment(usage.other_bytes, usage.own_bytes, status.serving))
                taken = f"  (pressure {gib(held)})" if held else ""
                picture.title = f"{time.monotonic() - began:.0f} s  {title}{taken}"
                counts = ", ".join(f"{count} by {level}" for level, count in chat.answers.items())
                answers, errors = counted(chat.answers.total(), "answer"), counted(len(chat.errors), "error")
                picture.answers = f"{answers} ({counts}), {errors}" if counts else f"{answers}, {errors}"
                picture.latest = chat.latest
                whole = counted(count.whole.total(), "count")
                picture.stream = f"{whole} to 999 whole, {len(count.faults)} at fault; {count.now}"
            for line in lines[shown:]:
                if live:
                    picture.decisions.append(line)
                else:
                    print(line, flush=True)
            shown = len(lines)
            if not live and title != told:
                print(f"{time.monotonic() - began:5.1f} s  {title}", flush=True)
                told = title

        scaler.subscribe(say)
        if live:
            with Live(picture, console=console, refresh_per_second=4):
                chat, count = play(manager, show)
        else:
            chat, count = play(manager, show)
    answers = ", ".join(f"{count} by {level}" for level, count in chat.answers.items())
    print(
        f"\n{counted(chat.answers.total(), 'answer')} ({answers}), {chat.shortened} of them shortened, "
        f"{len(chat.errors)} questions without one. The latest:\n{chat.latest or 'none'}"
    )
    counts = ", ".join(f"{number} by {levels}" for levels, number in count.whole.items())
    print(
        f"An open stream of OpenAI's client counted to 999: {counts or 'never'} whole, "
        f"{count.shortened} shortened, {len(count.faults)} at fault."
    )
    if count.broken_off:
        print(f"The last count was not waited for: {count.broken_off}.")
    for message in (*chat.errors, *count.faults):
        print(f"error: {message}", file=sys.stderr)
    return EXIT_FAILED if chat.errors or count.faults else EXIT_OK


COMMAND = Command(
    "demo", "two minutes: a step down under real memory pressure, and the climb back", _add_arguments, _run
)
