"""Where notices go beside the programs that take them: the desktop and a webhook, as the person's settings say."""

from __future__ import annotations

from scaler.notify.desktop import Desktop
from scaler.notify.outbox import Outbox, Receiver
from scaler.notify.webhook import Webhook
from scaler.settings import NoticesSettings


def outboxes(settings: NoticesSettings) -> list[Outbox]:
    """One for each place that the settings name; none is started. Raises MissingExtra for an absent library."""
    receivers: list[Receiver] = [
        *([Desktop()] if settings.desktop else []),
        *([Webhook(str(settings.webhook))] if settings.webhook is not None else []),
    ]
    return [Outbox(receiver) for receiver in receivers]
