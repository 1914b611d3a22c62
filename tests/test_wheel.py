"""The sdist and the wheel: what they hold and demand, and that the wheel runs where it is installed.

IRNEXT_TORCH_VERSIONS="2.11.0 2.12.0" also installs the wheel beside each of these versions of PyTorch, which
pip gets from its index: several gigabytes and some minutes each.
"""

from __future__ import annotations

import email
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import documents
import pytest
import torch
from PIL import Image

import irnext

ROOT = Path(__file__).parent.parent
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")
TORCH_VERSIONS = os.environ.get("IRNEXT_TORCH_VERSIONS", "").split()
POLICY = "manylinux_2_34_x86_64"
LIBRARY = "irnext/_C.abi3.so"
NO_COMPILER = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}
BUILD = {
    "IRNEXT_CUDA": "",
    "IRNEXT_CUDA_HOST": "",
    "IRNEXT_REQUIRE_LIBRARY": "",
    # As the Makefile has it, so that the objects of its build serve.
    "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0"),
}

pytestmark = pytest.mark.xdist_group("wheel")
needs_compiler = pytest.mark.skipif(
    not irnext.backends()["cpu"], reason="what could not be compiled for this installation is not tried again"
)


def run(
    *command: str | Path, cwd: Path, environment: dict[str, str] = os.environ
) -> subprocess.CompletedProcess:
    """A command that has to succeed."""
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


# ---- building ------------------------------------------------------------------------------------


def left_out(folder: str, names: list[str]) -> set[str]:
    """What is no source: hidden files and what builds and runs leave."""
    made = {"build", "dist", "demo"} if Path(folder) == ROOT else set()
    return made | shutil.ignore_patterns(".*", "*.so", "__pycache__", "*.egg-info")(folder, names)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the sources, with what an earlier build left: a module that is no longer there."""
    source = tmp_path_factory.mktemp("tree") / "source"
    shutil.copytree(ROOT, source, ignore=left_out)
    stale = source / f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/irnext/stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    return source


def build_wheel(source: Path, folder: Path, **settings: str) -> subprocess.CompletedProcess:
    """What the build of a wheel, not compressed, into `folder` says."""
    options = ["--compression", "stored", "--dist-dir", str(folder)]
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "bdist_wheel", *options],
        cwd=source,
        env={**os.environ, **BUILD, **settings},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder, cwd=source)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """The wheel built from the sdist, as `python -m build` does."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    # The objects of the tests' own build: what is left is linking.
    objects = ROOT / "build/objects"
    objects.mkdir(parents=True, exist_ok=True)
    (unpacked / "build").mkdir()
    (unpacked / "build/objects").symlink_to(objects)
    settings = {**os.environ, **BUILD, "IRNEXT_REQUIRE_LIBRARY": "1"}
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist"]
    run(*build, cwd=unpacked, environment=settings)
    (path,) = (folder / "dist").iterdir()
    return path


def installed_files(wheel: Path) -> set[str]:
    """The files of a wheel but those that describe it."""
    with zipfile.ZipFile(wheel) as archive:
        files = (each.filename for each in archive.infolist() if not each.is_dir())
        return {name for name in files if ".dist-info/" not in name}


def package_files(source: Path) -> set[str]:
    """What the sources hold of the package, by the names under which it is installed."""
    return {
        f"irnext{prefix}/{path.relative_to(folder).as_posix()}"
        for folder, prefix in ((source / "irnext", ""), (source / "kernels", "/kernels"))
        for path in folder.rglob("*")
        if path.is_file()
    }


def description(wheel: Path, name: str) -> email.message.Message:
    """A file of headers that describes a wheel: METADATA or WHEEL."""
    with zipfile.ZipFile(wheel) as archive:
        (found,) = (each for each in archive.namelist() if each.endswith(f".dist-info/{name}"))
        return email.message_from_bytes(archive.read(found))


# ---- what they hold ------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_sdist_has_all_that_is_tracked(sdist):
    tracked = set(run("git", "ls-files", cwd=ROOT).stdout.splitlines())
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    deleted = {name for name in tracked if not (ROOT / name).exists()}
    assert tracked - deleted - names == {".ci/run", ".gitignore"}
    assert not [name for name in names if name.startswith("build/") or name.endswith((".so", ".o", ".pyc"))]


@needs_compiler
def test_wheel_is_the_package_with_its_library(wheel, source):
    assert wheel.name == f"irnext-{irnext.__version__}-cp311-abi3-{PLATFORM}.whl"
    assert installed_files(wheel) == package_files(source) | {LIBRARY}
    about = description(wheel, "WHEEL")
    assert about["Root-Is-Purelib"] == "false"
    assert about.get_all("Tag") == [f"cp311-abi3-{PLATFORM}"]
    metadata = description(wheel, "METADATA")
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert "torch>=2.11" in metadata.get_all("Requires-Dist")


def test_without_a_compiler_the_wheel_is_the_python_package(source, tmp_path):
    result = build_wheel(source, tmp_path, **NO_COMPILER, IRNEXT_CUDA_HOST="1")
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name == f"irnext-{irnext.__version__}-py3-none-any.whl"
    assert description(wheel, "WHEEL")["Root-Is-Purelib"] == "true"
    assert installed_files(wheel) == package_files(source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**NO_COMPILER, "IRNEXT_REQUIRE_LIBRARY": "1"}, "no-such-compiler cannot be run"),
        ({"IRNEXT_CUDA": "1", "CUDA_HOME": "", "CUDA_PATH": "", "PATH": ""}, "there is no nvcc"),
        ({"IRNEXT_CUDA": "yes"}, "error: IRNEXT_CUDA is 'yes': it must be 0"),
        ({"MAX_JOBS": "many"}, "error: MAX_JOBS is 'many'"),
    ],
)
def test_a_build_that_cannot_be_as_asked_fails(source, tmp_path, settings, message):
    result = build_wheel(source, tmp_path, **settings)
    assert result.returncode
    assert message in result.stderr
    assert not any(tmp_path.iterdir())


# ---- what the wheel demands ----------------------------------------------------------------------


@needs_compiler
@pytest.mark.skipif(importlib.util.find_spec("auditwheel") is None, reason="needs auditwheel (extra dev)")
@pytest.mark.skipif(PLATFORM != "linux_x86_64", reason="the release is for Linux on x86-64")
@pytest.mark.skipif(
    platform.libc_ver() > ("glibc", "2.36"), reason="built here, the wheel may need a newer C library"
)
def test_wheel_fits_the_policy_of_releases(wheel, tmp_path):
    text = (ROOT / "docs/installing.md").read_text("utf-8")
    lines = [command.words for block in documents.blocks(text) for command in documents.commands(block)]
    (command,) = (words for words in lines if words[:3] == ["python", "-m", "auditwheel"])
    assert command.pop() == "dist/*.whl"
    run(sys.executable, *command[1:], "--zip-compression-level", "0", wheel, cwd=tmp_path)
    (released,) = (tmp_path / "wheelhouse").iterdir()
    assert POLICY in released.name.rpartition("-")[2]
    assert installed_files(released) == installed_files(wheel), "a library was copied into the wheel"


# ---- where it is installed -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=[None, *TORCH_VERSIONS], ids=lambda version: version or "torch-here")
def installation(request, wheel, tmp_path_factory) -> tuple[Path, str]:
    """The programs of a fresh environment with the wheel and a version of PyTorch; that version."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    if request.param:
        run(*pip, wheel, f"torch=={request.param}", cwd=folder)
        return folder / "bin", request.param
    run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    # What irnext depends on is lent by the tests' own environment, whose irnext comes second.
    site = sysconfig.get_path("purelib", vars={"base": str(folder)})
    (Path(site) / "lent.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin", torch.__version__


def run_installed(programs: Path, *command: str | Path, cwd: Path) -> str:
    """What a program of an environment prints, where there is no compiler and no other setting."""
    environment = {"PATH": str(programs), "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    return run(programs / command[0], *command[1:], cwd=cwd, environment=environment).stdout


@needs_compiler
def test_installed_wheel_computes_what_the_reference_computes(installation, tmp_path):
    programs, version = installation
    facts = json.loads(run_installed(programs, "python", "-P", ROOT / "tests/installed.py", cwd=tmp_path))
    print(json.dumps(facts, indent=2))
    assert Path(facts["path"]).is_relative_to(programs.parent)
    assert facts["torch"].startswith(version)
    assert set(facts["backends"]) & {"reference", "cpu", "cuda-host"} == {"reference", "cpu"}
    assert facts["pretrained"] == irnext.list_pretrained()
    assert {f"{name}.py" for name in facts["kernels"]} < {path.name for path in (ROOT / "kernels").iterdir()}
    assert set(facts["operator errors"]) == set(irnext.backends()["reference"].ops)
    assert max(facts["operator errors"].values()) < 1e-13
    assert facts["grey levels from the reference"] <= 1


@needs_compiler
def test_installed_command_restores_a_photograph(installation, tmp_path):
    Image.effect_noise((70, 50), 60).convert("RGB").save(tmp_path / "photo.png")
    run_installed(installation[0], "irnext", "restore", "photo.png", "--task", "haze", cwd=tmp_path)
    with Image.open(tmp_path / "restored/photo.png") as restored:
        assert restored.size == (70, 50)
