"""AMD's cards, from the files of Linux's amdgpu driver. Not from AMD's library, which reads the same files.

Source: https://docs.kernel.org/gpu/amdgpu/driver-misc.html and https://docs.kernel.org/gpu/amdgpu/thermal.html.
"""

from __future__ import annotations

from scaler.sensors.drm import Card, Figures, attribute, temperature
from scaler.sensors.procfs import read_file


def figures(card: Card) -> Figures | None:
    """What the card has and what is in use; ``None`` where the kernel does not tell us its memory. Raises OSError."""
    try:
        total = int(read_file(f"{card.device}/mem_info_vram_total"))
        used = int(read_file(f"{card.device}/mem_info_vram_used"))
    except (FileNotFoundError, PermissionError):
        return None
    # A card's memory is told while it sleeps; the rest would wake it, and with a look a second it would never sleep.
    asleep = attribute(card, "power/runtime_status") == "suspended"
    percent = None if asleep else attribute(card, "gpu_busy_percent")
    return Figures(
        # Few cards tell their name; the device's number is the same for all cards of a kind.
        name=attribute(card, "product_name") or f"AMD {attribute(card, 'device')}",
        total_bytes=total,
        used_bytes=used,
        utilisation_ratio=None if percent is None else int(percent) / 100,
        temperature_c=None if asleep else temperature(card, "temp1_input"),
    )
