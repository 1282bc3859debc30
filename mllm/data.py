"""LLaVA rows with their pictures, and the cache of the frozen tower's tokens."""

import json
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from encoder.images import ImageError, load_image
from mllm.conversation import IGNORED, IMAGE, ConversationError, encode_conversation, images_of

# So many tokenised conversations are kept: all of `shapes` (about 20,000); 0.5 GB where they have 1,000 tokens each.
REMEMBERED = 30_000


logger = logging.getLogger(__name__)
# Why a row cannot be trained on; each has a `kind`.
UNUSABLE = (ConversationError, ImageError)
ON_ERROR = ("stop", "skip")
FORMAT = '{"image": "a.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}'


class RowsError(ValueError):
    """A data file cannot be used; the message names file and row."""


def load_rows(path: str | Path) -> list[dict]:
    """Rows of a LLaVA .json (a list) or .jsonl file.

    Raises:
        RowsError: missing file, wrong JSON, no rows, a row without conversations, or one whose image is no path.
    """
    path = Path(path)
    if not path.is_file():
        raise RowsError(f"There is no data file at {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RowsError(f"{path} is not a text in UTF-8 ({error}); save it as such.") from error
    if path.suffix == ".jsonl":  # splitlines() would also cut at signs that JSON allows inside a text
        rows = [_parse(line, path, number) for number, line in enumerate(text.split("\n")) if line.strip()]
    else:
        rows = _parse(text, path)
    if not isinstance(rows, list) or not rows:
        raise RowsError(f"{path} holds no list of rows like {FORMAT}.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not row.get("conversations"):
            raise RowsError(f"{path}: row {number} has no 'conversations'; write it like {FORMAT}.")
        image = row.get("image") or []
        if not isinstance(image, str) and not (isinstance(image, list) and all(isinstance(one, str) for one in image)):
            raise RowsError(f"{path}: the 'image' of row {number} is {image!r}; give a path or a list of paths.")
    return rows


def _parse(text: str, path: Path, lines_before: int = 0) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowsError(f"{path} is not valid JSON at line {lines_before + error.lineno}: {error.msg}.") from error


def without_pictures(rows: list[dict]) -> list[dict]:
    """The same conversations as text alone: what a model can answer from these is guessed, not seen."""
    blind = []
    for row in rows:
        turns = [{**turn, "value": turn["value"].replace(IMAGE, "").strip()} for turn in row["conversations"]]
        blind.append({**{key: value for key, value in row.items() if key != "image"}, "conversations": turns})
    return blind


def load_picture(name: str, root: str | Path, row_id: object) -> Image.Image:
    """One picture of a row, from inside `root`; an error names the row."""
    try:
        return load_image(name, root=root)
    except ImageError as error:
        raise ImageError(f"Row {row_id}: {error}", error.kind) from error


@torch.no_grad()
def cache_image_tokens(
    rows: list[dict],
    root: str | Path,
    tower: Callable[[list[Image.Image]], Tensor],
    batch_size: int = 128,
    on_error: str = "stop",
) -> dict[str, Tensor]:
    """Runs the frozen tower once on every distinct picture: name -> float16 [num_patches, hidden_size], on the CPU.

    Pictures that cannot be read are left out with `on_error="skip"`, and raise ImageError else.
    """
    names = list(dict.fromkeys(name for row in rows for name in images_of(row)))
    tokens: dict[str, Tensor] = {}
    for start in tqdm(range(0, len(names), batch_size), desc="image tokens", mininterval=2):
        pictures = {}
        for name in names[start : start + batch_size]:
            try:
                pictures[name] = load_picture(name, root, name)
            except ImageError:
                if on_error == "stop":
                    raise
        if pictures:
            tokens.update(zip(pictures, tower(list(pictures.values())).half().cpu(), strict=True))
    return tokens


class Conversations(Dataset):
    """Encoded rows. Items are {"input_ids", "labels", "key", "images": [Tensor, ...]}.

    input_ids and labels are int64 [length]. An image is the frozen tower's tokens [num_patches, hidden_size] where
    `tokens` is given, else pixel_values; there are as many as input_ids has places for: a picture whose turn was left
    out is not loaded. Conversations that return, in another row or epoch, are tokenised once.

    A row is usable if `sample` makes an item of it. With `on_error="skip"` the next usable row stands in for one that
    is not, so that batches stay whole and a resumed training sees the same ones; it is logged and counted.
    """

    def __init__(
        self,
        rows: list[dict],
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str,
        num_image_tokens: int,
        max_length: int | None,
        root: str | Path,
        tokens: dict[str, Tensor] | None = None,
        to_pixels: Callable[[list[Image.Image]], Tensor] | None = None,
        on_error: str = "stop",
    ) -> None:
        self.rows, self.tokenizer, self.template = rows, tokenizer, template
        self.num_image_tokens, self.max_length, self.root = num_image_tokens, max_length, root
        self.tokens, self.to_pixels, self.on_error = tokens, to_pixels, on_error
        self._skipped = multiprocessing.Value("q")  # the loader's processes count into it too
        self._seen: dict[str, tuple[Tensor, Tensor, int]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def _encode(self, row: dict) -> tuple[Tensor, Tensor, int]:
        """input_ids, labels [length], number of pictures; the ids of pictures do not depend on which they are."""
        key = json.dumps([row["conversations"], len(images_of(row)), "image" in row])
        if key not in self._seen:
            encoded = encode_conversation(row, self.tokenizer, self.template, self.num_image_tokens, self.max_length)
            if len(self._seen) == REMEMBERED:
                self._seen.clear()
            input_ids, labels = torch.tensor(encoded["input_ids"]), torch.tensor(encoded["labels"])
            places = int((input_ids == encoded["image_token_id"]).sum())
            self._seen[key] = input_ids, labels, places // self.num_image_tokens
        return self._seen[key]

    def __getitem__(self, index: int) -> dict:
        """Raises ConversationError or ImageError: the row is not usable; with "skip", none is."""
        if index >= len(self):  # what ends a for loop over the rows
            raise IndexError(index)
        for step in range(len(self)):
            try:
                return self.sample((index + step) % len(self))
            except UNUSABLE as error:
                if self.on_error == "stop" or step == len(self) - 1:
                    raise
                logger.warning("Skipped: %s", error)
                with self._skipped.get_lock():
                    self._skipped.value += 1

    @property
    def skipped(self) -> int:
        """How many rows were skipped so far, in this process and its loader's."""
        return self._skipped.value

    def sample(self, index: int) -> dict:
        """The item of this very row.

        Raises:
            ConversationError, ImageError: the row cannot be trained on; `kind` and message say why.
        """
        row = self.rows[index]
        input_ids, labels, count = self._encode(row)
        names = images_of(row)[:count]  # only turns at the end are ever left out
        if self.tokens is not None:
            for name in names:
                if name not in self.tokens:  # left out by cache_image_tokens
                    load_picture(name, self.root, row.get("id"))
            images = [self.tokens[name].float() for name in names]
        else:
            pictures = [load_picture(name, self.root, row.get("id")) for name in names]
            images = list(self.to_pixels(pictures)) if pictures else []
        return {
            "input_ids": input_ids,
            "labels": labels,
            "images": images,
            "key": str(row.get("id", index)),
        }


class ConversationCollator:
    """Pads on the right. -> input_ids, labels, attention_mask [batch, longest], images [num_images, ...], keys.

    A batch without pictures carries one masked dummy of `dummy_shape`, so that every process runs the same modules.
    """

    def __init__(self, pad_token_id: int, dummy_shape: tuple[int, ...]) -> None:
        self.pad_token_id, self.dummy_shape = pad_token_id, dummy_shape

    def __call__(self, samples: list[dict]) -> dict:
        longest = max(len(row["input_ids"]) for row in samples)
        input_ids = torch.full((len(samples), longest), self.pad_token_id)
        labels = torch.full((len(samples), longest), IGNORED)
        attention_mask = torch.zeros(len(samples), longest, dtype=torch.long)
        for index, row in enumerate(samples):
            length = len(row["input_ids"])
            input_ids[index, :length] = row["input_ids"]
            labels[index, :length] = row["labels"]
            attention_mask[index, :length] = 1
        images = [image for row in samples for image in row["images"]]
        stacked = torch.stack(images) if images else torch.zeros(1, *self.dummy_shape)
        return {
            "input_ids": input_ids,
            "labels": labels,
            "attention_mask": attention_mask,
            "images": stacked,
            "keys": [row["key"] for row in samples],
        }
