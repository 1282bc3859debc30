"""What is told and done around the steps."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from PIL import Image
from torch import nn
from torch.utils.data import BatchSampler, SequentialSampler

from training.callbacks import EpochCallback, PicturesCallback, SeedCallback


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


def test_every_process_draws_numbers_of_its_own_and_the_first_the_runs():
    drawn = []
    for process in (0, 1, 2):
        torch.manual_seed(7)
        SeedCallback().on_train_begin(SimpleNamespace(process_index=process, seed=7), None, None)
        drawn.append(torch.rand(3).tolist())
    torch.manual_seed(7)
    assert drawn[0] == torch.rand(3).tolist() and drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_sample_pictures_take_no_random_number_from_the_training(tmp_path):
    def sample():
        return Image.new("L", (2, 2), int(255 * torch.rand(())))

    arguments = SimpleNamespace(output_dir=str(tmp_path), device=torch.device("cpu"))
    state = SimpleNamespace(global_step=3, max_steps=9, is_world_process_zero=True, log_history=[])
    model = nn.Linear(1, 1).train()
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    PicturesCallback(None, sample, 3).on_step_end(arguments, state, None, model=model)
    assert (tmp_path / "samples" / "step-000003.png").is_file() and model.training
    assert torch.equal(torch.rand(2), expected)
