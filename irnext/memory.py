"""Sizes of memory: as people write them, and how much there is."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

UNITS = " KMGT"
CONTROL_GROUPS = Path("/sys/fs/cgroup")
# Files of a control group's limit, its use and its statistics, and what these call pages of files.
MEMORY_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def parse_size(size: int | str) -> int:
    """Bytes of "8G", "500M" or "1.5GiB" (powers of 1024), of "8GB" (powers of 1000), or of a number.

    Raises:
        ValueError: anything else, or less than a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?", str(size).strip(), re.IGNORECASE)
    found = 0
    if match:
        number, unit, ending = match[1], match[2].upper(), (match[3] or "").upper()
        base = 1000 if unit and ending == "B" else 1024
        found = int(float(number) * base ** UNITS.index(unit or " "))
    if found < 1:
        raise ValueError(f"memory size {size!r}: give a number of bytes, or one such as 8G, 500M or 1.5GiB")
    return found


def format_size(size: int) -> str:
    """A size as `parse_size` reads it, rounded up."""
    for unit in "GM":
        hundredth = 1024 ** UNITS.index(unit) / 100
        if size >= 100 * hundredth:
            return f"{-(-size // hundredth) / 100:g}{unit}"
    return f"{-(-size // 1024)}K"


def available_memory(device: torch.device) -> int | None:
    """Bytes that tensors can still take on a device, None where nothing tells."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept  # PyTorch gives out again what it keeps
    if device.type != "cpu":
        return None
    free = list(_left_to_control_group())
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        free.append(1024 * int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())[1]))
    return max(0, min(free)) if free else None


def give_back_free_memory() -> None:
    """Give what the C library keeps free back to the system, where that is glibc.

    Before its version 2.38 it seldom gives out aligned blocks again (its bug 14581): many allocations of
    a few MiB, as in training on a CPU, would let the process grow by gigabytes an hour.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _left_to_control_group() -> Iterator[int]:
    """What a container's limit leaves; pages of files, which go when memory is wanted, do not count."""
    for limit, use, statistics, pages in MEMORY_FILES:
        try:
            most = (CONTROL_GROUPS / limit).read_text().strip()
            used = int((CONTROL_GROUPS / use).read_text())
            files = re.search(rf"^{pages} (\d+)", (CONTROL_GROUPS / statistics).read_text(), re.MULTILINE)
        except (OSError, ValueError):
            continue
        if most.isdigit():  # "max" is no limit
            yield int(most) - used + (int(files[1]) if files else 0)
