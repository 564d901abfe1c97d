"""`scaler init`: looks what runs here, proposes a ladder of its models that fits, and writes it as a configuration."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scaler import __version__, paths
from scaler.cli import EXIT_NO, EXIT_OK, Command
from scaler.cli.progress import working
from scaler.errors import ConfigError, MissingExtra, ScalerError, SensorFailed
from scaler.proposal import RUNTIMES

if TYPE_CHECKING:
    from scaler.discovery.found import Source
    from scaler.readings import Usage
    from scaler.tiers import Tier

HOW_TO_GET_MODELS = """\
To get models of your own, one of these, and then `scaler init` again:
  ollama pull llama3.2:3b && ollama pull llama3.1:8b    Ollama: https://ollama.com
  lms get qwen/qwen3-4b-2507                            LM Studio: https://lmstudio.ai
  GGUF files in ~/models                                https://huggingface.co/models?library=gguf"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Looks at the model servers that run here and for GGUF files in the usual folders, loads nothing, and proposes "
        "a ladder of their models that fits this machine. On a terminal it asks before it writes. Elsewhere it prints "
        "the YAML, and writes with --yes only. Exit code 1: nothing was written or printed, for there is nothing to "
        "propose, you said no, or there is such a file already; the configuration that applied goes on to apply."
    )
    writing = parser.add_mutually_exclusive_group()
    writing.add_argument("--yes", action="store_true", help="write without asking, but never over a file")
    writing.add_argument("--stdout", action="store_true", help="print the YAML and write nothing")
    parser.add_argument(
        "--force", action="store_true", help="write without asking, also over a file, which is kept as FILE.bak"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to your own configuration")
    parser.add_argument("--url", action="append", default=[], help="look there, too; may be given several times")
    parser.add_argument(
        "--key-env", metavar="NAME", help="the environment variable that holds the API key for what --url names"
    )
    parser.add_argument(
        "--models", action="append", default=[], type=Path, metavar="DIR", help="look for GGUF files there, too"
    )
    parser.add_argument("--only", action="store_true", help="look at nothing but --url and --models")
    parser.add_argument("--runtime", choices=RUNTIMES, help="whose models the ladder is to be made of")
    parser.add_argument("--json", action="store_true", help="what was found and is proposed, as JSON")


class _Taken(ScalerError):
    """Something is there already that nobody agreed to have replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is there already, and nothing was written; --force replaces it and keeps it as "
            f"{_spare(path).name}, --output FILE writes elsewhere, --stdout shows the proposal"
        )


def _run(args: argparse.Namespace) -> int:
    if args.stdout and args.force:
        raise ConfigError("--stdout writes nothing, and --force writes over a file; expected one of them")
    path = args.output or _usual()
    try:
        return _propose(args, path)
    except _Taken as error:
        print(f"scaler: {error}", file=sys.stderr)
        return EXIT_NO


def _propose(args: argparse.Namespace, path: Path) -> int:
    from scaler.cli.proposed import report, summary
    from scaler.ladder_yaml import configuration
    from scaler.proposal import propose
    from scaler.tiers import HardwareTierDetector

    writes = args.yes or args.force
    if args.yes and not args.force and _taken(path):
        raise _Taken(path)
    detection = HardwareTierDetector().detect()
    sources = _look(args)
    models = [model for source in sources for model in source.models]
    missing = _missing({model.runtime for model in models})
    proposal = propose(
        models,
        _usage(sources),
        detection.tier.policy,
        ready=[name for name in RUNTIMES if name not in missing],
        runtime=args.runtime,
    )
    text = None
    if proposal.levels:
        text = configuration(proposal, detection.tier.name, detection.reasons[:1], __version__, _schema())
        _check(text, detection.tier)
    install = missing.get(proposal.runtime or "")
    if args.json:
        written = text is not None and writes
        if text is not None and written:
            _write(path, text, over=args.force)
        told = report(sources, proposal, detection)
        print(json.dumps({**told, "install": install, "yaml": text, "path": str(path), "written": written}, indent=2))
        return EXIT_NO if text is None else EXIT_OK
    asks = not (writes or args.stdout) and sys.stdin.isatty() and sys.stdout.isatty()
    aside = sys.stdout if asks or writes else sys.stderr
    for line in summary(sources, proposal, detection):
        print(line, file=aside)
    if text is None:
        applies = f"{_usual()} goes on to apply" if _taken(_usual()) else "the demo ladder applies"
        print(f"Nothing was written: {applies}.\n{HOW_TO_GET_MODELS}", file=aside)
        return EXIT_NO
    if install is not None:
        print(f"First, {install}", file=aside)
    if not (asks or writes):
        print(text, end="")
        if not args.stdout:
            print(f"Nothing was written, for there is nobody to ask: --yes writes {path}.", file=sys.stderr)
        return EXIT_OK
    over = args.force or (asks and _taken(path))
    if asks and not _agreed(path, over=over):
        print("Nothing was written; --stdout shows what would have been.")
        return EXIT_NO
    kept = _write(path, text, over=over)
    print(f"Wrote {path}{f'; what was there is {kept}' if kept else ''}. Now:")
    option = "" if path == _usual() else f" --config {path}"
    print(f"  scaler config check{option}  # tells what is wrong with it, if anything is")
    print(f"  scaler run{option}")
    return EXIT_OK


def _look(args: argparse.Namespace) -> Sequence[Source]:
    """What there is, at the places that the arguments name and, unless they say otherwise, the usual ones."""
    from scaler.discovery import gguf_files, places
    from scaler.discovery.searching import search
    from scaler.runtimes.steering import require_client

    require_client()
    if args.key_env and not args.url:
        raise ConfigError("--key-env: there is nothing to show the key to; name the server with --url")
    if args.only and not (args.url or args.models):
        raise ConfigError("--only: there is nothing to look at; name places with --url or --models")
    named = [places.named(url, args.key_env) for url in args.url]
    folders = [gguf_files.Folder(path.expanduser(), named=True) for path in args.models]
    with working("looking what runs here ..."):
        if args.only:
            return search(places.merged(named), folders)
        return search(
            places.merged(named, places.listening(), places.usual(os.environ)),
            [*folders, *gguf_files.usual(os.environ)],
        )


def _usage(sources: Sequence[Source]) -> dict[str, Usage]:
    """How RAM and the GPUs stand; what servers hold that would give it back counts as own. Raises SensorFailed."""
    from scaler.discovery.searching import SCALER
    from scaler.levels import RAM, gpu_resource
    from scaler.monitor import ResourceMonitor
    from scaler.proposal import ROUTED

    own = [
        source.pid
        for source in sources
        if source.pid is not None and (source.what == SCALER or any(model.runtime != ROUTED for model in source.models))
    ]
    reading = ResourceMonitor(own_pids=lambda: own).read_now()
    resources = [RAM, *(gpu_resource(gpu.index) for gpu in reading.gpus or ())]
    usage = {resource: part for resource in resources if (part := reading.usage(resource)) is not None}
    if RAM not in usage:
        raise SensorFailed("how much memory there is cannot be read; `scaler status` of a running daemon says more")
    return usage


def _missing(runtimes: set[str]) -> dict[str, str]:
    """The runtimes whose libraries are not installed, with how to install them."""
    from scaler.assembly import runtime_called

    missing = {}
    for name in runtimes:
        try:
            runtime_called(name).require()
        except MissingExtra as error:
            missing[name] = str(error)
    return missing


def _check(text: str, tier: Tier) -> None:
    """Raises ConfigError for a configuration that would not load."""
    from scaler.settings import load_settings

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "proposed.yaml")
        file.write_text(text, "utf-8")
        load_settings(file).policy_on(tier)


def _schema() -> str:
    """Where an editor finds the schema of what is written.

    An address of a file, for the schema is the installed package's, and so of the very version that reads the file: a
    copy beside it would grow stale, one on the web would want the network. A path would break at its first space.
    """
    return (paths.shipped_config() / "scaler.schema.json").absolute().as_uri()


def _usual() -> Path:
    """The configuration that is read without --config."""
    named = os.environ.get("SCALER_CONFIG")
    return Path(named) if named else paths.config_file()


def _taken(path: Path) -> bool:
    # A dangling link is a file that was meant to be read.
    return path.exists() or path.is_symlink()


def _spare(path: Path) -> Path:
    """A name beside ``path`` that nothing has."""
    number, spare = 1, path.with_name(f"{path.name}.bak")
    while _taken(spare):
        number += 1
        spare = path.with_name(f"{path.name}.bak{number}")
    return spare


def _agreed(path: Path, *, over: bool) -> bool:
    question = f"Write {path}?"
    if over:
        question = f"{path} is there already. Replace it, and keep it as {_spare(path).name}?"
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _write(path: Path, text: str, *, over: bool) -> Path | None:
    """Write all of the file or nothing; returns where what was there is kept now. Raises ScalerError.

    ``over``: whether it was agreed to replace what is there; where it was not, raises _Taken for anything there.
    """
    # Through a link, as those have who keep their configuration elsewhere.
    file = path.resolve()
    new = file.with_name(f".{file.name}.{os.getpid()}")
    kept = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            new.write_text(text, "utf-8")
            if not over:
                _reserve(path)
            elif file.exists():
                kept = _spare(file)
                shutil.copy2(file, kept)
            os.replace(new, file)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise ScalerError(
            f"{path}: cannot be written ({error.strerror}); choose another place with --output"
        ) from error
    return kept


def _reserve(path: Path) -> None:
    """Make an empty file where nothing is. Raises OSError, and _Taken where something has come to be there."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        raise _Taken(path) from None


COMMAND = Command(
    "init",
    "propose a ladder of the models that are here, and write it",
    _add_arguments,
    _run,
    yes="written or printed",
    no="nothing was written or printed",
)
