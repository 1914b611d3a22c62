"""Measuring on a CUDA device: times with cold caches and by graph replay, memory, launches, its record.

Everything of a benchmark runs on one stream that is not the default one (`stream`): a graph
cannot be captured on the default stream, and autograd runs a backward pass on the stream of its
forward pass.
"""

from __future__ import annotations

import contextlib
import gc
import math
import subprocess
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from rich.console import Console

from . import harness
from .harness import CannotTime, Timer

MOST_REPEATS = 1000  # calls in one graph
LARGE_COPY = 2**30  # bytes
QUERY = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
)


def check(name: str) -> None:
    """Raise ValueError where a benchmark is to run on "cuda" and there is no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but PyTorch sees no CUDA device")


def stream() -> Any:
    """A context in which PyTorch's work goes to a stream of its own."""
    return torch.cuda.stream(torch.cuda.Stream())


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """A context in which products of float32 on the device may, or may not, be rounded to TF32.

    PyTorch's own default differs between convolutions and matrix products.
    """
    libraries = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [library.allow_tf32 for library in libraries]
    try:
        for library in libraries:
            library.allow_tf32 = enabled
        yield
    finally:
        for library, allowed in zip(libraries, before, strict=True):
            library.allow_tf32 = allowed


@contextlib.contextmanager
def measuring(
    name: str, threads: int | None, console: Console, large: bool = False
) -> Iterator[dict[str, Any]]:
    """A context to measure in on "cpu" or "cuda"; its value is the machine's record, which is printed.

    On a CPU freed memory is kept, unless tensors are so `large` that page faults are a small part of the
    time: the C library may not give out again what it keeps, and memory would run out. On a GPU work goes
    to a stream of its own, without TF32.
    """
    if threads:
        torch.set_num_threads(threads)
    on_gpu = name == "cuda"
    if not (on_gpu or large):
        harness.keep_freed_memory()
    here = harness.machine(record() if on_gpu else None)
    console.print(harness.describe(here), soft_wrap=True)
    with contextlib.ExitStack() as stack:
        if on_gpu:
            stack.enter_context(stream())
            stack.enter_context(tf32(False))
        yield here


# ---- time ----------------------------------------------------------------------------------------


def cold_timer(sample_seconds: float, do_bench: Callable[..., float] | None = None) -> Timer:
    """A timer of the device, whose caches are cleared before every call: a sample is a median.

    Args:
        sample_seconds: about the device time that one sample takes.
        do_bench: as `triton.testing.do_bench`, in milliseconds; that one by default.
    """
    if do_bench is None:
        from triton.testing import do_bench

    def ready(run: Callable[[], Any]) -> Callable[[], float]:
        run()
        milliseconds = 1e3 * sample_seconds
        return lambda: do_bench(run, warmup=milliseconds / 4, rep=milliseconds, return_mode="median") / 1e3

    return ready


def _event_seconds(run: Callable[[], Any], cuda: ModuleType) -> float:
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def graph_timer(sample_seconds: float, cuda: ModuleType = torch.cuda) -> Timer:
    """A timer of the device that replays a graph of many calls: no time of the host's is in it.

    Caches hold what the call before left there. What cannot be captured raises `CannotTime`.

    Args:
        sample_seconds: about the time of one replay, which sets the calls in the graph.
        cuda: PyTorch's interface to the device.
    """

    def ready(run: Callable[[], Any]) -> Callable[[], float]:
        run()
        seconds = _event_seconds(run, cuda)
        repeats = min(MOST_REPEATS, max(1, math.ceil(sample_seconds / max(seconds, 1e-6))))
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph, stream=cuda.current_stream()):
                for _ in range(repeats):
                    run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CannotTime(f"no graph: {str(error).splitlines()[0]}") from error
        graph.replay()
        return lambda: _event_seconds(graph.replay, cuda) / repeats

    return ready


def call_timer(run: Callable[[], Any], cuda: ModuleType = torch.cuda) -> Callable[[], float]:
    """A timer of single calls between two events, for what takes long and has run before.

    The device is idle when a call begins, so the time that the host takes to launch is in it where the
    device waits for it. Caches are as the call before left them.
    """

    def sample() -> float:
        cuda.synchronize()
        return _event_seconds(run, cuda)

    return sample


def large_copy_bandwidth(timer: Timer, size: int = LARGE_COPY, device: str = "cuda") -> float:
    """Bytes read and written a second by a copy of `size` bytes: what the memory can do at most."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    sample = timer(lambda: target.copy_(source))
    return 2 * size / min(sample() for _ in range(3))


# ---- memory and launches -------------------------------------------------------------------------


def allocated_peak(run: Callable[[], Any], cuda: ModuleType = torch.cuda, warm: bool = True) -> int:
    """The most memory a call holds at once, in bytes of device tensors, over what was there before.

    Args:
        run: the call.
        cuda: PyTorch's interface to the device.
        warm: call it once before, so that what is allocated once and kept is not the call's.
    """
    if warm:
        run()
    gc.collect()
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    run()
    cuda.synchronize()
    return cuda.max_memory_allocated() - before


def is_kernel(event: Any) -> bool:
    """Whether an event of the profiler is a kernel on the device."""
    on_device = event.device_type() == torch.autograd.DeviceType.CUDA
    return on_device and not event.name().startswith(("Memcpy", "Memset"))


def kernel_launches(run: Callable[[], Any]) -> int | None:
    """The kernels that a call runs on the device; copies and fills by the driver do not count.

    None where the profiler may not see the device.
    """
    run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=False) as profile:
        run()
        torch.cuda.synchronize()
    return sum(is_kernel(event) for event in profile.profiler.kineto_results.events()) or None


# ---- the record ----------------------------------------------------------------------------------


def _nvidia_smi(*arguments: str) -> str:
    return subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=True).stdout


def clocks(index: str, smi: Callable[..., str] = _nvidia_smi) -> dict[str, str]:
    """What nvidia-smi says of a GPU now: driver, clocks in MHz, power limit in W, temperature in C.

    Args:
        index: the GPU by its UUID or number.
        smi: runs nvidia-smi with arguments and returns what it prints.

    Empty where nvidia-smi is missing or fails: a container may be without it.
    """
    try:
        text = smi(f"--id={index}", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(QUERY, (value.strip() for value in text.strip().split(",")), strict=True))


def record(cuda: ModuleType = torch.cuda, smi: Callable[..., str] = _nvidia_smi) -> dict[str, Any]:
    """What a figure from the current GPU depends on: device, driver, clocks and versions."""
    import triton

    gpu = cuda.get_device_properties(cuda.current_device())
    return {
        "name": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "memory": gpu.total_memory,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "state": clocks(f"GPU-{gpu.uuid}", smi),
    }
