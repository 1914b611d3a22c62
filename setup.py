"""Builds the compiled libraries beside the Python package; without a compiler, the package alone.

irnext/_C.abi3.so holds the CPU kernels and, where nvcc is found, the CUDA kernels. The kernels know
nothing of PyTorch: those for the CPU are compiled once per instruction set, and the fastest that the
machine can run is picked when the library is loaded; those for CUDA hold code for every architecture
of TORCH_CUDA_ARCH_LIST. Only the bindings see PyTorch's headers, and of these the stable ABI only.
A wheel has the tag of Python's stable ABI; without the library, that of any machine.

Environment:
    IRNEXT_CUDA: 0 leaves the CUDA kernels out, 1 makes their absence an error; else nvcc decides.
    IRNEXT_CUDA_HOST: 1 also builds irnext/_cuda_host.abi3.so, the CUDA sources run on the CPU.
    IRNEXT_REQUIRE_LIBRARY: 1 makes a library that cannot be built an error.
    CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS: as for PyTorch's own extensions.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
OBJECTS = Path("build/objects")  # kept from build to build: only what changed is compiled again

# Compiled once per instruction set; everything else in csrc/cpu once.
INSTRUCTION_SET_SOURCES = ("csrc/cpu/kernels.cpp", "csrc/cpu/winograd.cpp")
INSTRUCTION_SETS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
    }
INCLUDE = ["-Icsrc/include", "-Icsrc/cpu", "-Icsrc"]
FLAGS = ["-std=c++17", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", *INCLUDE]
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # PyTorch 2.11
EXPORTS = "csrc/exports.map"
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", *INCLUDE]
ARCHITECTURES = ("8.0", "9.0", "10.0")  # PTX of the last serves what comes after it


# ---- what is wanted ------------------------------------------------------------------------------


def find_nvcc(environment: Mapping[str, str]) -> str | None:
    """The path of nvcc: that of CUDA_HOME, or else the first on PATH."""
    home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    if home and (nvcc := shutil.which("nvcc", path=str(Path(home) / "bin"))):
        return nvcc
    return shutil.which("nvcc", path=environment.get("PATH", os.defpath))


def cuda_is_wanted(request: str | None, nvcc: str | None) -> bool:
    """Whether the CUDA kernels are built, from IRNEXT_CUDA and the compiler that was found.

    Raises CompileError where they are asked for but there is no nvcc, ValueError for another value.
    """
    if request not in (None, "", "0", "1"):
        raise ValueError(f"IRNEXT_CUDA is {request!r}: it must be 0 (no CUDA kernels) or 1 (required)")
    if request == "1" and nvcc is None:
        raise CompileError("IRNEXT_CUDA=1 but there is no nvcc: install CUDA and set CUDA_HOME to its folder")
    return request != "0" and nvcc is not None


def architecture_flags(request: str | None, supported: Sequence[str]) -> list[str]:
    """nvcc's flags for the architectures of TORCH_CUDA_ARCH_LIST, e.g. "8.0;9.0a;10.0+PTX".

    Without a request: those of ARCHITECTURES that this nvcc supports, and PTX of the last.
    `supported` are nvcc's names, e.g. "sm_90".
    """
    names = re.split(r"[;,\s]+", request.strip(" ;,")) if request and request.strip(" ;,") else []
    if not names:
        names = [a for a in ARCHITECTURES if f"sm_{a.replace('.', '')}" in supported]
        names[-1:] = [f"{name}+PTX" for name in names[-1:]]
    flags = []
    for name in names:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if not match:
            raise ValueError(
                f"TORCH_CUDA_ARCH_LIST has {name!r}: write versions such as '8.0', '9.0a' or '10.0+PTX'"
            )
        number = "".join(match.group(1, 2, 3))
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match.group(4):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return list(dict.fromkeys(flags))


def job_count(request: str | None) -> int:
    """How many compilers run at once: MAX_JOBS, or one per processor."""
    if request and not (request.isdecimal() and int(request)):
        raise ValueError(f"MAX_JOBS is {request!r}: it must be a number of at least 1")
    return int(request) if request else os.cpu_count() or 1


# ---- compiling -----------------------------------------------------------------------------------


class Object(NamedTuple):
    """One source compiled one way: `folder`/`source`.o by `command`, which lacks source and output."""

    source: str
    folder: str
    command: list[str]

    @property
    def path(self) -> Path:
        return OBJECTS / self.folder / f"{self.source}.o"


def read_dependencies(text: str) -> list[str]:
    """The files that a make rule, as -MD writes it, names after its target."""
    return shlex.split(text.replace("\\\n", " ").partition(": ")[2])


def is_current(wanted: Object) -> bool:
    """Whether the object was made by this very command from files that have not changed since."""
    try:
        made = wanted.path.stat().st_mtime
        if wanted.path.with_suffix(".command").read_text() != shlex.join(wanted.command):
            return False
        files = read_dependencies(wanted.path.with_suffix(".d").read_text())
        return bool(files) and all(os.stat(file).st_mtime < made for file in files)
    except OSError:
        return False


def compile_object(wanted: Object) -> str:
    """Compile one object unless it is current; its path.

    Raises CompileError with what the compiler printed.
    """
    if is_current(wanted):
        return str(wanted.path)
    wanted.path.parent.mkdir(parents=True, exist_ok=True)
    # Another build may be at work here: an object appears whole, and its command last.
    record, rules = wanted.path.with_suffix(".command"), wanted.path.with_suffix(".d")
    record.unlink(missing_ok=True)
    unfinished = wanted.path.with_suffix(f".{os.getpid()}.o")
    rules_unfinished = wanted.path.with_suffix(f".{os.getpid()}.d")
    arguments = ["-MD", "-MF", str(rules_unfinished), "-c", wanted.source, "-o", str(unfinished)]
    marker = wanted.path.with_suffix(f".{os.getpid()}.start")
    marker.touch()
    try:
        result = subprocess.run([*wanted.command, *arguments], capture_output=True, text=True)
        if result.returncode:
            raise CompileError(f"{wanted.source} ({wanted.folder}): {result.stderr or result.stdout}")
        if result.stderr.strip():
            logging.warning("%s", result.stderr.strip())
        # A file changed while the compiler ran is newer than the object.
        os.utime(unfinished, ns=(marker.stat().st_mtime_ns,) * 2)
        rules_unfinished.replace(rules)
        unfinished.replace(wanted.path)
        record.write_text(shlex.join(wanted.command))
    except OSError as error:
        raise CompileError(f"{wanted.command[0]} cannot be run: {error}") from error
    finally:
        for path in (marker, unfinished, rules_unfinished):
            path.unlink(missing_ok=True)
    return str(wanted.path)


def include_torch(root: Path) -> list[str]:
    """g++'s flags for the headers of the PyTorch in `root`; nothing built with them names that folder."""
    return ["-isystem", str(root / "include"), f"-ffile-prefix-map={root}=torch"]


def cuda_library_folders(nvcc: str) -> list[str]:
    """The folders of CUDA's libraries, as nvcc itself finds them."""
    dry = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    found = re.search(r"#\$ LIBRARIES=(.*)", dry)
    return [word.removeprefix("-L") for word in shlex.split(found.group(1))] if found else []


def sources(pattern: str, without: Iterable[str] = ()) -> list[str]:
    """The sources under this folder that match, in a fixed order."""
    found = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))
    return [path for path in found if path not in without]


def cpu_objects(compiler: list[str], torch_include: list[str]) -> list[Object]:
    """The CPU kernels for every instruction set, their dispatcher and binding, and the schemas."""
    objects = [
        Object(source, name, [*compiler, *FLAGS, "-O3", f"-DIRNEXT_ISA={name}", *flags])
        for name, flags in INSTRUCTION_SETS.items()
        for source in INSTRUCTION_SET_SOURCES
    ]
    plain = [*sources("csrc/cpu/*.cpp", without=INSTRUCTION_SET_SOURCES), *sources("csrc/*.cpp")]
    command = [*compiler, *FLAGS, "-O3", STABLE_ABI, *torch_include]
    return objects + [Object(source, "plain", command) for source in plain]


def cuda_objects(torch_include: list[str], nvcc: str, requested_architectures: str | None) -> list[Object]:
    """The CUDA kernels for every architecture, and their binding."""
    listing = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    kernels = [nvcc, *NVCC_FLAGS, *architecture_flags(requested_architectures, listing.split())]
    flags = [flag.replace("-ffile", "-Xcompiler=-ffile") for flag in torch_include]
    binding = [*kernels, "-x", "cu", STABLE_ABI, *flags]  # it takes CUDA's types from nvcc's headers
    return [
        *(Object(source, "cuda", kernels) for source in sources("csrc/cuda/*.cu")),
        *(Object(source, "cuda", binding) for source in sources("csrc/cuda/*.cpp")),
    ]


def cuda_host_objects(compiler: list[str], torch_include: list[str]) -> list[Object]:
    """The CUDA sources as C++ for the CPU, with a namespace of operators of their own."""
    host = ["-DIRNEXT_CUDA_HOST", "-DIRNEXT_NAMESPACE=irnext_cuda_host"]
    common = [*compiler, *FLAGS, "-Wno-unknown-pragmas", "-O2", *host]
    binding = [*common, STABLE_ABI, *torch_include]
    return [
        *(Object(source, "cuda-host", [*common, "-x", "c++"]) for source in sources("csrc/cuda/*.cu")),
        *(
            Object(source, "cuda-host", binding)
            for source in [*sources("csrc/cuda/*.cpp"), "csrc/schemas.cpp"]
        ),
    ]


def compile_all(
    needed: list[Object], optional: list[Object], jobs: int
) -> tuple[list[str], CompileError | None]:
    """Compile `jobs` objects at a time: their paths, and why `optional` was left out, if it was."""
    with ThreadPoolExecutor(jobs) as pool:
        first = [pool.submit(compile_object, each) for each in needed]
        second = [pool.submit(compile_object, each) for each in optional]
        try:
            paths = [each.result() for each in first]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        try:
            return paths + [each.result() for each in second], None
        except CompileError as error:
            pool.shutdown(wait=True, cancel_futures=True)
            return paths, error


# ---- the command ---------------------------------------------------------------------------------

REQUIRED = "1" in (os.environ.get("IRNEXT_REQUIRE_LIBRARY"), os.environ.get("IRNEXT_CUDA"))


class BuildLibrary(build_ext):
    """Compile what changed, several files at once, and link."""

    def run(self):
        try:
            super().run()
        except ValueError as error:  # a wrong setting is told, not taken for a missing compiler
            raise SystemExit(f"error: {error}") from error

    def build_extension(self, extension):
        jobs = job_count(os.environ.get("MAX_JOBS"))
        nvcc = find_nvcc(os.environ)
        with_cuda = cuda_is_wanted(os.environ.get("IRNEXT_CUDA"), nvcc)
        try:
            import torch
        except ModuleNotFoundError as error:
            raise CompileError("PyTorch is needed to build: install it, use --no-build-isolation") from error
        compiler = getattr(self.compiler, "compiler_so_cxx", None)
        if not compiler:
            raise CompileError(f"no C++ compiler that takes the flags of g++ ({self.compiler.compiler_type})")
        torch_root = Path(torch.__file__).parent
        torch_include = include_torch(torch_root)
        libraries, folders = ["torch_cpu"], [str(torch_root / "lib")]
        if extension.name == CUDA_HOST:
            objects, _ = compile_all(cuda_host_objects(compiler, torch_include), [], jobs)
        else:
            cuda = []
            if with_cuda:
                architectures = os.environ.get("TORCH_CUDA_ARCH_LIST")
                cuda = cuda_objects(torch_include, nvcc, architectures)
            objects, failure = compile_all(cpu_objects(compiler, torch_include), cuda, jobs)
            if failure and REQUIRED:
                raise failure
            if failure:
                self.warn(f"the CUDA kernels are left out: {failure}")
            elif cuda:
                libraries += ["cudart_static", "dl", "rt", "pthread"]
                folders += cuda_library_folders(nvcc)
        self.link(self.get_ext_fullpath(extension.name), objects, libraries, folders)

    def link(self, target: str, objects: list[str], libraries: list[str], folders: list[str]) -> None:
        """Link to a new file, so that a process that has the old library open keeps it whole."""
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        unfinished = f"{target}.{os.getpid()}"
        try:
            self.compiler.link_shared_object(
                objects,
                unfinished,
                libraries=libraries,
                library_dirs=folders,
                target_lang="c++",
                extra_postargs=(
                    [f"-Wl,--version-script={EXPORTS},-z,defs"] if sys.platform == "linux" else None
                ),
            )
            os.replace(unfinished, target)
        finally:
            Path(unfinished).unlink(missing_ok=True)

    def get_ext_filename(self, fullname):
        return f"{fullname.replace('.', os.sep)}.abi3.so"


class BuildWheel(bdist_wheel):
    """A wheel for every later Python; without the library, for any machine."""

    def initialize_options(self):
        super().initialize_options()
        if not sysconfig.get_config_var("Py_GIL_DISABLED"):  # such a Python has no stable ABI before 3.15
            self.py_limited_api = "cp311"

    def run(self):
        if not self.skip_build:
            # What an earlier build left in the usual folder is no part of this wheel.
            library = Path(f"{self.bdist_dir}-library")
            shutil.rmtree(library, ignore_errors=True)
            self.reinitialize_command("build", reinit_subcommands=True, build_lib=str(library))
            self.run_command("build")
            if not any(library.glob("irnext/*.so")):
                self.distribution.ext_modules, self.root_is_pure = None, True
        super().run()


LIBRARY, CUDA_HOST = "irnext._C", "irnext._cuda_host"

if __name__ == "__main__":
    names = [LIBRARY, CUDA_HOST] if os.environ.get("IRNEXT_CUDA_HOST") == "1" else [LIBRARY]
    files = {
        "sources": [*sources("csrc/**/*.cpp"), *sources("csrc/**/*.cu")],
        "depends": [*sources("csrc/**/*.h"), *sources("csrc/**/*.cuh"), EXPORTS],
    }
    setup(
        # Without a compiler the package still works, in plain PyTorch, and says so.
        ext_modules=[Extension(name, optional=not REQUIRED, **files) for name in names],
        cmdclass={"build_ext": BuildLibrary, "bdist_wheel": BuildWheel},
    )
