"""The losses: one process equals two, chunks equal the whole, a share of the pixels equals all on average."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from encoder import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.losses import caption_loss, contrastive_loss
from tests.processes import in_two

SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)


def features(size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, size, 6, generator=generator), torch.randn(2, 6, 6, generator=generator)


def loss_and_gradients(inputs, weights):
    """Contrastive loss of two linear towers; gradients of both towers and of the log scale."""
    towers, log_scale = weights.clone().requires_grad_(), torch.tensor(2.0, requires_grad=True)
    loss = contrastive_loss(inputs[0] @ towers[0], inputs[1] @ towers[1], log_scale.exp())
    loss.backward()
    return loss.detach(), towers.grad, log_scale.grad


def one_of_two(rank):
    """Half of the batch, gradients averaged as DDP does."""
    inputs, weights = features()
    results = loss_and_gradients(inputs[:, 4 * rank : 4 * rank + 4], weights)
    for gradient in results[1:]:
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    return [value.tolist() for value in results]


def test_two_processes_of_four_equal_one_of_eight():
    results = in_two(one_of_two, timeout=60)
    expected = loss_and_gradients(*features())
    for values in results:
        for ours, whole in zip(values, expected, strict=True):
            # Half a batch is summed in another order than the whole one; the CPU's BLAS decides which.
            torch.testing.assert_close(torch.tensor(ours), whole, atol=1e-5, rtol=0)


def test_contrast_is_symmetric_cross_entropy_of_cosines():
    (image, text), _ = features()
    cosines = F.cosine_similarity(image[:, None], text[None], dim=-1) * 7.0
    rows, columns = cosines.log_softmax(dim=1).diagonal(), cosines.log_softmax(dim=0).diagonal()
    expected = -(rows.mean() + columns.mean()) / 2
    torch.testing.assert_close(contrastive_loss(image, 5 * text, torch.tensor(7.0)), expected)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunked_caption_loss_equals_plain(chunk):
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=False)
    labels = torch.randint(0, 50, (4, 9)).masked_fill(torch.rand(4, 9) < 0.3, -100)
    states = torch.randn(4, 9, 8, requires_grad=True)
    plain = F.cross_entropy(head(states).flatten(0, 1), labels.flatten())
    expected = torch.autograd.grad(plain, [states, head.weight])
    ours = caption_loss(states, head, labels, chunk)
    # A chunk is summed in another order than the whole; the CPU's BLAS decides which.
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
    for gradient, whole in zip(torch.autograd.grad(ours, [states, head.weight]), expected, strict=True):
        torch.testing.assert_close(gradient, whole, atol=1e-5, rtol=0)


def test_nothing_to_predict_is_no_loss():
    states = torch.randn(1, 3, 8, requires_grad=True)
    loss = caption_loss(states, nn.Linear(8, 5), torch.full((1, 3), -100))
    loss.backward()
    assert loss.item() == 0 and not states.grad.any()


def test_a_share_of_the_pixels_gives_the_whole_gradient_on_average(monkeypatch):
    torch.manual_seed(0)
    config = OpenVision3PreTrainingConfig(
        encoder={"image_size": 32, **SMALL},
        decoder=dict(SMALL),
        text={"vocab_size": 20, "projection_dim": 32, **SMALL},
        noise_tau=0.0,
    )
    model = OpenVision3ForPreTraining(config)
    batch = dict(
        latents=torch.randn(4, 16, 4, 4),
        input_ids=torch.tensor([[1, 5 + row, 6, 2] for row in range(4)]),
        attention_mask=torch.ones(4, 4, dtype=torch.long),
        pixel_values=torch.randn(4, 3, 32, 32),
        decode_latents=lambda latents: F.interpolate(latents[:, :3], scale_factor=8).tanh(),
    )

    def gradients():
        output = model(**batch)
        return output.losses, torch.autograd.grad(output.loss, list(model.parameters()), allow_unused=True)

    losses, whole = gradients()
    weights = {"pixel": 0.5, "latent": 0.5 * 0.4, "caption": 1.0, "contrastive": 1.0}
    for name, weight in weights.items():
        torch.testing.assert_close(losses[f"weighted/{name}"], weight * losses[name])
    model.config.pixel_loss_fraction = 0.5
    parts, pixel = [], []
    for subset in itertools.combinations(range(4), 2):
        rest = sorted(set(range(4)) - set(subset))
        monkeypatch.setattr(torch, "randperm", lambda count, order=(*subset, *rest): torch.tensor(order))
        losses_of_part, part = gradients()
        parts.append(part)
        pixel.append(losses_of_part["pixel"])
    torch.testing.assert_close(torch.stack(pixel).mean(), losses["pixel"])
    assert torch.stack(pixel).std() > 0
    for name, gradient, *of_parts in zip([n for n, _ in model.named_parameters()], whole, *parts, strict=True):
        assert gradient is not None, name
        # Two pictures are summed in another order than four; the CPU's BLAS decides which.
        torch.testing.assert_close(torch.stack(of_parts).mean(dim=0), gradient, atol=1e-5, rtol=1e-4)
