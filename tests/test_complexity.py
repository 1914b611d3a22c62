"""The published parameter counts and FLOPs, and the counting rule on networks small enough to do by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

import irnext
from irnext.complexity import Complexity, CostCounter, measure

# (where it is printed, settings, parameters in millions, FLOPs in billions at 256 x 256 or None)
PUBLISHED = [
    ("Tables 6, 13: 14 blocks", {"blocks": 14}, 13.21, 114.79),
    ("Table 13: 12 blocks", {"blocks": 12}, 11.66, 100.25),
    ("Table 13: 16 blocks", {"blocks": 16}, 14.76, 129.33),
    ("Tables 7, 8: no MSM", {"blocks": 8, "msm_per_block": 0}, 6.90, 66.32),
    ("Table 7: plain convolutions", {"blocks": 8, "branch": "conv"}, 8.45, 71.17),
    ("Table 7: LAM, no FM", {"blocks": 8, "branch": "lam-no-fm"}, 8.55, 71.19),
    ("Tables 7, 8: full", {"blocks": 8}, 8.56, 71.19),
    ("Table 8: rate 2", {"blocks": 8, "pool_rates": (2,)}, 7.71, 70.89),
    ("Table 8: rates 4, 2", {"blocks": 8, "pool_rates": (4, 2)}, 8.13, 71.12),
    ("Table 8: rates 8, 4", {"blocks": 8, "pool_rates": (8, 4)}, 8.13, 70.26),
    ("Table 9: convolution", {"blocks": 8, "pooling": "convolution"}, 8.58, None),
    ("Table 9: max", {"blocks": 8, "pooling": "max"}, 8.56, None),
    ("Table 11: G = 2", {"blocks": 8, "groups": 2}, 8.48, None),
    ("Table 11: G = 4", {"blocks": 8, "groups": 4}, 8.51, None),
    ("Table 11: G = 16", {"blocks": 8, "groups": 16}, 8.65, None),
    ("Table 11: 2 MSM", {"blocks": 8, "msm_per_block": 2}, 10.21, None),
    ("4 blocks", {"blocks": 4}, 5.46, None),
]


def test_published_figures():
    """Every parameter count as printed, every FLOPs figure within 0.1 %; `pytest -s` shows the table."""
    table = Table(title="IRNeXt at 256 x 256: the paper's figures and ours")
    for column in ("", "M params", "printed", "G FLOPs", "printed", "off by", "G MACs", "G tap MACs"):
        table.add_column(column, justify="left" if not column else "right")
    wrong = []
    for name, settings, params, flops in PUBLISHED:
        cost = measure(irnext.IRNeXt(**settings))
        ours = cost.paper_flops / 1e9
        off = ours / flops - 1 if flops else 0.0
        if f"{cost.params / 1e6:.2f}" != f"{params:.2f}" or abs(off) > 1e-3:
            wrong.append(name)
        table.add_row(
            name,
            f"{cost.params / 1e6:.2f}",
            f"{params:.2f}",
            f"{ours:.2f}",
            f"{flops:.2f}" if flops else "",
            f"{off:+.3%}" if flops else "",
            f"{cost.macs / 1e9:.2f}",
            f"{cost.tap_macs / 1e9:.3f}",
        )
    Console(width=120).print(table)
    assert not wrong


@pytest.mark.parametrize(
    ("settings", "printed"), [({"blocks": 14}, "114.79"), ({"blocks": 8, "msm_per_block": 0}, "66.32")]
)
def test_the_two_totals_that_come_out_exactly(settings, printed):
    assert f"{measure(irnext.IRNeXt(**settings)).paper_flops / 1e9:.2f}" == printed


@pytest.mark.parametrize(("blocks", "macs"), [(4, "38.72"), (8, "67.71"), (14, "111.20"), (16, "125.69")])
def test_true_multiply_accumulates(blocks, macs):
    cost = measure(irnext.IRNeXt(blocks))
    assert f"{cost.macs / 1e9:.2f}" == macs
    # 3 x 3 taps on the planes pooled by 8, 4, 2 at 256, 128 and 64 pixels, in encoder and decoder.
    planes = sum(32 * 2**level * (256 // 2**level // rate) ** 2 for level in range(3) for rate in (8, 4, 2))
    assert cost.tap_macs == 2 * 9 * planes
    assert all(type(number) is int for number in cost)


def test_small_network_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),  # 8x8: 4*64 outputs
        nn.GELU(),
        nn.BatchNorm2d(4),
        nn.AvgPool2d(2),  # 4x4
        nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1, bias=False),  # 8x8
        nn.InstanceNorm2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 5),
        nn.Tanh(),
    )
    convolution, transposed, linear = 4 * 64 * 27, 4 * 16 * 2 * 16, 2 * 5
    paper = convolution + 256 + 256  # bias, GELU
    paper += 2 * 256 + 256  # BatchNorm, the pool's input
    paper += 2 * 64 * 4 * 16  # the transposed convolution at its output's resolution
    paper += 2 * 128 + 128  # InstanceNorm, the plane's mean
    paper += linear + 5 + 5  # bias, tanh
    params = (4 * 27 + 4) + 8 + 4 * 2 * 16 + 15
    assert measure(network, (16, 16)) == Complexity(params, convolution + transposed + linear, 0, paper)


def test_attention_and_matrix_products_by_hand():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(3, 6, bias=False)

        def forward(self, x):
            tokens = self.project(x.flatten(2).transpose(1, 2))[:, None]  # (1, 1, 20, 6)
            mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
            return mixed.squeeze(1) @ tokens.squeeze(1).transpose(1, 2)

    assert measure(Attention(), (4, 5)).macs == 20 * 3 * 6 + 2 * 20 * 20 * 6 + 20 * 20 * 6


def test_grouped_convolution_counts_its_own_inputs_only():
    both = (
        nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False),
        nn.ConvTranspose2d(6, 6, 2, 2, groups=3, bias=False),
    )
    cost = measure(nn.Sequential(*both), (4, 4))
    assert cost.macs == 6 * 16 * 9 + 6 * 16 * 2 * 4
    assert cost.paper_flops == 6 * 16 * 9 + 6 * 64 * 2 * 4


@pytest.mark.parametrize("settings", [{}, {"low_pass": "local"}, {"low_pass": "exact"}, {"pooling": "max"}])
def test_backends_count_alike(settings):
    model = irnext.IRNeXt(1, **settings)
    counts = set()
    for name, status in irnext.backends().items():
        if status.available:
            with irnext.use_backend(name):
                counts.add(measure(model, (64, 64)))
    counts.add(measure(model, (64, 64)))
    assert len(counts) == 1


def test_formulas_of_our_operators_agree_with_what_they_are_made_of():
    """A backend that implements an operator whole is counted as PyTorch's own operators are."""
    x, branches = torch.rand(2, 8, 8, 8), [torch.rand(2, 8, 4, 4)]
    weight, bias, residual = torch.rand(4, 8, 3, 3), torch.rand(4), torch.rand(2, 4, 8, 8)
    calls = [
        (torch.ops.irnext.pool_pyramid, (x, [4, 2])),
        (torch.ops.irnext.merge_pyramid, (x, branches)),
        (torch.ops.irnext.local_mean, (x, [3, 3])),
        (torch.ops.irnext.conv2d_bias_act, (x, weight, bias, "gelu", residual)),
        (torch.ops.irnext.conv2d_bias_act, (x, weight)),
    ]
    for operator, arguments in calls:
        with torch.no_grad(), CostCounter() as parts:  # composite operators arrive as their parts
            operator(*arguments)
        with torch.inference_mode(), CostCounter() as whole:  # ... and here as themselves
            operator(*arguments)
        assert whole.total == parts.total, operator


def test_cost_grows_with_the_picture():
    small, large = (measure(irnext.IRNeXt(2), size) for size in ((64, 64), (128, 192)))
    assert large.params == small.params
    assert large.tap_macs == 6 * small.tap_macs
    # The filters' 1x1 convolutions see one pixel per plane, whatever the picture's size.
    fixed = sum(2 * 3 * c * 8 * 9 for c in (32, 64, 128))
    assert large.macs - fixed == 6 * (small.macs - fixed)


@pytest.mark.parametrize("kind", ["half", "training", "meta", "channels_last"])
def test_any_model_counts_and_none_is_changed(kind):
    model = irnext.IRNeXt(1)
    expected = measure(model, (64, 64))
    if kind == "half":
        model = model.half()
    elif kind == "meta":
        model = model.to("meta")
    elif kind == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    model.train(kind == "training")
    modes = [module.training for module in model.modules()]
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict().items()}
    assert measure(model, (64, 64)) == expected
    assert [module.training for module in model.modules()] == modes
    for name, tensor in model.state_dict().items():
        same, copied = before[name]
        assert tensor.data_ptr() == same.data_ptr() and tensor.device == same.device
        assert kind == "meta" or torch.equal(tensor, copied)


def test_shared_weights_count_once():
    layer = nn.Conv2d(3, 3, 1)
    cost = measure(nn.Sequential(layer, layer), (8, 8))
    assert cost.params == 12
    assert cost.macs == 2 * 9 * 64


def test_errors_name_the_rule():
    with pytest.raises(ValueError, match="height, width"):
        measure(irnext.IRNeXt(1), (64,))
    for size in (256, (64.0, 64), (0, 64), "64"):
        with pytest.raises(ValueError, match=r"size is .* \(height, width\)"):
            measure(irnext.IRNeXt(1), size)
    with pytest.raises(ValueError, match="multiples of 32"):
        measure(irnext.IRNeXt(1), (60, 64))


def test_an_unknown_operator_is_refused_not_ignored():
    library = torch.library.Library("complexity_test", "DEF")
    library.define("mystery(Tensor x) -> Tensor")
    library.impl("mystery", torch.clone, "CompositeExplicitAutograd")

    class Mystery(nn.Module):
        def forward(self, x):
            return torch.ops.complexity_test.mystery(x)

    with pytest.raises(ValueError, match="complexity_test::mystery"):
        measure(Mystery(), (8, 8))
