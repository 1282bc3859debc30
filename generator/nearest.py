"""The baseline of copying: a training picture instead of a drawing."""

import numpy as np
from PIL import Image

from encoder.cache import LatentCache


class NearestCaption:
    """The training picture whose caption shares most words and word pairs with the prompt: what copying would do."""

    def __init__(self, folder: str):
        cache = LatentCache([folder])
        self.pixels = cache.pixels
        captions = list(cache.captions)
        self.owner = [index for index, texts in enumerate(captions) for _ in texts]
        rows: dict[str, list[int]] = {}
        lengths = []
        for row, text in enumerate(text for texts in captions for text in texts):
            pieces = self._pieces(text)
            lengths.append(len(pieces))
            for piece in pieces:
                rows.setdefault(piece, []).append(row)
        self.rows = {piece: np.array(numbers) for piece, numbers in rows.items()}
        self.lengths = np.array(lengths)

    @staticmethod
    def _pieces(text: str) -> set[str]:
        words = text.split()
        return {*words, *(" ".join(pair) for pair in zip(words[:-1], words[1:], strict=True))}

    def picture(self, prompt: str) -> Image.Image:
        """The training picture of the nearest caption by Jaccard index, the first among equals."""
        pieces = self._pieces(prompt)
        common = np.zeros(len(self.lengths))
        for piece in pieces:
            if piece in self.rows:
                common[self.rows[piece]] += 1
        best = int((common / (self.lengths + len(pieces) - common)).argmax())
        return Image.fromarray(self.pixels[self.owner[best]].permute(1, 2, 0).numpy())
