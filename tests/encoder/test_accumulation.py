"""Two passes over micro-batches equal one over the undivided batch, in one process and in two."""

import copy

import pytest
import torch

from encoder import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.accumulation import share_step
from encoder.losses import contrastive_loss
from encoder.train import PreTrainingObjective
from encoder.vae import tiny_vae
from tests.processes import in_two

SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
ROWS = 32
# Parts of a batch are summed in another order than the whole one; the CPU's BLAS decides which.
CLOSE = dict(atol=1e-6, rtol=1e-6)


def build(**settings):
    torch.manual_seed(0)
    config = OpenVision3PreTrainingConfig(
        encoder={"image_size": 32, **SMALL},
        decoder=dict(SMALL),
        text={"vocab_size": 20, "projection_dim": 32, **SMALL},
        **settings,
    )
    objective = PreTrainingObjective(OpenVision3ForPreTraining(config), tiny_vae().requires_grad_(False))
    with torch.no_grad():
        for value in objective.parameters():
            value.add_(0.03 * torch.randn_like(value))
    return objective.train()


def batch(rows=ROWS):
    """Captions of 3 to 10 tokens: parts of the batch have other numbers of them."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 11, (rows, 1), generator=generator)
    mask = (torch.arange(10) < lengths).long()
    return {
        "latents": torch.randn(rows, 16, 4, 4, generator=generator),
        "pixels": torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "input_ids": torch.randint(3, 20, (rows, 10), generator=generator) * mask,
        "attention_mask": mask,
    }


def parts(whole, size):
    rows = zip(*(values.split(size) for values in whole.values()), strict=True)
    return [dict(zip(whole, values, strict=True)) for values in rows]


def accumulated(objective, batches):
    """Loss, raw terms and gradients of one optimizer step, as the Trainer accumulates them."""
    if len(batches) > 1:
        batches = share_step(objective, batches)
    outputs = []
    for micro in batches:
        outputs.append(objective(**micro))
        (outputs[-1]["loss"] / len(batches)).backward()
    names = [name for name in outputs[0]["losses"] if "/" not in name and not name.startswith(("token", "top1"))]
    means = {name: torch.stack([output["losses"][name] for output in outputs]).mean() for name in names}
    loss = torch.stack([output["loss"].detach() for output in outputs]).mean()
    return loss, means, {name: value.grad for name, value in objective.named_parameters()}


@pytest.mark.parametrize("size", [4, 16])
def test_micro_batches_equal_the_undivided_batch(size):
    objective = build(noise_tau=0.0)
    expected = accumulated(copy.deepcopy(objective), [batch()])
    torch.testing.assert_close(accumulated(objective, parts(batch(), size)), expected, **CLOSE)
    assert expected[2]["model.log_scale"].abs() > 1e-3 and expected[1]["contrastive"] > 0.1


def test_without_the_first_pass_a_micro_batch_contrasts_with_itself_only():
    objective = build(noise_tau=0.0)
    whole, part = objective(**batch())["losses"], objective(**parts(batch(), 4)[0])["losses"]
    assert part["contrastive"] < 0.8 * whole["contrastive"]


def test_what_is_the_trainers_alone_stays_in_its_batch():
    own = [{"keys": [str(number)] * 4, "progress": {0: number}} for number in range(8)]
    batches = [{**part, **more} for part, more in zip(parts(batch(), 4), own, strict=True)]
    shared = share_step(build(), batches)
    assert [{name: part[name] for name in ("keys", "progress")} for part in shared] == own
    assert all(part["latents"] is before["latents"] for part, before in zip(shared, batches, strict=True))


def test_noise_and_pixel_rows_are_drawn_in_the_second_pass_alone():
    objective = build(noise_tau=0.8, pixel_loss_fraction=0.5, logit_scale_max=10.0)
    twin, micro = copy.deepcopy(objective), parts(batch(), 8)
    torch.manual_seed(5)
    _, terms, gradients = accumulated(objective, micro)
    torch.manual_seed(5)  # all in one graph, contrast apart
    twin.model.config.contrastive_weight = 0.0
    losses = [twin(**part) for part in micro]
    features = twin.model.features(*(batch()[name] for name in ("latents", "input_ids", "attention_mask")))
    contrast = contrastive_loss(features["image_features"], features["text_features"], features["logit_scale"])
    labels = torch.stack([part["attention_mask"][:, 1:].sum() for part in micro])
    caption = (torch.stack([output["losses"]["caption"] for output in losses]) * labels / labels.sum()).sum()
    rest = torch.stack([output["losses"]["pixel"] for output in losses]).mean()
    torch.testing.assert_close(terms["contrastive"], contrast.detach(), **CLOSE)
    torch.testing.assert_close(terms["caption"], caption, **CLOSE)
    torch.testing.assert_close(terms["pixel"], rest, **CLOSE)
    decoding = [name for name in gradients if name.startswith("model.latent_decoder")]
    (sum(output["loss"] for output in losses) / len(losses)).backward()
    for name in decoding:  # the noised branch, which contrast and captions do not reach
        torch.testing.assert_close(gradients[name], twin.get_parameter(name).grad, **CLOSE)


def one_of_two(rank):
    """Half of the batch, undivided and in micro-batches; gradients are averaged as DDP does."""
    torch.set_num_threads(1)
    mine = parts(batch(), ROWS // 2)[rank]
    results = []
    for batches in ([mine], parts(mine, ROWS // 8)):
        objective = build(noise_tau=0.0)
        wrapped = torch.nn.parallel.DistributedDataParallel(objective)
        if len(batches) > 1:
            batches = share_step(wrapped, batches)
        values = {"loss": 0.0, "caption": 0.0, "contrastive": 0.0}
        for number, micro in enumerate(batches):
            wrapped.require_backward_grad_sync = number + 1 == len(batches)  # what no_sync() sets
            output = wrapped(**micro)
            (output["loss"] / len(batches)).backward()
            for name in values:
                values[name] += ({"loss": output["loss"].detach(), **output["losses"]}[name] / len(batches)).item()
        values = torch.tensor(list(values.values()))
        torch.distributed.all_reduce(values)
        gradients = {name: value.grad.tolist() for name, value in objective.named_parameters()}
        results.append(((values / 2).tolist(), gradients))
    return results


def test_two_processes_of_sixteen_equal_one_of_thirty_two():
    results = in_two(one_of_two, timeout=100)
    loss, terms, expected = accumulated(build(noise_tau=0.0), [batch()])
    for undivided_and_in_micro_batches in results:
        for values, gradients in undivided_and_in_micro_batches:
            whole = torch.stack([loss, terms["caption"], terms["contrastive"]])
            torch.testing.assert_close(torch.tensor(values), whole, **CLOSE)
            for name, gradient in expected.items():
                torch.testing.assert_close(torch.tensor(gradients[name]), gradient, **CLOSE)
