"""Time grids, the sampler's arithmetic, and which passes guidance computes."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from generator import DiTDHTransformer2DModel
from generator.flow import (
    draw_noise,
    picture_generators,
    rae_timesteps,
    renoise,
    sample,
    time_shift,
    uniform_timesteps,
)
from generator.pipeline import make_scheduler, scheduler_timesteps


class Recorder(nn.Module):
    """Velocity = pull * tokens + what the label says; counts rows per call."""

    def __init__(self, pull: float = 0.0):
        super().__init__()
        self.pull, self.rows = pull, []
        self.config = SimpleNamespace(num_classes=3, null_class=True)

    def forward(
        self, hidden_states, timestep, class_labels=None, encoder_hidden_states=None, encoder_attention_mask=None
    ):
        self.rows.append(len(hidden_states))
        if class_labels is None:
            mask = encoder_attention_mask
            value = (encoder_hidden_states * mask[..., None]).sum((1, 2)) / mask.sum(1).clamp(min=1)
        else:
            value = class_labels.float()
        return SimpleNamespace(sample=self.pull * hidden_states + value[:, None, None, None])


def test_raes_grid():
    grid = rae_timesteps(50, 6.928203)
    assert len(grid) == 50
    assert torch.allclose(grid[:3], torch.tensor([1.0, 0.99701, 0.99390]), atol=1e-5)
    assert torch.allclose(grid[-4:], torch.tensor([0.31471, 0.23198, 0.13151, 0.00689]), atol=1e-5)


def test_the_schedulers_grid_shifts_once_and_ends_at_zero():
    times = scheduler_timesteps(make_scheduler(6.928203), 50)
    assert torch.allclose(times[-4:], torch.tensor([0.3066, 0.2240, 0.1239, 0.0]), atol=1e-4)
    assert torch.allclose(times, uniform_timesteps(50, 6.928203), atol=1e-6)
    with pytest.raises(ValueError, match="at least 1"):
        scheduler_timesteps(make_scheduler(1.0), 0)


def test_shift_keeps_the_ends():
    assert time_shift(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist() == [0.0, 0.75, 1.0]


def test_euler_is_of_first_order_and_heun_of_second():
    noise = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    exact = torch.exp(torch.tensor(-1.0, dtype=torch.float64))
    for method, order in (("euler", 1), ("heun", 2)):
        errors = [
            (
                sample(Recorder(1.0).double(), noise, torch.linspace(1, 0, n + 1), torch.tensor([0]), method=method)
                - exact
            ).abs()
            for n in (32, 64)
        ]
        assert torch.log2(errors[0] / errors[1]).item() == pytest.approx(order, abs=0.1)


def test_bfloat16_weights_cost_what_their_rounding_costs():
    """50 guided steps against float32 weights that were rounded alike: the states between steps stay float32."""
    for options in ({}, {"linear_velocity": True}):
        torch.manual_seed(0)
        rounded = DiTDHTransformer2DModel(
            sample_size=4, in_channels=32, hidden_size=(32, 64), num_layers=(2, 1), num_attention_heads=(2, 2),
            num_classes=3, **options,
        ).eval()  # fmt: skip
        for name, value in rounded.named_parameters():
            if "adaLN" in name or "final_layer" in name:  # zero at the start
                torch.nn.init.normal_(value, std=0.05)
            value.data = value.data.bfloat16().float()
        half = copy.deepcopy(rounded).to(torch.bfloat16)
        noise, labels = torch.randn(4, 32, 4, 4), torch.tensor([0, 1, 2, 0])
        exact, drawn = (
            sample(each, noise, uniform_timesteps(50, 6.93), class_labels=labels, guidance_scale=3.0)
            for each in (rounded, half)
        )
        assert drawn.dtype == torch.float32
        assert (exact - noise).norm() > 0.5 * noise.norm()
        assert (drawn - exact).norm() <= 0.005 * exact.norm()


def test_one_evaluation_per_interval_and_no_second_pass_outside_the_interval():
    model, noise, labels = Recorder(), torch.zeros(2, 1, 2, 2), torch.tensor([1, 1])
    times = torch.linspace(1, 0, 11)
    sample(model, noise, times, class_labels=labels)
    assert model.rows == [2] * 10
    model.rows.clear()
    sample(model, noise, times, class_labels=labels, guidance_scale=2.0, guidance_interval=(0.45, 0.85))
    assert model.rows == [2, 2, 4, 4, 4, 4, 2, 2, 2, 2]  # 0.8, 0.7, 0.6 and 0.5 lie inside
    model.rows.clear()
    weak = Recorder()
    sample(
        model,
        noise,
        times,
        class_labels=labels,
        guidance_scale=1.4,
        guidance_interval=(0.3, 0.9),
        guidance_transformer=weak,
    )
    assert model.rows == [2] * 10
    assert weak.rows == [2] * 7


def test_guidance_arithmetic():
    times = torch.tensor([1.0, 0.0])
    noise = torch.zeros(1, 1, 1, 1)
    drawn = sample(Recorder(), noise, times, class_labels=torch.tensor([1]), guidance_scale=2.5)
    assert drawn.item() == pytest.approx(-(3 + 2.5 * (1 - 3)))
    states = {
        "encoder_hidden_states": torch.full((1, 4, 1), 2.0),
        "negative_encoder_hidden_states": torch.ones(1, 2, 1),
    }
    drawn = sample(Recorder(), noise, times, guidance_scale=3.0, **states)
    assert drawn.item() == pytest.approx(-(1 + 3.0 * (2 - 1)))


def test_noise_of_a_picture_does_not_depend_on_its_batch():
    shape = (3, 5, 5)
    whole = draw_noise(5, shape, picture_generators(7, range(5)))
    parts = torch.cat(
        [draw_noise(2, shape, picture_generators(7, [0, 1])), draw_noise(3, shape, picture_generators(7, [2, 3, 4]))]
    )
    assert torch.equal(whole, parts)
    one = torch.Generator().manual_seed(3)
    split = torch.cat([draw_noise(2, shape, one), draw_noise(3, shape, one)])
    assert torch.equal(split, draw_noise(5, shape, torch.Generator().manual_seed(3)))


def test_callbacks_see_the_prediction_and_may_replace_the_tokens():
    seen = []
    drawn = sample(
        Recorder(), torch.ones(1, 1, 1, 1), [1.0, 0.5, 0.0], class_labels=torch.tensor([1]),
        on_step=lambda step, time, tokens, predicted: seen.append((step, time, predicted.item())) or tokens + 1,
    )  # fmt: skip
    assert seen == [(0, 0.5, 0.0), (1, 0.0, 1.0)]
    assert drawn.item() == 2.0


@pytest.mark.parametrize(
    ("options", "words"),
    [({"method": "rk4"}, "choose euler or heun"),
     ({"timesteps": [0.0, 1.0]}, "descending"),
     ({"guidance_transformer": Recorder(), "negative_encoder_hidden_states": torch.ones(1, 1, 1)}, "together")],
)  # fmt: skip
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        sample(**{"transformer": Recorder(), "noise": torch.zeros(1, 1, 1, 1), "timesteps": [1.0, 0.0],
                  "class_labels": torch.tensor([1]), **options})  # fmt: skip


def test_text_guidance_without_a_null_text_is_refused():
    with pytest.raises(ValueError, match="the encoding of the empty text"):
        sample(
            Recorder(),
            torch.zeros(1, 1, 1, 1),
            [1.0, 0.0],
            encoder_hidden_states=torch.ones(1, 1, 1),
            guidance_scale=2.0,
        )


def test_renoised_tokens_are_those_of_the_higher_level():
    level, higher = torch.tensor(0.3), torch.tensor(0.8)
    data, nothing = torch.randn(1, 8, 4, 4), torch.zeros(1, 8, 4, 4)
    assert torch.allclose(renoise((1 - level) * data, level, higher, nothing), (1 - higher) * data, atol=1e-6)
    old, new = (renoise(level * each, level, higher, noise) for each, noise in ((data, nothing), (nothing, data)))
    assert torch.allclose(old**2 + new**2, (higher * data) ** 2, atol=1e-5)  # two noises add up to one of this level
