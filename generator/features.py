"""Features in which sets of pictures are compared: a small classifier of `shapes`, or Inception.

    python -m generator.features --out runs/features.safetensors

trains the classifier on pixels alone: which colours and shapes a picture shows, how many objects, on which background.
It takes about two minutes on one core; the features are the classifier's last ones before its answers.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from training.cli import run_cli
from training.shapes import BACKGROUNDS, COLORS, SHAPES, Scene, render
from training.shapes.scene import COUNT_MIX
from training.shapes.write import Split, scene_at

# Pictures uint8 [batch, 3, height, width] -> features float32 [batch, d].
Features = Callable[[Tensor], Tensor]
WORDS = (*COLORS, *SHAPES, *BACKGROUNDS, *range(1, len(COUNT_MIX) + 1))  # what the classifier says yes or no to
SIZE = 64  # pictures are read at this side
TRAIN_BATCH, EXTRACT_BATCH = 64, 256


class ShapesClassifier(nn.Module):
    """Four convolutions that halve the side, mean and maximum over the places, and a yes or no to each of WORDS."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 32, 64, 96, 128), []
        for narrow, wide in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.feature = nn.Linear(2 * widths[-1], 64)
        self.head = nn.Linear(64, len(WORDS))

    def hidden(self, pictures: Tensor) -> Tensor:
        """pictures uint8 [batch, 3, height, width] -> what the answers are read from, [batch, 64]."""
        pixel_values = pictures.float() / 127.5 - 1
        if pixel_values.shape[-2:] != (SIZE, SIZE):
            pixel_values = F.interpolate(pixel_values, (SIZE, SIZE), mode="bicubic", antialias=True)
        places = self.body(pixel_values).flatten(2)
        return F.relu(self.feature(torch.cat([places.mean(dim=2), places.amax(dim=2)], dim=1)))

    def features(self, pictures: Tensor) -> Tensor:
        """pictures uint8 [batch, 3, height, width] -> [batch, 64] of root mean square 1.

        Without that a few pictures far out rule: their balls of nearest neighbours hold every other one.
        """
        return F.rms_norm(self.hidden(pictures), (self.feature.out_features,))

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures uint8 [batch, 3, height, width] -> logits of WORDS [batch, words]."""
        return self.head(self.hidden(pictures))


def load_features(name: str | Path, device: str | torch.device = "cpu") -> Features:
    """`inception`: torch-fidelity's InceptionV3 (2,048 features, pictures resized as TensorFlow did), or a file that
    this module's command wrote; computed on `device`, wherever the pictures are.

    Raises:
        ValueError: torch-fidelity is not installed, or there is no such file.
    """
    if str(name) == "inception":
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError(
                "Inception features need torch-fidelity: pip install 'openvision3[fidelity]', or name a file that "
                "python -m generator.features wrote."
            ) from error
        inception = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)
        return lambda pictures: inception(pictures.to(device))[0]
    if not Path(name).is_file():
        raise ValueError(f"There are no features at {name}: write them with python -m generator.features --out {name}.")
    classifier = ShapesClassifier().eval()
    classifier.load_state_dict(load_file(name))
    classifier.to(device)
    return lambda pictures: classifier.features(pictures.to(device))


@torch.no_grad()
def extract(features: Features, pictures: np.ndarray) -> Tensor:
    """pictures uint8 [n, height, width, 3] -> features [n, d] on the CPU."""
    batches = torch.from_numpy(pictures).permute(0, 3, 1, 2).split(EXTRACT_BATCH)
    return torch.cat([features(batch.contiguous()).cpu() for batch in tqdm(batches, desc="features", mininterval=2)])


def answers(scene: Scene) -> Tensor:
    """Yes (1) or no (0) to each of WORDS, [words]."""
    true = {scene.background, len(scene.objects)}
    true |= {word for item in scene.objects for word in (item.color, item.shape)}
    return torch.tensor([float(word in true) for word in WORDS])


def pictures_of(split: Split, count: int) -> tuple[Tensor, Tensor]:
    """Pictures uint8 [count, 3, SIZE, SIZE] of a split's first scenes and their answers [count, words]."""
    scenes = [scene_at(split, index) for index in range(count)]
    pictures = np.stack([np.asarray(render(scene, SIZE)) for scene in tqdm(scenes, desc=split, mininterval=2)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2), torch.stack([answers(scene) for scene in scenes])


def train(pictures: Tensor, targets: Tensor, steps: int, seed: int = 0) -> ShapesClassifier:
    """A classifier trained on pictures uint8 [n, 3, SIZE, SIZE] and their answers [n, words]."""
    torch.manual_seed(seed)
    classifier = ShapesClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    order = np.random.default_rng(seed)
    for _ in tqdm(range(steps), desc="classifier", mininterval=2):
        chosen = torch.from_numpy(order.integers(len(pictures), size=TRAIN_BATCH))
        loss = F.binary_cross_entropy_with_logits(classifier(pictures[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


@torch.no_grad()
def accuracy(classifier: ShapesClassifier, pictures: Tensor, targets: Tensor) -> tuple[float, float]:
    """The share of answers that are right, and of pictures all of whose answers are."""
    right = torch.cat([classifier(batch) > 0 for batch in pictures.split(EXTRACT_BATCH)]) == targets.bool()
    return right.double().mean().item(), right.all(dim=1).double().mean().item()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m generator.features", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--pictures", type=int, default=8000, help="training pictures (default %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help=f"of {TRAIN_BATCH} pictures (default %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.pictures < 1 or arguments.steps < 1:
        raise ValueError("--pictures and --steps must be at least 1.")
    start = time.perf_counter()
    classifier = train(*pictures_of("train", arguments.pictures), arguments.steps)
    answered, whole = accuracy(classifier, *pictures_of("val", 500))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), arguments.out, metadata={"format": "pt"})
    print(f"{arguments.out}: {answered:.1%} of the answers about 500 val pictures are right, all {len(WORDS)} for "
          f"{whole:.1%}, {time.perf_counter() - start:.0f} s")  # fmt: skip


if __name__ == "__main__":
    run_cli(main)
