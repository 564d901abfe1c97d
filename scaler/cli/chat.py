"""`scaler chat`: talk to whatever level serves."""

from __future__ import annotations

import argparse
import sys

from scaler.cli import EXIT_OK, Command
from scaler.cli.daemon import Daemon, add_arguments, daemon
from scaler.errors import DaemonUnreachable, ScalerError
from scaler.printable import one_line, printable

ANSWER_TIMEOUT_S = 600.0
"""The longest silence in an answer: a large model may read a long prompt for minutes on a small machine."""
KEYS = ("choices", "model")
"""What is read of each event of an answer."""
ENDS = ("/quit", "/exit")
"""What ends a conversation on a terminal, as in other programs; a pipe has no commands, only questions."""
HELP = """\
Enter          says the line to whatever level serves
Ctrl-D, /quit  ends the conversation, and so does /exit
Ctrl-C         breaks off an answer, and ends as well
/help          says this"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)
    parser.add_argument("message", nargs="*", help="say this, print the answer and end; left out: a conversation")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="the longest answer, in tokens")


def _run(args: argparse.Namespace) -> int:
    running = daemon(args)
    messages: list[dict[str, str]] = []
    if args.system:
        messages.append({"role": "system", "content": args.system})
    options = {} if args.max_tokens is None else {"max_tokens": args.max_tokens}
    if args.message:
        _say(running, [*messages, {"role": "user", "content": " ".join(args.message)}], options)
        return EXIT_OK
    talking = sys.stdin.isatty()
    if talking:
        print("Ctrl-D or /quit ends the conversation; /help tells the keys.")
    while True:
        try:
            said = input("you> " if talking else "")
        except EOFError:
            if talking:
                print()
            return EXIT_OK
        if not said.strip():
            continue
        if talking and said.strip() in ENDS:
            return EXIT_OK
        if talking and said.strip() == "/help":
            print(HELP)
            continue
        messages.append({"role": "user", "content": said})
        try:
            messages.append({"role": "assistant", "content": _say(running, messages, options)})
        except ScalerError as error:
            if not talking or isinstance(error, DaemonUnreachable):
                raise
            # A question that could not be answered is not the end of the conversation; it may be put again.
            print(f"scaler: {printable(str(error))}", file=sys.stderr)
            messages.pop()


def _say(running: Daemon, messages: list[dict[str, str]], options: dict[str, int]) -> str:
    """Print the answer as it comes, with the level that gives it on a terminal; return it."""
    text = ""
    body = {"messages": messages, "stream": True, **options}
    for event in running.stream("/v1/chat/completions", KEYS, body, ANSWER_TIMEOUT_S):
        for choice in event["choices"]:
            piece = choice.get("delta", {}).get("content") or ""
            if not text:
                piece = piece.lstrip()
                if piece and sys.stdout.isatty():
                    print(f"{one_line(event['model'])}> ", end="")
            text += piece
            # A model may have been told to say what a terminal takes for commands.
            print(printable(piece), end="", flush=True)
    print()
    return text


COMMAND = Command("chat", "talk to whatever level serves", _add_arguments, _run, asks=True)
