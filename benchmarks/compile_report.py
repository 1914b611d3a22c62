"""What the compilers made of every GPU kernel: `python -m benchmarks.compile_report`; needs no GPU.

Writes benchmarks/results/compile/cuda-sm_XX.json and triton-sm_XX.json: registers, shared memory,
stack, spills and the mix of machine instructions of each kernel, in a fixed order, so that what a
change does to a kernel shows in its diff.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "benchmarks/results/compile"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

Kernels = dict[str, dict[str, Any]]  # what is known of a kernel, by its name


# ---- tools ---------------------------------------------------------------------------------------


def build_settings() -> ModuleType:
    """setup.py as a module: its compilers and flags."""
    spec = importlib.util.spec_from_file_location("irnext_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_cuobjdump() -> str | None:
    """cuobjdump from CUDA, or the one that Triton brings; nvdisasm, which it calls, lies beside it."""
    places = [str(Path(nvcc).resolve().parent)] if (nvcc := shutil.which("nvcc")) else []
    if home := os.environ.get("CUDA_HOME"):
        places.append(str(Path(home) / "bin"))
    if (triton := importlib.util.find_spec("triton")) and triton.origin:
        places.append(str(Path(triton.origin).parent / "backends/nvidia/bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join([*places, os.environ.get("PATH", os.defpath)]))


def run(*command: str) -> str:
    """What a tool prints on both streams; CalledProcessError, with that, where it fails."""
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        raise subprocess.CalledProcessError(result.returncode, command, result.stdout)
    return result.stdout


def demangle(symbol: str) -> str:
    """The C++ name of a symbol, by the C++ library's own demangler."""
    function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    function.restype = ctypes.c_void_p
    status = ctypes.c_int()
    found = function(symbol.encode(), None, None, ctypes.byref(status))
    if status.value:
        return symbol
    name = ctypes.string_at(found).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(found))
    return name


def short_name(symbol: str) -> str:
    """The demangled name without its result, its parameters and the namespaces that all kernels share."""
    name = demangle(symbol)
    if name.endswith(")"):
        depth = 0
        for position in range(len(name) - 1, -1, -1):
            depth += {")": 1, "(": -1}.get(name[position], 0)
            if depth == 0:
                name = name[:position]
                break
    name = re.sub(r"(irnext::)?(cuda::)?\(anonymous namespace\)::|irnext::cuda::|irnext::", "", name)
    return name.removeprefix("void ")


# ---- reading what the tools print ----------------------------------------------------------------


def parse_ptxas(log: str) -> Kernels:
    """Registers, shared memory, stack and spills by symbol, from what `ptxas -v` says."""
    found: Kernels = {}
    for part in re.split(r"(?=Compiling entry function ')", log):
        if not (entry := re.match(r"Compiling entry function '(\S+)'", part)):
            continue

        def number(pattern: str, part: str = part) -> int:
            match = re.search(pattern, part)
            return int(match.group(1)) if match else 0

        # Functions that are not inlined follow their kernel; the kernel's own lines come first.
        found[entry.group(1)] = {
            "registers": number(r"Used (\d+) registers"),
            "shared": number(r"(\d+) bytes smem"),
            "stack": number(r"(\d+) bytes stack frame"),
            "spill stores": number(r"(\d+) bytes spill stores"),
            "spill loads": number(r"(\d+) bytes spill loads"),
        }
    return found


def parse_resources(listing: str) -> dict[str, Kernels]:
    """Registers, shared memory and local memory by architecture and name, from `cuobjdump -res-usage`."""
    found: dict[str, Kernels] = collections.defaultdict(dict)
    architecture = ""
    for line in listing.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match.group(1)
        elif match := re.match(r"\s*Function (\S+):", line):
            symbol = match.group(1)
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            keys = ("registers", "stack", "shared", "local")
            found[architecture][short_name(symbol)] = dict(zip(keys, map(int, match.groups()), strict=True))
    return dict(found)


# Memory instructions are counted by width; of the others, those that tell what a kernel does.
MEMORY = ("LDG", "STG", "LDS", "STS", "LDL", "STL", "LD", "ST")
COUNTED = (
    *("FFMA", "FFMA2", "FADD", "FADD2", "FMUL", "FMUL2", "DFMA", "DADD", "DMUL", "HFMA2", "HADD2", "HMUL2"),
    *("MUFU", "SHFL", "BAR", "IMAD", "BRA", "UCGABAR_ARV", "UCGABAR_WAIT"),
)


def instruction_mix(code: str) -> dict[str, int]:
    """How many instructions of each kind a kernel's machine code holds, without padding."""
    mix: collections.Counter[str] = collections.Counter()
    for opcode in re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ |@!?PT )?\s*([A-Z0-9_.]+)", code, re.M):
        name, *modifiers = opcode.split(".")
        if name == "NOP":
            continue
        mix["all"] += 1
        if name in MEMORY:
            width = next((m for m in modifiers if m in ("U8", "S8", "U16", "S16", "64", "128", "256")), "32")
            mix[f"{name}.{width}"] += 1
        elif name in COUNTED:
            mix[name] += 1
    return dict(sorted(mix.items()))


def parse_sass(listing: str) -> dict[str, dict[str, int]]:
    """The instruction mix by symbol, from `cuobjdump -sass`."""
    parts = re.split(r"\n\s*Function : (\S+)\n", listing)
    return {symbol: instruction_mix(code) for symbol, code in zip(parts[1::2], parts[2::2], strict=True)}


# ---- the reports ---------------------------------------------------------------------------------


def library_kernels(library: Path, cuobjdump: str) -> dict[str, Kernels]:
    """Every CUDA kernel in a built library by architecture and name: registers, stack, shared, local."""
    return parse_resources(run(cuobjdump, "--dump-resource-usage", str(library)))


def add_kernels(kernels: Kernels, more: Kernels) -> None:
    """Add kernels to others; a template that two sources instantiate alike is one kernel."""
    for name, facts in more.items():
        if kernels.setdefault(name, facts) != facts:
            raise ValueError(f"two different kernels are called {name}: reports cannot tell them apart")


def compile_source(source: str, architecture: str, folder: Path, settings: ModuleType, cuobjdump: str):
    """The kernels of one .cu file, compiled for one architecture with the build's own flags."""
    cubin = folder / f"{Path(source).stem}-{architecture}.cubin"
    flags = [*settings.NVCC_FLAGS, f"-arch={architecture}", "-Xptxas=-v", "-cubin", "-o", str(cubin)]
    kernels = parse_ptxas(run(settings.find_nvcc(os.environ), *flags, source))
    mixes = parse_sass(run(cuobjdump, "-sass", str(cubin)))
    return {short_name(symbol): facts | {"instructions": mixes[symbol]} for symbol, facts in kernels.items()}


def cuda_report(architecture: str, cuobjdump: str, settings: ModuleType) -> Kernels:
    """All CUDA kernels for one architecture, by name."""
    sources = settings.sources("csrc/cuda/*.cu")
    kernels: Kernels = {}
    jobs = settings.job_count(os.environ.get("MAX_JOBS"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(compile_source, source, architecture, Path(folder), settings, cuobjdump)
            for source in sources
        ]
        for future in futures:
            add_kernels(kernels, future.result())
    return kernels


def triton_name(kernel: str, variant: str, constants: dict[str, Any]) -> str:
    """What tells one compiled variant of a Triton kernel from all others."""
    return f"{kernel} ({variant}): " + ", ".join(f"{key}={value}" for key, value in constants.items())


def triton_names() -> set[str]:
    """The names of all kernel variants in use, without compiling any."""
    from irnext.kernels import compilation

    return {
        triton_name(launch.kernel.__name__, variant, launch.constants)
        for variant, launch in compilation.launches().values()
    }


def triton_report(architecture: str) -> Kernels:
    """All variants of the Triton kernels for one architecture, by name."""
    from irnext.kernels import compilation

    number = int(re.search(r"\d+", architecture).group())
    kernels: Kernels = {}
    for facts in compilation.compile_all(divmod(number, 10)):
        name = triton_name(facts.pop("kernel"), facts.pop("variant"), facts.pop("constants"))
        add_kernels(kernels, {name: facts})
    return kernels


def write_report(path: Path, compiler: str, architecture: str, kernels: Kernels) -> None:
    """Write one report with its kernels in the order of their names, one to a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"  {json.dumps(name)}: {json.dumps(kernels[name])}" for name in sorted(kernels)]
    head = f'{{\n "architecture": {json.dumps(architecture)},\n "compiler": {json.dumps(compiler)},\n'
    path.write_text(head + ' "kernels": {\n' + ",\n".join(lines) + "\n }\n}\n")


def read_report(path: Path) -> Kernels:
    """The kernels of a report by name."""
    return json.loads(path.read_text())["kernels"]


def spilling(kernels: Kernels) -> list[str]:
    """The kernels that keep registers in memory, with what is known of it: bytes, or instructions."""
    keys = ("spill stores", "spill loads", "spill_instructions", "local")
    return [
        f"{name}: {', '.join(f'{facts[key]} {key}' for key in keys if facts.get(key))}"
        for name, facts in sorted(kernels.items())
        if any(facts.get(key) for key in keys)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the reports asked for; 1 if a kernel spills."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_report", description=__doc__)
    parser.add_argument("--compilers", nargs="+", choices=("cuda", "triton"), default=["cuda", "triton"])
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="sm_XX")
    parser.add_argument("--results", type=Path, default=REPORTS, help="folder of the reports")
    options = parser.parse_args(arguments)
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        parser.error("there is no cuobjdump: install CUDA's binary utilities, or Triton, which brings it")
    settings = build_settings()
    versions = {}
    if "cuda" in options.compilers:
        nvcc = settings.find_nvcc(os.environ)
        if nvcc is None:
            parser.error("there is no nvcc: install CUDA and set CUDA_HOME to its folder")
        versions["cuda"] = "nvcc " + re.search(r"V([\d.]+)", run(nvcc, "--version")).group(1)
    if "triton" in options.compilers:
        versions["triton"] = f"triton {metadata.version('triton')}"
    spills = []
    for architecture in options.architectures:
        for compiler, version in versions.items():
            if compiler == "cuda":
                kernels = cuda_report(architecture, cuobjdump, settings)
            else:
                kernels = triton_report(architecture)
            path = options.results / f"{compiler}-{architecture}.json"
            write_report(path, version, architecture, kernels)
            most = max((facts.get("registers") or 0 for facts in kernels.values()), default=0)
            print(f"{path}: {len(kernels)} kernels, at most {most} registers", flush=True)
            spills += [f"{compiler} {architecture} {line}" for line in spilling(kernels)]
    print("\n".join(spills))
    return int(bool(spills))


if __name__ == "__main__":
    sys.exit(main())
