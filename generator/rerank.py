"""The encoder's own text heads at work: they choose among drawings, and say what pictures show.

What is scored is not the drawn tokens but what the encoder sees in the pictures they decode to: a generator can write
tokens in which the heads read the prompt while the picture is a blob. How much the two differ tells as much again: the
tokens of a clean picture come back through it, those of a broken one do not (docs/log.md, 2026-11-26).

The heads read a prompt through the tokenizer they were trained with, pipeline.autoencoder_tokenizer, whatever text
model draws.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from generator.flow import picture_generators
from generator.pipeline import OpenVision3Pipeline
from generator.text import longest_text, tokenize

# the parts of each score, and the heads that some are read from
SCORES = {
    "contrast": ("contrast",),
    "caption": ("caption",),
    "fidelity": ("fidelity",),
    "both": ("caption", "fidelity"),
}
HEADS = {"contrast": "text_encoder", "caption": "caption_decoder"}


def check_heads(pipeline: OpenVision3Pipeline, score: str) -> None:
    """Refuses a pipeline that cannot rank by this score.

    Raises:
        ValueError: there is no such score, the autoencoder's head is absent or untrained, or its tokenizer is missing
            or another one's.
    """
    if score not in SCORES:
        raise ValueError(f"score is {score!r}: choose one of {', '.join(SCORES)}.")
    heads = [HEADS[part] for part in SCORES[score] if part in HEADS]
    if not heads:
        return
    for head in heads:
        pipeline.autoencoder.need_text(head)
    if pipeline.autoencoder_tokenizer is None:
        raise ValueError(
            "This pipeline has no autoencoder_tokenizer, through which the encoder's text heads read a prompt: make it "
            "with the one in the autoencoder's folder tokenizer."
        )
    words, known = len(pipeline.autoencoder_tokenizer), pipeline.autoencoder.text_encoder.config.vocab_size
    if words > known:
        raise ValueError(
            f"The autoencoder_tokenizer has {words} words and the encoder's text heads know {known}: make the pipeline "
            "with the one in the autoencoder's folder tokenizer."
        )


def combined(parts: Sequence[Tensor]) -> Tensor:
    """Scores [n] of several kinds as one: their sum after standardising each over the n; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    return sum((part - part.mean()) / part.std(unbiased=False).clamp(min=1e-6) for part in parts)


def describe(pipeline: OpenVision3Pipeline, pixel_values: Tensor) -> list[str]:
    """What the encoder's caption head reads in pictures [batch, 3, height, width], a caption each: prompts for editing.

    Raises:
        ValueError: the pipeline's encoder cannot read, see check_heads.
    """
    check_heads(pipeline, "caption")
    autoencoder = pipeline.autoencoder
    ids = autoencoder.caption(autoencoder.encode(pixel_values.to(autoencoder.device, autoencoder.dtype)))
    return [text.strip() for text in pipeline.autoencoder_tokenizer.batch_decode(ids.cpu(), skip_special_tokens=True)]


@torch.no_grad()
def score_parts(
    pipeline: OpenVision3Pipeline, image_tokens: Tensor, prompt: str, score: str = "both"
) -> dict[str, Tensor]:
    """The parts of a score for drawn raw image tokens [n, num_patches, channels], each [n]; larger is better.

    The tokens are decoded to pictures and encoded again. contrast: cosine of the pooled tokens and the text; caption:
    mean log-probability per token of the prompt given the tokens; fidelity: minus the mean squared difference of the
    normalised tokens before and after.

    Raises:
        ValueError: the pipeline cannot rank by this score, see check_heads, or the prompt is too long for the heads.
    """
    check_heads(pipeline, score)
    autoencoder, tokenizer = pipeline.autoencoder, pipeline.autoencoder_tokenizer
    image_tokens = image_tokens.to(autoencoder.device, autoencoder.dtype)
    seen = autoencoder.encode(autoencoder.decode(image_tokens, pipeline.transformer.grid).clamp(-1, 1))
    parts = {}
    if any(part in HEADS for part in SCORES[score]):
        encoded = tokenize(tokenizer, [prompt], longest_text(autoencoder.text_encoder, tokenizer))
        input_ids, mask = (rows.to(autoencoder.device) for rows in encoded)
    if "contrast" in SCORES[score]:
        parts["contrast"] = (autoencoder.image_features(seen) @ autoencoder.text_features(input_ids, mask).T)[:, 0]
    if "caption" in SCORES[score]:
        texts = (rows.expand(len(seen), -1) for rows in (input_ids, mask))
        parts["caption"] = autoencoder.caption_log_prob(seen, *texts)
    if "fidelity" in SCORES[score]:
        changed = pipeline.to_grid(image_tokens) - pipeline.to_grid(seen)
        parts["fidelity"] = -changed.square().mean(dim=(1, 2, 3))
    return parts


def token_scores(pipeline: OpenVision3Pipeline, image_tokens: Tensor, prompt: str, score: str = "both") -> Tensor:
    """How well drawn raw image tokens [n, num_patches, channels] fit the prompt, [n]; larger is better.

    See score_parts, also for its errors, and combined.
    """
    return combined(list(score_parts(pipeline, image_tokens, prompt, score).values()))


def likeliest(
    pipeline: OpenVision3Pipeline, image_tokens: Tensor, prompt: str, score: str = "both"
) -> Image.Image:
    """The picture of the one of drawn raw image tokens [n, num_patches, channels] that fits the prompt best.

    Raises:
        ValueError: as token_scores.
    """
    best = int(token_scores(pipeline, image_tokens, prompt, score).argmax())
    return pipeline.decode(pipeline.to_grid(image_tokens[best : best + 1]))[0]


def best_of(
    pipeline: OpenVision3Pipeline, prompt: str, count: int, seed: int = 0, first_index: int = 0, score: str = "both",
    **options,
) -> Image.Image:  # fmt: skip
    """Draws `count` times (noise (seed, first_index + i)) and keeps the drawing that fits the prompt best.

    options: arguments of the pipeline's call, such as num_inference_steps and guidance_scale.

    Raises:
        ValueError: before anything is drawn, if the pipeline cannot rank by this score; or what drawing refuses.
    """
    check_heads(pipeline, score)
    generators = picture_generators(seed, range(first_index, first_index + count))
    tokens = pipeline([prompt] * count, generator=generators, output_type="latent", **options).images
    return likeliest(pipeline, tokens, prompt, score)
