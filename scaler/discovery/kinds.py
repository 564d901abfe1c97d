"""Which models answer nobody, by the names and families that their makers gave them, where nothing better is told."""

from __future__ import annotations

import re

EMBEDS = "an embedding model: no level, see `embeddings` in docs/serving.md"
RANKS = "a reranker: it sorts texts and answers nobody"
PROJECTS = "a vision projector: a part of another model"

_EMBEDDING = re.compile(r"embed|minilm|(^|[^a-z0-9])(bge|gte|e5|paraphrase)[-_:]|arctic-embed", re.IGNORECASE)
_RANKING = re.compile(r"rerank", re.IGNORECASE)
_PROJECTOR = re.compile(r"(^|[^a-z])mmproj", re.IGNORECASE)
_EMBEDDING_FAMILY = re.compile(r"bert|(^|[-_])embed", re.IGNORECASE)


def answers_nobody(name: str, family: str = "") -> str | None:
    """Why a model is no level, by its name and its architecture's; None where it may be one."""
    if _PROJECTOR.search(name) or family == "clip":
        return PROJECTS
    if _RANKING.search(name):
        return RANKS
    if _EMBEDDING.search(name) or _EMBEDDING_FAMILY.search(family):
        return EMBEDS
    return None
