"""Rows about the multimodal LLM."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config
from transformers.trainer_pt_utils import LengthGroupedSampler

from encoder import OpenVision3Config
from encoder.vae import tiny_vae
from mllm.conversation import IGNORED
from mllm.objective import MultimodalObjective
from mllm.sampler import GroupedSampler
from scripts.bench.compare import compare

IMAGE_ID, IMAGE_TOKENS, ROWS_READ, BATCH = 1, 64, 16, 4


def instruction_rows(vocab_size: int) -> list[dict[str, Tensor]]:
    """Rows as in LLaVA's mixture: two in three have a picture, half of the text is answers, lengths differ tenfold."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(ROWS_READ):
        length = int(2 ** (4 + 3.3 * torch.rand((), generator=generator)))
        text = torch.randint(5, vocab_size, (length,), generator=generator)
        labels = text.clone()
        labels[: length // 2] = IGNORED
        if index % 3:
            text = torch.cat([torch.full((IMAGE_TOKENS,), IMAGE_ID), text])
            labels = torch.cat([torch.full((IMAGE_TOKENS,), IGNORED), labels])
        rows.append({"input_ids": text, "labels": labels})
    return rows


def batches(rows: list[dict], order: Iterator[int], pixels: Tensor, device: str) -> list[dict[str, Tensor]]:
    """Rows in that order, padded to the longest of each batch; pixel_values for those with a picture."""
    order = list(order)
    made = []
    for start in range(0, len(order), BATCH):
        chosen = [rows[index] for index in order[start : start + BATCH]]
        ids = pad_sequence([row["input_ids"] for row in chosen], batch_first=True)
        labels = pad_sequence([row["labels"] for row in chosen], batch_first=True, padding_value=IGNORED)
        mask = pad_sequence([torch.ones_like(row["input_ids"]) for row in chosen], batch_first=True)
        pictures = sum(int(row["input_ids"][0] == IMAGE_ID) for row in chosen)
        images = pixels[: max(pictures, 1)]  # a dummy where no row has one
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask, "images": images}
        made.append({name: value.to(device) for name, value in batch.items()} | {"pictures": pictures})
    return made


def tuning_against_stock(device: str) -> str:
    """LLaVA's second stage: non-padding tokens a second, forward and backward, against the stock model in the order of
    transformers' group_by_length, the same rows, the tower without gradient on both sides; then each gain alone."""
    vocab_size, layers = (32_000, 2) if device == "cpu" else (151_936, 24)
    llm = Qwen2Config(vocab_size=vocab_size, hidden_size=896, intermediate_size=4864, num_hidden_layers=layers,
                      num_attention_heads=14, num_key_value_heads=2)  # fmt: skip
    tower = OpenVision3Config.preset("tiny", image_size=128)
    config = LlavaConfig(vision_config=tower, text_config=llm, image_token_id=IMAGE_ID, vision_feature_layer=-1,
                         vision_feature_select_strategy="full", image_seq_length=IMAGE_TOKENS)  # fmt: skip
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = LlavaForConditionalGeneration(config).to(device, dtype).train()
    model.model.vision_tower.attach_vae(tiny_vae().to(device, dtype)).requires_grad_(False)
    ours = MultimodalObjective(model, cached=False)
    pixels = torch.rand(BATCH, 3, 128, 128, dtype=dtype) * 2 - 1
    rows = instruction_rows(vocab_size)
    lengths = [len(row["input_ids"]) for row in rows]
    signed = [length if row["input_ids"][0] == IMAGE_ID else -length for length, row in zip(lengths, rows, strict=True)]
    grouped = batches(rows, iter(GroupedSampler(signed, BATCH, 0)), pixels, device)
    by_length = LengthGroupedSampler(BATCH, lengths=lengths, generator=torch.Generator().manual_seed(0))
    plain = batches(rows, iter(by_length), pixels, device)

    def objective(data: list[dict]) -> None:
        for batch in data:
            ours(**{name: value for name, value in batch.items() if name != "pictures"})["loss"].backward()
            model.zero_grad()

    def stock(data: list[dict]) -> None:
        for batch in data:
            inputs = {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}
            if batch["pictures"]:
                inputs["pixel_values"] = batch["images"]
            model(**inputs).loss.backward()
            model.zero_grad()

    a, b = compare(lambda: objective(grouped), lambda: stock(plain), device)
    _, without_order = compare(lambda: None, lambda: objective(plain), device)
    _, without_head = compare(lambda: None, lambda: stock(grouped), device)
    tokens = sum(lengths)
    return (
        f"second stage, Qwen2-0.5B's shape with {layers} layers, {vocab_size:,} words: {tokens / a:.0f} tokens/s, "
        f"stock {tokens / b:.0f}, speed {b / a:.2f}x; without grouping by kind {b / without_order:.2f}x, without a "
        f"head on trained positions alone {b / without_head:.2f}x"
    )


ROWS = [tuning_against_stock]
