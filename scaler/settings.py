"""A person's configuration: the schema of the main YAML, where it is found, and what it means together with a tier.

Knows nothing of the machine: the tier is handed in. Reading YAML and telling its faults is `scaler.documents`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, HttpUrl, PrivateAttr, TypeAdapter, ValidationError, WithJsonSchema, field_serializer

from scaler import paths, policy_layers
from scaler.demo.models import NAMES
from scaler.documents import JSON_SCHEMA, Document, Fault, Key, Section, dotted, parse, read_document, shown, without
from scaler.errors import ConfigError
from scaler.ladder_faults import ladder_faults, limit_faults, no_level
from scaler.level_settings import (
    MOST_GIB,
    MOST_S,
    MOST_THREADS,
    MOST_TOKENS,
    EmbeddedLevel,
    LevelOfRuntime,
    LevelSettings,
    LlamaServerLevel,
)
from scaler.policy import Policy
from scaler.tiers import AUTO, Detection, HardwareTierDetector, Tier

ORIGIN = re.compile(r"null|(?!https?://\*)[a-z][a-z0-9+.-]*://(\*|[^\s/*]+)")
"""What a browser sends as an origin; of all the web's pages at once there is none."""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""The addresses that mean every address, and where this machine reaches what listens there."""
DEMO = "demo:"
"""A model's path that begins like this names one of the demo ladder's models."""


class EmbeddingSettings(Section):
    """The model that turns texts into vectors: no level of the ladder, loaded while it is used and there is room."""

    name: Annotated[str, Field(min_length=1)] = "embeddings"
    """What programs call this model."""
    runtime: Literal["embedded"] = "embedded"
    """What loads it."""
    model: Path
    """The GGUF file; ~ is the home directory, a relative path is relative to the configuration file."""
    ram_gib: Annotated[float, Field(gt=0, le=MOST_GIB)] | None = None
    """What it takes of RAM when loaded, in GiB; estimated from the file when left out."""
    context_tokens: Annotated[int, Field(ge=16, le=MOST_TOKENS)] = 2048
    """The longest text, in tokens; its memory grows with it."""
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | None = None
    """Processor threads; half of the cores when left out, at least one."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """How the vectors of a text's tokens become one; as the file says when left out, mean when that says nothing."""
    load_timeout_s: Annotated[float, Field(gt=0, le=MOST_S)] = 120.0
    """After how many seconds a load counts as failed."""
    keep_s: Annotated[float, Field(ge=0, le=31_536_000)] = 300.0
    """After how many seconds without a request it is unloaded."""


class TlsSettings(Section):
    """The certificate of `scaler run`; both paths may begin with ~, or be relative to the configuration file."""

    certificate: Path
    """The certificate in PEM, with those that it hangs on behind it."""
    key: Path
    """Its private key, without a password."""


class ServerSettings(Section):
    """Where `scaler run` answers, and whom: see docs/SECURITY.md."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address to listen on. One that other machines reach needs a token."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8484
    """The TCP port; 0 takes a free one."""
    token_file: Path | None = None
    """A file with the token that every request must bring, readable by its owner only; the environment variable
    SCALER_TOKEN goes before it. Null asks for none."""
    tls: TlsSettings | None = None
    """Answer over HTTPS; over HTTP when left out."""
    allow_hosts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """More names that programs call this server by, such as scaler.lan."""
    allow_origins: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The web pages and programs in browsers that may ask: origins such as http://localhost:3000 or app://obsidian.md,
    or chrome-extension://* for all of one kind."""
    max_connections: Annotated[int, Field(ge=1, le=65536)] = 256
    """How many connections there may be at a time."""
    receive_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """For how many seconds the head of a request may be on its way, and for how many its body."""


class QueueSettings(Section):
    """What happens to requests while no level can take them."""

    limit: Annotated[int, Field(ge=1, le=100_000)] = 32
    """How many requests may wait for a level; one more is refused."""
    wait_s: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    """For how long a request waits for a level, in seconds."""


class MonitorSettings(Section):
    """How the machine is watched."""

    interval_s: Annotated[float, Field(ge=0.01, le=3600)] = 1.0
    """The time from one reading to the next, in seconds."""


class JournalSettings(Section):
    """Where decisions are written down."""

    path: Path = Field(default_factory=lambda: paths.state() / "journal.jsonl")
    """The newest file; ~ is the home directory, a relative path is relative to the configuration file."""
    max_mib: Annotated[float, Field(gt=0, le=1024)] = 5.0
    """The size at which a new file is begun, in MiB."""
    files: Annotated[int, Field(ge=1, le=1000)] = 5
    """How many files are kept, the newest among them."""


class ConversationsSettings(Section):
    """Where the conversations of `ModelManager` are kept."""

    path: Path | None = None
    """A SQLite file, for them to outlive a restart; ~ is the home directory, a relative path is relative to the
    configuration file. Null keeps them in memory."""
    keep: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """How many are kept at the most; the one continued longest ago is forgotten first."""


class RecordingSettings(Section):
    """Whether and where `scaler run` keeps its readings, for `scaler replay` and `scaler tune`."""

    enabled: bool = True
    """Keep them: numbers about memory, swap, processors and GPUs, and nothing else."""
    path: Path = Field(default_factory=lambda: paths.state() / "recording")
    """The folder; ~ is the home directory, a relative path is relative to the configuration file."""
    max_days: Annotated[float, Field(gt=0, le=3660)] = 31.0
    """How old they may get, in days."""
    max_mib: Annotated[float, Field(gt=0, le=10240)] = 64.0
    """How large they may get all together, in MiB."""


class RememberedSettings(Section):
    """Whether and where `scaler run` keeps what it learned, what failed and the pin, for the next start."""

    enabled: bool = True
    """Remember over a restart."""
    path: Path = Field(default_factory=lambda: paths.state() / "remembered.json")
    """The file; ~ is the home directory, a relative path is relative to the configuration file."""


class ProcessesSettings(Section):
    """How far the processes of models that scaler starts stay behind the person's programs."""

    nice: Annotated[int, Field(ge=0, le=19)] = 5
    """Their priority for the processor, as nice has it: 0 is a program's, 19 the lowest."""
    oom_score_adj: Annotated[int, Field(ge=0, le=1000)] = 800
    """How early the kernel kills them when memory is out, on Linux: 0 is a program's, 1000 is before everything."""
    memory_limit_share: Annotated[float, Field(ge=1, le=100)] | None = None
    """The most memory that each may hold, as a multiple of what its level takes; on Linux, in a control group that
    scaler may share out. Null sets no limit."""


class NoticesSettings(Section):
    """How a person learns that a level gave way or failed, beside `on_notice` and ``GET /events``."""

    upgrades: bool = False
    """Tell upgrades too; they are silent otherwise."""
    desktop: bool = False
    """Show notices on the desktop, with the library desktop-notifier."""
    webhook: HttpUrl | None = None
    """Post each notice as JSON to this http or https URL."""

    @field_serializer("webhook", when_used="json")
    def _without_secrets(self, webhook: HttpUrl | None) -> str | None:
        """The host only, for the rest of such a URL is often a secret, and this is shown."""
        return None if webhook is None else f"{webhook.scheme}://{webhook.host}/..."


@dataclass(frozen=True, slots=True)
class Decided:
    """A value that applies, and the file that says so, or ``default``."""

    value: Any
    source: str


class Settings(Section):
    """The configuration of one machine; `load_settings` makes it."""

    tier: Annotated[str, Field(min_length=1)] = AUTO
    """The class of machine: a tier's name, or auto to tell it from the hardware."""
    ladder: Annotated[tuple[LevelOfRuntime, ...], Field(min_length=1)]
    """The levels, smallest first; the demo ladder when left out."""
    embeddings: EmbeddingSettings | None = None
    """The model behind /v1/embeddings; none when left out."""
    server: ServerSettings = ServerSettings()
    queue: QueueSettings = QueueSettings()
    monitor: MonitorSettings = MonitorSettings()
    journal: JournalSettings = Field(default_factory=JournalSettings)
    conversations: ConversationsSettings = ConversationsSettings()
    recording: RecordingSettings = Field(default_factory=RecordingSettings)
    remembered: RememberedSettings = Field(default_factory=RememberedSettings)
    processes: ProcessesSettings = ProcessesSettings()
    notices: NoticesSettings = NoticesSettings()
    policy: Annotated[Mapping[str, Any], WithJsonSchema(policy_layers.POLICY.json_schema())] = {}
    """What this machine decides differently from its tier."""

    _document: Document = PrivateAttr()
    _ladder_document: Document = PrivateAttr()
    _positions: tuple[int, ...] = PrivateAttr()
    """Where in its document each level stands: some lack where one is at fault."""

    @property
    def file(self) -> str:
        """The file that this was read from."""
        return self._document.name

    def error(self, key: Key, sentence: str) -> ConfigError:
        """What to raise for a value that cannot be used: with the file, and the line of ``key``."""
        return self.refusal(Fault(key, sentence))

    def refusal(self, *faults: Fault) -> ConfigError:
        """What to raise for all of them, in the order of their lines."""
        of_ladder = [fault for fault in faults if self._of(fault.key) is not self._document]
        own = [fault for fault in faults if fault not in of_ladder]
        errors = [str(self._document.error(*own))] if own else []
        errors += [str(self._ladder_document.error(*of_ladder))] if of_ladder else []
        return ConfigError("\n".join(errors))

    def place(self, key: Key) -> str:
        """What a message about ``key`` begins with: file, line and key."""
        return self._of(key).place(key)

    def models(self) -> Iterator[tuple[Key, LevelSettings | EmbeddingSettings]]:
        """All that is to be loaded, each with the key at which it stands."""
        for position, level in zip(self._positions, self.ladder, strict=True):
            yield ("ladder", position), level
        if self.embeddings is not None:
            yield ("embeddings",), self.embeddings

    def _of(self, key: Key) -> Document:
        return self._ladder_document if key[:1] == ("ladder",) else self._document

    def detection(self, detector: HardwareTierDetector) -> Detection:
        """The tier that applies: the one named, or the hardware's. Raises ConfigError for an unknown name."""
        if self.tier == AUTO:
            return detector.detect()
        if fault := detector.unknown(self.tier):
            raise self._document.error(Fault(("tier",), fault))
        return detector.chosen(self.tier)

    def policy_on(self, tier: Tier) -> Policy:
        """The tier's policy with this machine's overrides.

        Raises ConfigError when its figures do not go together, or not with the ladder or the monitor.
        """
        if misfits := self.misfits(tier):
            raise self.refusal(*misfits)
        policy = policy_layers.stack(tier.policy, self._document)
        names = [level.name for level in self.ladder]
        for key, level in policy.largest_levels.items():
            if level not in names:
                # The person's own was judged with their ladder. The tier's is read again for the line.
                file = read_document(Path(tier.sources[f"policy.{key}"]))
                raise file.error(Fault(("policy", key), no_level(level, names)))
        return policy

    def misfits(self, tier: Tier) -> list[Fault]:
        """What of this does not go together on a machine of ``tier``."""
        if misfits := policy_layers.misfits(tier.policy, self._document):
            return misfits
        stale_after_s = policy_layers.stack(tier.policy, self._document).stale_after_s
        if self.monitor.interval_s < stale_after_s:
            return []
        sentence = (
            f"at {self.monitor.interval_s:g} every reading would be too old to be evidence for an upgrade; "
            f"expected less than policy.stale_after_s, {stale_after_s:g}"
        )
        return [Fault(("monitor", "interval_s"), sentence)]

    def decided(self, tier: Tier) -> dict[str, Decided]:
        """Every value that applies on a machine of ``tier``, by its dotted key. Raises ConfigError."""
        files = {**tier.sources, **policy_layers.sources(self._document)}
        values = {}
        for key, value in _leaves(self.model_dump(mode="json", exclude={"policy"})):
            document = self._of(key)
            source = document.name if key in document.lines else policy_layers.DEFAULT
            values[dotted(key)] = Decided(value, source)
        for name, value in asdict(self.policy_on(tier)).items():
            values[f"policy.{name}"] = Decided(value, files[f"policy.{name}"])
        return values


_SETTINGS = TypeAdapter(Settings)


@dataclass(frozen=True, slots=True)
class Draft:
    """A configuration as it is written: what of it can be used, and all that is wrong with it."""

    settings: Settings
    """Without what is at fault: a level is not there, and of all else the default is in its place."""
    faults: tuple[Fault, ...]

    def is_at_fault(self, section: str) -> bool:
        """Whether something in that section of the file is, or the file as a whole."""
        return any(fault.key[:1] in ((), (section,)) for fault in self.faults)

    def misfits(self, detector: HardwareTierDetector) -> list[Fault]:
        """What is wrong with it for its tier only, and does not follow from the faults. Raises like `detection`."""
        name = self.settings.tier
        if self.is_at_fault("tier"):
            return []
        if name != AUTO and (unknown := detector.unknown(name)):
            return [Fault(("tier",), unknown)]
        if self.is_at_fault("policy"):
            return []
        tier = detector.detect().tier if name == AUTO else detector.tier(name)
        return [fault for fault in self.settings.misfits(tier) if not self.is_at_fault(str(fault.key[0]))]


def load_settings(path: Path | None = None, *, shipped: bool = False) -> Settings:
    """The configuration at ``path``; without one, that of $SCALER_CONFIG, the person's own, or the shipped one.

    ``shipped`` asks for the shipped one. Raises ConfigError with every fault, each with file, line and key.
    """
    draft = read_settings(path, shipped=shipped)
    if draft.faults:
        raise draft.settings.refusal(*draft.faults)
    return draft.settings


def read_settings(path: Path | None = None, *, shipped: bool = False) -> Draft:
    """The same with its faults beside it. Raises ConfigError for a file that cannot be read, or is no YAML mapping."""
    shipped_file = paths.shipped_config() / "scaler.yaml"
    document = read_document(shipped_file if shipped else path or _found() or shipped_file)
    ladder_document = document if "ladder" in document.data else read_document(shipped_file)
    ladder = ladder_document.data["ladder"]
    entries = ladder if isinstance(ladder, list) else []
    faults = [*document.misread, *policy_layers.faults(document)]
    levels: dict[int, LevelSettings]
    try:
        settings = parse(_SETTINGS, {**document.data, "ladder": ladder})
        levels = dict(enumerate(settings.ladder))
    except ValidationError as error:
        faults += document.faults(_SETTINGS, error)
        settings, levels = _usable(document, entries, faults)
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    whole = {position: level for position, level in levels.items() if not _spoilt(position, faults)}
    faults += ladder_faults(names, levels, whole) + limit_faults(document.data.get("policy"), names)
    folder = Path(document.name).absolute().parent
    for position, level in levels.items():
        if isinstance(level, EmbeddedLevel | LlamaServerLevel):
            model = _model(level.model, folder, ("ladder", position, "model"), faults)
            levels[position] = level = level.model_copy(update={"model": model})
        if isinstance(level, LlamaServerLevel):
            binary = _absolute(level.binary, folder, ("ladder", position, "binary"), faults)
            levels[position] = level.model_copy(update={"binary": binary})
    embeddings = settings.embeddings
    if embeddings is not None:
        if embeddings.name in names:
            sentence = f"{embeddings.name!r} is a level of the ladder; expected a name of its own"
            faults.append(Fault(("embeddings", "name"), sentence))
        model = _model(embeddings.model, folder, ("embeddings", "model"), faults)
        embeddings = embeddings.model_copy(update={"model": model})
    changed: dict[str, Any] = {
        "ladder": tuple(levels.values()),
        "embeddings": embeddings,
        "server": _server(settings.server, folder, faults),
    }
    for name in ("journal", "conversations", "recording", "remembered"):
        section = getattr(settings, name)
        if section.path is not None:
            file = _absolute(section.path, folder, (name, "path"), faults)
            changed[name] = section.model_copy(update={"path": file})
    settings = settings.model_copy(update=changed)
    settings._document, settings._ladder_document, settings._positions = document, ladder_document, tuple(levels)
    return Draft(settings, tuple(faults))


def _usable(
    document: Document, ladder: Sequence[Any], faults: Collection[Fault]
) -> tuple[Settings, dict[int, LevelSettings]]:
    """What of a document with these faults has none: its sections, and its levels by their positions."""
    # One level has to be there.
    data = {**document.data, "ladder": [{"name": "none", "model": "none"}]}
    settings: Settings | None = None
    while settings is None:
        try:
            settings = parse(_SETTINGS, data)
        except ValidationError as error:
            data = without(data, [fault.key for fault in document.faults(_SETTINGS, error)])
    level_schema: TypeAdapter[LevelSettings] = TypeAdapter(LevelOfRuntime)
    levels = {}
    for position, entry in enumerate(ladder):
        keys = [fault.key[2:] for fault in faults if fault.key[:2] == ("ladder", position)]
        # What a level's keys mean hangs on what loads it.
        if isinstance(entry, dict) and () not in keys and ("runtime",) not in keys:
            with suppress(ValidationError):
                levels[position] = parse(level_schema, without(entry, keys))
    return settings, levels


def _spoilt(position: int, faults: Collection[Fault]) -> bool:
    return any(fault.key[:2] == ("ladder", position) for fault in faults)


def settings_schema() -> dict[str, Any]:
    """The JSON schema of the main YAML, with a description of every key."""
    schema = _SETTINGS.json_schema()
    # Needed inside, but a file without a ladder gets the shipped one.
    schema["required"].remove("ladder")
    return {"$schema": JSON_SCHEMA, **schema}


def _found() -> Path | None:
    """The file that the environment names, or the person's own where there is one."""
    if named := os.environ.get("SCALER_CONFIG"):
        return Path(named)
    own = paths.config_file()
    try:
        # A dangling link is a file too: what it should lead to was meant to be read.
        own.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # Reading it will tell why it cannot be.
    return own


def _model(path: Path, folder: Path, key: Key, faults: list[Fault]) -> Path:
    """Where a level's model is."""
    if not str(path).startswith(DEMO):
        return _absolute(path, folder, key, faults)
    name = str(path).removeprefix(DEMO)
    if name not in NAMES:
        faults.append(Fault(key, f"there is no demo model {name!r}; expected one of {', '.join(NAMES)}"))
    return paths.demo_models() / f"{name}.gguf"


def _absolute(path: Path, folder: Path, key: Key, faults: list[Fault]) -> Path:
    """A path as the person wrote it, made independent of where scaler was started."""
    try:
        return folder / path.expanduser()
    except RuntimeError:
        faults.append(Fault(key, f"{str(path)!r} names no user's home; expected ~/ or a path that has no ~ in front"))
        return path


def _server(server: ServerSettings, folder: Path, faults: list[Fault]) -> ServerSettings:
    """The same with its paths made independent of where scaler was started."""
    for position, origin in enumerate(server.allow_origins):
        if not ORIGIN.fullmatch(origin):
            sentence = f"{shown(origin)} is no origin; expected one such as http://localhost:3000, app://* or null"
            faults.append(Fault(("server", "allow_origins", position), sentence))
    token_file, tls = server.token_file, server.tls
    if token_file is not None:
        token_file = _absolute(token_file, folder, ("server", "token_file"), faults)
    if tls is not None:
        files = {key: _absolute(file, folder, ("server", "tls", key), faults) for key, file in tls}
        tls = tls.model_copy(update=files)
    return server.model_copy(update={"token_file": token_file, "tls": tls})


def _leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    match value:
        case dict():
            for name, inner in value.items():
                yield from _leaves(inner, (*key, name))
        case list():
            for position, inner in enumerate(value):
                yield from _leaves(inner, (*key, position))
        case _:
            yield key, value
