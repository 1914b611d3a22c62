"""The documents: their code runs, their commands are commands, their links lead somewhere.

Blocks of a document run in order, in one folder, Python's in one namespace. What a reader would have at hand
is listed in NEEDS and made small; trainings are cut to one step of a small model.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import io
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import documents
import numpy as np
import pytest
import torch
import tyro
from documents import PATHS, ROOT, Block, Command
from PIL import Image
from torch.distributed.run import get_args_parser
from trees import make_tree

import irnext
from irnext import cli, ops
from irnext.cli.benchmark import find_benchmarks, list_benchmarks

NAMES = [path.relative_to(ROOT).as_posix() for path in PATHS]
SMALL = {"blocks": 1, "width": 8}
BUILD_VARIABLES = re.findall(r"[A-Z]+_[A-Z_]+", ast.get_docstring(ast.parse((ROOT / "setup.py").read_text())))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# What each document speaks of without making it: files, folders, data sets, and names in Python.
NEEDS = {
    "README.md": "dehazing-its.pkl hazy.jpg photos GOPRO",
    "docs/backends.md": "photo.jpg",
    "docs/datasets.md": "PATH",
    "docs/large-pictures.md": "dehazing-its.pkl scan.tif model picture x",
    "docs/migration.md": "ITS.pkl GoPro.pkl reside-indoor network",
    "docs/models.md": "model_deblurring.pth",
    "docs/protocols.md": "GoPro.pkl ITS.pkl rain.pkl dpdd.pkl GOPRO reside-indoor Rain13K DPDD "
    "indoor_labels.npy outdoor_labels.npy",
    "docs/quick-start.md": "photo.jpg photos",
    "docs/restoring.md": "photo.jpg photos clip.mp4 dehazing-its.pkl model",
    "docs/synthetic.md": "clean photos held-out",
    "docs/training.md": "GOPRO",
}
# Languages that a block can be in; of the last two nothing is run.
LANGUAGES = ("python", "sh", "console", "cpp", "text")
# Documents whose blocks another test runs, since it takes their results apart.
ELSEWHERE = {
    "docs/export.md": "test_export.py",
    "docs/programs.md": "test_spandrel.py",
    "docs/serving.md": "test_serving.py",
}
# Commands of irnext that are parsed and not run, by how they begin.
PARSED = {
    "demo": "it trains for a minute",
    "export": "test_export.py runs it: compiling takes a minute",
    "complexity": "test_cli.py runs it for one model; all take long",
    "benchmark": "a benchmark takes long",
    "serve": "it runs until it is stopped",
}
MOST_NOT_RUN = 3


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


# ---- what is at hand -----------------------------------------------------------------------------


def small_model() -> irnext.IRNeXt:
    return irnext.IRNeXt(**SMALL).eval()


def picture(size: tuple[int, int] = (70, 50)) -> Image.Image:
    """A picture of (width, height) pixels."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack((3 * columns, 4 * rows, columns + rows), 2).astype(np.uint8))


def make_checkpoint(path: Path, model: irnext.IRNeXt | None = None) -> None:
    """A file of the published code."""
    torch.save({"model": (model or small_model()).official_state_dict()}, path)


def make_mprnet(path: Path) -> None:
    settings = {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1}
    torch.save({"state_dict": irnext.create_model("mprnet-deblurring", **settings).state_dict()}, path)


def make_pictures(path: Path) -> None:
    path.mkdir()
    for index in range(3):
        picture((100, 90)).rotate(90 * index).save(path / f"{index}.png")


def make_clip(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in (av.VideoFrame.from_image(picture((64, 48))), None):
            container.mux(stream.encode(frame))


def make_labels(path: Path) -> None:
    np.save(path, [1 if path.name.startswith("indoor") else 2])


def make_data(path: Path, dataset: str, layout: str) -> None:
    """A miniature data set, whose own folder has another name."""
    make_tree(path.parent / "made", dataset, layout, pairs=2).rename(path)


FILES: dict[str, Callable[[Path], None]] = {
    "model_deblurring.pth": make_mprnet,
    "clip.mp4": make_clip,
    **dict.fromkeys(("dehazing-its.pkl", "GoPro.pkl", "rain.pkl", "dpdd.pkl"), make_checkpoint),
    "ITS.pkl": lambda path: make_checkpoint(path, irnext.create_model("irnext-its")),
    **dict.fromkeys(("photo.jpg", "hazy.jpg", "scan.tif"), lambda path: picture().save(path)),
    **dict.fromkeys(("photos", "held-out"), make_pictures),
    **dict.fromkeys(("indoor_labels.npy", "outdoor_labels.npy"), make_labels),
    **dict.fromkeys(("GOPRO", "PATH"), functools.partial(make_data, dataset="gopro", layout="MIMO")),
    "reside-indoor": functools.partial(make_data, dataset="its", layout="IRNeXt"),
    "Rain13K": functools.partial(make_data, dataset="rain13k", layout="MPRNet"),
    "DPDD": functools.partial(make_data, dataset="dpdd", layout="official"),
}
VALUES: dict[str, Callable[[], Any]] = {
    "model": small_model,
    "network": lambda: torch.nn.Conv2d(3, 3, 3),
    "picture": picture,
    "x": lambda: torch.rand(1, 3, 64, 96),
    "clean": lambda: np.random.default_rng(0).random((80, 96, 3)),
}


def prepare(name: str, folder: Path) -> dict[str, Any]:
    """Make the files that a document needs; the names that its Python needs, beside `irnext` in commands."""
    values = {}
    for need in NEEDS.get(name, "").split():
        if need in VALUES:
            values[need] = VALUES[need]()
        else:
            FILES[need](folder / need)
    return values


@pytest.fixture
def short_trainings(monkeypatch):
    """Every training is one step of a small model on the CPU, whatever else it is given."""
    of = irnext.TrainingConfig.of

    def short(task, data, output, **given):
        short = {"epochs": None, "steps": 1, "batch": 2, "patch": (64, 64), "workers": 0, "device": "cpu"}
        settings = {"settings": {**given.get("settings", {}), **SMALL}}
        return of(task, data, output, **{**given, **short, **settings})

    monkeypatch.setattr(irnext.TrainingConfig, "of", staticmethod(short))


# ---- commands ------------------------------------------------------------------------------------


class Parsed(BaseException):
    """A command's options are fine, and it is left."""


def parse_benchmark(name: str, arguments: list[str]) -> None:
    """Let the benchmark's own command line take the arguments, and no more."""
    assert name in list_benchmarks(find_benchmarks()), f"there is no benchmark {name}"
    main = importlib.import_module(f"benchmarks.{name}").main

    def leaving(parse):
        def call(*args, **kwargs):
            parse(*args, **kwargs)
            raise Parsed

        return call

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(tyro, "cli", leaving(tyro.cli))
        patch.setattr(tyro.extras, "subcommand_cli_from_dict", leaving(tyro.extras.subcommand_cli_from_dict))
        patch.setattr(argparse.ArgumentParser, "parse_args", leaving(argparse.ArgumentParser.parse_args))
        main(arguments)


def check_irnext(arguments: list[str], run: bool) -> None:
    if arguments[0] == "benchmark" and len(arguments) > 1:
        parse_benchmark(arguments[1].replace("-", "_"), arguments[2:])
        return
    call = cli.parse(arguments)
    if run and arguments[0] not in PARSED:
        assert not call()


def check_python(arguments: list[str], run: bool) -> None:
    option, module, *rest = arguments
    assert option == "-m", f"python {option} is not checked"
    if module == "irnext":
        check_irnext(rest, run)
    elif module.startswith("benchmarks."):
        parse_benchmark(module.removeprefix("benchmarks."), rest)
    elif module == "pip":
        check_pip(rest, run)
    else:
        assert module in ("build", "auditwheel"), f"python -m {module} is not checked"


def check_torchrun(arguments: list[str], run: bool) -> None:
    """Torchrun's own command line takes its part; what it starts is parsed."""
    options = get_args_parser().parse_args(arguments)
    assert options.module and options.training_script == "irnext"
    check_irnext(options.training_script_args, run=False)


def check_make(arguments: list[str], run: bool) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(arguments) <= set(targets), f"make {' '.join(arguments)}: the targets are {targets}"


def check_pip(arguments: list[str], run: bool) -> None:
    """What is installed is this package, with extras that it has, or a plain name."""
    assert arguments[0] == "install"
    for word in arguments[1:]:
        if word.startswith("-"):
            continue
        package, extras = re.fullmatch(r"(irnext|\.|[\w-]+)(?:\[([\w,-]+)\])?", word).groups()
        if package in ("irnext", "."):
            known = PYPROJECT["project"]["optional-dependencies"]
            assert set((extras or "").split(",")) - {""} <= set(known), f"{word}: the extras are {[*known]}"


CHECKS: dict[str, Callable[[list[str], bool], None]] = {
    "irnext": check_irnext,
    "python": check_python,
    "torchrun": check_torchrun,
    "make": check_make,
    "pip": check_pip,
}


def check_command(command: Command, run: bool) -> None:
    """Parse a command and, if `run`, run it where that is cheap."""
    program, *arguments = command.words
    assert program in CHECKS, f"{program} is not among {', '.join(CHECKS)}: say in this test how to check it"
    # A variable is read when Python starts: here the backend is chosen as it would be.
    unknown = set(command.environment) - {"IRNEXT_BACKEND", *BUILD_VARIABLES}
    assert not unknown, f"say in this test what {unknown} do"
    with (
        pytest.MonkeyPatch.context() as patch,
        irnext.use_backend(command.environment.get("IRNEXT_BACKEND", "auto")),
    ):
        for variable, value in command.environment.items():
            patch.setenv(variable, value)
        CHECKS[program](arguments, run)


# ---- every block ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if documents.blocks(text_of(name))])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # examples leave files open
def test_blocks_run(name, tmp_path, monkeypatch, short_trainings):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRNEXT_BACKEND", raising=False)
    elsewhere = name in ELSEWHERE
    values = {} if elsewhere else prepare(name, tmp_path)
    torch.manual_seed(0)
    for block in documents.blocks(text_of(name)):
        assert block.language in LANGUAGES, f"{name}:{block.line}: the language is one of {LANGUAGES}"
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(ROOT / name), "exec")
            if not (elsewhere or block.reason):
                exec(code, values)
        elif block.language in ("sh", "console"):
            run_commands(name, block, run=not (elsewhere or block.reason))


def run_commands(name: str, block: Block, run: bool) -> None:
    if name in ELSEWHERE and "$(" in block.code:  # a script
        return
    for command in documents.commands(block):
        try:
            check_command(command, run)
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and not error.code:  # a help was printed
                continue
            raise AssertionError(f"{name}:{block.line}: {' '.join(command.words)}: {error}") from error


def test_few_blocks_are_not_run():
    left = {
        f"{name}:{block.line}": block.reason
        for name in NAMES
        for block in documents.blocks(text_of(name))
        if block.reason
    }
    print(f"{len(left)} blocks are not run", *left.items(), sep="\n")
    assert len(left) <= MOST_NOT_RUN, left


def test_what_runs_elsewhere_runs_there():
    for name, test in ELSEWHERE.items():
        assert Path(name).name in (ROOT / "tests" / test).read_text()


# ---- commands in the text ------------------------------------------------------------------------


@functools.cache
def irnext_help(command: str) -> str:
    text = printed(lambda: cli.parse([*command.split(), "--help"]))
    assert f"usage: irnext {command} " in text, f"there is no irnext {command}"  # but the help of all
    return text


@functools.cache
def benchmark_help(name: str, *subcommand: str) -> str:
    assert name in list_benchmarks(find_benchmarks()), f"there is no benchmark {name}"
    return printed(lambda: importlib.import_module(f"benchmarks.{name}").main([*subcommand, "--help"]))


def printed(call: Callable[[], Any]) -> str:
    """What a call prints before it ends the program."""
    output = io.StringIO()
    with redirect_stdout(output), pytest.raises(SystemExit):
        call()
    return re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())


def check_span(span: str) -> None:
    """A command that the text names in passing: it exists, and has the options."""
    program, *arguments = words = span.replace("'", "").split()
    if len(words) < 2 or not re.match(r"[-a-z]", arguments[0]):  # IRNeXt is no command, nor a formula
        return
    if program in ("make", "pip"):
        CHECKS[program](arguments, False)
    elif program == "irnext" and arguments[0] != "benchmark":
        depth = 2 if arguments[0] == "data" else 1
        check_options(span, irnext_help(" ".join(arguments[:depth])))
    elif span.startswith("python -m benchmarks."):
        subcommand = [word for word in arguments[2:3] if re.fullmatch("[a-z]+", word)]
        check_options(span, benchmark_help(arguments[1].removeprefix("benchmarks."), *subcommand))


def check_options(span: str, text: str) -> None:
    """The help has every option that is given."""
    for option in re.findall(r"(?<= )--?[a-z][\w-]*", span.partition("benchmarks.")[2] or span):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), f"{span}: there is no {option}"


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_the_text(name):
    for span in dict.fromkeys(documents.spans(text_of(name))):
        check_span(span)


# ---- links, names, the site ----------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PATHS, *documents.OTHERS], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in documents.links(path.read_text("utf-8")):
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{path.name}: {link}: there is no such file"
        if anchor:
            assert anchor in documents.anchors(found.read_text("utf-8")), f"{path.name}: no heading {link}"
        if path.parent.name == "docs":
            assert found.parent == path.parent, f"{path.name}: {link} is not part of the site"


def test_every_public_name_is_documented():
    everything = "\n".join(map(text_of, NAMES))
    lacking = [name for name in irnext.__all__ if not re.search(rf"\birnext\.{name}\b", everything)]
    assert not lacking, f"no document tells of {lacking}"
    operators = text_of("docs/operators.md")
    lacking = [name for name in ops.__all__ if not re.search(rf"`(?:ops\.|irnext\.)?{name}\b", operators)]
    assert not lacking, f"docs/operators.md does not tell of {lacking}"


def test_navigation_has_every_page_once():
    pages = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(pages) == sorted(path.name for path in PATHS if path.parent.name == "docs")


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the site needs mkdocs (extra docs)")
def test_site_builds_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pages = list((tmp_path / "site").glob("**/*.html"))
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))  # and the page for what is not found
    for page in pages:
        loaded = re.findall(r"<(?:script|link|img)\b[^>]*?(?:src|href)=\"([^\"]+)\"", page.read_text("utf-8"))
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], page.name
    for sheet in (tmp_path / "site").glob("**/*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", sheet.read_text("utf-8")), sheet.name


# ---- what is noticed -----------------------------------------------------------------------------

WRONG_COMMANDS = (
    "irnext restore photo.jpg --no-such-option",
    "irnext resotre photo.jpg",
    "irnext benchmark no-such",
    "python -m benchmarks.lam --no-such-option",
    "python -m benchmarks.compare OLD",
    "torchrun --nproc-per-node 8 -m irnext restore photos/ --no-such-option",
    "torchrun --no-such-option 8 -m irnext restore photos/",
    "make no-such-target",
    "pip install 'irnext[no-such-extra]'",
    "no-such-program",
    "NO_SUCH_VARIABLE=1 irnext info",
)


@pytest.mark.parametrize("line", WRONG_COMMANDS)
def test_a_wrong_command_is_noticed(line):
    with pytest.raises(AssertionError, match=r"README\.md:7: "):
        run_commands("README.md", Block(7, "sh", line, None), run=False)


@pytest.mark.parametrize(
    "span",
    (
        "irnext restore --no-such-option",
        "irnext data check --no-such-option",
        "irnext no-such-command",
        "python -m benchmarks.no_such",
        "python -m benchmarks.pretrained measure --no-such-option",
        "make no-such-target",
        "pip install 'irnext[no-such-extra]'",
    ),
)
def test_a_wrong_command_in_the_text_is_noticed(span):
    with pytest.raises((AssertionError, ValueError)):
        check_span(span)


def test_what_a_document_holds():
    text = """# A heading, with `code`

See [that](there.md#place), [this](https://example.org) and ![one](picture.png), not `[code](nowhere)`.

```console
$ A_B=1 irnext info \\
    --json  # a comment
{...}
```

<!-- not run: it is long -->
```python
1 / 0  # [neither](a link)
```
"""
    shell, python = documents.blocks(text)
    assert documents.commands(shell) == [Command({"A_B": "1"}, ["irnext", "info", "--json"])]
    assert (python.line, python.language, python.reason) == (13, "python", "it is long")
    assert text.splitlines()[python.line - 1] + "\n" == python.code
    assert shell.reason is None
    assert documents.links(text) == ["there.md#place", "picture.png"]
    assert documents.anchors(text) == {"a-heading-with-code"}
    assert documents.spans(text) == ["code", "[code](nowhere)"]
    for wrong in (text + "```sh\n", text.replace("{...}\n```", "{...}")):
        with pytest.raises(ValueError, match="the block has no end"):
            documents.blocks(wrong)
