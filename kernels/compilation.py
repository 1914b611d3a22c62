"""Every kernel compiled for a GPU that need not be there, and what the machine code shows.

`compile_all((9, 0))` runs the operators over representative inputs without performing them, compiles
each distinct kernel variant that they would launch, and reads the assembler's listing.
"""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .convolution import conv2d_bias_act, conv2d_bias_act_pair
from .launch import FUSE, Launch, recording
from .ops import OPERATORS

POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}
SHAPE = (4, 64, 128, 128)
LAYOUTS = {"rows": torch.contiguous_format, "channels": torch.channels_last}


def _filter_cases(x: torch.Tensor) -> Iterator[tuple[str, Callable]]:
    """dynamic_conv2d and its gradients in the forms that published models use."""
    n, c, h, w = x.shape
    for (kh, kw), dilation, mode, bias in (
        ((3, 3), 1, "reflect", (n, c)),
        ((5, 5), 1, "reflect", None),
        ((1, 5), 3, "reflect", (n, c, h, 1)),
        ((3, 3), 1, "zeros", (n, c, h, w)),
        ((3, 3), 1, "replicate", None),
    ):
        kernel = x.new_empty(n, 8, kh, kw, dtype=torch.float32)
        offset = None if bias is None else x.new_empty(bias, dtype=torch.float32)
        name = f"{kh}x{kw} {mode}"
        yield name, lambda k=kernel, b=offset, d=dilation, m=mode: OPERATORS["dynamic_conv2d"](x, k, b, d, m)
        arguments = (x, x, kernel, dilation, mode, True, True, True)
        yield name, lambda a=arguments: OPERATORS["dynamic_conv2d_backward"](*a)


def _attention_cases(x: torch.Tensor) -> Iterator[tuple[str, Callable]]:
    """local_attention and its gradients: training and not, both forms of the low-pass term."""
    c, logits = x.shape[1], 8 * 9
    wide = x.new_empty(logits, dtype=torch.float32)
    gains = [x.new_empty(c, dtype=torch.float32) for _ in range(3)]
    weight = wide.new_empty(logits, c)
    mean = wide.new_empty(x.shape[:2])
    pairs = itertools.product((True, False), (None, (60, 60)))
    for (training, window), activation in zip(pairs, ("tanh", "tanh", "sigmoid", "softmax"), strict=True):
        options = ((3, 3), training, 1e-5, activation, window)
        name = f"{'training' if training else 'evaluation'} {activation} {'local' if window else 'global'}"
        norm = (wide, wide, wide, wide)
        yield name, lambda o=options, s=norm: OPERATORS["local_attention"](x, weight, *s, *gains, *o)
        yield (
            name,
            lambda o=options, s=norm: OPERATORS["local_attention_backward"](
                x, x, mean, weight, *s, *gains, *o
            ),
        )


def _pyramid_cases(x: torch.Tensor) -> Iterator[tuple[str, Callable]]:
    """The pyramids and their gradients, with the rates and branches of published models."""
    _, _, h, w = x.shape
    for rates in ((8, 4, 2), (2,), (3,)):
        name = f"rates {rates}"
        pools = [torch.empty_like(x[..., : h // r, : w // r]) for r in rates]
        yield name, lambda r=rates: OPERATORS["pool_pyramid"](x, r)
        yield name, lambda p=pools, r=rates: OPERATORS["pool_pyramid_backward"](p, r, (h, w))
    for rates, activation in (((8, 4, 2), "gelu"), ((2,), None)):
        name = f"branches {rates} {activation}"
        branches = [torch.empty_like(x[..., : h // r, : w // r]) for r in rates]
        yield name, lambda b=branches, a=activation: OPERATORS["merge_pyramid"](x, b, a)
        yield name, lambda b=branches, a=activation: OPERATORS["merge_pyramid_backward"](x, x, b, a)


def _convolution_cases() -> Iterator[tuple[str, Callable]]:
    """conv2d_bias_act as the published model calls it: three widths, every end, one input or two."""
    for dtype, c in itertools.product((torch.float32, torch.bfloat16, torch.float16), (32, 64, 128)):

        def plane(channels: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            x = torch.empty(SHAPE[0], channels, *SHAPE[2:], dtype=dtype, device="meta")
            return x.to(memory_format=torch.channels_last)

        x, half, picture = plane(c), plane(c // 2), plane(3)
        bias, weight = x.new_empty(c), {size: x.new_empty(c, c, size, size) for size in (1, 3)}
        to_picture, from_picture = x.new_empty(3, c, 3, 3), x.new_empty(c, 3, 3, 3)
        calls = {
            f"{c} to {c} 3x3": (conv2d_bias_act, x, weight[3], bias, "gelu", None, True),
            f"{c} to {c} 3x3 + residual": (conv2d_bias_act, x, weight[3], bias, None, x),
            f"{c} to {c} 1x1": (conv2d_bias_act, x, weight[1], bias, "gelu", None, True),
            f"pair to {c} 3x3": (conv2d_bias_act_pair, half, half, weight[3], bias),
            f"pair to {c} 1x1": (conv2d_bias_act_pair, half, half, weight[1], bias, "gelu", None, True),
            f"{c} to 3": (conv2d_bias_act, x, to_picture, bias[:3], None, picture),
            f"3 to {c}": (conv2d_bias_act, picture, from_picture, bias, "gelu", None, True),
        }
        for name, call in calls.items():
            yield f"{str(dtype).removeprefix('torch.')} {name}", functools.partial(*call)


def _cases() -> Iterator[tuple[str, Callable]]:
    """Calls that together launch every kernel in every variant in use, each with what it is."""
    for (layout, memory_format), dtype in itertools.product(
        LAYOUTS.items(), (torch.float32, torch.bfloat16, torch.float16)
    ):
        x = torch.empty(SHAPE, dtype=dtype, device="meta").to(memory_format=memory_format)
        description = f"{layout} {str(dtype).removeprefix('torch.')}"
        yield description, lambda x=x: OPERATORS["spatial_mean"](x)
        for name, call in (*_filter_cases(x), *_attention_cases(x), *_pyramid_cases(x)):
            yield f"{description} {name}", call
    yield from _convolution_cases()
    statistics = torch.empty(72, device="meta")
    batches = torch.empty((), dtype=torch.int64, device="meta")
    for momentum in (0.1, None):
        arguments = (statistics, statistics, batches, statistics, statistics, 4, momentum)
        yield f"momentum {momentum}", lambda a=arguments: OPERATORS["update_statistics"](*a)


def launches() -> dict[tuple, tuple[str, Launch]]:
    """The distinct launches of all cases by what they are compiled from, each with its first case."""
    found = {}
    for description, call in _cases():
        # The products of float32 that need the most registers, whatever is set.
        with recording() as recorded, torch.backends.cudnn.flags(allow_tf32=False):
            call()
        for launch in recorded:
            types = tuple(_specialisation(a) for a in launch.arguments)
            key = (
                launch.kernel.__name__,
                types,
                tuple(launch.constants.items()),
                launch.warps,
                launch.stages,
            )
            found.setdefault(key, (description, launch))
    return found


def _specialisation(argument) -> tuple:
    """An argument's type, and 1 or 16 where the launcher would compile for that value or its multiples.

    Of a tuple, the types and the numbers of its elements.
    """
    if isinstance(argument, tuple):
        return tuple(zip(*map(_specialisation, argument), strict=True)) or ((), ())
    if isinstance(argument, torch.Tensor):
        return POINTERS[argument.dtype], 16
    if argument == 1:
        return "constexpr", 1
    kind = "i32" if abs(argument) < 2**31 else "i64"
    return kind, 16 if argument % 16 == 0 else None


def _leaves(types, numbers, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str, int | None]]:
    """The elements of nested tuples of types and numbers, each with its place."""
    if not isinstance(types, tuple):
        yield path, types, numbers
        return
    for i, pair in enumerate(zip(types, numbers, strict=True)):
        yield from _leaves(*pair, (*path, i))


def compile_launch(launch: Launch, capability: tuple[int, int]):
    """The compiled kernel of a launch for a compute capability; no GPU is needed."""
    names = launch.kernel.arg_names
    signature, constants, attributes = {}, dict(launch.constants), {}
    for i, argument in enumerate(launch.arguments):
        types, numbers = _specialisation(argument)
        signature[names[i]] = types
        for path, kind, special in _leaves(types, numbers, (i,)):
            if kind == "constexpr":
                constants[path] = special
            elif special:
                attributes[path] = [["tt.divisibility", special]]
    signature |= {name: "constexpr" for name in launch.constants}
    ordered = {name: signature[name] for name in names}
    source = ASTSource(fn=launch.kernel, signature=ordered, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": FUSE}
    return triton.compile(source, target=target, options=options)


def _listing(cubin: bytes, *options: str) -> str:
    """What cuobjdump says of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)")
WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}
GROUPS = {
    "LDG": "global load", "STG": "global store", "LDL": "local load", "STL": "local store",
    "LDS": "shared load", "STS": "shared store", "BAR": "barrier", "SHFL": "shuffle",
    "LDGSTS": "global to shared", "HMMA": "matrix product", "HGMMA": "matrix product",
    "UTCHMMA": "matrix product",
    "FFMA": "fma", "FFMA2": "fma", "DFMA": "fma", "HFMA2": "fma",
}  # fmt: skip


def instruction_mix(assembly: str) -> dict[str, int]:
    """How many instructions of each kind the listing has; loads and stores by their width in bits."""
    mix = Counter()
    for operation in INSTRUCTION.findall(assembly):
        base, *modifiers = operation.split(".")
        mix["all"] += 1
        if base not in GROUPS:
            continue
        width = next((WIDTHS[m] for m in modifiers if m in WIDTHS), 32)
        memory = base in ("LDG", "STG", "LDS", "STS", "LDL", "STL", "LDGSTS")
        mix[f"{GROUPS[base]} {width}" if memory else GROUPS[base]] += 1
    return dict(sorted(mix.items()))


def inspect(kernel) -> dict:
    """Registers, spilled bytes, shared memory and instructions of a compiled kernel."""
    resources = _listing(kernel.asm["cubin"], "--dump-resource-usage")
    registers, stack = (int(re.search(rf"{name}:(\d+)", resources)[1]) for name in ("REG", "STACK"))
    mix = instruction_mix(_listing(kernel.asm["cubin"], "-sass"))
    return {
        "registers": registers,
        "stack_bytes": stack,
        "spill_instructions": sum(count for name, count in mix.items() if name.startswith("local")),
        "shared_bytes": kernel.metadata.shared,
        "instructions": mix,
    }


def compile_all(capability: tuple[int, int], pattern: str = "") -> list[dict]:
    """Compile every kernel variant in use for a compute capability, such as (9, 0), without a GPU.

    Args:
        capability: major and minor number.
        pattern: a regular expression to be found in "<kernel> <variant>"; by default all are compiled.

    Returns:
        One dict per variant: kernel, variant (the first call that launches it), constants, warps,
        registers, stack_bytes, spill_instructions (loads and stores of local memory), shared_bytes
        and instructions (counts by kind, loads and stores with their width in bits).
    """
    found = []
    for description, launch in launches().values():
        name = launch.kernel.__name__
        if not re.search(pattern, f"{name} {description}"):
            continue
        constants = {k: v if isinstance(v, int | float) else str(v) for k, v in launch.constants.items()}
        found.append(
            {"kernel": name, "variant": description, "constants": constants, "warps": launch.warps}
            | inspect(compile_launch(launch, capability))
        )
    return found
