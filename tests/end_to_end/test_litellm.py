"""LiteLLM as a client, unchanged: what many programs speak through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

Running = Callable[..., Any]
PROGRAM = """
import json, sys
import litellm

api = {"api_base": sys.argv[1] + "/v1", "api_key": "none", "timeout": 60, "num_retries": 0}
ask = {"messages": [{"role": "user", "content": "Who are you?"}], **api}
whole = litellm.completion(model="openai/auto", **ask)
chunks = litellm.completion(model="openai/auto", stream=True, **ask)
said = {
    "whole": whole.choices[0].message.content,
    "tokens": whole.usage.completion_tokens,
    "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
    "by name": litellm.completion(model="openai/small", **ask).choices[0].message.content,
    "vector": len(litellm.embedding(model="openai/embeddings", input=["x"], **api).data[0]["embedding"]),
}
try:
    litellm.completion(model="openai/gpt-9", **ask)
except litellm.NotFoundError as error:
    said["unknown"] = str(error)
print(json.dumps(said))
"""
"""In a process of its own: importing it takes seconds, and it warns of its own doings."""


def test_litellm_chats_whole_and_streamed(serving: Running, demo_models: dict[str, Any]) -> None:
    """With whatever level serves, with one by its name, and for vectors."""
    embeddings = {"model": str(demo_models["small"]), "context_tokens": 256, "threads": 1}
    with serving(levels=["small"], embeddings=embeddings) as (url, _, _):
        # Else it looks for its list of prices on the network.
        env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, url], env=env, capture_output=True, text=True, timeout=110
        )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    sentence = "The small model speaks : I am made of random weights ."
    assert said["whole"].strip() == said["streamed"].strip() == said["by name"].strip() == sentence
    assert (said["tokens"], said["vector"]) == (13, 256)
    assert "there are: auto, small" in said["unknown"]
