"""What this installation is and can do: versions, processor, GPUs, backends, models."""

from __future__ import annotations

import os
import platform
from itertools import groupby
from pathlib import Path

import PIL
import torch
from PIL import features
from rich.console import Console, Group
from rich.table import Table

from .models import list_models, supports
from .ops import backends
from .version import __version__


def collect() -> dict:
    """Everything `irnext info` shows, as plain values that JSON can hold."""
    return {
        "versions": {
            "irnext": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "pillow": PIL.__version__,
            "jpeg decoder": jpeg_decoder(),
        },
        "cpu": {
            "processor": processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "gpus": _gpus(),
        "IRNEXT_BACKEND": os.environ.get("IRNEXT_BACKEND"),
        "backends": {
            name: {"available": status.available, "reason": status.reason, "ops": list(status.ops)}
            for name, status in backends().items()
        },
        "models": {name: supports(name) for name in list_models()},
    }


def jpeg_decoder() -> str:
    """Pillow's JPEG decoder and its version; decoders differ by a few grey levels on the same file."""
    turbo = features.version_feature("libjpeg_turbo")
    return f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"


def processor() -> str:
    """The name of the machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> list[dict]:
    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": gpu.name,
                "compute capability": f"{gpu.major}.{gpu.minor}",
                "memory GiB": round(gpu.total_memory / 2**30, 1),
            }
        )
    return found


def show(console: Console | None = None) -> None:
    """Print what `collect` found as tables."""
    facts = collect()
    gpus = [", ".join(f"{key} {value}" for key, value in gpu.items()) for gpu in facts["gpus"]]
    system = Table("versions and machine", "")
    for name, value in (*facts["versions"].items(), *facts["cpu"].items()):
        system.add_row(name, str(value))
    system.add_row("gpus", "\n".join(gpus) or "none that PyTorch sees")
    system.add_row("IRNEXT_BACKEND", facts["IRNEXT_BACKEND"] or "not set")

    served = Table("backend", "can be used", "why", "operators with kernels")
    for name, status in facts["backends"].items():
        answer = "yes" if status["available"] else "no"
        served.add_row(name, answer, status["reason"], ", ".join(status["ops"]) or "none")

    models = Table("models", "sides", "half precision", "bands", "in tiles")
    for _, alike in groupby(facts["models"].items(), key=lambda item: item[1]):
        alike = dict(alike)
        support = next(iter(alike.values()))
        sides = f"multiples of {support['size multiple']}, from {support['minimum size']}"
        half, bands = ", ".join(support["half precision"]), "yes" if support["bands"] else "no"
        models.add_row(", ".join(alike), sides, half, bands, support["tiles"])
    (console or Console()).print(Group(system, served, models), markup=False)
