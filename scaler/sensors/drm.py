"""GPUs as Linux's graphics drivers tell of them: which cards there are, and which process holds how much of each.

Owns the walk over cards and over processes' open files. What a card has and what is in use is each driver's own way.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scaler.errors import SensorFailed
from scaler.readings import Gpu
from scaler.sensors.procfs import PROC, read_file

SYS = Path("/sys") if sys.platform == "linux" else None
"""Where Linux lists its devices; ``None`` elsewhere, where no such card is read."""


DEVICES = Path("/dev/dri")
"""Where a program opens a card."""


class Card(NamedTuple):
    """One card: its PCI address, its driver, its folder in sysfs, and the device files by which it is opened."""

    address: str
    driver: str
    device: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a driver tells of a card: bytes of its own memory, load 0..1 and temperature."""

    name: str
    total_bytes: int
    used_bytes: int
    utilisation_ratio: float | None = None
    temperature_c: float | None = None


Client = tuple[str, str]
"""Somebody who uses a card: the card's PCI address, and the number that the kernel gives whoever opened it."""


class DrmGpus:
    """The cards of those drivers that tell how much memory of its own a card has and how much of it is in use."""

    def __init__(
        self,
        number: Callable[[str, int], int],
        drivers: Mapping[str, Callable[[Card], Figures | None]],
        *,
        sys: Path | None,
        proc: Path | None = PROC,
        devices: Path = DEVICES,
    ) -> None:
        """``number`` gives a card's number by its PCI address and the first that may be given.

        ``drivers`` tell of a card by the driver's name: ``None`` for one without memory of its own, or whose use is
        kept from us; they may raise OSError.
        """
        self._number = number
        self._drivers = drivers
        self._sys = sys
        self._proc = proc
        self._devices = devices
        self._first: int | None = None

    def read(self, own: Collection[int]) -> list[Gpu]:
        """The cards now; raises SensorFailed and OSError."""
        cards = self._cards()
        found = [(card, figures) for card in cards if (figures := self._figures(card)) is not None]
        if not found:
            return []
        held = self._own_bytes([card for card, _ in found], own)
        return [
            Gpu(
                index=self._index(card),
                name=figures.name,
                total_bytes=figures.total_bytes,
                used_bytes=figures.used_bytes,
                free_bytes=figures.total_bytes - figures.used_bytes,
                own_bytes=None if held is None else held.get(card.address, 0),
                utilisation_ratio=figures.utilisation_ratio,
                temperature_c=figures.temperature_c,
            )
            for card, figures in found
        ]

    def held(self) -> dict[int, dict[int, int]]:
        """What each process that this user may look at holds of each card; raises SensorFailed and OSError."""
        cards = [card for card in self._cards() if self._figures(card) is not None]
        if not cards or self._proc is None:
            return {}
        nodes = _nodes(cards)
        clients: dict[Client, tuple[int, int]] = {}
        for pid in sorted(int(entry) for entry in os.listdir(self._proc) if entry.isdecimal()):
            try:
                seen = _clients(self._proc, pid, nodes)
            except PermissionError:
                continue
            # The last one's: a session's manager hands the card that it opened to the desktop that it starts.
            clients |= {client: (pid, size) for client, size in seen.items() if size is not None}
        numbers = {card.address: self._index(card) for card in cards}
        held: dict[int, dict[int, int]] = {number: {} for number in numbers.values()}
        for (address, _), (pid, size) in clients.items():
            sizes = held[numbers[address]]
            sizes[pid] = sizes.get(pid, 0) + size
        return held

    def renew(self) -> None:
        """Nothing to do: every read looks for the cards from the start."""

    def _cards(self) -> list[Card]:
        return [] if self._sys is None else sorted(_cards(self._sys, self._devices, self._drivers))

    def _figures(self, card: Card) -> Figures | None:
        try:
            return self._drivers[card.driver](card)
        except OSError as error:
            raise SensorFailed(f"{card.driver} {card.address}: {error}; see the kernel's log") from error

    def _index(self, card: Card) -> int:
        if self._first is None:
            # NVIDIA's come first, also those whose driver is loaded only later.
            self._first = 0 if self._sys is None else _nvidia_cards(self._sys)
        return self._number(card.address, self._first)

    def _own_bytes(self, cards: Collection[Card], own: Collection[int]) -> dict[str, int] | None:
        """What our processes hold of each card; ``None`` where that is not known of all of them."""
        if not own:
            return {}
        if self._proc is None:
            return None
        clients: dict[Client, int | None] = {}
        nodes = _nodes(cards)
        for pid in own:
            try:
                clients |= _clients(self._proc, pid, nodes)
            except PermissionError:
                # Another user's, such as a service's.
                return None
        held: dict[str, int] = {}
        for (address, _), size in clients.items():
            if size is None:
                return None
            held[address] = held.get(address, 0) + size
        return held


def attribute(card: Card, name: str) -> str | None:
    """What one of a card's files says; ``None`` where it has no such file, or cannot tell now, as in a reset."""
    try:
        return read_file(f"{card.device}/{name}").decode(errors="replace").strip()
    except OSError:
        return None


def temperature(card: Card, name: str) -> float | None:
    """A card's temperature in °C from the named file of its sensor; ``None`` where it cannot be had.

    Source: https://docs.kernel.org/hwmon/sysfs-interface.html.
    """
    try:
        sensors = os.listdir(f"{card.device}/hwmon")
    except FileNotFoundError:
        return None
    read = (attribute(card, f"hwmon/{sensor}/{name}") for sensor in sensors)
    return next((int(millidegrees) / 1000 for millidegrees in read if millidegrees is not None), None)


def _cards(sys: Path, devices: Path, drivers: Collection[str]) -> Iterator[Card]:
    folder = f"{sys}/class/drm"
    try:
        entries = os.listdir(folder)
    except (FileNotFoundError, PermissionError):
        # No graphics, or a sandbox that keeps them from us: NVIDIA's answer all the same.
        return
    for entry in entries:
        if not re.fullmatch(r"card\d+", entry):
            continue
        device = f"{folder}/{entry}/device"
        try:
            address = os.path.basename(os.readlink(device))
            driver = os.path.basename(os.readlink(f"{device}/driver"))
            if driver in drivers:
                nodes = tuple(f"{devices}/{node}" for node in os.listdir(f"{device}/drm"))
                yield Card(address, driver, device, nodes)
        except (FileNotFoundError, PermissionError):
            # Taken out at this moment, a display without a device behind it, or kept from us.
            continue


def _nvidia_cards(sys: Path) -> int:
    """How many of NVIDIA's display controllers are on the PCI bus, whether or not a driver has them.

    Source: https://docs.kernel.org/PCI/sysfs-pci.html; the vendor is 0x10de, and class 0x03 is a display controller.
    """
    count = 0
    for device in (sys / "bus" / "pci" / "devices").glob("*"):
        try:
            vendor, kind = read_file(device / "vendor").strip(), read_file(device / "class").strip()
        except FileNotFoundError:
            continue
        count += vendor == b"0x10de" and kind.startswith(b"0x03")
    return count


def _nodes(cards: Collection[Card]) -> dict[str, str]:
    return {node: card.address for card in cards for node in card.nodes}


def _clients(proc: Path, pid: int, nodes: Mapping[str, str]) -> dict[Client, int | None]:
    """The bytes of cards' memory behind the open files of a process; ``None`` where the kernel does not tell.

    A client that several files or processes share is the same in all of them. Raises PermissionError.
    Source: https://docs.kernel.org/gpu/drm-usage-stats.html.
    """
    files = f"{proc}/{pid}/fd"
    found: dict[Client, int | None] = {}
    try:
        for file in os.listdir(files):
            try:
                address = nodes.get(os.readlink(f"{files}/{file}"))
                if address is None:
                    continue
                text = read_file(f"{proc}/{pid}/fdinfo/{file}")
            except FileNotFoundError:
                # Closed meanwhile.
                continue
            if client := _CLIENT.search(text):
                found[address, client[1].decode()] = _resident_bytes(text)
            else:
                found[address, f"{pid}/{file}"] = None
    except (FileNotFoundError, ProcessLookupError):
        # It ended; what it held is back already.
        return {}
    return found


def _resident_bytes(text: bytes) -> int | None:
    # By region, since a kernel may tell the same twice: under the name of today, and under the older one.
    regions = {region: int(size) * _UNITS[unit] for region, size, unit in _MEMORY.findall(text)}
    return sum(regions.values()) if regions else None


_CLIENT = re.compile(rb"^drm-client-id:\s*(\d+)", re.MULTILINE)
_MEMORY = re.compile(rb"^drm-(?:resident|memory)-(vram\d*):\s*(\d+) ?(KiB|MiB|)", re.MULTILINE)
_UNITS = {b"": 1, b"KiB": 1024, b"MiB": 1024**2}
