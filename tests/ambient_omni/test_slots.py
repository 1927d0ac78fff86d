import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ambient_omni.data.slots import Slots


class Numbers(Dataset):
    """Arrays full of their own number, by way of slots."""

    def __init__(self, slots):
        self.slots = slots

    def __len__(self):
        return 40

    def __getitem__(self, number):
        slot = self.slots.next()
        self.slots[slot][:] = number
        return slot


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("prefetch", [1, 2])
def test_a_slot_holds_its_batch_until_the_next_one_is_asked_for(num_workers, prefetch):
    slots = Slots((4, 3), np.dtype(np.float32), num_workers, prefetch)
    loader = DataLoader(
        Numbers(slots),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=prefetch,
        multiprocessing_context="fork",
    )
    found = []
    for slot in loader:
        # Time for the workers to run as far ahead as they may.
        torch.empty(200_000).normal_()
        found.append(slots[slot].copy())
    assert np.array_equal(np.stack(found), np.arange(40)[:, None, None] + np.zeros((1, 4, 3)))


def test_slots_are_refused_outside_a_worker():
    with pytest.raises(RuntimeError, match="workers of a loader"):
        Slots((1,), np.dtype(np.uint8), 1, 1).next()
