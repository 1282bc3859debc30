"""Drawing in the encoder's token space: a class or a text -> image tokens -> picture."""

import diffusers

from generator.flow import rae_timesteps, sample, time_shift
from generator.pipeline import OpenVision3Pipeline
from generator.rae import from_rae
from generator.transformer import DiTDHTransformer2DModel

__all__ = ["DiTDHTransformer2DModel", "OpenVision3Pipeline", "from_rae", "rae_timesteps", "sample", "time_shift"]

diffusers.OpenVision3Pipeline = OpenVision3Pipeline  # DiffusionPipeline.from_pretrained looks its classes up there
