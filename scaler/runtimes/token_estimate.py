"""How many tokens a prompt takes, estimated from its length, for servers that count none for others. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

BYTES_A_TOKEN, TOKENS_A_MESSAGE, TOKENS_A_PICTURE = 3, 8, 1024
"""English takes about four bytes a token; three errs on the safe side."""


def estimated_tokens(request: Mapping[str, Any]) -> int:
    """The tokens of the prompt of an OpenAI chat request: messages, tools and all."""
    texts = [str(request[key]) for key in ("tools", "response_format") if request.get(key)]
    pictures = 0
    for message in request["messages"]:
        content = message.get("content") or ""
        told = content if isinstance(content, list) else [content]
        # What is no part is for the server to refuse.
        parts = [part if isinstance(part, Mapping) else {"text": part} for part in told]
        pictures += sum(part.get("type") == "image_url" for part in parts)
        texts += ["".join(str(part.get("text") or "") for part in parts) + str(message.get("tool_calls") or "")]
    written = sum(math.ceil(len(text.encode(errors="replace")) / BYTES_A_TOKEN) for text in texts)
    return written + TOKENS_A_MESSAGE * len(texts) + TOKENS_A_PICTURE * pictures
