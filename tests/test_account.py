"""The account of a call's time puts every operator and kernel where it belongs, and loses nothing."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import irnext
from benchmarks import account
from benchmarks.account import Span, attribute
from benchmarks.published import PublishedIRNeXt
from irnext.optimization import optimize


@pytest.mark.parametrize(
    ("name", "part", "kind"),
    [
        ("aten::mkldnn_convolution", None, "convolutions"),
        ("mkldnn::_convolution_pointwise_", None, "convolutions"),
        ("irnext::winograd_conv2d", None, "convolutions"),
        ("sm90_xmma_fprop_implicit_gemm_bf16", None, "convolutions"),
        ("triton_tem_fused_convolution_3", None, "convolutions"),
        ("irnext::local_attention", None, "attention"),
        ("irnext::dynamic_conv2d", None, "attention"),
        ("aten::im2col", None, "attention"),
        ("aten::avg_pool2d", None, "pyramids"),
        ("aten::upsample_bilinear2d", None, "pyramids"),
        ("irnext::merge_pyramid", None, "pyramids"),
        ("aten::native_batch_norm", None, "normalisation"),
        ("aten::cat", None, "copies"),
        ("cudnn::ops::nchwToNhwcKernel", None, "copies"),
        ("triton_poi_fused_gelu_5", None, "generated"),
        ("## Call CompiledFxGraph abc ##", None, "generated"),
        ("aten::gelu", None, "convolutions"),
        ("aten::empty", None, "rest"),
        ("aten::empty", "rest", "rest"),
        # Within a part everything is the part's, but for a convolution's copies.
        ("aten::mul", "attention", "attention"),
        ("aten::copy_", "attention", "attention"),
        ("aten::convolution", "attention", "attention"),
        ("aten::copy_", "pyramids", "pyramids"),
        ("aten::gelu", "convolutions", "convolutions"),
        ("aten::copy_", "convolutions", "copies"),
    ],
)
def test_work_is_counted_where_it_belongs(name, part, kind):
    assert account.kind_of(name, part) == kind


def only(**milliseconds: float) -> dict[str, float]:
    return dict.fromkeys(account.KINDS, 0.0) | milliseconds


def test_an_operators_own_time_is_what_its_callees_do_not_take():
    """A pyramid of 100 ns holds a sum, a convolution with a copy, and an attention with a product."""
    spans = [
        Span("part: rest", 0, 150),
        Span("part: pyramids", 10, 110),
        Span("aten::add", 10, 30),
        Span("part: convolutions", 30, 60),
        Span("aten::convolution", 30, 60),
        Span("aten::copy_", 40, 45),
        Span("part: attention", 60, 100),
        Span("part: convolutions", 70, 90),
        Span("aten::convolution", 75, 85),
        Span("aten::cat", 120, 130),
    ]
    found = attribute(spans[::-1])
    assert found == only(rest=40, pyramids=30, convolutions=25, copies=15, attention=40)
    assert sum(found.values()) == 150


def test_kernels_are_counted_where_they_were_launched():
    """Only kernels count; one without a known launcher is told by its name; marks are no work."""
    spans = [
        Span("part: rest", 0, 100, identity=1),
        Span("part: attention", 0, 50, identity=2),
        Span("aten::mul", 10, 20, identity=3),
        Span("aten::cat", 60, 70, identity=4),
        Span("cudaLaunchKernel", 61, 62, identity=3, launcher=4),  # the driver has numbers of its own
        Span("elementwise_kernel", 200, 207, on_device=True, launcher=3),
        Span("CatArrayBatchedCopy", 207, 210, on_device=True, launcher=4),
        Span("sm90_xmma_fprop", 210, 310, on_device=True),
        Span("triton_poi_fused_gelu", 310, 330, on_device=True, launcher=99),
        Span("part: attention", 200, 400, on_device=True),
    ]
    assert attribute(spans) == only(attention=7, copies=3, convolutions=100, generated=20)


def test_events_are_of_the_device_or_of_one_thread():
    kinds = torch.autograd.DeviceType

    def event(name, thread=1, kind=kinds.CPU):
        values = {
            "name": name,
            "device_type": kind,
            "start_thread_id": thread,
            "start_ns": 5,
            "duration_ns": 2,
        }
        values |= {"correlation_id": 8, "linked_correlation_id": 9}
        return SimpleNamespace(**{key: lambda value=value: value for key, value in values.items()})

    events = [
        event("aten::add"),
        event("aten::mul", thread=2),
        event("[memory]"),
        event("cudaLaunchKernel"),
        event("kernel", thread=3, kind=kinds.CUDA),
    ]
    assert account._spans(events, 1) == [
        Span("aten::add", 5, 7, False, 8, 9),
        Span("kernel", 5, 7, True, 8, 9),
    ]


@pytest.mark.parametrize("name", ["published", "plain", "optimized"])
def test_the_account_of_a_network_is_whole(name):
    torch.manual_seed(0)
    made = {"published": PublishedIRNeXt}.get(name, irnext.IRNeXt)(1, 16).eval().requires_grad_(False)
    model = optimize(made) if name == "optimized" else made
    x, calls = torch.rand(1, 3, 64, 64), []

    def run() -> None:
        calls.append(time.perf_counter())
        model(x)

    run()
    found = account.account(run, on_gpu=False, repeats=2)
    took = 1e3 * (time.perf_counter() - calls[1]) / 2
    assert len(calls) == 1 + 2 and list(found) == list(account.KINDS)
    assert 0 < sum(found.values()) <= took
    for kind in ("convolutions", "attention", "pyramids", "normalisation", "copies", "rest"):
        assert found[kind] > 0, kind
    assert found["generated"] == 0
    assert found["rest"] < 0.5 * sum(found.values())


def test_a_device_that_the_profiler_may_not_see_has_no_account(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    profile = torch.profiler.profile

    def of_the_host(activities, **options):
        return profile(activities=activities[:1], **options)

    monkeypatch.setattr(torch.profiler, "profile", of_the_host)
    assert account.account(lambda: torch.rand(9).sum(), on_gpu=True) is None


def test_parts_are_marked_only_within():
    classes = [cls for kind in account.PARTS.values() for cls in kind]
    methods = {cls: "forward" if issubclass(cls, nn.Module) else "__call__" for cls in classes}
    before = {cls: getattr(cls, method) for cls, method in methods.items()}
    with account.marked_parts():
        assert all(getattr(cls, method) is not before[cls] for cls, method in methods.items())
    assert all(getattr(cls, method) is before[cls] for cls, method in methods.items())


def test_an_unmarked_account_is_told_by_names():
    x, weight = torch.rand(1, 16, 64, 64), torch.rand(16, 16, 3, 3)
    found = account.account(lambda: torch.conv2d(x, weight), False, repeats=1, marked=False)
    assert found["convolutions"] > 0 and found["attention"] == found["pyramids"] == 0
