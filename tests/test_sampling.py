"""Batches depend on the seed alone: not on processes, workers or where sampling began."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from irnext.data.sampling import EpochSampler


def test_an_epoch_has_every_picture_at_most_once_and_drops_the_rest():
    sampler = EpochSampler(11, batch=4, seed=0, epochs=2)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 4
    assert {len(batch) for batch in batches} == {4}
    for epoch in (0, 1):
        keys = list(itertools.chain(*batches[2 * epoch : 2 * epoch + 2]))
        assert {key[0] for key in keys} == {epoch}
        indices = [index for _, index in keys]
        assert len(set(indices)) == 8 and set(indices) <= set(range(11))
        assert all(type(index) is int for index in indices)


def test_orders_differ_between_epochs_and_seeds_only():
    def order(seed, epoch):
        return EpochSampler(100, 10, seed).order(epoch).tolist()

    assert order(3, 5) == order(3, 5)
    assert sorted(order(3, 5)) == list(range(100))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1, 5) for epoch in (0, 1, 5)}) == 9


def test_the_order_is_apart_from_the_first_crop_of_the_epoch():
    # Seed sequences are padded with zeros: [seed, epoch] and [seed, epoch, 0] are one generator.
    assert (EpochSampler(50, 10, 7).order(2) != np.random.default_rng([7, 2, 0]).permutation(50)).any()


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_processes_share_out_the_same_batches(world_size):
    whole = list(EpochSampler(20, 6, seed=1, epochs=2))
    shares = [list(EpochSampler(20, 6, 1, rank, world_size, epochs=2)) for rank in range(world_size)]
    assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("done", range(8))
def test_sampling_goes_on_from_anywhere(done):
    whole = EpochSampler(10, 3, seed=2, epochs=3)
    epoch, start = divmod(done, whole.batches_per_epoch)
    rest = EpochSampler(10, 3, seed=2, epoch=epoch, start=start, epochs=3)
    assert list(rest) == list(whole)[done:]
    assert len(rest) == 9 - done


def test_the_end_of_an_epoch_is_the_beginning_of_the_next():
    end = EpochSampler(10, 3, seed=2, epoch=0, start=3, epochs=2)
    assert list(end) == list(EpochSampler(10, 3, seed=2, epoch=1, epochs=2))
    assert len(end) == 3


def test_without_epochs_there_is_no_end():
    sampler = EpochSampler(4, 2, seed=0)
    assert [batch[0][0] for batch in itertools.islice(sampler, 7)] == [0, 0, 1, 1, 2, 2, 3]
    with pytest.raises(TypeError, match="no length"):
        len(sampler)
    done = EpochSampler(4, 2, seed=0, epoch=3, epochs=3)
    assert list(done) == [] and len(done) == 0


class Echo(Dataset):
    """The key itself, with a number drawn as a data set of crops does."""

    def __len__(self):
        return 7

    def __getitem__(self, key):
        return torch.tensor([*key, int(np.random.default_rng([0, *key]).integers(2**40))])


def test_workers_change_nothing():
    def batches(workers):
        sampler = EpochSampler(7, 2, seed=4, epoch=1, start=2, epochs=3)
        return list(DataLoader(Echo(), batch_sampler=sampler, num_workers=workers))

    alone, two = batches(0), batches(2)
    assert len(alone) == 4
    assert all(map(torch.equal, alone, two)) and len(two) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"length": 3}, "3 pictures.*at least 4"),
        ({"batch": 0}, "positive"),
        ({"world_size": 3}, "multiple"),
        ({"world_size": 0}, "positive"),
        ({"rank": 2, "world_size": 2}, "rank is 2.*0 to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"epoch": -1}, "epoch is -1"),
        ({"start": 3}, "start 3.*0 to 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(**{"length": 9, "batch": 4, "seed": 0} | arguments)
