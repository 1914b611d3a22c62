"""Programs for other runtimes give the model's numbers, at other sizes, in fresh processes and from C++.

The examples of docs/export.md are what is run.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import randomise, relative_error

import irnext
from irnext import cli

DOCUMENT = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)
CPP = re.findall(r"```cpp\n(.*?)```", DOCUMENT, re.S)
SHELL = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.S)
WRITE, RUN_PT2, RUN_AOTI, RUN_ONNX = PYTHON
BUILD_AND_RUN = SHELL[1]
LIBRARY = irnext.backends()["cpu"].available
COMPILER = shutil.which("g++")


# What takes minutes to export is exported once, so the tests that share it run in one process (pytest-xdist).
one_process = pytest.mark.xdist_group("export")


def make_model(**settings) -> irnext.IRNeXt:
    return randomise(irnext.IRNeXt(**{"blocks": 1, "width": 8, "pool_rates": (2,), **settings})).eval()


def exact(model: irnext.IRNeXt, picture: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return copy.deepcopy(model).double()(picture.double())


def assert_close(found, model: irnext.IRNeXt, picture: torch.Tensor, allowed: float = 1e-5) -> None:
    for y, expected in zip(found, exact(model, picture), strict=True):
        y = torch.as_tensor(y)
        assert y.dtype == picture.dtype and y.shape == expected.shape
        assert relative_error(y, expected) < allowed


# ---- the document --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> irnext.IRNeXt:
    """Its channels are some that the Winograd convolution takes."""
    return make_model(width=16, low_pass="local")


@pytest.fixture(scope="module")
def written(model, tmp_path_factory) -> Path:
    """The folder where the document's first example has written its programs."""
    folder = tmp_path_factory.mktemp("programs")
    irnext.save(model, folder / "mine.safetensors")
    run_python(WRITE, folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return folder


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a fresh Python in `folder`; its warnings are errors of ours alone."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result


@one_process
@pytest.mark.parametrize("code", [RUN_PT2, RUN_AOTI, RUN_ONNX], ids=["pt2", "aoti", "onnx"])
def test_examples_give_the_models_numbers_in_a_fresh_process(model, written, code):
    keep = "\nimport torch\ntorch.save([torch.as_tensor(t) for t in (picture, quarter, half, full)], 'found')"
    run_python(code + keep, written)
    picture, *found = torch.load(written / "found")
    assert_close(found, model, picture)


@one_process
@pytest.mark.skipif(not (LIBRARY and COMPILER), reason="needs the compiled library and a C++ compiler")
def test_the_package_runs_from_cpp(model, written):
    (written / "restore.cpp").write_text(CPP[0])
    picture = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    picture.numpy().tofile(written / "picture")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        ["sh", "-ec", BUILD_AND_RUN],
        cwd=written,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = torch.from_numpy(np.fromfile(written / "restored", np.float32)).view(1, 3, 96, 160)
    assert relative_error(found, exact(model, picture)[2]) < 1e-5


@one_process
def test_the_package_serves_other_sizes_and_checks_them_where_asked(model, written):
    code = (
        "import irnext, torch\n"
        "restore = torch._inductor.aoti_load_package('restore-cpu.pt2')\n"
        "pictures = [torch.rand(size) for size in ((1, 3, 64, 64), (3, 3, 64, 288))]\n"
        "torch.save([(picture, restore(picture)) for picture in pictures], 'found')\n"
        "right = torch.rand(1, 3, 64, 64)\n"
        "wrong = [torch.rand(1, 4, 64, 64), torch.rand(1, 3, 64, 80), right.double()]\n"
        "for picture in (*wrong, right.to(memory_format=torch.channels_last)):\n"
        "    try:\n"
        "        restore(picture)\n"
        "    except RuntimeError:\n"
        "        print('refused')\n"
    )
    assert run_python(code, written, AOTI_RUNTIME_CHECK_INPUTS="1").stdout.split() == ["refused"] * 4
    for picture, found in torch.load(written / "found"):
        assert_close(found, model, picture)


def test_what_is_compiled_computes_in_the_type_asked_for(monkeypatch, tmp_path):
    """The compiler takes long; what it is given is what counts."""
    given = []
    torch.manual_seed(0)
    monkeypatch.setattr(
        torch._inductor, "aoti_compile_and_package", lambda *program, **_: given.extend(program)
    )
    model, picture = make_model(width=16), torch.rand(2, 3, 64, 96)
    irnext.export_model(irnext.optimize(model, torch.bfloat16), tmp_path / "a.pt2", "aoti")
    (program,) = given
    found = program.module()(picture)
    assert_close(found, model, picture, allowed=0.03)
    assert relative_error(found[2], exact(model, picture)[2]) > 1e-5


# ---- torch.export --------------------------------------------------------------------------------


@one_process
def test_a_program_serves_other_sizes_and_refuses_wrong_ones(model, written):
    restore = torch.export.load(written / "restore.pt2").module()
    for size in ((1, 3, 64, 64), (3, 3, 64, 288)):
        picture = torch.rand(size)
        assert_close(restore(picture), model, picture)
    with pytest.raises(AssertionError, match="32"):
        restore(torch.rand(1, 3, 64, 80))


# ---- ONNX ----------------------------------------------------------------------------------------

VARIANTS = {
    "no modulation": {"branch": "lam-no-fm", "pool_rates": (4,), "pooling": "max", "activation": "softmax"},
    "exact": {"low_pass": "exact", "pooling": "convolution", "activation": "sigmoid", "kernel_size": 5},
}


def assert_onnx(path: Path, model: irnext.IRNeXt) -> None:
    """The file has standard operators and free sizes alone, and gives the model's numbers."""
    program = onnx.load(path)
    onnx.checker.check_model(program, full_check=True)
    assert {opset.domain for opset in program.opset_import} == {""} and not program.functions
    assert {node.domain for node in program.graph.node} == {""}
    for values, scales in ((program.graph.input, [""]), (program.graph.output, ["/4", "/2", ""])):
        sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]
        assert sizes == [["batch", 3, f"height{scale}", f"width{scale}"] for scale in scales]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((1, 3, 64, 64), (2, 3, 96, 160)):
        picture = torch.rand(size)
        assert_close(session.run(None, {"picture": picture.numpy()}), model, picture)


@one_process
def test_onnx_of_the_example_is_standard(model, written):
    assert_onnx(written / "restore.onnx", model)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_onnx_of_every_kind_of_model_is_standard(settings, tmp_path):
    model, path = make_model(**settings), tmp_path / "restore.onnx"
    assert irnext.export_model(model, path) == path
    assert_onnx(path, model)


# ---- torch.compile -------------------------------------------------------------------------------


def outputs_gradients_and_statistics(function, model: irnext.IRNeXt, picture: torch.Tensor) -> list:
    with torch.set_grad_enabled(model.training):
        outputs = function(picture)
        if model.training:
            sum(y.square().mean() for y in outputs).backward()
    gradients = [p.grad for p in model.parameters() if model.training]
    return [tensor.detach() for tensor in (*outputs, *gradients, *model.buffers())]


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_compiled_whole_with_max_autotune(training):
    torch._dynamo.reset()
    model, picture = make_model(width=16).train(training), torch.rand(2, 3, 64, 64)
    double = copy.deepcopy(model).double()
    expected = outputs_gradients_and_statistics(double, double, picture.double())
    compiled = torch.compile(model, fullgraph=True, mode="max-autotune")
    found = outputs_gradients_and_statistics(compiled, model, picture)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-3, atol=1e-4)


# ---- errors --------------------------------------------------------------------------------------


def test_errors_say_what_is_wrong_and_write_nothing(tmp_path):
    model = make_model()
    hooked = make_model()
    hooked.register_forward_hook(lambda *_: None)
    refused = {
        "has hooks of its own": (hooked, "a.pt2"),
        "unknown format 'tflite': choose one of pt2, aoti, onnx": (model, "a.pt2", "tflite"),
        r"a\.pt2: a file of the format onnx ends in \.onnx": (model, "a.pt2", "onnx"),
        r"a\.onnx: a file of the format aoti ends in \.pt2": (model, "a.onnx", "aoti"),
        r"a\.bin: its suffix says no format": (model, "a.bin"),
        r"training mode: call model\.eval\(\)": (make_model().train(), "a.onnx"),
        'are for format="aoti"': (model, "a.onnx", None, torch.bfloat16),
        r"float64: ONNX is written in float32": (make_model().double(), "a.onnx"),
        "has no data": (make_model().to("meta"), "a.pt2"),
    }
    for message, (given, name, *rest) in refused.items():
        with pytest.raises(ValueError, match=message):
            irnext.export_model(given, tmp_path / name, *rest)
    with pytest.raises(TypeError, match="Conv2d"):
        irnext.export_model(torch.nn.Conv2d(3, 3, 1), tmp_path / "a.pt2")
    with pytest.raises(TypeError, match="int8"):
        irnext.export_model(model, tmp_path / "a.pt2", "aoti", torch.int8)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        irnext.export_model(model, tmp_path / "none" / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.pt2"
    path.write_text("before")

    def fail(*arguments, **options):
        raise RuntimeError("not traceable")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(RuntimeError, match="not traceable"):
        irnext.export_model(make_model(), path, "aoti")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.pt2"]


def test_onnx_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "irnext.onnx_operators", raising=False)
    monkeypatch.delattr(irnext, "onnx_operators", raising=False)
    with pytest.raises(ImportError, match=r"onnxscript: pip install 'irnext\[onnx\]'"):
        irnext.export_model(make_model(), tmp_path / "a.onnx")


# ---- the command line ----------------------------------------------------------------------------


def test_the_command_gives_its_options_on(tmp_path, monkeypatch, capsys):
    irnext.save(make_model(), tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(
        cli.models, "export_model", lambda *arguments: calls.append(arguments) or arguments[1]
    )
    options = ["--format", "aoti", "--low-pass", "local", "--dtype", "bfloat16", "--max-autotune"]
    assert cli.main(["export", "w.safetensors", "-o", "a.pt2", *options]) == 0
    assert capsys.readouterr().out == "a.pt2\n"
    ((network, *rest),) = calls
    assert network.settings["low_pass"] == "local" and not network.training
    assert rest == [Path("a.pt2"), "aoti", torch.bfloat16, True]


def test_the_command_writes_a_program(tmp_path, capsys):
    model = make_model()
    irnext.save(model, tmp_path / "w.safetensors")
    path = tmp_path / "a.pt2"
    assert cli.main(["export", str(tmp_path / "w.safetensors"), "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    picture = torch.rand(2, 3, 64, 96)
    assert_close(torch.export.load(path).module()(picture), model, picture)
    assert cli.main(["export", str(tmp_path / "w.safetensors"), "-o", str(tmp_path / "a.tflite")]) == 2
    assert "its suffix says no format" in capsys.readouterr().err
