"""Sizes, conditioning and statistics of the transformer."""

import pytest
import torch

from generator import DiTDHTransformer2DModel
from generator.flow import sample
from generator.layers import ffn_width, rotary_table

SMALL = {
    "sample_size": 4,
    "in_channels": 8,
    "hidden_size": (16, 32),
    "num_layers": (2, 1),
    "num_attention_heads": (2, 2),
}


def randomised(**options) -> DiTDHTransformer2DModel:
    torch.manual_seed(0)
    model = DiTDHTransformer2DModel(**SMALL, **options).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    return model


@pytest.mark.parametrize(
    ("size", "channels", "millions"),
    [("S", 768, 196.5), ("B", 768, 294.3), ("L", 768, 621.7), ("XL", 768, 838.7),
     ("S", 1024, 197.6), ("B", 1024, 295.5), ("L", 1024, 623.1), ("XL", 1024, 840.0)],
)  # fmt: skip
def test_published_parameter_counts(size, channels, millions):
    with torch.device("meta"):
        model = DiTDHTransformer2DModel.preset(
            size, in_channels=channels, num_classes=1000, qk_norm=False, align_ffn=False
        )
    count = sum(value.numel() for value in model.parameters())
    count += model.t_embedder.W.numel() + model.pos_embed.numel()  # frozen parameters in RAE, buffers here
    assert round(count / 1e6, 1) == millions


def test_tiny_has_about_7_million_parameters():
    with torch.device("meta"):
        model = DiTDHTransformer2DModel.preset("tiny", sample_size=4, in_channels=192, text_hidden_size=192)
    assert 6e6 < sum(value.numel() for value in model.parameters()) < 9e6


def test_feed_forward_widths():
    assert [ffn_width(d, 4.0, "swiglu", align=False) for d in (384, 768, 1024, 1152, 2048)] == [
        1024,
        2048,
        2730,
        3072,
        5461,
    ]
    assert [ffn_width(d, 4.0, "swiglu", align=True) for d in (384, 1024, 2048)] == [1024, 2752, 5504]


def test_first_velocity_is_zero_and_has_the_inputs_shape():
    model = DiTDHTransformer2DModel(**SMALL, num_classes=3)
    tokens = torch.randn(2, 8, 4, 4)
    velocity = model(hidden_states=tokens, timestep=torch.rand(2), class_labels=torch.tensor([0, 3])).sample
    assert velocity.shape == tokens.shape
    assert not velocity.any()


def test_padding_changes_nothing():
    model = randomised(text_hidden_size=6)
    tokens, timestep, states = torch.randn(2, 8, 4, 4), torch.rand(2), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    velocity = model(tokens, timestep, encoder_hidden_states=states, encoder_attention_mask=mask).sample
    for padding in (7.0, float("nan")):
        padded = torch.cat([states, torch.zeros(2, 3, 6)], dim=1)
        padded[0, 5:], padded[1, 2:] = padding, padding
        longer = torch.cat([mask, torch.zeros(2, 3, dtype=mask.dtype)], dim=1)
        again = model(tokens, timestep, encoder_hidden_states=padded, encoder_attention_mask=longer).sample
        # Not closer, here and below: another width or batch is summed in another order, which the CPU's BLAS decides.
        assert torch.allclose(again, velocity, atol=1e-4)
    alone = model(tokens[1:], timestep[1:], encoder_hidden_states=states[1:, :2]).sample
    assert torch.allclose(alone, velocity[1:], atol=1e-4)


def test_text_changes_the_velocity_and_an_all_masked_text_is_finite():
    model = randomised(text_hidden_size=6)
    tokens, timestep, states = torch.randn(1, 8, 4, 4), torch.rand(1), torch.randn(1, 5, 6)
    first = model(tokens, timestep, encoder_hidden_states=states).sample
    assert (model(tokens, timestep, encoder_hidden_states=-states).sample - first).abs().max() > 1e-3
    nothing = model(tokens, timestep, encoder_hidden_states=states, encoder_attention_mask=torch.zeros(1, 5)).sample
    assert torch.isfinite(nothing).all()


def test_the_order_of_a_text_counts_once_it_was_learned():
    model = randomised(text_hidden_size=6)
    tokens, timestep, states = torch.randn(1, 8, 4, 4), torch.rand(1), torch.randn(1, 5, 6)

    def turned_round() -> float:
        both = [model(tokens, timestep, encoder_hidden_states=each).sample for each in (states, states.flip(1))]
        return (both[0] - both[1]).abs().max().item()

    torch.nn.init.normal_(model.text_embedder.position.weight)
    moved = turned_round()
    torch.nn.init.zeros_(model.text_embedder.position.weight)
    assert moved > 5e-5 and turned_round() < 1e-6  # sums in another order
    fresh = DiTDHTransformer2DModel.preset("tiny", sample_size=4, in_channels=8, text_hidden_size=6)
    assert not fresh.text_embedder.position.weight.any()


def test_another_grid_runs_and_a_foreign_table_refuses_it():
    model = randomised(num_classes=3)
    wide = torch.randn(1, 8, 2, 6)
    assert model(wide, torch.rand(1), class_labels=torch.tensor([1])).sample.shape == wide.shape
    model.pos_embed.normal_()
    with pytest.raises(ValueError, match="knows only its own grid"):
        model(wide, torch.rand(1), class_labels=torch.tensor([1]))


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = randomised(num_classes=3).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randn(2, 8, 4, 4, generator=generator)
        model(tokens, torch.tensor([0.2, 0.7]), class_labels=torch.tensor([0, 1])).sample.square().mean().backward()
        gradients.append(model.s_embedder.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_rotary_rows_then_columns():
    cos, _ = rotary_table(3, 5, 8)
    cos = cos.view(3, 5, 8)
    assert torch.equal(cos[1, 0, :4], cos[1, 4, :4])
    assert torch.equal(cos[0, 2, 4:], cos[2, 2, 4:])


def test_statistics_travel_with_the_weights(tmp_path):
    model = randomised(text_hidden_size=6)
    model.set_statistics(torch.arange(8.0), torch.arange(1.0, 9.0))
    model.save_pretrained(tmp_path)
    again = DiTDHTransformer2DModel.from_pretrained(tmp_path)
    raw = torch.randn(2, 8, 4, 4)
    assert torch.equal(again.normalize(raw), model.normalize(raw))
    assert torch.allclose(again.denormalize(again.normalize(raw)), raw, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_buffers_stay_float32_whatever_the_weights_are(tmp_path, dtype):
    model = randomised(num_classes=3, linear_velocity=True)
    model.set_statistics(torch.rand(8), 1 + torch.rand(8))
    model.set_covariance(torch.cov(torch.randn(8, 40)))
    model.save_pretrained(tmp_path / "float32")
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(dtype).save_pretrained(tmp_path / "low")
    loaded = DiTDHTransformer2DModel.from_pretrained(tmp_path / "float32", torch_dtype=dtype)
    again = DiTDHTransformer2DModel.from_pretrained(tmp_path / "low", torch_dtype=dtype)
    wrapped = torch.nn.ModuleList([DiTDHTransformer2DModel.from_pretrained(tmp_path / "float32")]).to(dtype)[0]
    for each in (model, loaded, again, wrapped):
        assert {value.dtype for value in each.parameters()} == {dtype}
        for name, buffer in each.named_buffers():
            assert buffer.dtype == torch.float32 and torch.equal(buffer, buffers[name]), name
    velocity = loaded(torch.randn(1, 8, 4, 4), torch.rand(1), class_labels=torch.tensor([0])).sample
    assert velocity.dtype == torch.float32
    assert all(buffer.is_meta for buffer in model.to("meta").buffers())


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "either num_classes or text_hidden_size"),
     ({"num_classes": 3, "norm": "batch"}, "choose rms or layer"),
     ({"num_classes": 3, "prediction": "noise"}, "choose velocity or x"),
     ({"num_classes": 3, "num_attention_heads": (3, 2)}, "take a multiple of 4")],
)  # fmt: skip
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        DiTDHTransformer2DModel(**{**SMALL, **options})


def test_wrong_condition_and_size_are_refused():
    model = randomised(num_classes=3)
    with pytest.raises(ValueError, match="draws classes"):
        model(torch.randn(1, 8, 4, 4), torch.rand(1), encoder_hidden_states=torch.randn(1, 2, 6))
    with pytest.raises(ValueError, match="no transformer size 'XXL'"):
        DiTDHTransformer2DModel.preset("XXL")


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9, 1.0])
def test_the_linear_part_is_the_best_linear_velocity_of_gaussian_tokens(time):
    torch.manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(8, 8))
    variances = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    model = DiTDHTransformer2DModel.preset("tiny", sample_size=2, in_channels=8, num_classes=3)
    model.set_covariance((directions * variances) @ directions.T)
    data = torch.randn(20_000, 4, 8) * variances.sqrt() @ directions.T
    data = data.transpose(1, 2).unflatten(2, (2, 2))
    noise = torch.randn_like(data)
    noisy = (1 - time) * data + time * noise
    rest = noise - data - model.linear_part(noisy, torch.full((len(data),), time))
    expected = (variances / (time**2 + variances * (1 - time) ** 2)).mean()  # of a Gaussian posterior
    # The floor under empty directions adds up to 1% at t = 0.1; the rest is the sample's own error.
    assert abs(rest.square().mean() / expected - 1) < 0.03
    correlation = torch.einsum("ncij,ndij->cd", rest, noisy) / (4 * len(data))
    assert correlation.abs().max() < 0.06


def test_a_new_model_gives_the_linear_part_alone():
    model = DiTDHTransformer2DModel.preset("tiny", sample_size=2, in_channels=8, num_classes=3)
    noisy, time = torch.randn(2, 8, 2, 2), torch.tensor([0.3, 0.9])
    velocity = model(hidden_states=noisy, timestep=time, class_labels=torch.tensor([0, 1])).sample
    assert torch.equal(velocity, model.linear_part(noisy, time))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(velocity, model.linear_part(noisy, time))  # gains reach 1 / t: float32 all the same
    plain = DiTDHTransformer2DModel.preset("S", in_channels=8, sample_size=2, num_classes=3)
    assert not plain.config.linear_velocity and "token_directions" not in plain.state_dict()


@pytest.mark.parametrize("linear_velocity", [False, True])
def test_predicting_x_the_velocity_is_made_of_clean_tokens(linear_velocity):
    """What the network gives, put in by hand: its bias alone, so that the clean tokens are known."""
    options = {**SMALL, "num_classes": 3, "linear_velocity": linear_velocity}
    model = DiTDHTransformer2DModel(**options, prediction="x")
    clean = torch.arange(8.0)
    model.final_layer.linear.bias.data.copy_(clean)
    noisy, time = torch.randn(3, 8, 4, 4), torch.tensor([1.0, 0.5, 0.01])
    velocity = model(hidden_states=noisy, timestep=time, class_labels=torch.tensor([0, 1, 2])).sample
    floored = torch.tensor([1.0, 0.5, 0.05])[:, None, None, None]
    if linear_velocity:  # what the network says is added to the tokens that the linear part points at
        expected = model.linear_part(noisy, time) - clean[:, None, None] / floored
    else:
        expected = (noisy - clean[:, None, None]) / floored
    assert torch.allclose(velocity, expected, atol=1e-5)
    if not linear_velocity:  # so samplers arrive there
        drawn = sample(model, noisy, [1.0, 0.6, 0.3, 0.0], class_labels=torch.tensor([0, 1, 2]))
        assert torch.allclose(drawn, clean[:, None, None].expand_as(drawn), atol=1e-5)
