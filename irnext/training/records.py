"""What a training writes for people: the log, TensorBoard's, and sample pictures."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from .. import images
from ..files import atomic_file

LOG, SAMPLES, TENSORBOARD = "log.jsonl", "samples", "tensorboard"


class Records:
    """The log of a training, one JSON object per line, and TensorBoard's where it is wanted.

    A training that goes on from a step takes away the lines after it: they are written anew.

    Args:
        folder: of the training.
        step: where it goes on; 0 for a new one.
        tensorboard: write there, too.

    Raises:
        ModuleNotFoundError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, step: int = 0, tensorboard: bool = False):
        self.folder, self.path = folder, folder / LOG
        self._board = _tensorboard(folder / TENSORBOARD, step) if tensorboard else None
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step] if step else []
        with atomic_file(self.path) as file:
            file.write("".join(kept).encode())
        self._file = self.path.open("a", encoding="utf-8")

    def _lines(self) -> list[str]:
        """The whole lines of the log; one that was cut off is none."""
        if not self.path.exists():
            return []
        lines = self.path.read_text("utf-8").splitlines(keepends=True)
        return [line for line in lines if line.endswith("\n")]

    def write(self, event: str, step: int, **values: Any) -> None:
        """One line of the log; numbers go to TensorBoard as `event`/name."""
        self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def sample(self, step: int, name: str, *pictures: np.ndarray) -> None:
        """Pictures (H, W, 3) uint8 of one size side by side: samples/STEP-NAME.png."""
        folder = self.folder / SAMPLES
        folder.mkdir(exist_ok=True)
        sheet = np.concatenate(pictures, 1)
        stem = name.replace("/", "-")
        images.write(Image.fromarray(sheet), folder / f"{step:07d}-{stem}.png")
        if self._board is not None:
            self._board.add_image(f"sample/{stem}", sheet, step, dataformats="HWC")

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ModuleNotFoundError("TensorBoard is not installed: pip install 'irnext[tensorboard]'") from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
