"""The results of `benchmarks.gopro` as tables, beside what is published of the systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from irnext import paper

from . import harness
from .systems import TITLES, VARIANTS

IN_PAPER = dict.fromkeys(VARIANTS, "IRNeXt") | {"mprnet-deblurring": "MPRNet", "restormer": "Restormer"}
# PSNR in dB and SSIM on GoPro of what Table 6 does not list, and where they were published.
ELSEWHERE = {
    "mimo-unet": (31.73, 0.951, "MIMO-UNet's paper"),
    "mimo-unet-plus": (32.45, 0.957, "GRL's paper, Table 4"),
    "grl-base": (33.93, 0.968, "GRL's paper, Table 4"),
}


def quality(name: str) -> tuple[float | None, float | None, str | None]:
    """PSNR in dB and SSIM on GoPro as published, and where; None for what was not."""
    if name in IN_PAPER:
        row = paper.GOPRO[IN_PAPER[name]]
        return row.psnr, row.ssim, "Table 6"
    return ELSEWHERE.get(name, (None, None, None))


def title_of(picture: Sequence[int], precision: str) -> str:
    """A comparison's name: the width and height of its pictures, and what was computed in."""
    return "{} x {}, {}".format(*picture, precision)


NOTES = (
    "Times are medians of calls that took turns, the spread half the interquartile range; where it says one "
    "call, a system took too long for turns and was followed by one call of ours. x: how many times as long "
    "as ours, and as the published IRNeXt. The paper's x: Table 6's seconds over IRNeXt's, 0.255, on a V100.",
    "MACs are multiply-accumulates for 256 x 256 pixels, of convolutions and matrix products, all counted by "
    "`irnext.complexity`. The paper's counter takes transposed convolutions at their output's resolution and "
    "leaves attention's products out.",
    "MIMO-UNet++ is in the paper only: by its parameters and operations it is MIMO-UNet+ run four times.",
    "Weights are random; PSNR and SSIM on GoPro are published ones, of Table 6 except "
    + ", ".join(f"{TITLES[name]}'s ({source})" for name, (*_, source) in ELSEWHERE.items())
    + ".",
)


def cells(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The table of one comparison as text: its rows of the results, then the other systems of Table 6."""
    number = harness.number
    table = [
        {
            "system": row["title"],
            "M params": f"{row['params'] / 1e6:.2f}",
            "G MACs": f"{row['macs'] / 1e9:.2f}",
            "paper's G": number(row["paper_gflops"], ".2f"),
            "ms": number(row["milliseconds"], ".1f") or ("wrong" if row["wrong"] else "none"),
            "spread": "one call"
            if row["single_call"]
            else number(row["spread"] / 2 if row["spread"] else None, ".1%"),  # one round has none
            "x ours": number(row["times_ours"], ".2f"),
            "x published": number(row["times_published"], ".2f"),
            "paper's x": number(row["paper_times"], ".2f"),
            "peak MiB": harness.mebibytes(row["peak_bytes"]),
            "PSNR": number(row["psnr"], ".2f"),
            "SSIM": number(row["ssim"], ".3f"),
        }
        for row in rows
    ]
    measured = {row["paper_name"] for row in rows}
    for name, printed in paper.GOPRO.items():
        if name not in measured:
            table.append(
                dict.fromkeys(table[0], "")
                | {
                    "system": f"{name} (paper only)",
                    "M params": f"{printed.mparams:.2f}",
                    "paper's G": number(printed.gflops, ".2f"),
                    "paper's x": f"{printed.seconds / paper.GOPRO['IRNeXt'].seconds:.2f}",
                    "PSNR": f"{printed.psnr:.2f}",
                    "SSIM": f"{printed.ssim:.3f}",
                }
            )
    return table


def reasons(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Why systems have no time."""
    return [f"{row['title']}: {why}" for row in rows if (why := row["wrong"] or row["failure"])]


def by_case(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the results by comparison, in order."""
    found: dict[str, list] = {}
    for row in rows:
        found.setdefault(title_of(row["picture"], row["precision"]), []).append(row)
    return found


def markdown(rows: Sequence[dict[str, Any]], here: dict[str, Any], command: str) -> str:
    """All comparisons as tables in Markdown, with the machine and the command that they come from."""
    parts = ["# GoPro: IRNeXt and the networks it is compared with", f"`{command}`", harness.describe(here)]
    for title, of_case in by_case(rows).items():
        table = cells(of_case)
        columns = [name for name in table[0] if any(row[name] for row in table)]
        lines = [columns, ["---", *["---:"] * (len(columns) - 1)]]
        lines += [[row[name] for name in columns] for row in table]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(line)} |" for line in lines), *reasons(of_case)]
    return "\n\n".join([*parts, *NOTES]) + "\n"


def show(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of one comparison."""
    console.print(harness.table_of(title, cells(rows)))
    for line in reasons(rows):
        console.print(line, soft_wrap=True)
