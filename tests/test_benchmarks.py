"""The baselines compute what irnext computes, the harness is honest, and every benchmark runs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import irnext
from benchmarks import device, harness, lam, overhead, provenance, training_step
from benchmarks.harness import Variant
from benchmarks.published import GroupedConvAttention, PublishedIRNeXt, PublishedLoss, UnfoldAttention


def randomise(module: nn.Module) -> nn.Module:
    """Random gains: at their initial zeros the attention is the identity."""
    for name, parameter in module.named_parameters():
        if name.endswith("_gain"):
            nn.init.uniform_(parameter, -1, 1)
    return module


def close(a: torch.Tensor, b: torch.Tensor, scale: float | None = None) -> bool:
    return (a - b).abs().max().item() <= 1e-12 * (scale or b.abs().max().item())


# ---- the published formulation is irnext ---------------------------------------------------------


@pytest.mark.parametrize("low_pass", ["global", "local"])
@pytest.mark.parametrize("form", [UnfoldAttention, GroupedConvAttention])
@pytest.mark.parametrize("training", [True, False])
def test_attention_equals_irnext(form, low_pass, training):
    torch.manual_seed(1)
    ours = randomise(irnext.LocalAttention(16, groups=4, low_pass=low_pass)).double().train(training)
    theirs = form(16, groups=4, low_pass=low_pass).double().train(training)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 16, 13, 10, dtype=torch.float64, requires_grad=True)
    u = torch.randn_like(x)
    results = [lam.backward_result(module, module, x, u) for module in (theirs, ours)]
    assert len(results[0]) == 2 + len(list(ours.parameters()))
    assert not close(results[0][0], x)  # the gains do something
    for found, expected in zip(*results, strict=True):
        assert close(found, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"low_pass": "local", "msm_per_block": 2},
        {"pooling": "max", "activation": "softmax"},
        {"pooling": "convolution", "activation": "sigmoid", "pool_rates": (8, 2)},
        {"msm_per_block": 0},
    ],
)
def test_network_and_loss_equal_irnext(settings):
    torch.manual_seed(2)
    ours = randomise(irnext.IRNeXt(2, width=8, **settings)).double()
    theirs = PublishedIRNeXt(2, width=8, **settings).double()
    theirs.load_state_dict(ours.official_state_dict())
    x, target = torch.rand(2, 2, 3, 96, 64, dtype=torch.float64)
    outputs = theirs(x), ours(x)
    for found, expected in zip(*outputs, strict=True):
        assert close(found, expected)
    losses = PublishedLoss()(outputs[0], target), irnext.DualDomainLoss()(outputs[1], target)
    assert close(*losses)
    gradients = [
        torch.autograd.grad(loss, list(module.parameters()))
        for loss, module in zip(losses, (theirs, ours), strict=True)
    ]
    # Some gradients are zero but for rounding (a bias before a normalisation): one scale for all.
    scale = max(gradient.abs().max().item() for gradient in gradients[1])
    for found, expected in zip(*gradients, strict=True):
        assert close(found, expected, scale)


def test_network_shares_no_operator_with_irnext(monkeypatch):
    """Were a baseline to call our operators, a faster backend would make it faster too."""
    for name in ("conv2d_bias_act", "dynamic_conv2d", "local_mean", "merge_pyramid", "pool_pyramid"):
        monkeypatch.setattr(irnext.ops, name, None)
    monkeypatch.setattr(irnext.ops, "spatial_mean", None)
    for low_pass in ("global", "local"):
        PublishedIRNeXt(1, width=16, low_pass=low_pass).eval()(torch.rand(1, 3, 64, 64))
        GroupedConvAttention(16, low_pass=low_pass).eval()(torch.rand(1, 16, 8, 8))


def test_unfold_moves_the_published_number_of_tensors():
    """28 reads and 25 writes of an x-sized tensor: the published order of operations, none fused or added."""

    class Traffic(TorchDispatchMode):
        reads = writes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            views = ("view", "reshape", "unsqueeze", "squeeze", "as_strided", "detach", "_unsafe_view")
            if func._schema.name.removeprefix("aten::") not in views:
                self.reads += sum(t.numel() for t in args if isinstance(t, torch.Tensor))
                self.writes += output.numel() if isinstance(output, torch.Tensor) else 0
            return output

    module, x = UnfoldAttention(8).eval(), torch.rand(1, 8, 512, 512)
    with torch.no_grad(), Traffic() as traffic:
        module(x)
    assert round(traffic.reads / x.numel()) == 28
    assert round(traffic.writes / x.numel()) == 25


@pytest.mark.parametrize("make", [UnfoldAttention, GroupedConvAttention])
def test_unpublished_forms_are_refused(make):
    with pytest.raises(ValueError, match="'global' and 'local'"):
        make(16, low_pass="exact")
    with pytest.raises(ValueError, match="'global' and 'local'"):
        PublishedIRNeXt(1, low_pass="exact")


# ---- the harness ---------------------------------------------------------------------------------


def test_a_wrong_variant_gets_no_time():
    x = torch.rand(4, 5)
    ran = []

    def wrong() -> list[torch.Tensor]:
        ran.append(1)
        return [x + 1e-5]

    variants = {
        "published": Variant(lambda: [x.clone()], lambda: [x.clone()], baseline=True),
        "right": Variant(lambda: [x.clone()], lambda: [x.clone()]),
        "wrong": Variant(wrong, wrong),
        "nan": Variant(lambda: None, lambda: [x * torch.nan]),
        "shape": Variant(lambda: None, lambda: [x[:2]]),
        "too few": Variant(lambda: None, list),
    }
    found = harness.compare(variants, [x.double()], torch.float32, rounds=2, sample_seconds=0)
    for name, timing in found.items():
        if name in ("published", "right"):
            assert timing.milliseconds > 0 and timing.wrong is None
            assert set(timing.ratios) == {"published", "right"}
        else:
            assert timing.milliseconds is None and not timing.ratios
            assert "allowed" in timing.wrong
            assert harness.time_cells(timing) == ("wrong", "")
            assert harness.ratio_cell(found["right"], name) == ""
    assert len(ran) == 1  # for the check, and never for a time


def test_a_wrong_baseline_gets_no_time_and_excuses_nobody():
    x = torch.rand(8)
    variants = {
        "published": Variant(lambda: None, lambda: [x + 0.1], baseline=True),
        "as wrong": Variant(lambda: None, lambda: [x + 0.1]),
    }
    found = harness.compare(variants, [x.double()], torch.float32, rounds=1, sample_seconds=0)
    assert all(timing.wrong and timing.milliseconds is None for timing in found.values())


def test_variants_take_turns_and_ratios_are_right(monkeypatch):
    """With a clock that only the variants move, the ratio of a variant three times as fast is 3."""
    clock, order = [0.0], []
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def spend(name: str, seconds: float) -> Variant:
        def run() -> list[torch.Tensor]:
            order.append(name)
            clock[0] += seconds * (1 + len(order) // 100)  # a machine that slows down
            return []

        return Variant(run, list, baseline=True)

    variants = {"slow": spend("slow", 0.3), "fast": spend("fast", 0.1)}
    found = harness.compare(variants, [], torch.float32, rounds=4, sample_seconds=0)
    assert order[-8:] == ["slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]
    assert found["fast"].ratios["slow"] == pytest.approx(3)
    assert found["slow"].ratios["fast"] == pytest.approx(1 / 3)
    assert found["fast"].milliseconds == pytest.approx(100)
    assert found["fast"].spread == pytest.approx(0)


def test_what_cannot_be_timed_says_why_and_stops_nobody():
    x = torch.rand(8)

    def exhausted():
        raise torch.OutOfMemoryError("too much")

    def timer(run):
        if run is no_graph:
            raise harness.CannotTime("no graph: it waits for the device")
        return harness.host_timer(0)(run)

    def no_graph() -> list[torch.Tensor]:
        return [x.clone()]

    variants = {
        "right": Variant(lambda: [x.clone()], lambda: [x.clone()], baseline=True),
        "result": Variant(lambda: None, exhausted),
        "call": Variant(exhausted, lambda: [x.clone()]),
        "graph": Variant(no_graph, no_graph),
    }
    checked = harness.check(variants, [x.double()], torch.float32)
    found = harness.time_right(variants, checked, 2, timer)
    failures = {name: timing.failure for name, timing in found.items()}
    assert failures == {
        "right": None,
        "result": "out of memory",
        "call": "out of memory",
        "graph": "no graph: it waits for the device",
    }
    assert set(found["right"].ratios) == {"right"}
    for name in ("result", "call", "graph"):
        assert found[name].wrong is None and found[name].milliseconds is None
        assert harness.time_cells(found[name]) == ("none", "")
    assert checked["right"].milliseconds is None  # what was checked is not changed


def test_memory_that_a_call_holds_is_counted_exactly():
    x = torch.rand(1000)

    def call() -> torch.Tensor:
        doubled = x.neg()
        tripled = doubled.neg()
        del doubled
        return tripled.neg()

    assert harness.allocated_peak(call) == 2 * 4000
    assert harness.allocated_peak(lambda: x.neg_()) == 0
    assert harness.allocated_peak(lambda: [x.neg(), x.neg(), x.neg()]) == 3 * 4000
    calls = []
    assert harness.allocated_peak(lambda: calls.append(x.neg()), warm=False) == 4000 and len(calls) == 1


def test_single_calls_are_timed_as_they_are(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def run() -> None:
        clock[0] += 2.0

    sample = harness.call_timer(run)
    assert clock == [0.0] and sample() == 2.0 and clock == [2.0]


def test_memory_kept_for_the_backward_pass_is_counted_exactly():
    x = torch.rand(10, 100, requires_grad=True)
    weight = torch.rand(100, requires_grad=True)
    assert harness.saved_bytes(lambda: x * weight) == 4000 + 400
    assert harness.saved_bytes(lambda: x * weight, [weight]) == 4000
    assert harness.saved_bytes(lambda: x[:2].mul(x[4:6]), [weight]) == 4000  # views: one storage, whole
    assert harness.saved_bytes(lambda: x.exp().exp()) == 2 * 4000
    assert harness.saved_bytes(lambda: x + 1) == 0
    with torch.no_grad():
        assert harness.saved_bytes(lambda: x * weight) == 0


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_attention_keeps_its_input_and_the_published_form_twelve_tensors(backend):
    if not irnext.backends()[backend]:
        pytest.skip(irnext.backends()[backend].reason)
    x = torch.randn(1, 16, 40, 30, requires_grad=True)
    size = x.numel() * x.element_size()
    kept = {}
    for cls in (UnfoldAttention, irnext.LocalAttention):
        module = randomise(cls(16)).eval()
        with irnext.use_backend(backend):
            kept[cls] = harness.saved_bytes(lambda module=module: module(x), module.parameters())
    numbers_per_plane = 4 * 16 * 9 * 10  # at most ten numbers per channel and tap
    assert 0 <= kept[UnfoldAttention] - 12 * size < numbers_per_plane
    if backend == "cpu":
        assert 0 <= kept[irnext.LocalAttention] - size < numbers_per_plane


def hold(megabytes: int):
    """A step that needs a given amount of memory for a moment, and keeps none of it."""
    return lambda: torch.ones(megabytes * 2**18).sum()


@pytest.mark.skipif(not harness.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_what_a_step_takes():
    ballast = torch.ones(64 * 2**18)  # the parent's memory is not the child's
    assert harness.peak_memory(hold, 96) / 2**20 == pytest.approx(96, abs=12)
    assert ballast.sum() > 0


def test_an_error_that_is_no_number_can_be_recorded():
    x = torch.rand(3)
    found = harness.check({"nan": Variant(int, lambda: [x * torch.nan])}, [x.double()], torch.float32)
    assert found["nan"].error is None and "off by inf" in found["nan"].wrong


def test_tables_have_no_empty_columns():
    table = harness.table_of("title", [{"a": "1", "b": "", "c": ""}, {"a": "2", "b": "", "c": "3"}])
    assert [column.header for column in table.columns] == ["a", "c"] and table.row_count == 2


def test_results_are_written_whole_or_not_at_all(tmp_path):
    here = harness.machine()
    harness.write_results("name", here, {}, [{"a": 2}], tmp_path, more=[3])
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_text())["more"] == [3]
    path = harness.write_results("name", here, {}, [{"a": 1}], tmp_path)
    with pytest.raises(ValueError):
        harness.write_results("name", here, {}, [{"a": float("nan")}], tmp_path)
    assert json.loads(path.read_text())["results"] == [{"a": 1}]
    assert list(path.parent.iterdir()) == [path]


def test_results_alone_are_no_change_of_the_code(tmp_path):
    """Otherwise of two results written in a row the second would have been measured with changes."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    results = tmp_path / "benchmarks/results"
    (results / "machine").mkdir(parents=True)
    (results / "machine/a.json").write_text("{}")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "m")
    for name in ("a.json", "b.json"):  # written again, and new
        (results / "machine" / name).write_text("{} ")
    assert not provenance.current_commit(tmp_path).endswith("+")
    (tmp_path / "benchmarks/new.py").touch()
    assert provenance.current_commit(tmp_path).endswith("+")


# ---- on a CUDA device, by way of stand-ins for the device ----------------------------------------


class FakeCuda:
    """A device whose only clock is moved by `work`; what is captured runs again when it is replayed."""

    def __init__(self):
        self.now, self.captured, self.allocated, self.peak = 0.0, None, 0, 0
        self.synchronize = lambda: None

    def work(self, seconds: float) -> None:
        if self.captured is not None:
            self.captured.append(seconds)
        else:
            self.now += seconds

    def Event(self, enable_timing):
        event = SimpleNamespace()
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event

    def CUDAGraph(self):
        graph = SimpleNamespace(work=[])
        graph.replay = lambda: self.work(sum(graph.work))
        return graph

    def current_stream(self):
        return "side stream"

    @contextlib.contextmanager
    def graph(self, graph, stream):
        assert stream == "side stream"  # autograd's work would not be captured on another
        self.captured = graph.work
        try:
            yield
        finally:
            self.captured = None

    def allocate(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def memory_allocated(self) -> int:
        return self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated


def test_single_calls_on_a_device_begin_when_it_is_idle():
    cuda, order = FakeCuda(), []
    cuda.synchronize = lambda: order.append("wait")

    def run() -> None:
        order.append("run")
        cuda.work(0.25)

    assert device.call_timer(run, cuda)() == pytest.approx(0.25)
    assert order == ["wait", "run", "wait"]


@pytest.mark.parametrize("enabled", [True, False])
def test_tf32_is_what_was_asked_for_and_then_what_it_was(enabled):
    libraries = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [library.allow_tf32 for library in libraries]
    with device.tf32(enabled):
        assert [library.allow_tf32 for library in libraries] == [enabled, enabled]
    assert [library.allow_tf32 for library in libraries] == before


@pytest.mark.parametrize(("seconds", "calls"), [(0.001, 20), (1e-9, 1000), (0.5, 1)])
def test_graph_times_are_those_of_one_call(seconds, calls):
    cuda, made = FakeCuda(), []

    def run() -> None:
        made.append(1)
        cuda.work(seconds)

    sample = device.graph_timer(0.02, cuda)(run)
    assert sample() == pytest.approx(seconds)
    assert len(made) == 2 + calls  # to warm up, to size the graph, and into the graph; none when replayed


def test_what_cannot_be_captured_has_no_graph_time():
    cuda = FakeCuda()

    def waits() -> None:
        if cuda.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(
        harness.CannotTime, match=r"^no graph: operation not permitted when stream is capturing$"
    ):
        device.graph_timer(0.02, cuda)(waits)


def test_cold_times_are_medians_in_seconds():
    asked = []

    def do_bench(run, warmup, rep, return_mode):
        asked.append((warmup, rep, return_mode))
        run()
        return 3.0

    ran = []
    sample = device.cold_timer(0.02, do_bench)(lambda: ran.append(1))
    assert sample() == pytest.approx(0.003)
    assert asked == [(5, 20, "median")] and len(ran) == 2


def test_the_large_copy_counts_what_is_read_and_written():
    samples = iter([0.5, 0.25, 0.5])
    copied = []

    def timer(run):
        copied.append(run().numel())
        return lambda: next(samples)

    assert device.large_copy_bandwidth(timer, size=1000, device="cpu") == 2 * 1000 / 0.25
    assert copied == [1000]


def test_peak_memory_of_a_device_is_over_what_was_there():
    cuda = FakeCuda()
    cuda.allocate(70)
    cuda.allocate(-20)

    def run() -> None:
        cuda.allocate(30)
        cuda.allocate(-10)
        cuda.allocate(5)
        cuda.allocate(-25)

    assert device.allocated_peak(run, cuda) == device.allocated_peak(run, cuda, warm=False) == 30


def test_kernels_are_told_from_copies_and_from_the_host():
    kinds = torch.autograd.DeviceType

    def event(name, kind):
        return SimpleNamespace(name=lambda: name, device_type=lambda: kind)

    events = [
        event("filter_kernel", kinds.CUDA),
        event("Memcpy DtoD (Device -> Device)", kinds.CUDA),
        event("Memset (Device)", kinds.CUDA),
        event("cudaLaunchKernel", kinds.CPU),
        event("mean_kernel", kinds.CUDA),
    ]
    assert [device.is_kernel(one) for one in events] == [True, False, False, False, True]


def test_the_record_of_a_gpu():
    gpu = SimpleNamespace(
        name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, total_memory=1, uuid="a-b"
    )
    cuda = SimpleNamespace(get_device_properties=lambda index: gpu, current_device=lambda: 0)

    def smi(*arguments: str) -> str:
        assert "--id=GPU-a-b" in arguments
        query = next(a for a in arguments if a.startswith("--query-gpu=")).split("=")[1]
        return ", ".join(f"value of {field}" for field in query.split(",")) + "\n"

    pytest.importorskip("triton")
    found = device.record(cuda, smi)
    assert found["name"] == "NVIDIA H100" and found["capability"] == "9.0"
    assert found["state"]["clocks.sm"] == "value of clocks.sm"
    assert found["state"]["driver_version"] == "value of driver_version"

    def missing(*arguments: str) -> str:
        raise FileNotFoundError("nvidia-smi")

    assert device.record(cuda, missing)["state"] == {}


def test_results_of_a_gpu_lie_under_its_name(tmp_path):
    here = harness.machine({"name": "NVIDIA H100 80GB HBM3", "cuda": "13.0"})
    assert harness.write_results("lam", here, {}, [], tmp_path).parent.name == "nvidia-h100-80gb-hbm3"
    assert harness.describe(here).startswith("NVIDIA H100 80GB HBM3 (CUDA 13.0); ")


# ---- the benchmarks, at their smallest -----------------------------------------------------------


SHAPES = "--shapes 1 8 6 5 2 8 4 4 --forward-shapes 1 8 9 7"
ALL_DIRECTIONS = ("forward", "backward", "forward + backward")


def run_lam(tmp_path, *more: str, shapes: str = SHAPES) -> tuple[int, list[dict], dict]:
    """The exit status, the results and the options of the smallest run."""
    options = f"--rounds 2 --sample-seconds 0 --json --results {tmp_path} {shapes}"
    status = lam.main([*options.split(), *more])
    (path,) = tmp_path.rglob("lam.json")
    record = json.loads(path.read_text())
    assert record["machine"]["torch"] == torch.__version__
    return status, record["results"], record["options"]


def test_lam_benchmark_of_the_local_mean(tmp_path):
    status, results, _ = run_lam(tmp_path, "--low-pass", "local", "--directions", *ALL_DIRECTIONS)
    assert status == 0
    assert all(result["milliseconds"] > 0 and result["moved_tensors"] is None for result in results)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lam_benchmark(tmp_path, capsys, dtype):
    status, results, options = run_lam(tmp_path, "--dtypes", dtype)
    assert status == 0 and options["dtypes"] == [dtype]
    assert len(results) == 5 * 6  # cases x variants
    for result in results:
        assert result["wrong"] is None and result["milliseconds"] > 0
        assert result["dtype"] == dtype and not result["training"]
        ours, moves_only = (
            result["variant"].startswith("irnext"),
            result["variant"] in ("copy", "clone + mean"),
        )
        if ours:
            assert result["error"] < 0.05 and result["share_of_floor"] > 0
        assert (result["gb_per_s"] is None) == moves_only
        assert (result["peak_bytes"] is None) == moves_only
        assert (result["saved_bytes"] is None) == (moves_only or result["direction"] == "forward")
        assert result["launches"] is None
    output = capsys.readouterr().out
    assert "LAM forward + backward, (2, 8, 4, 4)" in output
    assert "graph ms" not in output and "launches" not in output  # nothing to show on a CPU


def test_lam_rates_follow_from_the_least_traffic(tmp_path):
    _, results, _ = run_lam(tmp_path, "--directions", *ALL_DIRECTIONS, "--backends", "reference")
    tensors = {"forward": 3, "backward": 4, "forward + backward": 7}
    assert {result["direction"] for result in results} == set(tensors)
    for result in results:
        if result["error"] is not None:
            moved = tensors[result["direction"]] * 4 * torch.Size(result["shape"]).numel()
            assert result["gb_per_s"] == pytest.approx(moved / result["milliseconds"] / 1e6)
            share = result["ratios"]["copy"] * tensors[result["direction"]] / 2
            assert result["share_of_floor"] == pytest.approx(share)


def test_lam_shows_and_keeps_the_times_of_a_second_timer(tmp_path, capsys, monkeypatch):
    """As on a GPU, where calls are timed with cold caches and by graph replay; some have no graph."""

    def graphs(run):
        if isinstance(run, lam.Backward):
            raise harness.CannotTime("no graph: refused")
        return lambda: 0.002

    monkeypatch.setattr(lam, "make_timers", lambda options: [lambda run: lambda: 0.004, graphs])
    _, results, _ = run_lam(tmp_path, "--directions", "forward", "backward")
    for result in results:
        assert result["milliseconds"] == pytest.approx(4)
        captured = result["direction"] == "forward" or result["error"] is None
        assert result["graph_milliseconds"] == (pytest.approx(2) if captured else None)
        assert result["graph_failure"] == (None if captured else "no graph: refused")
        assert (result["graph_ratios"].get("copy") == 1) == captured
    assert "graph ms" in capsys.readouterr().out


def test_lam_benchmark_of_training(tmp_path):
    """All types, layouts and directions; several samples are normalised by their own statistics."""
    options = ["--suite", "training", "--directions", *ALL_DIRECTIONS, "--backends", "auto"]
    options += ["--layouts", "contiguous", "channels_last", "--dtypes", "float32", "float16", "bfloat16"]
    status, results, _ = run_lam(tmp_path, *options, shapes="--shapes 1 16 6 5 4 16 9 7")
    assert status == 0 and len(results) == 3 * 2 * 3 * 2 * 5
    for result in results:
        assert result["training"] == (result["shape"][0] > 1)
        assert result["milliseconds"] > 0


def test_lam_benchmark_of_compiled_baselines(tmp_path):
    """The backward pass alone comes again and again: compiled functions may not reuse what they saved."""
    options = ["--suite", "training", "--directions", "backward", "--compile", "--backends", "reference"]
    status, results, _ = run_lam(tmp_path, *options, shapes="--shapes 1 8 6 5")
    assert status == 0
    names = {result["variant"] for result in results}
    assert {"compiled unfold (published)", "compiled grouped convolution"} < names
    assert all(result["milliseconds"] > 0 for result in results)


def test_lam_counts_the_launches_of_emulated_kernels(tmp_path):
    if not irnext.backends()["cuda-host"]:
        pytest.skip(irnext.backends()["cuda-host"].reason)
    options = ["--backends", "cuda-host", "reference", "--directions", *ALL_DIRECTIONS]
    _, results, _ = run_lam(tmp_path, *options, shapes="--shapes 1 8 6 5 --forward-shapes 1 8 6 5")
    launches = {
        result["direction"]: result["launches"]
        for result in results
        if result["variant"] == "irnext (cuda-host)"
    }
    assert 1 <= launches["forward"] <= 3 and 1 <= launches["backward"] <= 6
    assert launches["forward + backward"] == launches["forward"] + launches["backward"]
    assert all(r["launches"] is None for r in results if r["variant"] == "irnext (reference)")


def test_lam_benchmark_with_a_wrong_operator(tmp_path, capsys, monkeypatch):
    right = irnext.ops.local_attention

    def wrong(*arguments):
        y, *rest = right(*arguments)
        return y * 1.001, *rest

    monkeypatch.setattr(irnext.ops, "local_attention", wrong)
    status, results, _ = run_lam(tmp_path, "--directions", *ALL_DIRECTIONS)
    assert status == 1
    for result in results:
        ours = result["variant"].startswith("irnext")
        moves_only = result["error"] is None
        assert (result["milliseconds"] is None) == ours
        for figure in ("share_of_floor", "gb_per_s", "peak_bytes"):
            assert (result[figure] is None) == (ours or moves_only)
    for line in capsys.readouterr().out.splitlines():
        assert "irnext (" not in line or "wrong" in line


def test_lam_goes_on_where_memory_is_short(tmp_path, capsys, monkeypatch):
    measure = lam.measure

    def short(options, case):
        if case.shape == (2, 8, 4, 4):
            raise torch.OutOfMemoryError("too much")
        return measure(options, case)

    monkeypatch.setattr(lam, "measure", short)
    status, results, _ = run_lam(tmp_path, "--backends", "reference")
    assert status == 0
    assert {tuple(result["shape"]) for result in results} == {(1, 8, 6, 5), (1, 8, 9, 7)}
    assert "(2, 8, 4, 4), float32, contiguous: not enough memory" in capsys.readouterr().out


def test_suites_hold_the_planes_of_the_network():
    """The shapes that attentions of IRNeXt get from a 256 x 256 crop and from padded pictures."""
    seen = set()
    model = irnext.IRNeXt(1).eval()
    for module in model.modules():
        if isinstance(module, irnext.LocalAttention):
            module.register_forward_pre_hook(lambda module, inputs: seen.add(tuple(inputs[0].shape)))
    with torch.no_grad():
        model(torch.rand(1, 3, 256, 256))
    assert {shape for shape in lam.SUITES["training"] if shape[0] == 1} == seen
    assert {shape[0] for shape in lam.SUITES["training"]} == {1, 4, 8}
    for height, width in ((736, 1280), (2176, 3840)):
        larger = {(n, c, h * height // 256, w * width // 256) for n, c, h, w in seen}
        assert larger < set(lam.SUITES["planes"])
    assert len(lam.SUITES["planes"]) == 18


def test_the_full_suite_is_all_of_them_once():
    cases = lam.make_cases(lam.Options(suite="full", directions=("forward",)))
    assert len(cases) == len(set(cases)) == 3 + 1 + 27 - 3 + 18  # three of batch 1 are in the quick suite too
    assert {case.shape for case in cases if case.training} == {
        shape for shape in lam.SUITES["training"] if shape[0] > 1
    }


def test_traffic_of_every_backend_is_no_less_than_the_least():
    assert set(lam.KERNEL_TRAFFIC) == set(irnext.backends()) - {"reference"}
    for traffic in lam.KERNEL_TRAFFIC.values():
        assert set(traffic) == set(lam.LEAST_TRAFFIC)
        for name, least in lam.LEAST_TRAFFIC.items():
            assert traffic[name].reads >= least.reads and traffic[name].writes >= least.writes


def test_overhead_benchmark(tmp_path, capsys):
    options = f"--rounds 2 --calls 2 --shape 1 8 6 5 --json --results {tmp_path}"
    assert overhead.main(options.split()) == 0
    (path,) = tmp_path.rglob("overhead.json")
    results = json.loads(path.read_text())["results"]
    assert {row["operator"] for row in results} == {*irnext.ops.dispatch.COMPILED_OPS}
    assert len(results) == 6 * 3 + 1  # statistics have no gradient
    for row in results:
        assert row["beyond_us"] == pytest.approx(row["irnext_us"] - row["pytorch_us"])
    assert "beyond" in capsys.readouterr().out


def test_overhead_benchmark_with_a_wrong_operator(tmp_path, capsys, monkeypatch):
    right = irnext.ops.spatial_mean
    monkeypatch.setattr(irnext.ops, "spatial_mean", lambda x: right(x) * 1.001)
    assert overhead.main(["--rounds", "1", "--calls", "1"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "spatial_mean" in line]
    assert len(lines) == 3 and all("wrong" in line for line in lines)


def test_operators_run_under_pytest_benchmark():
    """Each once, untimed: its results are checked there."""
    if importlib.util.find_spec("pytest_benchmark") is None:
        pytest.skip("needs the extra 'benchmark'")
    root = Path(harness.__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-disable", "benchmarks/test_operators.py"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "48 passed" in found.stdout


def run_training(tmp_path, *more: str) -> tuple[int, list[dict]]:
    options = f"--blocks 1 --width 8 --size 64 --rounds 1 --json --results {tmp_path}"
    status = training_step.main([*options.split(), *more])
    (path,) = tmp_path.rglob("training_step.json")
    return status, json.loads(path.read_text())["results"]


EAGER_STEPS = [training_step.PUBLISHED, training_step.OURS, training_step.REFERENCE]


def test_training_step_benchmark(tmp_path, capsys):
    status, results = run_training(tmp_path, "--batch", "3")
    assert status == 0
    assert [result["variant"] for result in results] == EAGER_STEPS
    weights = sum(tensor.numel() for tensor in irnext.IRNeXt(1, 8).parameters())
    buffers = sum(tensor.nbytes for tensor in irnext.IRNeXt(1, 8).buffers())
    for result in results:
        assert result["milliseconds"] > 0 and result["ratios"]["published, eager"] > 0
        assert result["error"] < 1e-4 and result["comparison"] == "eager"
        assert result["weight_bytes"] == 4 * weights + buffers
        assert result["gradient_bytes"] == 4 * weights
        assert 8 * weights <= result["optimizer_bytes"] < 8 * weights + 10_000  # and the steps
        # Gradients are made anew, and the activations of three crops are more than they.
        assert result["peak_above_state_bytes"] > 4 * weights
        assert result["peak_bytes"] > 2**20
    assert results[0]["peak_above_state_of_published"] == results[0]["peak_of_published"] == 1
    assert results[1]["peak_above_state_of_published"] < 0.9
    printed = capsys.readouterr().out
    assert "IRNeXt(1), 3 x 64 x 64, float32" in printed and "vs compiled" not in printed


def test_training_step_benchmark_of_all_kinds(tmp_path, monkeypatch):
    """In half precision, deterministic and compiled; the compiler itself would take minutes."""
    given = []

    def compile_nothing(network, **options):
        given.append((network, options))
        return network

    monkeypatch.setattr(torch, "compile", compile_nothing)
    more = ["--dtype", "bfloat16", "--deterministic", "--compiled", "--no-memory", "--no-reference"]
    status, results = run_training(tmp_path, *more)
    assert status == 0
    names = [
        *(training_step.PUBLISHED, training_step.OURS, training_step.DETERMINISTIC),
        *(training_step.PUBLISHED, training_step.COMPILED, training_step.OURS),
    ]
    assert [result["variant"] for result in results] == names
    assert [result["comparison"] for result in results] == ["eager"] * 3 + ["compiled"] * 3
    assert all(result["ratios"][training_step.COMPILED] > 0 for result in results[3:])
    assert all(result.get("peak_bytes") is None for result in results)
    ((network, options),) = given
    assert type(network) is PublishedIRNeXt and network.training and options == {"dynamic": False}


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_wrong_training_step_gets_no_time(tmp_path, monkeypatch, wrong):
    forward = irnext.DualDomainLoss.forward if wrong == "loss" else irnext.IRNeXt.forward

    def off(self, *arguments):
        found = forward(self, *arguments)
        return found * 1.001 if wrong == "loss" else [y + (y - y.detach()) for y in found]

    monkeypatch.setattr(irnext.DualDomainLoss if wrong == "loss" else irnext.IRNeXt, "forward", off)
    status, results = run_training(tmp_path, "--no-memory")
    assert status == 1
    for result in results:
        ours = result["variant"] != training_step.PUBLISHED
        assert (result["milliseconds"] is None) == ours == bool(result["wrong"])


def test_a_training_step_that_cannot_run_says_why_and_stops_nobody(tmp_path, monkeypatch, capsys):
    refusal = "aten::some does not have a deterministic implementation\nmore"

    def refused(self):
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError(refusal)
        return forward(self)

    def broken(network, **options):
        def call(x):
            raise RuntimeError("no compiler")

        return call

    forward = training_step.Trainer.forward
    monkeypatch.setattr(training_step.Trainer, "forward", refused)
    monkeypatch.setattr(torch, "compile", broken)
    more = ["--deterministic", "--compiled", "--no-memory", "--no-reference"]
    status, results = run_training(tmp_path, *more)
    assert status == 0 and not torch.are_deterministic_algorithms_enabled()
    failures = {result["variant"]: result["failure"] for result in results if result["failure"]}
    assert failures == {
        training_step.DETERMINISTIC: "RuntimeError: " + refusal.splitlines()[0],
        training_step.COMPILED: "RuntimeError: no compiler",
    }
    assert sum(result["milliseconds"] is not None for result in results) == len(results) - 2


def test_a_loss_that_is_no_number_has_no_time():
    with pytest.raises(harness.CannotTime, match="the loss is not finite"):
        training_step.warm_timer(False)(lambda: torch.tensor(torch.nan))


def test_bad_options_say_what_would_be_right(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        lam.main(["--dtypes", "float8"])
    assert stop.value.code != 0
    assert "bfloat16" in capsys.readouterr().err
    with pytest.raises(ValueError, match="batch at least 2"):
        training_step.Options(batch=1)
    with pytest.raises(ValueError, match="size is 70: it must be a multiple of 32, at least 64"):
        training_step.Options(size=70)
    with pytest.raises(ValueError, match="at least 1"):
        lam.Options(rounds=0)
    with pytest.raises(ValueError, match="at least 1"):
        overhead.Options(calls=0)
    with pytest.raises(ValueError, match="unknown backend 'fastest'"):
        lam.Options(backends=("fastest",))
    if not torch.cuda.is_available():
        for options in (lam.Options, overhead.Options, training_step.Options):
            with pytest.raises(ValueError, match="PyTorch sees no CUDA device"):
                options(device="cuda")


def test_a_busy_machine_is_said_to_be_busy():
    here = harness.machine()
    assert "not to be trusted" in harness.describe(here | {"load": 3.0})
    assert "not to be trusted" not in harness.describe(here | {"load": 0.0})


def test_tables_are_not_wrapped():
    names = (lam.UNFOLD, lam.GROUPED, f"compiled {lam.GROUPED}", "irnext (reference)", lam.COPY)
    ratios = {lam.UNFOLD: 1.0, lam.GROUPED: 10.0, lam.CLONE_MEAN: 100.0, lam.COPY: 0.5}
    timing = harness.Timing(1234.567, 0.1, ratios, 1e-7)
    found = {name: lam.Found(timing, timing, 2**30, 12, 2**31, 3) for name in names}
    case = lam.Case("forward + backward", (1, 32, 128, 128), "float32", "channels_last", True)
    text = io.StringIO()
    lam.show(harness.make_console(file=text), case, found, 3e12)
    lines = text.getvalue().splitlines()
    assert len(lines) == 1 + 3 + len(names) + 1
    for name in names:
        (line,) = (line for line in lines if line.startswith(f"│ {name} "))
        assert line.count("│") == 15 and "…" not in line and "2048.00" in line
    assert "graph ms" in lines[2] and "of large copy" in lines[2] and "launches" in lines[2]
