"""The compile reports: how they are read from the tools, that no kernel spills, that they are up to date."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import irnext
from benchmarks import compile_report

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6irnext4cuda4meanIfEEvNS0_4CallE' for 'sm_90'
ptxas info    : Function properties for _ZN6irnext4cuda4meanIfEEvNS0_4CallE
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function '_Z3toyPf' for 'sm_90'
ptxas info    : Function properties for _Z3toyPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""
RESOURCES = """
Fatbin elf code:
================
arch = sm_80

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN6irnext4cuda4meanIfEEvNS0_4CallE:
  REG:32 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90

Resource usage:
 Function _ZN6irnext4cuda4meanIfEEvNS0_4CallE:
  REG:40 STACK:16 SHARED:1024 LOCAL:8 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
	code for sm_90

		Function : _Z3toyPf
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;           /* 0x00000a00ff017b82 */
                                                                    /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ; /* 0x0000000402007981 */
        /*0020*/                   LDG.E R8, desc[UR4][R2.64] ;     /* 0x0000000402007981 */
        /*0030*/                   FFMA R5, R0, R0, R4 ;            /* 0x0000000000057221 */
        /*0040*/              @UP1 STG.E.U16 desc[UR4][R2.64], R5 ; /* 0x0000000502007986 */
        /*0050*/                   STL [R1], R5 ;                   /* 0x0000000502007986 */
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;    /* 0x0000000000007b1d */
        /*0070*/                   NOP;                             /* 0x0000000000007918 */
		..........

		Function : _Z5otherv
        /*0000*/                   EXIT ;                           /* 0x000000000000794d */
"""


def test_names_are_short():
    name = compile_report.short_name
    assert name("_ZN6irnext4cuda4meanIfEEvNS0_4CallE") == "mean<float>"
    assert name("_ZN6irnext4cuda12_GLOBAL__N_15toysyIdLi3ELb1EEEvPT_") == "toysy<double, 3, true>"
    assert name("plain_c") == "plain_c"


def test_what_ptxas_says_is_read():
    assert compile_report.parse_ptxas(PTXAS) == {
        "_ZN6irnext4cuda4meanIfEEvNS0_4CallE": {
            "registers": 40,
            "shared": 1024,
            "stack": 16,
            "spill stores": 12,
            "spill loads": 8,
        },
        "_Z3toyPf": {"registers": 8, "shared": 0, "stack": 0, "spill stores": 0, "spill loads": 0},
    }


def test_what_cuobjdump_says_is_read():
    assert compile_report.parse_resources(RESOURCES) == {
        "sm_80": {"mean<float>": {"registers": 32, "stack": 0, "shared": 1024, "local": 0}},
        "sm_90": {"mean<float>": {"registers": 40, "stack": 16, "shared": 1024, "local": 8}},
    }
    mixes = compile_report.parse_sass(SASS)
    assert mixes["_Z3toyPf"] == {
        **{"LDG.128": 1, "LDG.32": 1, "STG.U16": 1, "STL.32": 1},
        **{"FFMA": 1, "BAR": 1, "all": 7},
    }
    assert mixes["_Z5otherv"] == {"all": 1}


def test_spills_are_named():
    fine = {"registers": 255, "spill stores": 0, "spill loads": 0}
    kernels = {"b": {"spill stores": 4, "spill loads": 8}, "a": {"spill_instructions": 2}, "c": fine}
    assert compile_report.spilling(kernels) == [
        "a: 2 spill_instructions",
        "b: 4 spill stores, 8 spill loads",
    ]


def test_kernels_of_one_name_must_be_one_kernel():
    kernels = {"mean": {"registers": 8}}
    compile_report.add_kernels(kernels, {"mean": {"registers": 8}, "sum": {"registers": 9}})
    assert set(kernels) == {"mean", "sum"}
    with pytest.raises(ValueError, match="two different kernels are called mean"):
        compile_report.add_kernels(kernels, {"mean": {"registers": 9}})


def test_reports_are_written_in_order_and_read_back(tmp_path):
    kernels = {"b": {"registers": 2}, "a": {"registers": 1, "instructions": {"all": 3}}}
    path = tmp_path / "folder/report.json"
    compile_report.write_report(path, "nvcc 13", "sm_90", kernels)
    assert compile_report.read_report(path) == kernels
    assert list(json.loads(path.read_text())["kernels"]) == ["a", "b"]


COMMITTED = sorted(compile_report.REPORTS.glob("*.json"))


def test_every_architecture_has_its_reports():
    expected = {
        f"{compiler}-{architecture}.json"
        for compiler in ("cuda", "triton")
        for architecture in compile_report.ARCHITECTURES
    }
    assert {path.name for path in COMMITTED} == expected


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_no_kernel_of_a_report_spills(path):
    kernels = compile_report.read_report(path)
    assert kernels
    assert not compile_report.spilling(kernels)


@pytest.fixture(scope="module")
def built():
    """The CUDA kernels in the library that this installation has, by architecture and name."""
    library = Path(irnext.__file__).parent / "_C.abi3.so"
    cuobjdump = compile_report.find_cuobjdump()
    if not library.exists():
        pytest.skip("the compiled library is not built")
    if cuobjdump is None:
        pytest.skip("there is no cuobjdump")
    if not (found := compile_report.library_kernels(library, cuobjdump)):
        pytest.skip("the compiled library was built without CUDA")
    return found


def test_no_kernel_of_the_library_spills(built):
    for kernels in built.values():
        assert kernels
        assert not compile_report.spilling(kernels)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_reports_name_the_kernels_of_today(path, request):
    """`make reports` brings them up to date."""
    if path.stem.startswith("triton"):
        if importlib.util.find_spec("triton") is None:
            pytest.skip("Triton is not installed")
        today = compile_report.triton_names()
    else:
        today = set(next(iter(request.getfixturevalue("built").values())))
    assert set(compile_report.read_report(path)) == today
