"""Programs for other runtimes: an IRNeXt as a torch.export program, compiled ahead of time, or as ONNX.

All take pictures of any batch, height and width that the model takes. A torch.export program ("pt2")
is the plain model and calls this package's operators; a compiled one ("aoti", by AOTInductor) is what
`irnext.optimize` computes, with the network around the operators compiled too; ONNX has standard
operators alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from . import ops
from .blocks import is_untouched
from .files import atomic_file
from .model import IRNeXt
from .ops import reference
from .ops.convolution import winograd_serves
from .ops.dispatch import registered_operators
from .ops.registration import OPERATORS
from .optimization import DTYPES, Network, OptimizedModel, Plan, held_for

INPUT, OUTPUTS = "picture", ("quarter", "half", "full")
# Two samples, as one would be taken for a constant; sides that differ, for the same reason, and large
# enough for the compiler to plan for pictures.
EXAMPLE = (2, 3, 256, 384)
OPSET = 20  # the first with an operator for GELU
# What of ours is also defined in PyTorch's operators.
DEFINED = {name for name in vars(OPERATORS) if hasattr(reference, name)}


def export_model(
    model: nn.Module,
    path: str | os.PathLike,
    format: str | None = None,
    dtype: torch.dtype | None = None,
    max_autotune: bool = False,
) -> Path:
    """Write the model as a program that other runtimes take, and return its path.

    The program takes (N, 3, H, W), contiguous, N at least 1, H and W multiples of 32 and at least 64, in
    the type of the weights, and gives (N, 3, H/4, W/4), (N, 3, H/2, W/2) and (N, 3, H, W). Formats:

    - "pt2": the plain model, for `torch.export.load`; it runs where irnext has been imported.
    - "aoti": the optimized model compiled for this kind of processor, or GPU, by AOTInductor (a minute
      or more; it needs a C++ compiler), for `torch._inductor.aoti_load_package` and, from C++,
      `torch::inductor::AOTIModelPackageLoader`. It runs where irnext's library of operators has been
      loaded.
    - "onnx": ONNX, with operators of the standard alone.

    Args:
        model: an `IRNeXt` in eval mode, on the device that the program is for; or an optimized one.
        path: where to; .pt2, or .onnx for "onnx". It is replaced whole or stays as it was.
        format: by default "onnx" for .onnx and "pt2" for .pt2.
        dtype: the type that "aoti" computes in between its input and outputs; None for the weights',
            or that of an optimized model.
        max_autotune: let the compiler of "aoti" time its choices: longer to make, on GPUs often faster.

    Raises:
        TypeError: not an IRNeXt, or an unknown dtype.
        ValueError: an unknown format or one that does not go with the suffix or an option, a model in
            training mode, without data or with hooks of its own, or for ONNX not in float32.
        FileNotFoundError: the folder of `path` does not exist.
        ImportError: "onnx" without the packages onnx and onnxscript.
        RuntimeError: "aoti" without a C++ compiler.
    """
    path = Path(path)
    writer = WRITERS[_format_of(path, format)]
    if writer is not _write_aoti and (dtype is not None or max_autotune):
        raise ValueError('dtype and max_autotune are for format="aoti": others keep the type of the weights')
    if isinstance(model, OptimizedModel):
        model, dtype = model.plain, dtype or (model.dtype if writer is _write_aoti else None)
    _check_model(model, dtype)
    with (
        atomic_file(path) as file,
        torch.no_grad(),
        ops.full_precision(model.stem.weight.device.type),
        _quiet(),
    ):
        writer(model, file, Options(dtype, max_autotune))
    return path


class Options(NamedTuple):
    """How a program is compiled."""

    dtype: torch.dtype | None
    max_autotune: bool


def _format_of(path: Path, format: str | None) -> str:
    suffix = path.suffix.lower()
    if format is None:
        format = next((name for name in WRITERS if _suffix(name) == suffix), None)
        if format is None:
            raise ValueError(f"{path}: its suffix says no format: .onnx, or .pt2 for pt2 and aoti")
    if format not in WRITERS:
        raise ValueError(f"unknown format {format!r}: choose one of {', '.join(WRITERS)}")
    if suffix != _suffix(format):
        raise ValueError(f"{path}: a file of the format {format} ends in {_suffix(format)}")
    return format


def _suffix(format: str) -> str:
    return ".onnx" if format == "onnx" else ".pt2"


def _check_model(model: nn.Module, dtype: torch.dtype | None) -> None:
    if type(model) is not IRNeXt:
        given = f"{type(model).__module__}.{type(model).__name__}"
        raise TypeError(f"only an irnext.IRNeXt can be exported, not {given}")
    if dtype is not None and dtype not in DTYPES:
        raise TypeError(f"dtype is {dtype}: choose one of {', '.join(map(str, DTYPES))}, or None")
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode: call model.eval() before it is exported")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("the model has no data (it is on the meta device): load its weights first")
    if not is_untouched(model, IRNeXt):
        raise ValueError("the model has hooks of its own, which an exported program would not have")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporters say of themselves: deprecations, and packages they look for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _trace(module: nn.Module, weight: Tensor) -> ExportedProgram:
    """The program of a module that takes pictures in the type and on the device of `weight`."""
    picture = torch.zeros(EXAMPLE, dtype=weight.dtype, device=weight.device)
    least = IRNeXt.minimum_size // IRNeXt.size_multiple
    rows, columns = (IRNeXt.size_multiple * Dim(name, min=least) for name in ("rows", "columns"))
    sizes = {0: Dim("batch", min=1), 2: rows, 3: columns}
    with ops.use_backend(_backend(weight.device.type)):
        return torch.export.export(module, (picture,), dynamic_shapes=(sizes,), strict=False)


def _backend(device: str) -> str:
    """The compiled backend of a device, whose operators need no Python; without it PyTorch's operators."""
    return device if ops.backends().get(device) else "reference"


def _in_pytorch(program: ExportedProgram, names: Iterable[str]) -> ExportedProgram:
    """The program with these of our operators as what they are in PyTorch's."""
    wanted = {getattr(OPERATORS, name): getattr(reference, name) for name in names}
    called = {node.target for node in program.graph.nodes}
    table = {operator: function for operator, function in wanted.items() if operator in called}
    return program.run_decompositions(table) if table else program


# ---- torch.export --------------------------------------------------------------------------------


def _write_pt2(model: IRNeXt, file: BinaryIO, options: Options) -> None:
    torch.export.save(_trace(model, model.stem.weight), file)


# ---- AOTInductor ---------------------------------------------------------------------------------


class _Prepared(nn.Module):
    """The optimized network as a module. Its weights become the program's constants."""

    def __init__(self, model: IRNeXt, dtype: torch.dtype):
        super().__init__()
        weight, model = model.stem.weight, held_for(model, dtype)
        # Weights that oneDNN has packed cannot be written; the compiler packs them itself.
        winograd = weight.device.type == "cpu" and winograd_serves(dtype)
        self.network = Network(model, Plan(dtype, torch.channels_last, winograd=winograd))

    def forward(self, picture: Tensor) -> list[Tensor]:
        return self.network(picture)


def _write_aoti(model: IRNeXt, file: BinaryIO, options: Options) -> None:
    weight = model.stem.weight
    program = _trace(_Prepared(model, options.dtype or weight.dtype), weight)
    program = _in_pytorch(program, _without_kernel(weight.device.type))
    settings = {
        "freezing": weight.device.type == "cpu",  # weights packed for oneDNN, with epilogues
        "cpp.dynamic_threads": True,  # as many as the caller has, not as many as are here
        "max_autotune": options.max_autotune,
    }
    if hasattr(torch._inductor.config.aot_inductor, "check_lowerbound"):
        settings["aot_inductor.check_lowerbound"] = False  # which takes a single sample for too few
    torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=settings)


def _without_kernel(device: str) -> set[str]:
    """Operators that no compiled kernel serves on `device`."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name for name in DEFINED if not has_kernel(f"irnext::{name}", device.upper())}


# ---- ONNX ----------------------------------------------------------------------------------------


def _write_onnx(model: IRNeXt, file: BinaryIO, options: Options) -> None:
    weight = model.stem.weight
    if weight.dtype != torch.float32:
        raise ValueError(f"the weights are {weight.dtype}: ONNX is written in float32 (model.float())")
    try:
        from . import onnx_operators
    except ImportError as error:
        raise ImportError(f"ONNX needs the package {error.name}: pip install 'irnext[onnx]'") from None
    with registered_operators():  # few, and the same whatever the backend
        program = _trace(model, weight)
    translated = {operator.name().split("::")[1] for operator in onnx_operators.TRANSLATIONS}
    program = _in_pytorch(program, DEFINED - translated)
    found = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        custom_translation_table=onnx_operators.TRANSLATIONS,
        verbose=False,
    )
    written = found.model_proto
    for value, scale in zip((*written.graph.input, *written.graph.output), (1, 4, 2, 1), strict=True):
        batch, _, *sides = value.type.tensor_type.shape.dim
        batch.dim_param = "batch"
        for side, name in zip(sides, ("height", "width"), strict=True):
            side.dim_param = name if scale == 1 else f"{name}/{scale}"
    del written.graph.value_info[:]  # in names of the exporter's own
    file.write(written.SerializeToString())


WRITERS: dict[str, Callable[[IRNeXt, BinaryIO, Options], None]] = {
    "pt2": _write_pt2,
    "aoti": _write_aoti,
    "onnx": _write_onnx,
}
