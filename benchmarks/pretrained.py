"""The weights that come with the package: how they were trained, and what they gain.

    python -m benchmarks.pretrained train --task haze     # a recipe of irnext/recipes on photographs
    python -m benchmarks.pretrained measure --json        # PSNR and SSIM on photographs they have not seen

Training takes the photographs inside the wheels of scikit-image, scikit-learn and matplotlib (nothing is
downloaded) but three, which are only measured on, and dead-leaves images.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from irnext import checkpoints, images, optimize, pretrained, restore
from irnext.data.synthetic import DEGRADATIONS, CleanPictures, SyntheticPairs
from irnext.demo import photographs
from irnext.metrics import psnr, ssim
from irnext.training import TrainingConfig, train

from . import harness

# By the package whose wheel has them, and the folder there.
TRAINING = {
    ("skimage", "data"): (
        "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg",
        "ihc.png", "brick.png", "grass.png", "gravel.png", "camera.png", "coins.png", "moon.png", "page.png",
    ),
    ("sklearn", "datasets/images"): ("china.jpg", "flower.jpg"),
    ("matplotlib", "mpl-data/sample_data"): ("grace_hopper.jpg",),
}  # fmt: skip
WATCHED = ("motorcycle_right.png",)  # validated on; almost its left brother, so no measure of anything
HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png")
DRAWS = 4  # degradations of each held-out photograph
SIDE = 640  # photographs are shrunk to this, so that crops of 128 show things of everyday size
SEED = 2026


@dataclass(frozen=True)
class Train:
    """Train the weights of tasks anew, and put them into the package."""

    task: tuple[str, ...] = tuple(DEGRADATIONS)
    """tasks"""
    output: Path = Path("build/pretrained")
    """folder of the trainings; one that is there is gone on with"""
    steps: int | None = None
    """instead of the recipe's"""
    threads: int | None = None
    """CPU threads"""

    def run(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        photographs = gather(self.output / "photographs")
        for task in self.task:
            config = TrainingConfig.of(
                task, photographs, self.output / task, steps=self.steps, seed=SEED, validate_every=500
            )
            result = train(config, resume=True)
            if result.interrupted:
                raise KeyboardInterrupt
            ship(task, config)


@dataclass(frozen=True)
class Measure:
    """Measure the shipped weights on photographs that no training has seen."""

    task: tuple[str, ...] = tuple(DEGRADATIONS)
    """tasks"""
    pictures: Path | None = None
    """also write degraded, restored and clean, side by side, into this folder"""
    json: bool = False
    """write the figures to a file under --results"""
    results: Path = harness.RESULTS
    """folder of the results"""

    def run(self) -> None:
        here = harness.machine()
        rows = [row for task in self.task for row in measure(task, self.pictures)]
        table = harness.make_table(
            f"held-out photographs, {DRAWS} degradations each, protocols irnext-rgb and ssim-rgb",
            "task", "photograph", "PSNR before", "after", "gain", "SSIM before", "after",
        )  # fmt: skip
        for row in rows:
            table.add_row(
                row["task"], row["photograph"], f"{row['psnr_before']:.2f}", f"{row['psnr_after']:.2f}",
                f"{row['psnr_after'] - row['psnr_before']:+.2f}", f"{row['ssim_before']:.4f}",
                f"{row['ssim_after']:.4f}",
            )  # fmt: skip
        harness.make_console().print(table)
        if self.json:
            print(harness.write_results("pretrained", here, {"task": self.task}, rows, self.results))


def gather(folder: Path) -> Path:
    """The training photographs in a folder, shrunk: train/ and validation/."""
    if folder.exists():
        return folder
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    for (package, inside), names in TRAINING.items():
        for name in names:
            picture = images.read(photographs.find(package, inside, name, "photographs")).convert("RGB")
            picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            place = partial / ("validation" if name in WATCHED else "train") / f"{Path(name).stem}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            picture.save(place)
    partial.rename(folder)
    return folder


def ship(task: str, config: TrainingConfig) -> None:
    """Put the last weights of a training into the package, in half precision, with how they came about."""
    model = checkpoints.load(config.output / "last.safetensors")
    path = pretrained.path_of(task)
    path.parent.mkdir(exist_ok=True)
    checkpoints.save(model.half(), path)
    here = harness.machine()
    lines = map(json.loads, (config.output / "log.jsonl").read_text().splitlines())
    log = [line for line in lines if line["event"] == "train"]
    crops = config.log_every * config.batch
    record = {
        "task": task,
        "steps": config.length,
        "batch": config.batch,
        "patch": config.patch,
        "seed": config.seed,
        "crops": config.length * config.batch,
        "seconds": round(sum(crops / line["crops_per_second"] for line in log)),  # validation left out
        "loss": log[-1]["loss"],
        "photographs": [name for names in TRAINING.values() for name in names if name not in WATCHED],
        "processor": here["processor"],
        "threads": here["threads"],
        "torch": here["torch"],
        "commit": here["commit"],
        "date": here["date"],
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


def measure(task: str, pictures: Path | None) -> list[dict]:
    """PSNR and SSIM of every held-out photograph, degraded and restored: means over several degradations."""
    model = optimize(pretrained.load_pretrained(task))
    files = [photographs.path_of(name) for name in HELD_OUT]
    rows = []
    for index, file in enumerate(files):
        scores = []
        for draw in range(DRAWS):
            pairs = SyntheticPairs(CleanPictures(files), DEGRADATIONS[task](), SEED + draw)
            degraded, clean = pairs.read(index)
            restored = restore(model, np.float32(degraded) / 255)
            scores.append((*score(np.float32(degraded) / 255, clean), *score(restored, clean)))
            if pictures is not None:
                pictures.mkdir(parents=True, exist_ok=True)
                shown = np.rint(restored * 255).astype(np.uint8)
                sheet = np.concatenate([degraded, shown, clean], 1)
                images.write(Image.fromarray(sheet), pictures / f"{task}-{file.stem}-{draw}.png")
        names = ("psnr_before", "ssim_before", "psnr_after", "ssim_after")
        means = dict(zip(names, np.mean(scores, 0).tolist(), strict=True))
        gains = [after - before for before, _, after, _ in scores]
        rows.append({"task": task, "photograph": file.name, **means, "gains": gains})
    return rows


def score(picture: np.ndarray, clean: np.ndarray) -> tuple[float, float]:
    """PSNR in dB and SSIM of a float picture (H, W, 3), not rounded, against an 8-bit one."""
    found, target = torch.tensor(picture).permute(2, 0, 1), torch.tensor(clean).permute(2, 0, 1) / 255
    return psnr(found, target), ssim(found, target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands."""
    command = tyro.extras.subcommand_cli_from_dict(
        {"train": Train, "measure": Measure}, prog="python -m benchmarks.pretrained", args=arguments
    )
    command.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
