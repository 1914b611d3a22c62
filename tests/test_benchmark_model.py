"""The benchmark of whole models is honest, counts right, and runs."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import irnext
from benchmarks import harness, model
from benchmarks.published import PublishedIRNeXt

SMALL = model.Options(blocks=1, width=8, sizes=((64, 96),), rounds=1, compiled=False)


@pytest.fixture(autouse=True)
def small_measurements(monkeypatch):
    """Rates of this machine are not what is tested."""
    monkeypatch.setattr(model, "copy_bandwidth", lambda on: 1e10)
    monkeypatch.setattr(model, "convolution_rate", lambda dtype, on, widths: 1e11)
    monkeypatch.setattr(harness, "keep_freed_memory", lambda: None)


def run(tmp_path, *more: str) -> tuple[int, list[dict]]:
    options = "--blocks 1 --width 8 --sizes 64 96 --rounds 2 --no-compiled --json"
    status = model.main([*options.split(), "--results", str(tmp_path), *more])
    (path,) = tmp_path.rglob("model.json")
    return status, json.loads(path.read_text())["results"]


def test_it_runs_and_records(tmp_path, capsys):
    status, results = run(tmp_path)
    assert status == 0
    names = [model.PUBLISHED, model.PLAIN, model.OPTIMIZED]
    assert [result["variant"] for result in results] == 2 * names
    assert [result["dtype"] for result in results] == ["float32"] * 3 + ["bfloat16"] * 3
    for result in results:
        assert result["wrong"] is None and result["milliseconds"] > 0 and result["size"] == [64, 96]
        assert result["error"] < (1e-5 if result["dtype"] == "float32" else 0.1)
        assert result["pictures_per_second"] == pytest.approx(1e3 / result["milliseconds"])
        assert result["peak_bytes"] > 64 * 96 * 8 * (4 if result["dtype"] == "float32" else 2)
        account, floor = result["account_ms"], result["floor"]
        assert account["convolutions"] > 0 and account["attention"] > 0 and account["pyramids"] > 0
        assert result["share_of_floor"] == pytest.approx(
            max(floor["by_operations_ms"], floor["by_bytes_ms"]) / result["milliseconds"]
        )
        assert result["ratios"][model.PUBLISHED] > 0
    printed = capsys.readouterr().out
    assert "IRNeXt(1), 1 x 64 x 96, bfloat16: where the time goes" in printed
    assert "G multiply-accumulates" in printed


def test_a_wrong_model_gets_no_time(tmp_path, monkeypatch):
    right = model.optimize

    def wrong(plain: nn.Module, dtype: torch.dtype):
        made = right(plain, dtype=dtype)
        return lambda x: [y + 1e-3 for y in made(x)]

    monkeypatch.setattr(model, "optimize", wrong)
    status, results = run(tmp_path, "--dtypes", "float32")
    assert status == 1
    for result in results:
        assert (result["milliseconds"] is None) == (result["variant"] == model.OPTIMIZED)
    assert "allowed" in results[-1]["wrong"] and "peak_bytes" not in results[-1]


def test_the_compiled_variant_is_the_published_network_frozen(tmp_path, monkeypatch):
    """The compiler itself takes minutes; what it is given is what counts."""
    given = []

    def compile_nothing(network, options):
        given.append((network, options))
        return network

    monkeypatch.setattr(torch, "compile", compile_nothing)
    runs = model.make_runs(model.Options(blocks=1, width=8), torch.rand(1, 3, 64, 64), torch.float32)
    assert list(runs) == [model.PUBLISHED, model.COMPILED, model.PLAIN, model.OPTIMIZED]
    ((network, options),) = given
    assert type(network) is PublishedIRNeXt and not network.training and options == {"freezing": True}


def test_variants_share_weights_and_types():
    x = torch.rand(1, 3, 64, 64)
    expected = model.make_model(PublishedIRNeXt, SMALL).double()(x.double())
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        for run in model.make_runs(SMALL, x, dtype).values():
            found = run()
            assert harness.relative_error(found, expected) < allowed
            assert not any(y.requires_grad for y in found)
    gains = [p for n, p in model.make_model(irnext.IRNeXt, SMALL).named_parameters() if n.endswith("_gain")]
    assert gains and all(gain.abs().max() > 0 for gain in gains)


def test_the_floor_counts_every_convolution_once():
    """One convolution 3 -> 8, by hand, and all of a network by its parts."""
    x = torch.rand(2, 3, 64, 64)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert model.convolution_numbers(conv, x) == x.numel() + 2 * 8 * 64 * 64 + 8 * 3 * 9
    assert not conv._forward_hooks
    floor = model.floors(SMALL, x, torch.bfloat16)
    cost = irnext.complexity.measure(model.make_model(irnext.IRNeXt, SMALL), (64, 64))
    assert floor["macs"] == 2 * cost.macs
    assert floor["by_operations_ms"] == pytest.approx(floor["macs"] / 1e11 * 1e3)
    assert floor["by_bytes_ms"] == pytest.approx(floor["bytes"] / 1e10 * 1e3)
    assert floor["bytes"] % 2 == 0
    assert floor["bytes"] * 2 == model.floors(SMALL, x, torch.float32)["bytes"]


def test_rates_are_counted_right(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(model, "_seconds", lambda run, on_gpu: (run(), 0.5)[1])
    on = torch.device("cpu")
    assert model.copy_bandwidth(on, 1000) == 4000
    assert model.convolution_rate(torch.float32, on, [8, 16]) == 64 * 64 * 16 * 16 * 9 / 0.5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("mkldnn::_convolution_pointwise_", "convolutions"),
        ("aten::slow_conv_transpose2d", "convolutions"),
        ("irnext::local_attention", "attention"),
        ("aten::im2col", "attention"),
        ("aten::native_batch_norm", "attention"),
        ("aten::avg_pool2d", "pyramids"),
        ("aten::upsample_bilinear2d", "pyramids"),
        ("aten::gelu_", "pyramids"),
        ("aten::cat", "copies"),
        ("aten::copy_", "copies"),
        ("aten::empty", "other"),
    ],
)
def test_operators_are_counted_where_they_belong(name, kind):
    assert model.kind_of(name) == kind


def test_the_account_is_of_one_call():
    x, calls = torch.rand(1, 16, 64, 64), []

    def run() -> torch.Tensor:
        calls.append(1)
        return torch.conv2d(x, torch.ones(16, 16, 3, 3))

    found = {repeats: model.account(run, on_gpu=False, repeats=repeats) for repeats in (1, 20)}
    assert len(calls) == (1 + 1) + (1 + 20)
    for account in found.values():
        assert list(account) == [*model.KINDS, model.OTHER]
        assert account["convolutions"] > 0 and account["attention"] == account["pyramids"] == 0
    assert found[20]["convolutions"] < 10 * found[1]["convolutions"]


def test_bad_options_say_what_would_be_right(capsys):
    with pytest.raises(ValueError, match="multiple of 32"):
        model.Options(sizes=((64, 70),))
    with pytest.raises(ValueError, match="at least 1"):
        model.Options(rounds=0)
    with pytest.raises(SystemExit):
        model.main(["--dtypes", "float8"])
    assert "bfloat16" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            model.Options(device="cuda")
