"""Intel's cards, by a question to Linux's xe driver: it has no file for how much memory a card has.

Source: https://docs.kernel.org/gpu/driver-uapi.html#drm-xe-uapi (``drm_xe_device_query``, ``drm_xe_mem_region``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from scaler.sensors.drm import Card, Figures, attribute, temperature

_QUERY = struct.Struct("=QIIQ16x")
_HEAD = struct.Struct("=II")
_REGION = struct.Struct("=HHIQQ64x")
_ASK_DEVICE = 3 << 30 | _QUERY.size << 16 | ord("d") << 8 | 0x40
_MEMORY_REGIONS = 1
_OF_THE_CARD = 1


def figures(card: Card) -> Figures | None:
    """What the card has and what is in use; ``None`` for a chip that shares the machine's RAM. Raises OSError.

    ``None`` also where this user may not know what is in use: without CAP_PERFMON the kernel says 0, which is never so.
    A container sees the host's cards in sysfs, and has not the nodes of those that it was not given.
    """
    nodes = [node for node in card.nodes if os.path.basename(node).startswith("renderD")]
    try:
        reply = _ask(nodes[0]) if nodes else bytes(_HEAD.size)
    except (PermissionError, FileNotFoundError):
        return None
    regions = [region for region in _REGION.iter_unpack(reply[_HEAD.size :]) if region[0] == _OF_THE_CARD]
    used = sum(region[4] for region in regions)
    if not used:
        return None
    return Figures(
        name=f"Intel {attribute(card, 'device')}",
        total_bytes=sum(region[3] for region in regions),
        used_bytes=used,
        # Source: Documentation/ABI/testing/sysfs-driver-intel-xe-hwmon; the second is the whole chip's.
        temperature_c=temperature(card, "temp2_input"),
    )


def _ask(node: str) -> bytes:
    """The kernel's answer: a head, then one record for each region of memory."""
    import fcntl  # here, because Windows has none

    file = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    try:
        # Once for the size of the answer, once for the answer.
        query = bytearray(_QUERY.pack(0, _MEMORY_REGIONS, 0, 0))
        fcntl.ioctl(file, _ASK_DEVICE, query)
        size = _QUERY.unpack(query)[2]
        if size < _HEAD.size or (size - _HEAD.size) % _REGION.size:
            raise OSError(errno.EPROTO, "the xe driver answers in a way that is not known here", node)
        reply = ctypes.create_string_buffer(size)
        fcntl.ioctl(file, _ASK_DEVICE, _QUERY.pack(0, _MEMORY_REGIONS, size, ctypes.addressof(reply)))
        return reply.raw
    finally:
        os.close(file)
