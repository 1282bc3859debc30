"""A toy training, run as a script by the tests: python toy.py RECIPE [key=value ...], with KILL_AT as in kills.py."""

import os
import sys
from pathlib import Path

import torch
from kills import install_kills
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

import training.trainer as trainer_module
from training.recipes import Recipe, load_recipe
from training.shards import sample_rng


class Numbers(Dataset):
    """Inputs that depend on (seed, epoch, index)."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 24

    def __getitem__(self, index):
        rng = sample_rng(0, self.epoch, index)
        return {"x": torch.tensor(rng.normal(size=6), dtype=torch.float32), "key": f"s{index}"}


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        dropout = 0.0 if "NO_DROPOUT" in os.environ else 0.2
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Dropout(dropout), nn.Linear(8, 1))
        self.blocks = nn.ModuleList([nn.Linear(6, 6)])  # what Muon looks for
        self.bad = float(os.environ.get("BAD_AT", "inf"))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        loss = (self.body(self.frozen(x) + self.blocks[0](x)) - x.sum(dim=1, keepdim=True)).pow(2).mean()
        if self.calls >= self.bad:
            loss = loss * float("nan")
        return {"loss": loss, "losses": {"fit": loss.detach()}}


def collate(rows):
    return {"x": torch.stack([row["x"] for row in rows]), "keys": [row["key"] for row in rows]}


def main(argv):
    torch.manual_seed(0)
    install_kills()
    toy = Toy()
    recipe = load_recipe(Recipe, argv)

    def export(folder: Path):
        save_file({name: value.contiguous() for name, value in toy.state_dict().items()}, folder / "toy.safetensors")

    trainer_module.run_training(toy, Numbers(), recipe, collate=collate, export=export)


if __name__ == "__main__":
    main(sys.argv[1:])
