"""Muon: orthogonal updates of AdamW's size for the matrices inside blocks, AdamW for the rest, in one optimizer."""

import copy

import pytest
import torch
from torch import nn

from training.arguments import muon_learning_rate, training_arguments
from training.muon import MOMENTUM, UPDATE_RMS, hidden_matrices, make_muon, orthogonalize
from training.recipes import Recipe


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.layers = nn.ModuleList(nn.ModuleDict({
            "up": nn.Linear(8, 24), "down": nn.Linear(24, 8), "norm": nn.LayerNorm(8),
            "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(8, 16)),
        }) for _ in range(2))  # fmt: skip
        self.convolutions = nn.ModuleList([nn.Conv2d(1, 4, 3)])
        self.head = nn.Linear(8, 7)

    def forward(self, words):
        states = self.embedding(words)
        for layer in self.layers:
            gain, shift = layer["adaLN_modulation"](states).chunk(2, dim=-1)
            states = states + layer["down"](layer["up"](layer["norm"](states) * (1 + gain) + shift).relu())
        image = self.convolutions[0](states[:, None])
        return self.head(states)[:, 0] + image.mean()


def _optimizer(net):
    decaying = [name for name, value in net.named_parameters() if value.ndim > 1]
    settings = dict(learning_rate=1e-2, muon_learning_rate=2e-2, weight_decay=0.0, betas=(0.9, 0.95))
    return make_muon(net, decaying, **settings)


def _train(net, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        words = torch.randint(7, (16, 5), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(words), words[:, 0])
        loss.backward()
        optimizer.step()
    return loss.item()


def test_only_matrices_inside_blocks_are_muons():
    expected = {f"layers.{n}.{name}.weight" for n in (0, 1) for name in ("up", "down")} | {"convolutions.0.weight"}
    net = Net()
    assert set(hidden_matrices(net)) == expected
    net.layers[0].requires_grad_(False)
    assert not any(name.startswith("layers.0") for name in hidden_matrices(net))
    with pytest.raises(ValueError, match="optimizer=muon found no trainable matrix"):
        _optimizer(nn.Linear(3, 3))


@pytest.mark.parametrize("shape", [(3, 32, 96), (2, 96, 32), (1, 20, 20)])
def test_orthogonalized_matrices_keep_their_directions_and_lose_their_lengths(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) + torch.eye(*shape[1:]) * 20  # away from singular, where no sign is defined
    result = orthogonalize(1000 * matrices)
    values = torch.linalg.svdvals(result)
    assert 0.6 < values.min() and values.max() < 1.25
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    overlap = torch.einsum("nij,nij->n", result, left @ right) / min(shape[1:])
    assert (overlap > 0.8).all()


def test_a_step_is_the_scaled_orthogonal_direction_and_decays_the_weights():
    torch.manual_seed(0)
    net = Net()
    before, weight = net.layers[0]["up"].weight.detach().clone(), net.layers[0]["up"].weight
    optimizer = _optimizer(net)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.5
    words = torch.randint(7, (16, 5))
    net(words).square().mean().backward()
    momentum = (1 - MOMENTUM) * weight.grad
    direction = orthogonalize(torch.lerp(weight.grad, momentum, MOMENTUM)[None])[0]
    optimizer.step()
    expected = before * (1 - 2e-2 * 0.5) - 2e-2 * UPDATE_RMS * 24**0.5 * direction
    # The optimizer stacks matrices of one shape: BLAS may sum in another order.
    torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=0)
    assert 0.1 < (weight.detach() - before).pow(2).mean().sqrt() / (2e-2 * UPDATE_RMS) < 1.5


def test_what_is_not_muons_moves_as_adamw_moves_it():
    torch.manual_seed(0)
    net = Net()
    twin = copy.deepcopy(net)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    _train(net, _optimizer(net), 1)
    _train(twin, theirs, 1)
    assert torch.equal(net.embedding.weight, twin.embedding.weight) and torch.equal(net.head.bias, twin.head.bias)
    assert not torch.equal(net.layers[0]["up"].weight, twin.layers[0]["up"].weight)


def test_it_learns_and_a_restored_state_goes_on_bit_equal(tmp_path):
    torch.manual_seed(0)
    net = Net()
    optimizer = _optimizer(net)
    first = _train(net, optimizer, 1)
    assert _train(net, optimizer, 60) < 0.6 * first
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    _train(net, optimizer, 5, seed=1)
    again = Net()
    restored = _optimizer(again)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["net"])
    restored.load_state_dict(state["optimizer"])
    _train(again, restored, 5, seed=1)
    for name, value in net.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name


def test_split_matrices_and_unknown_optimizers_are_refused_in_a_sentence(tmp_path):
    def rate(optimizer, **trainer):
        recipe = Recipe(output_dir=str(tmp_path), optimizer=optimizer, muon_learning_rate=0.5)
        arguments = training_arguments(recipe)
        for name, value in trainer.items():
            setattr(arguments, name, value)
        return muon_learning_rate(recipe, arguments)

    assert rate("adamw") is None and rate("muon") == 0.5
    with pytest.raises(ValueError, match="optimizer is 'sgd'; choose one of adamw, muon"):
        rate("sgd")
    with pytest.raises(ValueError, match="needs whole matrices, which DeepSpeed splits"):
        rate("muon", deepspeed="zero2.json")
    with pytest.raises(ValueError, match="needs whole matrices, which FSDP splits"):
        rate("muon", fsdp="full_shard")
