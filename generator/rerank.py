"""Chooses among drawings by the encoder's own text heads, on tokens alone: nothing is decoded."""

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from generator.flow import picture_generators
from generator.pipeline import OpenVision3Pipeline
from generator.text import longest_text, tokenize

SCORES = ("contrast", "caption", "both")


def _standardised(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / scores.std(unbiased=False).clamp(min=1e-6)


@torch.no_grad()
def token_scores(pipeline: OpenVision3Pipeline, image_tokens: Tensor, prompt: str, score: str = "both") -> Tensor:
    """How well raw image tokens [n, num_patches, channels] fit the prompt, [n]; larger is better.

    contrast: cosine of the pooled tokens and the text; caption: mean log-probability per token of the prompt given the
    tokens; both: their sum after standardising each over the n.
    """
    if score not in SCORES:
        raise ValueError(f"score is {score!r}: choose one of {', '.join(SCORES)}.")
    autoencoder = pipeline.autoencoder
    heads = {
        "contrast": ("text_encoder",),
        "caption": ("caption_decoder",),
        "both": ("text_encoder", "caption_decoder"),
    }
    for head in heads[score]:
        if getattr(autoencoder, head, None) is None:
            raise ValueError(f"This autoencoder has no trained {head}: it cannot rank drawings by {score}.")
    limit = longest_text(pipeline.text_encoder, pipeline.tokenizer)
    input_ids, mask = (part.to(autoencoder.device) for part in tokenize(pipeline.tokenizer, [prompt], limit))
    image_tokens = image_tokens.to(autoencoder.device, autoencoder.dtype)
    scores = []
    if score != "caption":
        images = F.normalize(autoencoder.image_features(image_tokens), dim=-1)
        text = F.normalize(autoencoder.text_features(input_ids, mask), dim=-1)
        scores.append((images @ text.T)[:, 0])
    if score != "contrast":
        count = len(image_tokens)
        scores.append(autoencoder.caption_log_prob(image_tokens, input_ids.expand(count, -1), mask.expand(count, -1)))
    return scores[0] if len(scores) == 1 else sum(map(_standardised, scores))


def best_of(
    pipeline: OpenVision3Pipeline, prompt: str, count: int, seed: int = 0, first_index: int = 0, score: str = "both",
    **options,
) -> Image.Image:  # fmt: skip
    """Draws `count` times (noise (seed, first_index + i)) and decodes only the drawing that fits the prompt best.

    options: arguments of the pipeline's call, such as num_inference_steps and guidance_scale.
    """
    generators = picture_generators(seed, range(first_index, first_index + count))
    tokens = pipeline([prompt] * count, generator=generators, output_type="tokens", **options).images
    best = int(token_scores(pipeline, tokens, prompt, score).argmax())
    return pipeline.decode(pipeline.to_grid(tokens[best : best + 1]))[0]
