"""Sizes of memory, and `python -m benchmarks.memory`."""

from __future__ import annotations

import ctypes
import json
import platform
import re
from pathlib import Path

import pytest
import torch

from benchmarks import memory as benchmark
from irnext import memory
from irnext.memory import available_memory, format_size, parse_size


@pytest.mark.parametrize(
    "text, expected",
    [
        ("8G", 8 << 30),
        ("8GiB", 8 << 30),
        (" 1.5g ", 3 << 29),
        ("8GB", 8 * 10**9),
        ("500M", 500 << 20),
        ("500 mb", 500 * 10**6),
        ("3K", 3072),
        ("2T", 2 << 40),
        ("12345", 12345),
        ("12B", 12),
        (12345, 12345),
    ],
)
def test_sizes_as_people_write_them(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "8X", "-8G", "0", "0G", "8G8", "1e9", "auto", 0, -1, None, 2.5e-3])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="give a number of bytes, or one such as 8G"):
        parse_size(text)


@pytest.mark.parametrize("size", [1, 1023, 1025, 5 << 20, (5 << 20) + 1, 123456789, 8 << 30, (8 << 30) + 1])
def test_printed_sizes_are_enough_and_close(size):
    assert size <= parse_size(format_size(size)) <= max(1.01 * size, size + 1024)


def test_free_memory_is_what_there_is_and_what_a_container_may_use(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    machine = available_memory(cpu)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("90000\n")
    (tmp_path / "memory.stat").write_text("anon 70000\nactive_file 1\ninactive_file 20000\n")
    assert available_memory(cpu) == pytest.approx(machine, rel=0.5)
    (tmp_path / "memory.max").write_text("100000\n")
    assert available_memory(cpu) == 30000
    (tmp_path / "memory.current").write_text("200000\n")
    assert available_memory(cpu) == 0
    assert available_memory(torch.device("meta")) is None


def test_benchmark_measures_each_variant_in_its_own_process(tmp_path, capsys):
    options = ["--size", "96x64", "--blocks", "1", "--width", "16", "--threads", "1"]
    options += ["--variants", "whole", "bands", "--max-memory", "5M", "--fractions"]
    assert benchmark.main([*options, "--json", "--results", str(tmp_path)]) == 0
    assert "irnext, bands" in capsys.readouterr().out
    (path,) = tmp_path.glob("*/memory.json")
    whole, bands = json.loads(path.read_text())["results"]
    assert whole["resident"] >= whole["before"] > 0 and whole["difference"] == 0
    assert bands["seconds"] > 0 and bands["difference"] < 1e-5


def test_benchmark_says_what_did_not_fit():
    options = benchmark.Options(
        size="96x64", blocks=1, width=16, variants=("bands",), max_memory="1M", threads=1
    )
    (found,) = benchmark.run(options).values()
    assert found.seconds is None and "96x64 pixels need at least" in found.failure


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_free_memory_goes_back_to_the_system():
    def resident() -> int:
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    kept, given = [], []
    for _ in range(200):  # small blocks between large ones keep the heap from shrinking by itself
        given.append(ctypes.create_string_buffer(100_000))
        kept.append(ctypes.create_string_buffer(64))
    before = resident()
    given.clear()
    memory.give_back_free_memory()
    assert resident() < before - 15_000
