"""The baselines compute what irnext computes, the harness is honest, and every benchmark runs."""

from __future__ import annotations

import io
import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import irnext
from benchmarks import harness, lam, training_step
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


def hold(megabytes: int):
    """A step that needs a given amount of memory for a moment, and keeps none of it."""
    return lambda: torch.ones(megabytes * 2**18).sum()


@pytest.mark.skipif(not harness.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_what_a_step_takes():
    ballast = torch.ones(64 * 2**18)  # the parent's memory is not the child's
    assert harness.peak_memory(hold, 96) / 2**20 == pytest.approx(96, abs=12)
    assert ballast.sum() > 0


def test_results_are_written_whole_or_not_at_all(tmp_path):
    here = harness.machine()
    path = harness.write_results("name", here, {}, [{"a": 1}], tmp_path)
    with pytest.raises(ValueError):
        harness.write_results("name", here, {}, [{"a": float("nan")}], tmp_path)
    assert json.loads(path.read_text())["results"] == [{"a": 1}]
    assert list(path.parent.iterdir()) == [path]


# ---- the benchmarks, at their smallest -----------------------------------------------------------


def run_lam(tmp_path, *more: str) -> int:
    options = "--rounds 2 --sample-seconds 0 --shapes 1 8 6 5 2 8 4 4 --forward-shapes 1 8 9 7 --json"
    return lam.main([*options.split(), "--results", str(tmp_path), *more])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lam_benchmark(tmp_path, capsys, dtype):
    assert run_lam(tmp_path, "--dtype", dtype) == 0
    (path,) = tmp_path.rglob("lam.json")
    record = json.loads(path.read_text())
    assert record["machine"]["torch"] == torch.__version__
    assert record["options"]["dtype"] == dtype
    assert len(record["results"]) == 5 * 6  # cases x variants
    for result in record["results"]:
        assert result["wrong"] is None and result["milliseconds"] > 0
        if result["variant"].startswith("irnext"):
            assert result["error"] < 0.05 and result["share_of_floor"] > 0
    assert "LAM forward + backward, (2, 8, 4, 4)" in capsys.readouterr().out


def test_lam_benchmark_with_a_wrong_operator(tmp_path, capsys, monkeypatch):
    right = irnext.ops.dynamic_conv2d
    monkeypatch.setattr(irnext.ops, "dynamic_conv2d", lambda x, kernel, bias: right(x, kernel, bias) * 1.001)
    assert run_lam(tmp_path) == 1
    (path,) = tmp_path.rglob("lam.json")
    for result in json.loads(path.read_text())["results"]:
        ours = result["variant"].startswith("irnext")
        assert (result["milliseconds"] is None) == ours
        assert (result["share_of_floor"] is None) == (ours or result["error"] is None)
    for line in capsys.readouterr().out.splitlines():
        assert "irnext (" not in line or "wrong" in line


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_step_benchmark(tmp_path, dtype):
    options = f"--blocks 1 --width 8 --size 64 --rounds 1 --json --dtype {dtype}"
    memory = [] if dtype == "float32" else ["--no-memory"]
    assert training_step.main([*options.split(), "--results", str(tmp_path), *memory]) == 0
    (path,) = tmp_path.rglob("training_step.json")
    results = json.loads(path.read_text())["results"]
    assert [result["variant"] for result in results] == list(training_step.KINDS)
    for result in results:
        assert result["milliseconds"] > 0 and result["ratios"]["published, eager"] > 0
        assert (result["peak_bytes"] or 0) > 2**20 or memory


def test_bad_options_say_what_would_be_right(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        lam.main(["--dtype", "float8"])
    assert stop.value.code != 0
    assert "bfloat16" in capsys.readouterr().err
    with pytest.raises(ValueError, match="batch at least 2"):
        training_step.Options(batch=1)
    with pytest.raises(ValueError, match="at least 1"):
        lam.Options(rounds=0)


def test_a_busy_machine_is_said_to_be_busy():
    here = harness.machine()
    assert "not to be trusted" in harness.describe(here | {"load": 3.0})
    assert "not to be trusted" not in harness.describe(here | {"load": 0.0})


def test_tables_fit_a_terminal():
    timings = {
        name: harness.Timing(1234.567, 0.1, {lam.UNFOLD: 1.0, lam.GROUPED: 10.0, lam.COPY: 0.5}, 1e-7)
        for name in (lam.UNFOLD, lam.GROUPED, f"torch.compile: {lam.GROUPED}", "irnext (reference)", lam.COPY)
    }
    text = io.StringIO()
    lam.show(harness.make_console(file=text), lam.Options(), "forward + backward", (1, 32, 128, 128), timings)
    for name in timings:
        assert name in text.getvalue()  # not wrapped
