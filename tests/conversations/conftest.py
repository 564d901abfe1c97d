"""Both keepers of conversations, for what is to hold of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scaler.conversations import conversations
from scaler.conversations.protocol import Conversations, Said
from scaler.settings import ConversationsSettings

AT = datetime(2026, 11, 25, 12, 30, 15, 123456, UTC)
Keeper = Callable[..., Conversations]


def turn(question: str, answer: str = "yes", levels: tuple[str, ...] = ("small",)) -> list[Said]:
    """A question and its answer."""
    return [Said({"role": "user", "content": question}, AT), Said({"role": "assistant", "content": answer}, AT, levels)]


def questions(kept: Conversations, conversation_id: str) -> list[str]:
    """What the user said in a conversation."""
    return [said.message["content"] for said in kept.history(conversation_id) if said.message["role"] == "user"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file may be, in a folder that is not there yet."""
    return tmp_path / "state" / "conversations.sqlite"


@pytest.fixture(params=["memory", "sqlite"])
def keeper(request: pytest.FixtureRequest, path: Path) -> Iterator[Keeper]:
    """Makes the keeper that the settings name, ``keep`` as asked; closed at the end."""
    with ExitStack() as opened:

        def make(keep: int = 1000) -> Conversations:
            settings = ConversationsSettings(path=path if request.param == "sqlite" else None, keep=keep)
            return opened.enter_context(closing(conversations(settings)))

        yield make
