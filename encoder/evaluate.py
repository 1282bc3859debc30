"""Measures an autoencoder folder on `shapes`: reconstruction, captions, retrieval, each beside its baselines.

    python -m encoder.evaluate --model runs/encoder --count 512 --image-size 64 --out report.json

Every split gets scenes of its own, drawn here; `--train` (a latent cache) serves the nearest-caption baseline. Of an
autoencoder without text towers (encoder.train_decoder) only reconstruction is measured.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from encoder.autoencoder import OpenVision3Autoencoder, load_autoencoder
from encoder.cache import LatentCache
from encoder.commands import add_device_argument, usable_device
from encoder.images import to_pixel_values
from encoder.metrics import psnr
from encoder.tokenizer import load_tokenizer
from encoder.vae import decode, encode
from training.cli import print_report, run_cli
from training.shapes import Scene, ShapesChecker, caption_facts, facts_hold, foreground, full_caption, render
from training.shapes.write import scene_at
from training.statistics import share

BATCH = 64


def masked_psnr(pixel_values: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """PSNR over the pixels where mask [batch, height, width] is true, one value a picture; range [-1, 1]."""
    squared = ((pixel_values.clamp(-1, 1) - target.clamp(-1, 1)) ** 2).mean(dim=1)
    mse = (squared * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp(min=1)
    return 10 * torch.log10(4.0 / mse.clamp(min=1e-12))


def caption_is_right(text: str, scene: Scene) -> bool:
    """Whether every object of the scene is named rightly and nothing false is said."""
    try:
        return facts_hold(caption_facts(text), scene)
    except ValueError:
        return False


def objects_right(text: str, scene: Scene) -> tuple[int, int]:
    """How many objects a caption names rightly, each object of the scene once, and of how many.

    Objects that are left out count as well as those made up; of a caption that cannot be read, none is right.
    """
    try:
        named = caption_facts(text).objects
    except ValueError:
        return 0, len(scene.objects)
    fits = np.array(
        [
            [
                (name.color, name.shape) == (there.color, there.shape)
                and name.size in (None, there.size)
                and name.place in (None, there.place)
                for there in scene.objects
            ]
            for name in named
        ]
    )
    right = fits[linear_sum_assignment(fits, maximize=True)].sum()
    return int(right), max(len(named), len(scene.objects))


def caption_shares(texts: list[str], scenes: list[Scene]) -> tuple[dict, dict]:
    """The share of captions that are all right, and the share of objects that they name rightly."""
    whole = share(sum(map(caption_is_right, texts, scenes)), len(scenes))
    counts = [objects_right(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    return whole, share(sum(right for right, _ in counts), sum(of for _, of in counts))


def hits_by_description(similarity: Tensor, descriptions: list[str]) -> int:
    """Rows whose best column has the row's own description. similarity: [N, N]."""
    best = similarity.argmax(dim=1).tolist()
    return sum(descriptions[row] == descriptions[column] for row, column in enumerate(best))


@torch.no_grad()
def tokens_of(model: OpenVision3Autoencoder, pixel_values: Tensor) -> Tensor:
    """image_tokens [N, num_patches, hidden_size] of many pictures, in batches, on the model's device."""
    return torch.cat([model.encode(part.to(model.device)) for part in pixel_values.split(BATCH)])


def caption_texts(model: OpenVision3Autoencoder, tokenizer: PreTrainedTokenizerBase, image_tokens: Tensor) -> list[str]:
    """Greedy captions, one a picture."""
    texts: list[str] = []
    for part in tqdm(image_tokens.split(BATCH), desc="captions", mininterval=2, leave=False):
        texts += tokenizer.batch_decode(model.caption(part), skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.no_grad()
def evaluate(
    model: OpenVision3Autoencoder,
    tokenizer: PreTrainedTokenizerBase | None,
    scenes: list[Scene],
    image_size: int,
    train_cache: LatentCache | None,
) -> dict:
    """All figures of one split; tokenizer None: of reconstruction only."""
    pixel_values = to_pixel_values([render(scene, image_size) for scene in scenes], image_size)
    image_tokens = tokens_of(model, pixel_values)
    report: dict = {"count": len(scenes), **evaluate_pictures(model, pixel_values, image_tokens, scenes)}
    if tokenizer is not None:
        report.update(evaluate_texts(model, tokenizer, image_tokens, scenes, train_cache))
    return report


def evaluate_pictures(
    model: OpenVision3Autoencoder, pixel_values: Tensor, image_tokens: Tensor, scenes: list[Scene]
) -> dict:
    """PSNR and checker of the pictures that are decoded from image_tokens, beside the VAE's own and two baselines."""
    image_size = pixel_values.shape[-1]
    mask = torch.from_numpy(np.stack([foreground(scene, image_size) for scene in scenes])).float()
    ours = torch.cat([model.decode(part).cpu() for part in image_tokens.split(BATCH)])
    parts = [part.to(model.device) for part in pixel_values.split(BATCH)]
    vae = torch.cat([decode(model.vae, encode(model.vae, part)).cpu() for part in parts])
    mean = vae.mean(dim=0, keepdim=True).expand_as(vae)
    small = F.interpolate(vae, scale_factor=1 / 16, mode="bicubic", antialias=True)
    bicubic = F.interpolate(small, size=(image_size, image_size), mode="bicubic")
    report: dict = {}
    for name, candidate, target in (
        ("vae_against_picture", vae, pixel_values),
        ("against_vae", ours, vae),
        ("against_picture", ours, pixel_values),
        ("mean_image_against_vae", mean, vae),
        ("down16_bicubic_against_vae", bicubic, vae),
    ):
        report[name] = {
            "psnr": psnr(candidate, target).mean().item(),
            "foreground_psnr": masked_psnr(candidate, target, mask).mean().item(),
        }
    checker = ShapesChecker()
    for name, candidate in (("checker_on_vae", vae), ("checker_on_ours", ours)):
        arrays = ((candidate.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        right = sum(checker.check(array, scene).all_right for array, scene in zip(arrays, scenes, strict=True))
        report[name] = share(right, len(scenes))
    return report


def evaluate_texts(
    model: OpenVision3Autoencoder,
    tokenizer: PreTrainedTokenizerBase,
    image_tokens: Tensor,
    scenes: list[Scene],
    train_cache: LatentCache | None,
) -> dict:
    """Captions and retrieval from image_tokens, beside chance, oracle and the nearest training picture's caption."""
    report: dict = {}
    texts = caption_texts(model, tokenizer, image_tokens)
    report["captions"], report["caption_objects"] = caption_shares(texts, scenes)
    report["caption_examples"] = texts[:8]
    image_features = F.normalize(model.image_features(image_tokens), dim=-1)
    descriptions = [scene.description for scene in scenes]
    tokens = tokenizer([full_caption(scene) for scene in scenes], return_tensors="pt", padding=True).to(model.device)
    text_features = F.normalize(model.text_features(tokens["input_ids"], tokens["attention_mask"]), dim=-1)
    similarity = image_features @ text_features.T
    same = torch.tensor([[float(a == b) for b in descriptions] for a in descriptions])
    report["retrieval"] = {
        "image_to_text": share(hits_by_description(similarity, descriptions), len(scenes)),
        "text_to_image": share(hits_by_description(similarity.T, descriptions), len(scenes)),
        "oracle": hits_by_description(same, descriptions) / len(scenes),
        "chance": same.mean().item(),
    }
    if train_cache is not None:
        train_tokens = torch.cat(
            [model.encode_latents(part.float().to(model.device)) for part in train_cache.latents[:4096].split(BATCH)]
        )
        train_features = F.normalize(model.image_features(train_tokens), dim=-1)
        nearest = (image_features @ train_features.T).argmax(dim=1).tolist()
        texts = [train_cache.captions[index][0] for index in nearest]
        report["nearest_caption"], report["nearest_caption_objects"] = caption_shares(texts, scenes)
    return report


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="autoencoder folder")
    parser.add_argument("--splits", nargs="+", default=["test_iid", "test_combo"])
    parser.add_argument("--count", type=int, default=512, help="pictures a split, also the retrieval pool")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--train", type=Path, default=None, help="latent cache of the training pictures")
    parser.add_argument("--out", type=Path, default=None, help="write the report as JSON")
    add_device_argument(parser)
    args = parser.parse_args(argv)
    device = usable_device(args.device)
    model = load_autoencoder(args.model).to(device)
    tokenizer = None if model.text_encoder is None else load_tokenizer(args.model / "tokenizer")
    cache = None if args.train is None else LatentCache([args.train])
    report = {
        split: evaluate(
            model, tokenizer, [scene_at(split, index) for index in range(args.count)], args.image_size, cache
        )
        for split in args.splits
    }
    print_report(report, args.out)


if __name__ == "__main__":
    run_cli(main)
