"""The report of results: what it says, where figures come from, whether they are older than the code."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import tyro
from markdown_it import MarkdownIt

from benchmarks import document, figures, lam, page, provenance, records, report
from benchmarks import report_sections as sections
from benchmarks.page import Facts, Section, Table, Text
from benchmarks.records import Record

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "<script>alert('1')</script> & \"x\" | *y* `z` [a](b) $c$"
MARKS = {"current", "older than the code", "may be older than the code", "uncommitted changes", "age unknown"}
pytestmark = pytest.mark.xdist_group("report")  # they share the report of all results


# ---- results to report ---------------------------------------------------------------------------


def put(folder: Path, name: str, **entries) -> Record:
    """A file of results."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name} | entries))
    return records.read(path)


def gopro_row(system: str, title: str, times: float, **others) -> dict:
    picture = [1280, 720]
    row = {"picture": picture, "precision": "float32", "system": system, "title": title, "paper_name": None}
    row |= {"psnr": 32.45, "ssim": 0.957, "params": 16.1e6, "macs": 150.7e9, "paper_gflops": None}
    row |= {"paper_times": None, "times_ours": times, "times_published": times / 3, "spread": 0.02}
    row |= {"milliseconds": 100 * times, "wrong": None, "failure": None, "single_call": False}
    return row | {"peak_bytes": 2**30} | others


GPU = {"processor": "P", "cores": 8, "threads": 4, "torch": "2.11", "gpu": {"name": f"GPU {HOSTILE}"}}
GOPRO = [
    gopro_row("irnext-published", "IRNeXt, published", 3.0, paper_name="IRNeXt"),
    gopro_row("irnext", "IRNeXt, ours", 1.0, paper_name="IRNeXt", psnr=33.16),
    gopro_row("mimo-unet-plus", HOSTILE, 7.25),
    gopro_row("grl-base", "GRL-B", 40.0, milliseconds=None, times_ours=None, failure="out of memory"),
]


def growth_rows(system: str, factor: float) -> list[dict]:
    """Two sizes measured, one of which the time is by the fit."""
    rows = []
    for side, measured in ((256, True), (512, True), (1024, False)):
        pixels, by = side**2, "measured" if measured else "by the fit"
        row = {"system": system, "size": [side, side], "pixels": pixels, "calls": 3 * measured, "wrong": None}
        row |= {"milliseconds": factor * pixels if measured else None, "spread": 0.1 if measured else None}
        row |= {"peak_bytes": 1000 * pixels if measured else None, "counted_bytes": 900 * pixels}
        row |= {"time_ms": factor * pixels, "time_by": by, "memory_bytes": 1000 * pixels, "memory_by": by}
        rows.append(row | {"missing": None if measured else "a call should take too long"})
    return rows


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> list[Record]:
    """Results of another machine: with a GPU, with hostile names, and of kinds that are not known."""
    folder = tmp_path_factory.mktemp("results") / "some-gpu"
    law = {"system": "irnext", "quantity": "time", "exponent": 1.234, "standard_error": None}
    law |= {"by": "measured", "sizes": ["256x256", "512x512"]}
    largest = {"system": "irnext", "how": "whole", "by": "counted", "size": [1600, 900]}
    largest |= {"pixels": 1440000, "bytes": 23 * 2**30}
    made = {
        "gopro": {"machine": GPU, "options": {"device": "cuda", "json": True}, "results": GOPRO},
        "growth": {
            "machine": GPU,
            "options": {"memory": "24G", "json": True},
            "results": [*growth_rows("irnext", 1e-3), *growth_rows("irnext-published", 3e-3)],
            "laws": [law],
            "largest": [largest],
        },
        "unheard-of": {
            "results": [{"name": HOSTILE, "value": 0.123456, "sides": [1, 2], "nested": {"a": 1}}]
        },
        "lam": {"machine": GPU, "options": {}, "results": [{"variant": "irnext (auto)", "shape": [1, 2]}]},
    }
    found = [put(folder, name, **entries) for name, entries in made.items()]
    gpu = {
        "machine": {"device": "GPU", "torch": "2.11", "commit": None, "date": "2026-01-02T03:04:05+00:00"},
        "seconds": 12.0,
        "steps": [{"name": "build", "status": "failed", "seconds": 1.5, "detail": HOSTILE}],
    }
    (folder / "gpu.json").write_text(json.dumps(gpu))
    return [*found, records.read(folder / "gpu.json")]


@pytest.fixture(scope="module")
def committed() -> list[Record]:
    """The results that are in the repository."""
    return records.find()


@pytest.fixture(scope="module")
def whole(committed, synthetic) -> Section:
    """The report of all of them."""
    return report.build([*committed, *synthetic])


class Reader(html.parser.HTMLParser):
    """What a browser sees: tags in their order, attributes, text, and tables as rows of cells."""

    EMPTY = ("meta", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.rows, self.text = [], set(), [], [], ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += text


@pytest.fixture(scope="module")
def seen(whole) -> Reader:
    return Reader(page.html(whole))


def markdown_tables(text: str) -> list[list[str]]:
    """The rows of all tables of a document in Markdown, as a reader of it sees them."""
    rows: list[list[str]] = []
    in_cell = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            rows.append([])
        in_cell = token.type in ("th_open", "td_open") or (in_cell and token.type == "inline")
        if in_cell and token.type == "inline":
            rows[-1].append("".join(child.content for child in token.children))
    return rows


@pytest.fixture(scope="module")
def parts(whole) -> dict[str, Section]:
    """The sections of the report by their machine's folder and their file's name."""
    found = {}
    for machine in whole.sections[:-1]:
        for part in machine.sections:
            (facts,) = (block.facts for block in part.blocks if isinstance(block, Facts))
            found[facts["file"]] = part
    return found


# ---- what it says --------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(whole, seen):
    text = page.html(whole)
    names = {name for name, _ in seen.attributes}
    assert not seen.tags & {"script", "link", "img", "iframe", "object", "b"} and "src" not in names
    links = [value for name, value in seen.attributes if name in ("href", "xlink:href")]
    assert links and all(link.startswith("#") for link in links)
    identities = [value for name, value in seen.attributes if name == "id"]
    assert len(identities) == len(set(identities)) and {link[1:] for link in links} <= set(identities)
    assert not re.search(r"url\((?!#)|@import", text)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(identities)
    assert len(text) < 600_000


def test_it_has_light_and_dark(whole):
    text = page.html(whole)
    assert "prefers-color-scheme:dark" in text
    used = set(re.findall(r"var\(--([a-z]+)\)", text))
    assert used <= set(page.COLOURS) and {"ink", "paper"} <= used
    for plot in whole.plots():  # no colour is of one scheme only
        assert not re.search(r"#[0-9a-f]{6}\b", plot.svg), plot.name


def test_names_are_shown_and_never_obeyed(seen):
    assert any(HOSTILE in row for row in seen.rows)  # a system of a table
    assert f"GPU {HOSTILE}" in seen.text


def test_figures_of_committed_results_are_there(seen, committed):
    (lam_record,) = (record for record in committed if record.name == "lam")
    ours = [row for row in lam_record.rows if row["variant"] == document.OURS]
    assert ours
    for row in ours:
        expected = {f"({', '.join(map(str, row['shape']))})", row["direction"], "irnext (auto)"}
        (cells,) = (cells for cells in seen.rows if expected <= set(cells))
        assert f"{row['ratios'][lam.UNFOLD]:.1f}" in cells and f"{row['ratios'][lam.GROUPED]:.1f}" in cells
    (model,) = (record for record in committed if record.name == "model-720p")
    for row in model.rows:
        name = f"IRNeXt(14), 1280 x 720, {row['precision']}"
        (cells,) = (cells for cells in seen.rows if {name, row["variant"]} <= set(cells))
        assert f"{row['milliseconds']:,.0f}" in cells and f"{row['peak_bytes'] / 2**20:.1f}" in cells


def test_every_committed_result_is_understood(committed, parts):
    measured = [record for record in committed if not sections.is_compiled(record)]
    assert {"lam", "model", "training_step", "pretrained"} <= {record.name for record in measured}
    for record in measured:
        part = parts[f"{record.folder}/{record.path.name}"]
        assert part.title.partition(" (")[0] in {title for title, _ in sections.SECTIONS.values()}
        assert not any(
            isinstance(block, Text) and "not as this version" in block.text for block in part.blocks
        )


def test_every_section_says_where_it_comes_from(whole, parts):
    for part in parts.values():
        facts = next(block.facts for block in part.blocks if isinstance(block, Facts))
        assert {"machine", "threads", "command", "commit", "date", "file", "code"} <= set(facts)
        assert all(facts.values())
        assert part.mark in MARKS
    assert whole.sections[-1].title == "Compiled kernels"
    assert [part.title for part in whole.sections[:2]] == [f"GPU {HOSTILE}", "AMD EPYC, 2 cores"]


def test_other_networks_and_growth(parts):
    gopro, growth = parts["some-gpu/gopro.json"], parts["some-gpu/growth.json"]
    assert [plot.name for part in (gopro, growth) for plot in part.plots()] == [
        "some-gpu-gopro-figure",
        "some-gpu-growth-figure",
    ]
    assert any("out of memory" in block.text for block in gopro.blocks if isinstance(block, Text))
    cells = {row[0]: row for block in gopro.blocks if isinstance(block, Table) for row in block.rows}
    assert "7.25" in cells[HOSTILE] and "Stripformer (paper only)" in cells
    tables = {block.caption: block.rows for block in growth.blocks if isinstance(block, Table)}
    assert any("1.234" in row for row in tables["Growth: the exponent of the pixels"])
    assert ("irnext", "whole", "1600 x 900", "1.4", "23.00", "counted") in tables[
        "The largest picture in 24G"
    ]


def test_unknown_and_older_files_are_shown_as_they_are(parts):
    (table,) = (block for block in parts["some-gpu/unheard-of.json"].blocks if isinstance(block, Table))
    assert table.headings == ("name", "value", "sides") and table.rows == [(HOSTILE, "0.1235", "(1, 2)")]
    older = parts["some-gpu/lam.json"].blocks
    assert older[0].warning and "KeyError" in older[0].text
    assert Table(("variant", "shape"), [("irnext (auto)", "(1, 2)")]) in older


def test_a_wrong_result_has_no_time():
    row = {"variant": "v", "milliseconds": None, "spread": None, "wrong": "off by 1", "failure": None}
    assert sections.time_cells(row) == {"ms": "wrong", "spread": ""}
    (warning,) = sections.problems([row, row])
    assert warning == Text("v: off by 1", warning=True)


def test_markdown_is_read_as_it_was_meant():
    document = Section(HOSTILE, [Text(HOSTILE), Table(("a", "b"), [(HOSTILE, "1 | 2"), ("", "-3")])])
    text = page.markdown(document, "figures")
    assert markdown_tables(text) == [["a", "b"], [HOSTILE, "1 | 2"], ["", "-3"]]
    tokens = [token for token in MarkdownIt("commonmark").enable("table").parse(text) if token.children]
    kinds = {child.type for token in tokens for child in token.children}
    assert kinds <= {"text", "text_special"}  # nothing formatted, no HTML
    assert "".join(child.content for child in tokens[0].children) == HOSTILE


# ---- plots ---------------------------------------------------------------------------------------


def test_plots_are_svg_with_text_and_the_same_every_time():
    panel = figures.Bars(
        "<title> $a_b$", "ms", ["x < y"], {"one & two": [2.5], "none": [None]}, [3.0], "floor"
    )
    stack = figures.Stacks("parts", "ms", {"bar": {"first": 1.0, "second": 2.0}})

    def draw() -> list[str]:
        return [figures.svg(figures.bars([panel]), "a"), figures.svg(figures.stacks([stack]), "b")]

    drawn = draw()
    assert drawn == draw()
    for element in drawn:
        root = ElementTree.fromstring(figures.svg_file(element))
        assert root.tag.endswith("svg") and "metadata" not in element and "<path" in element
    texts = [
        "".join(node.itertext()) for node in ElementTree.fromstring(drawn[0]).iter() if "text" in node.tag
    ]
    assert {"<title> $a_b$", "x < y", "one & two", "2.5", "floor", "ms"} <= set(texts)
    assert "3" in "".join(ElementTree.fromstring(drawn[1]).itertext())  # the sum of the stack
    assert all(name.startswith("a-") for name in re.findall(r' id="([^"]*)"', drawn[0]))


def test_labels_of_bars_do_not_overlap_the_floor():
    panel = figures.Bars("t", "ms", ["c"], {"s": [100.0], "t": [10.0]}, [102.0], "floor")
    figure = figures.bars([panel])
    figure.draw_without_rendering()
    (axis,) = figure.axes
    line = axis.lines[0].get_window_extent()
    labels = [text.get_window_extent() for text in axis.texts]
    assert len(labels) == 2 and not any(label.overlaps(line.padded(0.5)) for label in labels)
    assert not labels[0].overlaps(labels[1])


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    source = records.RESULTS / "amd-epyc-2-cores/lam.json"
    assert report.main([str(source), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "irnext[benchmark]" in error
    assert not (tmp_path / "out").exists()


# ---- where figures come from ---------------------------------------------------------------------


def test_commands_give_the_same_options(committed):
    """The command of every committed result, parsed by its benchmark, is what the file says."""
    for record in committed:
        if sections.is_compiled(record):
            continue
        python, flag, module, *arguments = shlex.split(record.command)
        assert (python, flag) == ("python", "-m")
        known = provenance.BENCHMARKS[module.removeprefix("benchmarks.")]
        if known.subcommand:
            assert arguments.pop(0) == known.subcommand
        options = getattr(sys.modules[module], known.options)
        parsed = dataclasses.asdict(tyro.cli(options, args=arguments))
        parsed = json.loads(json.dumps(parsed, default=str))
        assert parsed | record.options == parsed and parsed["json"]


def test_commands_name_what_differs():
    options = {"backends": ["cuda", "triton"], "shapes": [[1, 2, 3, 4], [5, 6, 7, 8]], "rounds": 20}
    command = "python -m benchmarks.lam --shapes 1 2 3 4 5 6 7 8 --backends cuda triton --json"
    assert provenance.command("lam", options) == command
    spaced = provenance.command("loader", {"sources": ["PNG 480 x 620"]})
    assert spaced == "python -m benchmarks.loader --sources 'PNG 480 x 620' --json"
    assert "--no-compiled" in provenance.command("model-x", {"compiled": False, "name": "model-x"})
    assert provenance.command("gpu", {}) == "make gpu"
    assert provenance.command("lam", {"gone": 1}) is None and provenance.command("other", {}) is None


class Repository:
    """A git repository to age results in."""

    def __init__(self, root: Path):
        self.root = root
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(self.root), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def commit(self, **files: str) -> str:
        for name, text in files.items():
            self.write(name.replace("__", "/"), text)
        self.git("add", "-A")
        self.git("commit", "-qm", "m")
        return self.git("rev-parse", "--short=12", "HEAD")

    def state(self, commit: str | None, *code: str) -> provenance.State:
        return provenance.state(commit, code or ("code", ":(exclude)code/gpu"), self.root)


def test_results_age_with_the_code_that_they_measure(tmp_path):
    repository = Repository(tmp_path)
    begun = repository.commit(code__a="1", code__gpu__b="1", other="1")
    assert repository.state(begun).current is True
    repository.commit(other="2", code__gpu__b="2")  # nothing that it measures
    assert repository.state(begun).current is True
    repository.commit(code__a="2")
    repository.commit(code__c="1", code__a="3")
    found = repository.state(begun)
    assert found.current is False and found.word == "older than the code"
    assert "2 commits changed 2 files" in found.why and "code/a, code/c." in found.why
    repository.commit(code__a="1")
    (tmp_path / "code/c").unlink()
    assert repository.state(begun).current is True  # the same again, in the working tree
    repository.write("code/new", "1")
    assert "code/new" in repository.state(begun).why  # before it is committed
    assert repository.state(begun).current is False


def test_uncommitted_and_unknown_results_say_so(tmp_path, monkeypatch):
    repository = Repository(tmp_path)
    begun = repository.commit(code__a="1")
    dirty = repository.state(begun + "+")
    assert dirty.current is None and dirty.word == "uncommitted changes" and begun in dirty.why
    for commit, why in ((None, "names no commit"), ("0123456789ab", "0123456789ab is not in a git")):
        unknown = repository.state(commit)
        assert unknown.current is None and why in unknown.why
    assert provenance.state(begun, None, tmp_path).current is None
    repository.write("code/a", "2")
    assert "uncommitted work changed 1 file " in repository.state(begun).why
    assert repository.state(begun + "+").word == "may be older than the code"
    outside = tmp_path / "code/.git-less"
    outside.mkdir()
    monkeypatch.setenv("PATH", str(outside))
    assert "no git here" in repository.state(begun).why


def test_results_on_a_cpu_do_not_age_with_the_kernels_of_gpus():
    cpu, gpu = (provenance.code_of("lam", on_gpu) for on_gpu in (False, True))
    assert "csrc/cpu" in cpu and "kernels" not in cpu and "csrc/cuda" not in cpu
    assert {"csrc/cuda", "kernels"} <= set(gpu) and "csrc/cpu" not in gpu
    assert provenance.code_of("unheard-of", False) is None
    assert "irnext/complexity.py" in provenance.code_of("gopro", False)  # which counts its operations
    assert "irnext/bands.py" in provenance.code_of("growth", False)
    for benchmark in provenance.BENCHMARKS:
        for path in (*provenance.code_of(benchmark, False), *provenance.code_of(benchmark, True)):
            assert (ROOT / path.removeprefix(":(exclude)")).exists(), f"{benchmark}: {path}"


def test_a_report_of_kernels_has_the_commit_of_its_file(tmp_path):
    repository = Repository(tmp_path)
    facts = {"registers": 40, "shared": 2048, "spill stores": 4}
    report_file = json.dumps({"compiler": "nvcc 13", "architecture": "sm_90", "kernels": {"k": facts}})
    begun = repository.commit(**{"results__cuda-sm_90.json": report_file, "csrc__cuda__a": "1"})
    record = records.read(tmp_path / "results/cuda-sm_90.json")
    part = sections.compiled([record], tmp_path)
    cells = part.blocks[1].rows[0]
    assert cells[:6] == ("cuda-sm_90", "nvcc 13", "1", "40", "2.0", "1") and cells[6].startswith(begun)
    assert part.good is True
    repository.commit(csrc__cuda__a="2")
    part = sections.compiled([record], tmp_path)
    assert part.good is None and part.blocks[1].rows[0][-1] == "changed since"


# ---- files and the command line ------------------------------------------------------------------


def test_the_report_is_written_whole(tmp_path, capsys):
    folder = tmp_path / "new/report"
    source = records.RESULTS / "amd-epyc-2-cores/model-720p.json"
    assert report.main([str(source), "-o", str(folder)]) == 0
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    plots = [name for name in written if name.endswith(".svg")]
    assert written == [*plots, "report.html", "report.md"] and len(plots) == 2
    assert capsys.readouterr().out.count("\n") == 4
    markdown = (folder / "report.md").read_text()
    assert re.findall(r"\]\((.*?\.svg)\)", markdown) == [f"{name}" for name in sorted(plots, reverse=True)]
    for name in plots:
        ElementTree.parse(folder / name)
    assert "IRNeXt(14), 1280 x 720, float32" in {row[0] for row in markdown_tables(markdown)}


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not JSON"), ("[1]", "no file of results"), ("\N{LATIN SMALL LETTER E WITH ACUTE}", "not JSON")],
)
def test_a_bad_file_gets_one_line(text, says, tmp_path, capsys):
    (tmp_path / "bad.json").write_text(text, encoding="latin-1")
    assert report.main([str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error and "bad.json" in error
    assert not (tmp_path / "out").exists()


def test_missing_and_doubled_results_get_one_line(tmp_path, capsys):
    assert report.main([str(tmp_path / "none"), "--check", "x"]) == 2
    assert "no results are here" in capsys.readouterr().err
    for root in ("old", "new"):
        put(tmp_path / root / "machine", "lam", results=[])
    assert report.main([str(tmp_path / "old"), str(tmp_path / "new"), "-o", str(tmp_path / "out")]) == 2
    assert "of one machine" in capsys.readouterr().err
    assert len(records.find([tmp_path / "old", tmp_path / "old/machine/lam.json"])) == 1


# ---- the figures of documents --------------------------------------------------------------------


def test_the_readme_has_the_figures_of_the_results():
    assert document.check(ROOT / "README.md", records.find()) == []


def test_figures_are_those_of_the_results(committed):
    by_name = {record.name: record for record in committed}
    expected = {}
    for row in by_name["lam"].rows:
        if row["variant"] == document.OURS:
            cells = expected.setdefault(str(tuple(row["shape"])), ["", "", "", ""])
            first = 2 * (row["direction"] != "forward")
            ratios = [f"{row['ratios'][baseline]:.1f}" for baseline in (lam.UNFOLD, lam.GROUPED)]
            cells[first : first + 2] = ratios
    rows = markdown_tables(document.figures_of("lam", committed))[1:]
    assert {name: cells for name, *cells in rows} == expected
    rows = markdown_tables(document.figures_of("model", committed))[1:]
    assert [row[0] for row in rows] == [
        f"IRNeXt({blocks}), {precision}" for blocks in (4, 14) for precision in ("float32", "bfloat16")
    ]
    (compiled,) = (
        row
        for row in by_name["model"].rows
        if (row["comparison"], row["variant"], row["precision"])
        == ("compiled", "irnext, optimized", "float32")
    )
    assert rows[0][1:4] == [
        f"{compiled['milliseconds']:.0f} ms",
        f"{compiled['ratios']['published, eager']:.2f}",
        f"{compiled['ratios']['published, compiled']:.2f}",
    ]
    haze = [row for row in by_name["pretrained"].rows if row["task"] == "haze"]
    rows = {row[0]: row for row in markdown_tables(document.figures_of("pretrained", committed))}
    assert rows["haze"][1] == f"{sum(row['psnr_before'] for row in haze) / len(haze):.2f}"
    assert rows["haze"][4].startswith(f"{min(min(row['gains']) for row in haze):+.1f} to")
    for name in ("lam-limit", "photographs", "frame", "training"):
        assert re.search(r"\d", document.figures_of(name, committed))


def test_figures_of_the_comparison(synthetic):
    text = document.figures_of("gopro some-gpu", synthetic)
    assert "1280 \N{MULTIPLICATION SIGN} 720" in text and "`python -m benchmarks.gopro --device cuda" in text
    rows = {row[0]: row for row in markdown_tables(text)}
    assert rows["IRNeXt, ours"][3:5] == ["100", "1.00"] and rows[HOSTILE][3:5] == ["725", "7.25"]
    assert rows["GRL-B"][3:5] == ["", ""]
    long = gopro_row("mprnet-deblurring", "MPRNet", 90.0, single_call=True, spread=None)
    record = dataclasses.replace(synthetic[0], data=synthetic[0].data | {"results": [*GOPRO, long]})
    rows = {row[0]: row for row in markdown_tables(document.gopro(record))}
    assert rows["MPRNet"][3] == "9,000 (one call)"  # it took no turns


def test_a_document_is_checked_and_written(tmp_path, committed, capsys):
    path = tmp_path / "README.md"
    path.write_text("Before.\n\n<!-- figures: lam -->\nold\n<!-- end -->\n\nBetween.\n\n"
                    "<!-- figures: frame amd-epyc-2-cores -->\n<!-- end -->\nAfter.\n")  # fmt: skip
    assert report.main(["--check", str(path)]) == 1
    assert "-old" in capsys.readouterr().out
    assert report.main(["--write", str(path)]) == 0
    text = path.read_text()
    assert text.startswith("Before.\n\n<!-- figures: lam -->\nOne local attention")
    assert "\n<!-- end -->\n\nBetween.\n\n<!-- figures: frame" in text and text.endswith(
        "\n<!-- end -->\nAfter.\n"
    )
    assert report.main(["--check", str(path)]) == 0 and document.write(path, committed) == []
    path.write_text(text.replace("34.4", "35.4"))
    assert [line[:2] for line in document.check(path, committed)] == ["--", "++", "@@", "-|", "+|"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("34.4 times as fast", "no figures are marked"),
        ("<!-- figures: lam -->\n34.4\n", "no figures are marked"),
        ("<!-- figures: lam -->\n<!-- end -->\n<!-- figures: model -->\n", "needs one <!-- end -->"),
        ("<!-- figures: lamb -->\n<!-- end -->\n", "no figures 'lamb'"),
        ("<!-- figures: lam other -->\n<!-- end -->\n", "other lacks"),
        ("<!-- figures: gopro amd-epyc-2-cores x -->\n<!-- end -->\n", "lacks"),
    ],
)
def test_bad_markers_are_refused(text, says, tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(text)
    for action in ("--check", "--write"):
        assert report.main([action, str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and says in error and str(path) in error
    assert path.read_text() == text


def test_the_machine_is_named_where_there_are_several(tmp_path, committed):
    (lam_record,) = (record for record in committed if record.name == "lam")
    twin = put(tmp_path / "twin", "lam", **{k: v for k, v in lam_record.data.items() if k != "benchmark"})
    with pytest.raises(ValueError, match=r"say of which machine: one of .*twin"):
        document.figures_of("lam", [*committed, twin])
    assert document.figures_of("lam twin", [*committed, twin]) == document.figures_of("lam", committed)
