"""What is told and done around the steps."""

from types import SimpleNamespace

import pytest
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from torch.utils.data import BatchSampler, SequentialSampler

from training.callbacks import EpochCallback


class Remembers(SequentialSampler):
    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("skipped", [0, 3])
def test_the_sampler_knows_its_epoch_however_deep_it_lies(processes, skipped):
    sampler, dataset = Remembers(range(24)), Remembers(range(24))
    batches = BatchSampler(sampler, 4, drop_last=False)
    if processes > 1:
        batches = BatchSamplerShard(batches, processes, 0)
    if skipped:
        batches = SkipBatchSampler(batches, skipped)
    loader = SimpleNamespace(batch_sampler=batches)
    EpochCallback(dataset).on_epoch_begin(None, SimpleNamespace(epoch=1.9999999), None, train_dataloader=loader)
    assert (sampler.epoch, dataset.epoch) == (2, 2)


def test_a_stream_has_no_sampler():
    dataset = Remembers(range(24))
    loader = SimpleNamespace(batch_sampler=None)
    EpochCallback(dataset).on_epoch_begin(None, SimpleNamespace(epoch=3.5), None, train_dataloader=loader)
    assert dataset.epoch == 3
