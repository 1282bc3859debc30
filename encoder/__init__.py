"""OpenVision 3: one visual encoder for understanding and generation. Importing registers it with transformers."""

from transformers import AutoConfig, AutoModel

from encoder.autoencoder import OpenVision3Autoencoder, OpenVision3AutoencoderConfig
from encoder.model import OpenVision3Config, OpenVision3Model
from encoder.pretraining import OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.text import OpenVision3TextConfig, TextEncoder

for _config, _model in (
    (OpenVision3Config, OpenVision3Model),
    (OpenVision3TextConfig, TextEncoder),
    (OpenVision3PreTrainingConfig, OpenVision3ForPreTraining),
    (OpenVision3AutoencoderConfig, OpenVision3Autoencoder),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)

__all__ = [
    "OpenVision3Autoencoder",
    "OpenVision3AutoencoderConfig",
    "OpenVision3Config",
    "OpenVision3ForPreTraining",
    "OpenVision3Model",
    "OpenVision3PreTrainingConfig",
    "OpenVision3TextConfig",
    "TextEncoder",
]
