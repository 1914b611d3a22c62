"""Builds the compiled library beside the Python package; without a compiler, the package alone.

The kernels know nothing of PyTorch, so they are compiled once per instruction set with the
flags of that set, and the fastest that the machine can run is picked when the library is loaded. Only the
binding (csrc/library.cpp) sees PyTorch's headers, and of these the stable ABI only.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
KERNELS = "csrc/cpu/kernels.cpp"
INSTRUCTION_SETS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS |= {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
    }
FLAGS = ["-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # PyTorch 2.11


class BuildLibrary(build_ext):
    """Compile the kernels for every instruction set and link them with the binding."""

    def build_extension(self, extension):
        try:
            import torch
        except ModuleNotFoundError as error:
            raise CompileError("PyTorch is needed to build: install it, use --no-build-isolation") from error
        torch_root = Path(torch.__file__).parent
        include = [str(ROOT / "csrc/include"), str(ROOT / "csrc/cpu")]
        objects = []
        for name, flags in INSTRUCTION_SETS.items():
            objects += self.compiler.compile(
                [KERNELS],
                output_dir=str(Path(self.build_temp) / name),
                include_dirs=include,
                macros=[("IRNEXT_ISA", name)],
                extra_postargs=FLAGS + flags,
                depends=extension.depends,
            )
        objects += self.compiler.compile(
            ["csrc/cpu/dispatch.cpp", "csrc/library.cpp"],
            output_dir=self.build_temp,
            include_dirs=include,
            extra_postargs=[*FLAGS, STABLE_ABI, "-isystem", str(torch_root / "include")],
            depends=extension.depends,
        )
        target = Path(self.get_ext_fullpath(extension.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects,
            str(target),
            libraries=["torch_cpu"],
            library_dirs=[str(torch_root / "lib")],
            target_lang="c++",
            extra_postargs=["-Wl,--exclude-libs,ALL"] if sys.platform == "linux" else None,
        )

    def get_ext_filename(self, fullname):
        return f"{fullname.replace('.', os.sep)}.abi3.so"


headers = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.h"))]
setup(
    ext_modules=[
        Extension(
            "irnext._C",
            [KERNELS, "csrc/cpu/dispatch.cpp", "csrc/library.cpp"],
            depends=headers,
            # Without a compiler the package still works, in plain PyTorch, and says so.
            optional=os.environ.get("IRNEXT_REQUIRE_LIBRARY") != "1",
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
)
