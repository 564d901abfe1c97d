"""Where model servers are to be looked for: their usual ports, what listens here, and what a person names.

Asks nobody anything.

Sources of the ports: the servers' documentation. 11434 Ollama, 1234 LM Studio, 8080 llama-server, 8000 vLLM, 5000
TabbyAPI and text-generation-webui, 1337 Jan, 4891 GPT4All.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from scaler.errors import ConfigError
from scaler.runtimes.listeners import listeners
from scaler.runtimes.steering import is_key

PORTS = (11434, 1234, 8080, 8000, 5000, 1337, 4891)
OLLAMA_PORT = 11434
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SERVERS = re.compile(
    r"(ollama|llama[-_.]?server|llama[-_]cpp|llamafile|llama-swap|vllm|lm[- ]?studio|llmster|koboldcpp|tabby|"
    r"text-generation|jan|cortex|gpt4all|local-?ai|mlx_lm|sglang|aphrodite|mistralrs|lemonade|ramalama|scaler)\b",
    re.IGNORECASE,
)
"""How a word of a model server's command line begins, folders apart: people are called Jan, too. scaler is among them,
for what listens below it is no place."""


@dataclass(frozen=True, slots=True)
class Place:
    """An address to ask. ``named``: a person named it, and wants to know what is wrong with it."""

    url: str
    named: bool = False
    key_env: str | None = None

    @property
    def root(self) -> str:
        """The address without the path of OpenAI's API, as people write it either way."""
        return self.url.removesuffix("/v1")

    @property
    def near(self) -> bool:
        """Whether it is on this machine, by the names that a level may have for it."""
        return urlsplit(self.url).hostname in LOOPBACK

    @property
    def base(self) -> str:
        """The address as a level of the runtime openai has it: such a level takes a path as the whole of it."""
        return f"{self.root}/v1" if urlsplit(self.root).path else self.root

    @property
    def port(self) -> int:
        """The TCP port."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def authorization(self) -> dict[str, str]:
        """The header with the API key, if there is one that can be sent; it is looked up when it is asked for."""
        key = _key(self.key_env)
        return {"Authorization": f"Bearer {key}"} if key and is_key(key) else {}


def _key(key_env: str | None) -> str | None:
    """The API key, as the environment has it now; empty where it has none."""
    return None if key_env is None else os.environ.get(key_env, "").strip()


def named(url: str, key_env: str | None = None) -> Place:
    """The place that a person means, with or without http:// in front.

    Raises ConfigError for what is no address, and for a key that is not set.
    """
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(full)
        usable = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.username is None
        )
    except ValueError:
        usable = False
    if not usable or not full.isprintable() or parts.query or parts.fragment:
        raise ConfigError(f"--url: {url!r} is no address of a server; expected one such as http://127.0.0.1:8080")
    key = _key(key_env)
    if key == "":
        raise ConfigError(f"--key-env: the environment variable {key_env} is not set; set it to the API key")
    if key is not None and not is_key(key):
        raise ConfigError(f"--key-env: the environment variable {key_env} holds what no API key can; set it anew")
    return Place(full.rstrip("/"), named=True, key_env=key_env)


def usual(environment: Mapping[str, str]) -> list[Place]:
    """Where the servers listen unless told otherwise, and where the environment says that Ollama does."""
    told = ollama_host(environment.get("OLLAMA_HOST", ""))
    return [*([Place(told)] if told else []), *(Place(f"http://127.0.0.1:{port}") for port in PORTS)]


def ollama_host(value: str) -> str | None:
    """The address that a value of OLLAMA_HOST means; None for one that means none.

    Source: https://github.com/ollama/ollama/blob/main/envconfig/config.go, Host: scheme, host and port may be left out.
    """
    value = value.strip(" '\"").rstrip("/")
    scheme, _, rest = value.rpartition("://")
    default = {"http": 80, "https": 443}.get(scheme, OLLAMA_PORT)
    try:
        parts = urlsplit(f"{scheme or 'http'}://{rest}")
        port = parts.port or default
    except ValueError:
        return None
    if not value or parts.scheme not in ("http", "https"):
        return None
    return f"{parts.scheme}://{_reachable(parts.hostname or '127.0.0.1')}:{port}"


def listening() -> list[Place]:
    """The TCP ports on which this user's processes listen that look like model servers, for this machine at least.

    What listens below another such process is a part of it: Ollama, LM Studio and llama-server hold each model in a
    server of its own.
    """
    import psutil

    addresses: dict[int, list[tuple[str, int]]] = {}
    for pid, host, port in listeners():
        addresses.setdefault(pid, []).append((host, port))
    user = psutil.Process().username()
    servers = {pid for pid in addresses if _is_server(pid, user)}
    places = []
    for pid in sorted(servers):
        if servers.isdisjoint(_above(pid)):
            places += [
                Place(f"http://{_reachable(host)}:{port}")
                for host, port in sorted(addresses[pid])
                if host in LOOPBACK or _is_any(host)
            ]
    return places


def merged(*groups: Iterable[Place]) -> list[Place]:
    """All places, each once, in the order given: of two that mean one port of this machine the first counts."""
    found: dict[tuple[object, ...], Place] = {}
    for group in groups:
        for place in group:
            found.setdefault(("here", place.port) if place.near else (place.url,), place)
    return list(found.values())


def _is_server(pid: int, user: str) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        words = (re.split(r"[/\\]", word)[-1] for word in (process.name(), *process.cmdline()))
        return process.username() == user and any(SERVERS.match(word) for word in words)
    except psutil.Error:
        # It ended, or is not ours to look at.
        return False


def _above(pid: int) -> set[int]:
    import psutil

    try:
        return {process.pid for process in psutil.Process(pid).parents()}
    except psutil.Error:
        return set()


def _reachable(host: str) -> str:
    """The host to ask for one on which something listens, as it stands in an address."""
    if _is_any(host):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
