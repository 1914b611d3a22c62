"""Results of GELU that the backward pass computes again: the same gradients from fewer saved bytes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from conftest import randomise

import irnext
from irnext.ops.recompute import _Kept, gelu, recomputing


def kept_tensors(data: object) -> list[torch.Tensor]:
    """The tensors behind what a saved tensor's hook returned."""
    if isinstance(data, torch.Tensor):
        return [data]
    if not isinstance(data, _Kept):
        return []
    inputs = [tensor for kept in data.inputs for tensor in kept_tensors(kept)]
    return inputs if data.tensor is None else [data.tensor]


def saved_bytes(graph: torch.Tensor) -> int:
    """Bytes of all tensors that the graph behind a tensor keeps, each storage once."""
    storages, seen, queue = {}, set(), [graph.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [following for following, _ in node.next_functions]
        for name in dir(node):
            if name.startswith("_raw_saved_"):
                saved = getattr(node, name)
                for raw in saved if isinstance(saved, (tuple, list)) else (saved,):
                    for data in kept_tensors(raw.data):
                        storages[data.untyped_storage().data_ptr()] = data.untyped_storage().nbytes()
    return sum(storages.values())


def chain(x: torch.Tensor, weights: list[torch.Tensor], activation=gelu) -> torch.Tensor:
    for weight in weights:
        x = activation(F.conv2d(x, weight, padding=1))
    return x.square().sum()


def test_gradients_are_those_of_keeping():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    weights = [torch.randn(3, 3, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    expected = torch.autograd.grad(chain(x, weights, F.gelu), weights)
    with recomputing():
        loss = chain(x, weights)
    found = torch.autograd.grad(loss, weights, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    again = torch.autograd.grad(sum(g.square().sum() for g in found), weights)
    kept = torch.autograd.grad(chain(x, weights, F.gelu), weights, create_graph=True)
    twice = torch.autograd.grad(sum(g.square().sum() for g in kept), weights)
    for a, b in zip(again, twice, strict=True):
        torch.testing.assert_close(a, b)


def test_memory_freed_and_used_again_is_not_mistaken_for_a_result():
    x = torch.randn(1, 1, 64, 64, requires_grad=True)
    with recomputing():
        gelu(x.double())  # freed at once: its address may come back below
        y = x.double() * 3
        loss = (y * y).sum()
    loss.backward()
    torch.testing.assert_close(x.grad, 18 * x.detach())


def test_a_result_that_was_written_to_is_kept():
    z = torch.randn(1, 1, 4, 4, requires_grad=True)
    weight = torch.randn(1, 1, 1, 1, requires_grad=True)
    with recomputing():
        y = gelu(z)
        y.add_(1)
        loss = F.conv2d(y, weight).sum()
    loss.backward()
    torch.testing.assert_close(weight.grad.sum(), (F.gelu(z) + 1).sum().detach())


def test_two_models_do_not_disturb_each_other():
    models = [randomise(irnext.IRNeXt(blocks=1, width=8), seed).double().eval() for seed in (1, 2)]
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    alone = []
    for model in models:
        model(x)[-1].sum().backward()
        alone.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    (models[0](x)[-1].sum() + models[1](x)[-1].sum()).backward()
    for model, expected in zip(models, alone, strict=True):
        found = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_training_step_keeps_less(monkeypatch):
    model = randomise(irnext.IRNeXt(blocks=4, width=8))
    x = torch.rand(2, 3, 64, 64)
    less = saved_bytes(sum(y.sum() for y in model(x)))
    monkeypatch.setattr("irnext.ops.recompute._Origins.record", lambda *_: None)
    more = saved_bytes(sum(y.sum() for y in model(x)))
    assert 0 < less < 0.8 * more


def test_tensors_changed_in_place_are_noticed():
    model = randomise(irnext.IRNeXt(blocks=1, width=8))
    x = torch.rand(2, 3, 64, 64)
    loss = model(x)[-1].sum()
    with torch.no_grad():
        model.downs[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()
    model.zero_grad()
    loss = model(x)[-1].sum()
    x.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_hooks_around_the_model_stay_in_force():
    model = randomise(irnext.IRNeXt(blocks=1, width=8)).eval()
    x = torch.rand(1, 3, 64, 64)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        model(x)
    assert len(packed) > 100
    expected = torch.autograd.grad(model(x)[-1].sum(), model.stem.weight)
    runs = []
    model.stem.register_forward_hook(lambda *_: runs.append(1))
    y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)[-1].sum()
    torch.testing.assert_close(torch.autograd.grad(y, model.stem.weight), expected)
    assert len(runs) == 2
