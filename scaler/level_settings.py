"""One level of the ladder as the person writes it, for each runtime: what it takes, how it is loaded.

Data only. A new runtime has its class here, whose ``runtime`` names it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, HttpUrl, Tag

from scaler.documents import Section
from scaler.levels import GIB, RAM, gpu_resource

MOST_GIB = 1_000_000
MOST_S = 1_000_000
MOST_TOKENS = 100_000_000
MOST_LAYERS = 100_000
MOST_THREADS = 4096
"""No machine, no load and no model has more: a figure beyond these is a slip, and sums with it would overflow."""
GpuNumber = Annotated[int, Field(ge=0, le=1023)]
_JUDGED = {"quality", "ram_gib", "vram_gib", "load_s", "load_timeout_s", "standby"}
"""The keys of a level that say how it is judged, and nothing of what is loaded."""


class LevelSettings(Section):
    """What a level has whatever loads it."""

    estimates_ram: ClassVar[bool] = True
    """Whether RAM that is not declared is to be estimated; else the level is not judged by RAM."""

    name: str
    """What people and programs call this level."""
    runtime: str
    """What loads it."""
    quality: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How good its answers are, in the person's own judgement, 0..1."""
    ram_gib: Annotated[float, Field(gt=0, le=MOST_GIB)] | None = None
    """What it takes of RAM when serving, in GiB; estimated when left out, where the runtime can."""
    vram_gib: Annotated[float, Field(ge=0, le=MOST_GIB)] = 0.0
    """What it takes of GPU memory when serving, in GiB; of each GPU where ``gpu`` names several."""
    gpu: GpuNumber | Annotated[tuple[GpuNumber, ...], Field(min_length=1)] = 0
    """Which GPU that is, or a list of several."""
    load_s: Annotated[float, Field(gt=0, le=MOST_S)] = 5.0
    """How long loading is expected to take, in seconds; learned once it was loaded."""
    load_timeout_s: Annotated[float, Field(gt=0, le=MOST_S)] = 120.0
    """After how many seconds a load counts as failed."""
    standby: bool = False
    """Keep it loaded beside the larger levels: stepping down to it costs no loading then, and they take more memory."""
    context_tokens: Annotated[int, Field(ge=256, le=MOST_TOKENS)] = 4096
    """The context window of one request, in tokens."""
    parallel: Annotated[int, Field(ge=1, le=64)] = 2
    """How many requests are answered at the same time; each has its own context window."""

    @property
    def mapped(self) -> bool:
        """Whether its weights are pages of a mapped file, which do not show as used."""
        return False

    def loads_as(self, other: LevelSettings) -> bool:
        """Whether a model that was loaded for the one level is what would be loaded for the other."""
        return type(self) is type(other) and self.model_dump(exclude=_JUDGED) == other.model_dump(exclude=_JUDGED)

    @property
    def declared(self) -> dict[str, int]:
        """What it is said to take, in bytes a resource; RAM is lacking where it was left out."""
        ram = {} if self.ram_gib is None else {RAM: int(self.ram_gib * GIB)}
        gpus = self.gpu if isinstance(self.gpu, tuple) else (self.gpu,)
        return ram | ({gpu_resource(gpu): int(self.vram_gib * GIB) for gpu in gpus} if self.vram_gib else {})

    def footprint(self, estimate: Callable[[], int]) -> dict[str, int]:
        """The same with RAM as ``estimate`` has it where it was left out. Raises what that raises."""
        declared = self.declared
        return declared if RAM in declared or not self.estimates_ram else {RAM: estimate(), **declared}


class EmbeddedLevel(LevelSettings):
    """A GGUF file that scaler loads with its own llama.cpp, in a process of its own."""

    runtime: Literal["embedded"] = "embedded"
    """What loads it."""
    model: Path
    """The GGUF file; ~ is the home directory, a relative path is relative to the configuration file."""
    kv_cache: Literal["f16", "q8_0", "q4_0"] = "f16"
    """How the key-value cache holds its figures: q8_0 takes about half of the memory of f16, q4_0 about a quarter."""
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | None = None
    """Processor threads for generation; half of the cores when left out, at least one."""
    gpu_layers: Annotated[int, Field(ge=0, le=MOST_LAYERS)] = 0
    """How many layers go onto the GPU."""
    gpu: GpuNumber = 0
    """Which GPU that is."""
    mmap: bool = False
    """Map the file instead of reading it. Mapped pages do not show as used, so scaler cannot see them."""
    check_tensors: bool = True
    """Check the weights while loading: a corrupted file otherwise loads and answers garbage."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Loopback port of the model's server; a private unix socket when left out."""
    hang_s: Annotated[float, Field(ge=1, le=3600)] = 30.0
    """Its process is killed when it has said and computed nothing for so many seconds, and a new one takes over."""

    @property
    def mapped(self) -> bool:
        """As ``mmap`` says."""
        return self.mmap


class LlamaServerLevel(LevelSettings):
    """A GGUF file that scaler loads with the person's own build of llama.cpp's llama-server."""

    runtime: Literal["llama-server"]
    """What loads it."""
    binary: Path
    """The program llama-server; ~ is the home directory, a relative path is relative to the configuration file."""
    model: Path
    """The GGUF file, likewise."""
    kv_cache: Literal["f16", "q8_0", "q4_0"] = "f16"
    """How the key-value cache holds its figures: q8_0 takes about half of the memory of f16, q4_0 about a quarter."""
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | None = None
    """Processor threads for generation; half of the cores when left out, at least one."""
    gpu_layers: Annotated[int, Field(ge=0, le=MOST_LAYERS)] = 0
    """How many layers go onto the GPU."""
    arguments: tuple[str, ...] = ()
    """More of the program's arguments, such as ["--jinja"]."""
    hang_s: Annotated[float, Field(ge=1, le=3600)] = 30.0
    """Its process is killed when it has said and computed nothing for so many seconds, and a new one takes over."""


class ServedLevel(LevelSettings):
    """A model in a server that is not scaler's own."""

    url: HttpUrl
    """Where the server listens."""
    model: Annotated[str, Field(min_length=1)]
    """What the server calls the model."""
    key_env: Annotated[str, Field(min_length=1)] | None = None
    """The environment variable that holds the server's API key; none when left out."""

    @property
    def address(self) -> str:
        """Where the server listens, without a slash at the end, nor OpenAI's /v1, which people write as well."""
        return str(self.url).rstrip("/").removesuffix("/v1")


class OllamaLevel(ServedLevel):
    """A model that Ollama loads and unloads as scaler tells it."""

    runtime: Literal["ollama"]
    """What loads it."""
    url: HttpUrl = HttpUrl("http://127.0.0.1:11434")
    """Where Ollama listens."""
    model: Annotated[str, Field(min_length=1)]
    """What Ollama calls the model, such as llama3.2:3b."""
    num_gpu: Annotated[int, Field(ge=0, le=MOST_LAYERS)] | None = None
    """How many layers go onto the GPU; as Ollama decides when left out."""

    @property
    def listed(self) -> str:
        """The model as Ollama lists it, in small letters, for Ollama does not tell them from capitals."""
        return listed(self.model)


class LmStudioLevel(ServedLevel):
    """A model that LM Studio loads and unloads as scaler tells it."""

    runtime: Literal["lmstudio"]
    """What loads it."""
    url: HttpUrl = HttpUrl("http://127.0.0.1:1234")
    """Where LM Studio's server listens."""
    model: Annotated[str, Field(min_length=1)]
    """The model's key, as `lms ls` has it, such as qwen/qwen3-4b-2507."""
    flash_attention: bool | None = None
    """Whether attention is computed in the way that takes less memory; as LM Studio decides when left out."""
    start: bool = False
    """Start LM Studio's server with `lms server start` where it does not run."""

    @property
    def mapped(self) -> bool:
        """Always: its REST API has no say in it."""
        return True


class LlamaRouterLevel(ServedLevel):
    """A model that a llama-server in router mode, which others run, loads and unloads as scaler tells it."""

    runtime: Literal["llama-router"]
    """What loads it."""
    url: HttpUrl = HttpUrl("http://127.0.0.1:8080")
    """Where the router listens."""
    model: Annotated[str, Field(min_length=1)]
    """What the router's list of models calls it."""

    @property
    def mapped(self) -> bool:
        """As far as is known: it is what llama-server does if its arguments do not say otherwise."""
        return True


class VllmLevel(ServedLevel):
    """A vLLM server of its own, which scaler puts to sleep and wakes up."""

    estimates_ram: ClassVar[bool] = False

    runtime: Literal["vllm"]
    """What loads it."""
    url: HttpUrl = HttpUrl("http://127.0.0.1:8000")
    """Where this vLLM server listens."""
    vram_gib: Annotated[float, Field(gt=0, le=MOST_GIB)]
    """What it takes of GPU memory when awake, in GiB; of each GPU where ``gpu`` names several."""
    sleep: Literal[1, 2] = 1
    """How deep it sleeps: 1 keeps the weights in RAM and wakes up in a moment, 2 reads them anew."""


class OpenAILevel(ServedLevel):
    """A model of any server with OpenAI's API: requests are sent there, and nothing is loaded or unloaded."""

    estimates_ram: ClassVar[bool] = False

    runtime: Literal["openai"]
    """Who answers."""
    continues: bool = False
    """Whether the server knows continue_final_message, as vLLM and llama-server do: it can take an answer over then."""

    @property
    def address(self) -> str:
        """Where the server listens, without a slash at the end; a path is the whole of its API's."""
        return str(self.url).rstrip("/")


def listed(model: str) -> str:
    """A model's name, however it was written, as Ollama lists it, in small letters."""
    short = model.casefold().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return short if ":" in short.rpartition("/")[2] else f"{short}:latest"


def _runtime_of(level: Any) -> Any:
    return level.get("runtime", "embedded") if isinstance(level, dict) else getattr(level, "runtime", None)


LevelOfRuntime = Annotated[
    Annotated[EmbeddedLevel, Tag("embedded")]
    | Annotated[OllamaLevel, Tag("ollama")]
    | Annotated[LmStudioLevel, Tag("lmstudio")]
    | Annotated[LlamaServerLevel, Tag("llama-server")]
    | Annotated[LlamaRouterLevel, Tag("llama-router")]
    | Annotated[VllmLevel, Tag("vllm")]
    | Annotated[OpenAILevel, Tag("openai")],
    Discriminator(_runtime_of),
]
"""What a level in the YAML is read as: ``runtime`` says which."""
