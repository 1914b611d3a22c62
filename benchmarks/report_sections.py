"""What a report says of each benchmark (`SECTIONS`), of compilers (`compiled`) and of any file (`plain`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from irnext.memory import parse_size

from . import figures, gopro_figure, gopro_table, growth_figure, provenance
from .account import KINDS
from .figures import Bars, Stacks
from .harness import mebibytes, number
from .lam import CLONE_MEAN, GROUPED, UNFOLD
from .networks import OPTIMIZED, PLAIN, PLAIN_COMPILED, PUBLISHED, PUBLISHED_COMPILED
from .page import Block, Facts, Plot, Section, Table, Text, slug
from .records import Record

VARIANT_COLOURS = {
    PUBLISHED: "grey",
    PUBLISHED_COMPILED: "slate",
    PLAIN: "sky",
    PLAIN_COMPILED: "purple",
    OPTIMIZED: "blue",
}
NAMES_OF_RELATIVES = {"convir": "ConvIR", "fsnet": "FSNet"}
DIRECTION_COLOURS = {"forward": "blue", "backward": "green", "forward + backward": "orange"}


# ---- cells ---------------------------------------------------------------------------------------


def table(rows: Iterable[Mapping[str, str]], caption: str = "") -> Table:
    """A table of rows with the same columns, without those that would be empty; the first always stays."""
    rows = list(rows)
    first, *others = rows[0]
    shown = [first, *(name for name in others if any(row[name] for row in rows))]
    return Table(tuple(shown), [tuple(row[name] for name in shown) for row in rows], caption)


def milliseconds(value: float | None) -> str:
    """A time to about three digits."""
    return "" if value is None else f"{value:,.{3 if value < 10 else 1 if value < 100 else 0}f}"


def spread(row: Mapping[str, Any]) -> str:
    """Half the interquartile range as a share of the median."""
    return "" if row["spread"] is None else f"±{row['spread'] / 2:.1%}"


def time_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Milliseconds and spread; no time for a wrong result."""
    if row["milliseconds"] is None:
        return {"ms": "wrong" if row["wrong"] else "none", "spread": ""}
    return {"ms": milliseconds(row["milliseconds"]), "spread": spread(row)}


def ratio(row: Mapping[str, Any], other: str, style: str = ".2f") -> str:
    """How many times as long another variant takes; empty for itself and where either was not timed."""
    return "" if other == row["variant"] else number(row["ratios"].get(other), style)


def size(width_and_height: Sequence[int]) -> str:
    """Width and height."""
    return "{} x {}".format(*width_and_height)


def shape(sides: Sequence[int]) -> str:
    """A tensor's shape."""
    return f"({', '.join(map(str, sides))})"


def _grouped(rows: Iterable[dict[str, Any]], *names: str) -> dict[tuple, list[dict[str, Any]]]:
    """Rows by the values of some entries, in the order in which they come."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(_hashable(row[name]) for name in names), []).append(row)
    return groups


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def problems(rows: Iterable[Mapping[str, Any]]) -> list[Block]:
    """Which variants have no time, and why."""
    found = (f"{row['variant']}: {row.get('wrong') or row.get('failure')}" for row in rows if _failed(row))
    return [Text(text, warning=True) for text in dict.fromkeys(found)]


def _failed(row: Mapping[str, Any]) -> bool:
    return bool(row.get("wrong") or row.get("failure"))


def plot(
    record: Record, kind: str, figure: Any, description: str, colours: Mapping[str, str] | None = None
) -> Plot:
    """A plot whose name tells it from all others of a report; `colours` as for `figures.svg`."""
    name = slug(f"{record.folder} {record.name} {kind}")
    return Plot(name, figures.svg(figure, name, colours), description)


# ---- the operator --------------------------------------------------------------------------------


def lam(record: Record) -> list[Block]:
    """The local attention: how many times as fast as both baselines, and every figure of ours."""
    blocks: list[Block] = [
        Text(
            "One local attention module, against its published form (unfold) and a grouped convolution. "
            "Times are medians of interleaved runs, with half the interquartile range; ratios are medians of "
            "the rounds' own."
        )
    ]
    kinds = ("dtype", "layout", "training")
    for key, rows in _grouped(record.rows, *kinds).items():
        dtype, layout, training = key
        about = f"{dtype}, {layout}{', batch statistics' if training else ''}"
        blocks += _lam_plots(record, rows, about)
        clones = {_case(row): row["ratios"] for row in rows if row["variant"] == CLONE_MEAN}
        ours = [row for row in rows if _is_ours(row["variant"])]
        blocks.append(table([_lam_cells(row, clones.get(_case(row), {})) for row in ours], about))
        blocks += problems(rows)
    return blocks


def _case(row: Mapping[str, Any]) -> tuple:
    return row["direction"], tuple(row["shape"])


def _is_ours(variant: str) -> bool:
    return variant.startswith("irnext")


def _lam_plots(record: Record, rows: list[dict[str, Any]], about: str) -> list[Block]:
    """For every fast variant of ours, bars of its ratios."""
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    plots: list[Block] = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        if not _is_ours(variant) or "reference" in variant:
            continue
        found = {_case(row): row["ratios"] for row in rows if row["variant"] == variant}
        directions = list(dict.fromkeys(direction for direction, _ in found))
        panels = [
            Bars(
                f"{variant}, {about}: against {baseline}",
                "times as fast",
                [shape(one) for one in shapes],
                {d: [found.get((d, one), {}).get(baseline) for one in shapes] for d in directions},
                marks=[1.0] * len(shapes),
                mark="the baseline",
            )
            for baseline in (UNFOLD, GROUPED)
        ]
        if any(value for panel in panels for values in panel.series.values() for value in values):
            drawn = figures.bars(panels, DIRECTION_COLOURS)
            words = f"How many times as fast as the baselines {variant} is, {about}, by shape and direction"
            plots.append(plot(record, f"{variant} {about}", drawn, words))
    return plots


def _lam_cells(row: dict[str, Any], clone: Mapping[str, float]) -> dict[str, str]:
    return {
        "input": shape(row["shape"]),
        "direction": row["direction"],
        "variant": row["variant"],
        **time_cells(row),
        "graph ms": milliseconds(row.get("graph_milliseconds")),
        "x unfold": ratio(row, UNFOLD, ".1f"),
        "x grouped": ratio(row, GROUPED, ".1f"),
        "times clone + mean": number(clone.get(row["variant"]), ".1f"),
        "of copy bandwidth": number(row["share_of_floor"], ".0%"),
        "of large copy": number(row["share_of_large_copy"], ".0%"),
        "peak MiB": mebibytes(row["peak_bytes"]),
        "launches": number(row["launches"], "d"),
        "error": number(row["error"], ".0e"),
    }


# ---- whole models --------------------------------------------------------------------------------


def model(record: Record) -> list[Block]:
    """Whole models: times with the floor, where they go, every figure, and what half precision does."""
    rows = record.rows
    blocks: list[Block] = [
        Text(
            "Whole models at inference, against the published formulation, eager and compiled. The floor is "
            "the least time by the machine's own rates, with convolutions summed directly: Winograd's "
            "algorithm, which needs fewer products, can go below it."
        )
    ]
    timed = [row for row in rows if row["milliseconds"] is not None]
    if timed:
        words = "Milliseconds of every variant by precision, with the floor"
        blocks.append(plot(record, "times", figures.bars(_time_panels(timed), VARIANT_COLOURS), words))
    if panels := _account_panels(timed, record.data.get("floors", [])):
        words = "Milliseconds of every variant and of the floor by kind of work"
        blocks.append(plot(record, "account", figures.stacks(panels), words))
    blocks.append(table([_model_cells(row) for row in rows]))
    blocks += problems(rows)
    if photographs := record.data.get("photographs"):
        cells = [
            {
                "photograph": one["photograph"],
                "network": f"IRNeXt({one['blocks']}), {one['precision']}",
                "variant": one["variant"],
                "dB from float32": f"{one['decibels']:.1f}",
            }
            for one in photographs
        ]
        blocks.append(table(cells, "What half precision does to photographs"))
    return blocks


def _time_panels(rows: list[dict[str, Any]]) -> list[Bars]:
    panels = []
    for (blocks, picture, comparison), few in _grouped(rows, "blocks", "picture", "comparison").items():
        precisions = list(dict.fromkeys(row["precision"] for row in few))
        found = {(row["variant"], row["precision"]): row for row in few}
        floors = {row["precision"]: row["floor_ms"] for row in few}
        series = {
            variant: [found.get((variant, one), {}).get("milliseconds") for one in precisions]
            for variant in _in_order(row["variant"] for row in few)
        }
        title = f"IRNeXt({blocks}), {size(picture)}, {RUNS[comparison]}"
        marks = [floors[one] for one in precisions]
        style = ".2f" if max(row["milliseconds"] for row in few) < 100 else ",.0f"
        panels.append(Bars(title, "ms", precisions, series, marks, "floor, direct sums", style))
    return panels


def _account_panels(rows: list[dict[str, Any]], floors: list[dict[str, Any]]) -> list[Stacks]:
    least = {_network(one): one["by_kind_ms"] for one in floors}
    panels = []
    for key, few in _grouped([row for row in rows if row["account_ms"]], *NETWORK).items():
        accounts = {row["variant"]: row["account_ms"] for row in few}  # the last comparison's
        bars = {name: {kind: accounts[name].get(kind, 0.0) for kind in KINDS} for name in _in_order(accounts)}
        if key in least:
            bars["floor"] = {kind: least[key].get(kind, 0.0) for kind in KINDS}
        blocks, picture, precision = key
        style = ".2f" if max(sum(parts.values()) for parts in bars.values()) < 100 else ",.0f"
        title = f"IRNeXt({blocks}), {size(picture)}, {precision}: where the time goes"
        panels.append(Stacks(title, "ms", bars, style))
    return panels


def _in_order(variants: Iterable[str]) -> list[str]:
    """Variants, each once, the published ones first."""
    variants = list(dict.fromkeys(variants))
    known = [name for name in VARIANT_COLOURS if name in variants]
    return [*known, *(name for name in variants if name not in known)]


NETWORK = ("blocks", "picture", "precision")
RUNS = {"eager": "eager", "compiled": "beside torch.compile"}


def _network(row: Mapping[str, Any]) -> tuple:
    return tuple(_hashable(row[name]) for name in NETWORK)


def _model_cells(row: dict[str, Any]) -> dict[str, str]:
    return {
        "network": f"IRNeXt({row['blocks']}), {size(row['picture'])}, {row['precision']}",
        "run": row["comparison"],
        "variant": row["variant"],
        **time_cells(row),
        "x eager": ratio(row, PUBLISHED),
        "x compiled": ratio(row, PUBLISHED_COMPILED),
        "of floor": number(row["share_of_floor"], ".0%"),
        "peak MiB": mebibytes(row["peak_bytes"]),
        "off float64": number(row["error_of_float64"], ".1e"),
        "first call s": number(row["first_call_seconds"], ".1f"),
    }


# ---- the comparison with other networks ----------------------------------------------------------


def gopro(record: Record) -> list[Block]:
    """The paper's Table 6 and its Figure 1 (right) again, on this machine."""
    rows = record.rows
    words = "PSNR on GoPro against time relative to IRNeXt, as the paper printed it and as measured here"
    with figures.drawing():
        drawn = gopro_figure.figure(rows, record.machine)
    blocks: list[Block] = [plot(record, "figure", drawn, words, GOPRO_COLOURS)]
    for case, few in gopro_table.by_case(rows).items():
        blocks.append(table(gopro_table.cells(few), case))
        blocks += [Text(reason, warning=True) for reason in gopro_table.reasons(few)]
    return [*blocks, *(Text(note.replace("`", "")) for note in gopro_table.NOTES)]


GOPRO_COLOURS = {
    gopro_figure.INK: "ink",
    gopro_figure.FAINT: "line",
    gopro_figure.PRINTED: "grey",
    gopro_figure.MEASURED: "blue",
    gopro_figure.VARIANT: "purple",
    gopro_figure.BEST: "red",
}


def growth(record: Record) -> list[Block]:
    """How latency and memory grow with the picture."""
    largest = record.data["largest"]
    with figures.drawing():
        drawn = growth_figure.figure(record.rows, largest, parse_size(record.options["memory"]))
    words = "Latency and peak memory against the number of pixels, with logarithmic axes"
    points = [
        {
            "system": row["system"],
            "picture": size(row["size"]),
            "ms": milliseconds(row["milliseconds"]),
            "spread": spread(row),
            "calls": str(row["calls"] or ""),
            "ms by the fit": "" if row["milliseconds"] else milliseconds(row["time_ms"]),
            "measured MiB": mebibytes(row["peak_bytes"]),
            "counted MiB": mebibytes(row["counted_bytes"]),
            "not measured because": row["wrong"] or row["missing"] or "",
        }
        for row in record.rows
    ]
    laws = [
        {
            "system": law["system"],
            "of": law["quantity"],
            "exponent": f"{law['exponent']:.3f}",
            "standard error": number(law["standard_error"], ".3f"),
            "from": f"{len(law['sizes'])} sizes {law['by']}, {law['sizes'][0]} to {law['sizes'][-1]}",
        }
        for law in record.data["laws"]
    ]
    fits = [
        {
            "system": one["system"],
            "how": one["how"],
            "16:9 picture": size(one["size"]) if one["pixels"] else "none",
            "megapixels": f"{one['pixels'] / 1e6:.1f}",
            "GiB": number(one["bytes"] and one["bytes"] / 2**30, ".2f"),
            "by": one["by"],
        }
        for one in largest
    ]
    blocks: list[Block] = [
        plot(record, "figure", drawn, words, {"#ffffff": "paper"}),
        table(points, "Cost by size"),
    ]
    blocks += [table(laws, "Growth: the exponent of the pixels")] if laws else []
    blocks += [table(fits, f"The largest picture in {record.options['memory']}")] if fits else []
    return blocks


# ---- training ------------------------------------------------------------------------------------


def training_step(record: Record) -> list[Block]:
    """A training step: time and memory."""
    o = record.options
    about = f"IRNeXt({o['blocks']}), {o['batch']} crops of {o['size']} x {o['size']}, {o['dtype']}"
    cells = [
        {
            "variant": row["variant"],
            "run": row["comparison"],
            **time_cells(row),
            "x published": ratio(row, PUBLISHED),
            "MiB above state": mebibytes(row.get("peak_above_state_bytes")),
            "of published's": number(row["peak_above_state_of_published"], ".2f"),
            "resident MiB": mebibytes(row.get("peak_bytes")),
            "of published's ": number(row["peak_of_published"], ".2f"),
            "error": number(row["error"], ".0e"),
        }
        for row in record.rows
    ]
    words = "A step is forward, loss, backward and Adam. Memory is the most beyond weights and state."
    return [Text(words), table(cells, about), *problems(record.rows)]


def relatives(record: Record) -> list[Block]:
    """Networks of other programs before and after `accelerate`."""
    o = record.options
    cells = [
        {
            "network": f"like {NAMES_OF_RELATIVES[row['network']]}",
            "pass": row["pass"],
            "variant": row["variant"],
            **time_cells(row),
            "x published": ratio(row, "as published"),
            "peak MiB": mebibytes(row["peak_bytes"]),
            "of published's": number(row["peak_of_published"], ".2f"),
            "error": number(row["error"], ".0e"),
        }
        for row in record.rows
    ]
    about = f"{o['blocks']} blocks, {o['width']} channels, {o['size']}, {o['dtype']}"
    words = "Networks of other programs' operators, before and after irnext.accelerate. Memory is counted."
    return [Text(words), table(cells, about), *problems(record.rows)]


def loss(record: Record) -> list[Block]:
    """The loss and its share of training steps."""
    cells = [
        {
            "what": row["variant"],
            **time_cells(row),
            "x published": "" if row["variant"].startswith("step") else ratio(row, "published"),
            **{
                f"of a step of {blocks} blocks": number(row.get("share_of_step", {}).get(str(blocks)), ".2%")
                for blocks in record.options["blocks"]
            },
        }
        for row in record.rows
    ]
    words = "The dual-domain loss with its gradients, in turns with training steps."
    return [Text(words), table(cells), *problems(record.rows)]


def loader(record: Record) -> list[Block]:
    """The loader beside the step."""
    cells = [
        {
            "source": row["source"],
            "workers": str(row["workers"]),
            "loader crops/s": f"{row['loader_crops_per_second']:.1f}",
            "step crops/s": f"{row['step_crops_per_second']:.2f}",
            "times ahead": f"{row['ahead']:.1f}",
            "training crops/s": f"{row['training_crops_per_second']:.2f}",
            "kept": f"{row['kept']:.0%}",
        }
        for row in record.rows
    ]
    words = "Crops a second of the loader alone, of a step on a batch in memory, and of training with both."
    return [Text(words), table(cells)]


def ablations(record: Record) -> list[Block]:
    """The paper's ablations, trained briefly."""
    o = record.options
    cells = [
        {
            "variant": row["variant"],
            "table": str(row["table"]),
            "PSNR": f"{row['psnr']:.2f}",
            "range over seeds": f"{row['range']:.2f}",
            "loss": f"{row['loss']:.3f}",
            "seconds": f"{row['seconds']:.0f}",
            "PSNR on GoPro (paper)": f"{row['paper_gopro']:.2f}",
        }
        for row in record.rows
    ]
    words = (
        f"The paper's ablations, each trained for {o['steps']} steps: that each trains, and what it costs. "
        "Differences as small as the paper's are beyond trainings this short, as the range over seeds shows."
    )
    return [Text(words), table(cells)]


def pretrained(record: Record) -> list[Block]:
    """The weights that come with the package, by photograph."""
    cells = [
        {
            "photograph": row["photograph"],
            "task": row["task"],
            "PSNR before": f"{row['psnr_before']:.2f}",
            "after": f"{row['psnr_after']:.2f}",
            "gain dB": f"{row['psnr_after'] - row['psnr_before']:+.2f}",
            "least": f"{min(row['gains']):+.1f}",
            "most": f"{max(row['gains']):+.1f}",
            "SSIM before": f"{row['ssim_before']:.3f}",
            "after ": f"{row['ssim_after']:.3f}",
        }
        for row in record.rows
    ]
    words = "Small weights of our own, not the paper's, on photographs that no training has seen."
    return [Text(words), table(cells)]


def instructions(record: Record) -> list[Block]:
    """What the CPU kernels take, by instruction set."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in record.rows:
        form = tuple(row[name] for name in ("kernel", "layout", "dtype"))
        cells = rows.setdefault(form, dict(zip(("kernel", "layout", "dtype"), form, strict=True)))
        cells[f"{row['instruction_set']}, per element"] = number(row["per_element"], ".2f") or "wrong"
        cells[f"{row['instruction_set']}, in all"] = number(row["instructions"], ",d")
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    tools = ", ".join(str(record.data[tool]) for tool in ("compiler", "valgrind"))
    words = f"Instructions of one call of each CPU kernel on {shape(record.rows[0]['shape'])}; {tools}."
    return [Text(words), table({name: row.get(name, "") for name in columns} for row in rows.values())]


# ---- compilers and runs --------------------------------------------------------------------------


def is_compiled(record: Record) -> bool:
    """Whether a file is a report on compiled kernels."""
    known = record.name.partition("-")[0] in COMPILED_CODE
    return known and isinstance(record.data.get("kernels"), dict) and "compiler" in record.data


def compiled(records: Sequence[Record], root: Path) -> Section:
    """What the compilers make of the kernels, a row for each report.

    The reports name no commit: that of each is the last that changed it. Code that has changed since need
    not change what becomes of it.
    """
    cells, current = [], []
    for record in records:
        kernels = record.data["kernels"]
        on = provenance.last_commit(record.path.resolve(), root)
        found = provenance.state(on and on[0], COMPILED_CODE[record.name.partition("-")[0]], root)
        current.append(found.current)
        shared = max(map(_shared_bytes, kernels.values()), default=0)
        cells.append(
            {
                "report": record.name,
                "compiler": record.data["compiler"],
                "kernels": str(len(kernels)),
                "most registers": str(
                    max((one.get("registers") or 0 for one in kernels.values()), default=0)
                ),
                "most shared KiB": f"{shared / 1024:.1f}" if shared else "",
                "spilling": str(sum(map(_spills, kernels.values()))),
                "committed": f"{on[0]}, {on[1][:10]}" if on else "not known",
                "code": "changed since" if found.current is False else found.word,
            }
        )
    facts = Facts({"command": "python -m benchmarks.compile_report"}, ("command",))
    words = "Registers, shared memory and spills of every kernel, by nvcc and Triton, on no device."
    good = True if all(current) else None
    mark = "current" if good else "may be older than the code"
    return Section("Compiled kernels", [Text(words), table(cells), facts], mark=mark, good=good)


COMPILED_CODE = {
    "cuda": ("csrc/cuda", "csrc/include", "benchmarks/compile_report.py"),
    "triton": ("kernels", "benchmarks/compile_report.py"),
}


def _shared_bytes(facts: Mapping[str, Any]) -> int:
    return facts.get("shared_bytes") or facts.get("shared") or 0


def _spills(facts: Mapping[str, Any]) -> bool:
    return any(facts.get(key) for key in ("spill stores", "spill loads", "spill_instructions", "local"))


def gpu(record: Record) -> list[Block]:
    """The steps of `make gpu`."""
    cells = [
        {
            "step": step["name"],
            "outcome": step["status"],
            "seconds": f"{step['seconds']:.1f}",
            "last line": step["detail"],
        }
        for step in record.data["steps"]
    ]
    return [Text(f"Build, tests and benchmarks on the device, {record.data['seconds']:.0f} s."), table(cells)]


# ---- any -----------------------------------------------------------------------------------------


def plain(record: Record) -> list[Block]:
    """A file as it is: its rows with the entries that are numbers, words or lists of them; or its entries."""
    rows = record.rows
    if not rows:
        rows = [{"entry": k, "value": v} for k, v in record.data.items() if k not in ("machine", "options")]
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = [name for name in names if any(_cell(row.get(name)) for row in rows)]
    if not shown:
        return [Text("There is nothing in it that a table could show.")]
    return [Table(tuple(shown), [tuple(_cell(row.get(name)) for name in shown) for row in rows])]


def _cell(value: Any) -> str:
    """A value as text; empty for none and for what is nested."""
    if value is None or isinstance(value, dict):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "" if any(isinstance(one, (list, dict)) for one in value) else shape(value)
    return str(value)


# ---- which is of what ---------------------------------------------------------------------------

# By the module that wrote a file, in the order of a report: its title and what is said of it.
SECTIONS: dict[str, tuple[str, Callable[[Record], list[Block]]]] = {
    "lam": ("Local attention", lam),
    "model": ("Whole models", model),
    "gopro": ("GoPro: IRNeXt and the networks it is compared with", gopro),
    "growth": ("Cost as pictures grow", growth),
    "training_step": ("Training step", training_step),
    "relatives": ("Relatives, accelerated", relatives),
    "loss": ("Dual-domain loss", loss),
    "loader": ("Training loader", loader),
    "instructions": ("Instructions of the CPU kernels", instructions),
    "pretrained": ("Weights of our own", pretrained),
    "ablations": ("Ablations", ablations),
    "gpu": ("make gpu", gpu),
}
