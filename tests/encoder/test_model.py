"""The encoder: sizes, positions, grids, and how it is saved, trained around and read by LLaVA."""

import numpy as np
import pytest
import torch

from encoder import OpenVision3Config, OpenVision3Model
from encoder.positions import sincos_positions


@pytest.mark.parametrize(
    "preset, table, millions",
    [("base", True, 85.9), ("large", True, 303.7), ("base", False, 85.7), ("large", False, 303.4)],
)
def test_published_sizes(preset, table, millions):
    with torch.device("meta"):
        model = OpenVision3Model(OpenVision3Config.preset(preset, position_table=table))
    assert round(sum(value.numel() for value in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("height, width, dim", [(2, 2, 8), (3, 5, 12), (16, 8, 768)])
def test_positions_are_sin_x_cos_x_sin_y_cos_y(height, width, dim):
    ours = sincos_positions(height, width, dim)
    assert ours.shape == (height * width, dim) and ours.dtype == torch.float32
    quarter = dim // 4
    for row in range(height):
        for column in range(width):
            omega = np.array([10000 ** (-i / (quarter - 1)) for i in range(quarter)])
            x, y = column * omega, row * omega
            expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])
            np.testing.assert_allclose(ours[row * width + column].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("dim", [4, 10])
def test_positions_of_an_odd_width_are_refused(dim):
    with pytest.raises(ValueError, match=f"multiple of 4 and at least 8, not {dim}"):
        sincos_positions(2, 2, dim)


@pytest.mark.parametrize("rows, columns", [(4, 4), (1, 1), (2, 4), (8, 4), (5, 3)])
@pytest.mark.parametrize("table", [False, True])
def test_any_grid(small_encoder, rows, columns, table):
    output = small_encoder(position_table=table)(latents=torch.randn(2, 16, 2 * rows, 2 * columns))
    assert output.last_hidden_state.shape == (2, rows * columns, 32) and output.pooler_output.shape == (2, 32)


def test_a_table_of_fixed_positions_changes_nothing(small_encoder):
    fixed, table = small_encoder(), small_encoder(position_table=True)
    missing, unexpected = table.load_state_dict(fixed.state_dict(), strict=False)
    assert missing == ["position_embedding"] and not unexpected
    for side in (8, 12):
        latents = torch.randn(1, 16, side, 8)
        torch.testing.assert_close(fixed(latents=latents)[0], table(latents=latents)[0], atol=1e-6, rtol=0)


def test_learned_positions_fit_their_own_grid_only(small_encoder):
    model = small_encoder(position_table=True)
    with torch.no_grad():
        model.position_embedding[3] += 0.1
    model(latents=torch.randn(1, 16, 8, 8))
    with pytest.raises(ValueError, match="learned positions fit a 4 x 4 grid only, not 4 x 8"):
        model(latents=torch.randn(1, 16, 8, 16))


def test_tokens_are_a_row_major_grid(small_encoder):
    # Without attention a token sees its own patch only.
    model = small_encoder()
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.out.weight.zero_()
    latents = torch.randn(1, 16, 4, 8)
    changed = latents.clone()
    changed[:, :, 2:4, 2:4] += 1  # second row, second column of a 2 x 4 grid
    moved = (model(latents=latents)[0] - model(latents=changed)[0]).abs().amax(dim=-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("after_pool", [True, False])
def test_normalised_tokens_leave_the_pooled_vector_alone(small_encoder, after_pool):
    latents = torch.randn(2, 16, 8, 8)
    plain, normed = (
        small_encoder(final_ln_after_pool=after_pool, normalize_tokens=flag)(latents=latents) for flag in (False, True)
    )
    assert torch.equal(plain.pooler_output, normed.pooler_output)
    torch.testing.assert_close(normed.last_hidden_state.mean(-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.last_hidden_state.std(-1, correction=0), torch.ones(2, 16), atol=1e-4, rtol=0)


def test_llava_reads_the_tokens_from_hidden_states(small_encoder, small_vae):
    model = small_encoder().attach_vae(small_vae)
    output = model(torch.rand(2, 3, 64, 64) * 2 - 1, output_hidden_states=True, return_dict=True)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


def test_inputs_that_do_not_fit_are_named(small_encoder):
    model = small_encoder()
    latents, pixel_values = torch.zeros(1, 16, 8, 8), torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match="no VAE, so it takes latents="):
        model(pixel_values=pixel_values)
    for arguments in (dict(), dict(latents=latents, pixel_values=pixel_values)):
        with pytest.raises(ValueError, match="exactly one"):
            model(**arguments)
    for shape in ((16, 8, 8), (1, 4, 8, 8), (1, 16, 7, 8), (1, 16, 8, 0)):
        with pytest.raises(ValueError, match="multiples of 2"):
            model(latents=torch.zeros(shape))


@pytest.mark.parametrize(
    "settings, says",
    [
        (dict(patch_size=12), "multiple of the VAE's 8"),
        (dict(image_size=100), "multiple of patch_size"),
        (dict(hidden_size=100, num_attention_heads=3), "multiple of num_attention_heads"),
    ],
)
def test_sizes_that_do_not_divide_are_named(settings, says):
    with pytest.raises(ValueError, match=says):
        OpenVision3Config(**settings)


def test_presets_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="choose one of tiny, base, large"):
        OpenVision3Config.preset("huge")
    with pytest.raises(ValueError, match="widht is not a setting"):
        OpenVision3Config.preset("tiny", widht=3)


@pytest.mark.parametrize("table", [False, True])
def test_saving_and_loading_is_bit_equal(small_encoder, small_vae, tmp_path, table):
    model = small_encoder(position_table=table, projection_dim=12).attach_vae(small_vae)
    if table:
        with torch.no_grad():
            model.position_embedding.normal_()
    model.save_pretrained(tmp_path)
    again = OpenVision3Model.from_pretrained(tmp_path)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    pixel_values = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(model(pixel_values).last_hidden_state, again(pixel_values).last_hidden_state)


def test_loading_into_another_size_is_an_error(small_encoder, tmp_path):
    small_encoder(position_table=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="position_embedding is not in|position_embedding does not belong"):
        OpenVision3Model.from_pretrained(tmp_path, position_table=False)


def test_the_vae_stays_frozen_and_in_eval_mode(small_encoder, small_vae, tmp_path):
    model = small_encoder().attach_vae(small_vae)
    model.save_pretrained(tmp_path)
    for one in (model, OpenVision3Model.from_pretrained(tmp_path)):
        one.train()
        assert one.layers.training and not any(module.training for module in one.vae.modules())
        assert not any(value.requires_grad for value in one.vae.parameters())
    with pytest.raises(ValueError, match="16 latent_channels and the encoder takes 4"):
        small_encoder(latent_channels=4).attach_vae(small_vae)


def test_positions_are_a_constant_to_the_compiler():
    compiled = torch.compile(lambda: sincos_positions(3, 2, 32), backend="eager", fullgraph=True)
    assert torch.equal(compiled(), sincos_positions(3, 2, 32))
