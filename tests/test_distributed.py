"""Two processes of half a batch each compute what one process computes for the whole batch."""

from __future__ import annotations

import copy
import datetime
import os
import socket
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import randomise, relative_error
from torch import nn

import irnext
from irnext import distributed
from irnext.blocks import LocalAttention
from irnext.distributed import (
    Process,
    SynchronisedBatchNorm2d,
    all_mean,
    any_rank,
    broadcast_object,
    data_parallel,
    first_object,
    process_group,
    synchronise_batch_norm,
)

TIGHT = 1e-10
SOON = datetime.timedelta(minutes=1)


# ---- what is computed, alone or by several -------------------------------------------------------


def norm_case(channels: int = 5, **options) -> nn.Module:
    torch.manual_seed(0)
    module = nn.BatchNorm2d(channels, dtype=torch.float64, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return randomise(module)


def attention_case(**options) -> nn.Module:
    torch.manual_seed(1)
    return randomise(LocalAttention(8, groups=4, **options)).double()


def network_case(**options) -> nn.Module:
    torch.manual_seed(2)
    return randomise(irnext.IRNeXt(1, width=8, **options)).double()


# By name: the module, the whole batch's shape, and where it is cut between the processes.
CASES = {
    "norm": (norm_case(), (4, 5, 3, 7), 2),
    "norm, one sample each": (norm_case(), (2, 5, 1, 1), 1),
    "norm, uneven": (norm_case(), (5, 5, 2, 3), 1),
    "norm, one has none": (norm_case(), (3, 5, 2, 3), 3),
    "norm, cumulative": (norm_case(momentum=None), (4, 5, 3, 3), 2),
    "norm, bare": (norm_case(affine=False, track_running_stats=False), (4, 5, 3, 3), 2),
    "attention": (attention_case(), (4, 8, 9, 6), 2),
    "attention, one sample each": (attention_case(low_pass="local"), (2, 8, 5, 7), 1),
    "attention, exact": (attention_case(low_pass="exact", activation="softmax"), (4, 8, 6, 6), 2),
    "network": (network_case(), (4, 3, 64, 96), 2),
    "network, one sample each": (network_case(low_pass="local"), (2, 3, 64, 64), 1),
}


def pictures(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and target; the input's mean is far from zero, where sums of squares would cancel."""
    generator = torch.Generator().manual_seed(3)
    x, target = torch.rand((2, *shape), generator=generator, dtype=torch.float64)
    return x + (10 if shape[1] == 5 else 0), target


def results(
    module: nn.Module, x: torch.Tensor, target: torch.Tensor, share: float
) -> dict[str, torch.Tensor]:
    """Output, gradients and statistics after two training steps' losses, each a mean over the batch.

    `share` is the batch's part that `x` is: losses are scaled to sum to the whole batch's.
    """
    x = x.clone().requires_grad_()
    for _ in range(2):  # the second finds the first's statistics
        y = module(x)
        if isinstance(y, list):
            loss = irnext.DualDomainLoss()(y, target)
        else:
            loss = (y * (target - 0.5)).sum() / max(1, target.numel())
        (loss * share).backward()
    y = torch.cat([part.flatten(1) for part in y], 1) if isinstance(y, list) else y
    parameters = {f"gradient of {name}": p.grad for name, p in module.named_parameters()}
    return {"y": y.detach(), "gradient of x": x.grad} | parameters | dict(module.named_buffers())


def share_results(rank: int, name: str) -> dict[str, torch.Tensor]:
    module, shape, cut = copy.deepcopy(CASES[name])
    part = slice(0, cut) if rank == 0 else slice(cut, None)
    x, target = (picture[part] for picture in pictures(shape))
    module = synchronise_batch_norm(module)
    found = results(module, x, target, len(x) / shape[0])
    for key in found:
        if key.startswith("gradient of ") and key != "gradient of x":
            dist.all_reduce(found[key])
    return found


def ddp_gradients(process: Process) -> dict[str, torch.Tensor]:
    """Gradients as DistributedDataParallel averages them, of a network in its loss."""
    module, shape, cut = copy.deepcopy(CASES["network"])
    part = slice(0, cut) if process.is_main else slice(cut, None)
    x, target = (picture[part] for picture in pictures(shape))
    wrapped = data_parallel(module, process)
    for _ in range(2):  # the second would fail, had the first left a parameter without gradient
        module.zero_grad()
        irnext.DualDomainLoss()(wrapped(x), target).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def agreements(process: Process) -> dict[str, object]:
    return {
        "any": [any_rank(process.rank == 1), any_rank(False), any_rank(True)],
        "mean": all_mean(1 + 2 * process.rank),
        "nan": all_mean(float("nan") if process.rank else 1.0),
        "broadcast": broadcast_object({"rank": process.rank, "text": "x" * process.rank}),
        "from 1": broadcast_object(process.rank, source=1),
        "first": [first_object(process.rank or None), first_object(None)],
        "float32": synchronised_float32(process.rank),
    }


def synchronised_float32(rank: int) -> torch.Tensor:
    x, _ = pictures(CASES["norm"][1])
    norm = synchronise_batch_norm(norm_case().float())
    y = norm(x[2 * rank : 2 * rank + 2].half())
    assert y.dtype == torch.float16 and norm.running_var.dtype == torch.float32
    return norm(x[2 * rank : 2 * rank + 2].float()).detach()


# ---- running them --------------------------------------------------------------------------------


def join(rank: int, port: int, body, folder: Path) -> None:
    """One of two processes, with the environment that torchrun gives it."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in names.items()}
    body(rank, folder)


def run_two(body, folder: Path) -> None:
    """`body(rank, folder)` in two processes; raises where one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(join, (port, body, folder), nprocs=2)


def compute_all(rank: int, folder: Path) -> None:
    with process_group("cpu", timeout=SOON) as process:
        assert (process.rank, process.world_size, process.local_rank) == (rank, 2, rank)
        assert process.device == torch.device("cpu") and process.is_main == (rank == 0)
        with process_group("cpu") as inner:  # the group there is
            assert inner == process
        assert dist.is_initialized() and distributed.is_distributed()
        found = {name: share_results(rank, name) for name in CASES}
        found |= {"ddp": ddp_gradients(process), "agreements": agreements(process)}
        torch.save(found, folder / f"{rank}.pt")
    assert not dist.is_initialized()


one_process = pytest.mark.xdist_group("shares")


@pytest.fixture(scope="module")
def shares(tmp_path_factory) -> list[dict]:
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("shares")
    run_two(compute_all, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@one_process
@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(shares, name):
    module, shape, _ = copy.deepcopy(CASES[name])
    expected = results(module, *pictures(shape), share=1)
    first, second = (share[name] for share in shares)
    assert first.keys() == second.keys() == expected.keys()
    # Some gradients are zero but for rounding (a bias before a normalisation): one scale for all.
    scale = max(value.abs().max() for key, value in expected.items() if key.startswith("gradient"))
    for key, value in expected.items():
        if key in ("y", "gradient of x"):
            found = torch.cat((first[key], second[key]))
        else:
            found = first[key]
            assert torch.equal(found, second[key]), key
        if key.startswith("gradient"):
            assert ((found - value).abs().max() / scale).item() < TIGHT, key
        else:
            assert relative_error(found, value) < TIGHT, key


@one_process
def test_batch_statistics_matter(shares):
    """Were every process to normalise by its own share, the comparison above would see it."""
    module, shape, cut = copy.deepcopy(CASES["network"])
    x, target = (picture[:cut] for picture in pictures(shape))
    alone = results(module, x, target, share=1)
    assert relative_error(alone["y"], shares[0]["network"]["y"]) > 1e-4


@one_process
def test_ddp_gradients_equal_the_whole_batch(shares):
    module, shape, _ = copy.deepcopy(CASES["network"])
    x, target = pictures(shape)
    for _ in range(2):
        module.zero_grad()
        irnext.DualDomainLoss()(module(x), target).backward()
    expected = {name: p.grad for name, p in module.named_parameters()}
    scale = max(gradient.abs().max() for gradient in expected.values())
    for share in shares:
        for name, gradient in share["ddp"].items():
            assert ((gradient - expected[name]).abs().max() / scale).item() < TIGHT, name


@one_process
def test_processes_agree(shares):
    for share in shares:
        found = share["agreements"]
        assert found["any"] == [True, False, True]
        assert found["mean"] == 2.0 and found["nan"] != found["nan"]
        assert found["broadcast"] == {"rank": 0, "text": ""} and found["from 1"] == 1
        assert found["first"] == [1, None]


@one_process
def test_float32_is_exact(shares):
    x, _ = pictures(CASES["norm"][1])
    expected = norm_case()(x)
    found = torch.cat([share["agreements"]["float32"] for share in shares])
    assert found.dtype == torch.float32
    # The mean is 35 standard deviations from zero: x itself is rounded to 1e-6 of what is left.
    assert relative_error(found, expected) < 1e-5


# ---- failures ------------------------------------------------------------------------------------


def fail_in_one(rank: int, folder: Path) -> None:
    try:
        with process_group("cpu", timeout=SOON):
            any_rank(False)
            if rank == 1:
                raise ArithmeticError("the loss of one process")
            started = time.monotonic()
            any_rank(False)
    except ArithmeticError:
        assert rank == 1
    except RuntimeError as error:
        (folder / "error").write_text(f"{time.monotonic() - started:.0f} {error}")
    assert not dist.is_initialized()


def test_a_failure_in_one_process_ends_the_others(tmp_path):
    run_two(fail_in_one, tmp_path)
    seconds, _ = (tmp_path / "error").read_text().split(" ", 1)
    assert float(seconds) < SOON.seconds / 2


@pytest.mark.parametrize(
    "environment, message",
    [
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE is 2 but LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two': it must be a number"),
        (
            {"WORLD_SIZE": "2", "RANK": "-1", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "RANK is",
        ),
    ],
)
def test_a_wrong_environment_is_named(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), process_group("cpu"):
        pass


def test_devices_of_several_processes(monkeypatch):
    monkeypatch.setattr(distributed, "check_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed._device(None, 1, 2) == torch.device("cuda", 1)
    assert distributed._device("cuda", 0, 1) == torch.device("cuda", 0)
    assert distributed._device("cuda:1", 0, 1) == torch.device("cuda", 1)
    assert distributed._device("cpu", 3, 4) == torch.device("cpu")
    with pytest.raises(ValueError, match="one GPU each"):
        distributed._device("cuda:1", 0, 2)
    with pytest.raises(ValueError, match="2 GPUs here, none for local rank 2"):
        distributed._device("cuda", 2, 4)


def test_an_unusable_device_is_named():
    with pytest.raises(ValueError, match="'nonsense' cannot be used"), process_group("nonsense"):
        pass


# ---- one process ---------------------------------------------------------------------------------


def test_one_process_is_alone():
    with process_group("cpu") as process:
        assert process == Process() and process.is_main
        assert not dist.is_initialized() and not distributed.is_distributed()
        assert any_rank(True) is True and any_rank(False) is False
        assert all_mean(3) == 3.0 and broadcast_object([1]) == [1]
        model = nn.BatchNorm2d(3)
        assert data_parallel(model, process) is model and type(model) is nn.BatchNorm2d


def test_synchronised_norms_are_the_same_parameters():
    model = network_case()
    before = model.state_dict(keep_vars=True)
    assert synchronise_batch_norm(model) is model
    after = model.state_dict(keep_vars=True)
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == {SynchronisedBatchNorm2d}
    assert type(synchronise_batch_norm(nn.BatchNorm2d(2))) is SynchronisedBatchNorm2d


@pytest.mark.parametrize("train", [True, False])
def test_alone_it_is_batch_norm(train):
    module, shape, _ = CASES["network"]
    x, _ = pictures(shape)
    plain, synchronised = copy.deepcopy(module).train(train), copy.deepcopy(module).train(train)
    synchronise_batch_norm(synchronised)
    with torch.no_grad():
        for found, expected in zip(synchronised(x), plain(x), strict=True):
            assert relative_error(found, expected) < TIGHT
    for found, expected in zip(synchronised.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"msm_per_block": 0},
        {"blocks": 2, "msm_per_block": 2},
        {"branch": "conv"},
        {"branch": "lam-no-fm"},
        {"low_pass": "exact"},
        {"low_pass": "local", "pooling": "convolution"},
        {"pooling": "max", "pool_rates": (2,)},
        {"activation": "softmax"},
    ],
    ids=str,
)
def test_every_parameter_has_a_gradient(options):
    """So `data_parallel` need not look for unused ones in any ablation."""
    model = irnext.IRNeXt(**{"blocks": 1, "width": 8} | options)
    x, target = torch.rand(2, 2, 3, 64, 64)
    irnext.DualDomainLoss()(model(x), target).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
