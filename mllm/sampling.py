"""How the tokens of an answer are chosen: the likeliest, or drawn with temperature and top_p from a seed."""

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class Draw(LogitsProcessor):
    """Draws the next token of each row: greedy search takes what is the largest after this.

    transformers itself draws from the random state of the process, which all its threads share. Here the noise is a
    generator's own, on the CPU, so that a seed means the same on every device. The argmax of logits minus the logarithm
    of exponential noise is distributed as their softmax (Gumbel's trick).
    """

    def __init__(self, warpers: LogitsProcessorList, seed: int | None) -> None:
        self.warpers = warpers
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [batch, vocabulary] -> the same shape, float32."""
        scores = self.warpers(input_ids, scores.float())
        noise = torch.empty(scores.shape).exponential_(generator=self.generator)
        return scores - noise.log().to(scores.device)


def token_choice(
    own: GenerationConfig, temperature: float | None, top_p: float | None, seed: int | None
) -> LogitsProcessorList:
    """What `generate(do_sample=False, logits_processor=...)` needs to choose tokens so.

    Args:
        own: the LLM's generation config: its temperature (where it samples, else 0) and top_p stand in for None, and
            its top_k holds whenever tokens are drawn.
        temperature: 0 takes the likeliest token, whatever top_p is; 1 draws from the LLM's own distribution.
        top_p: draws from the likeliest tokens that together have this probability, 0 to 1.
        seed: the same seed draws the same answer; None: another one each time.

    Raises:
        ValueError: temperature or top_p is out of its range.
    """
    if temperature is None:
        temperature = (1.0 if own.temperature is None else own.temperature) if own.do_sample else 0.0
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; give 0 for the likeliest words, or more to draw them.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; give a share above 0 and up to 1.")
    if temperature == 0:
        return LogitsProcessorList()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if own.top_k:
        warpers.append(TopKLogitsWarper(own.top_k))
    share = own.top_p if top_p is None else top_p
    if share is not None and share < 1:
        warpers.append(TopPLogitsWarper(float(share)))
    return LogitsProcessorList([Draw(warpers, seed)])
