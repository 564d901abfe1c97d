"""What was said, kept across switches and, where the person's settings say so, across restarts."""

from __future__ import annotations

from scaler.conversations.memory import MemoryConversations
from scaler.conversations.protocol import Conversations
from scaler.conversations.sqlite import SqliteConversations
from scaler.settings import ConversationsSettings


def conversations(settings: ConversationsSettings) -> Conversations:
    """The keeper that the settings name. Raises ConversationError when its file cannot be used."""
    if settings.path is None:
        return MemoryConversations(settings.keep)
    return SqliteConversations(settings.path, settings.keep)
