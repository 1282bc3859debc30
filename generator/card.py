"""The model card (README.md) that lies beside a saved pipeline: what it is, how it is loaded, whose licences hold."""

from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData

CARD = """
# OpenVision 3 generator

Draws {what} at {height} x {width} pixels by flow matching in the token space of an OpenVision 3 encoder: a DiT^DH of
{millions:.1f} million parameters over {rows} x {columns} tokens of width {channels}, time shift {shift:.4g}.

```python
from diffusers import DiffusionPipeline
import generator  # of the OpenVision 3 repository: registers the pipeline and its parts

pipeline = DiffusionPipeline.from_pretrained("path/of/this/folder")
pipeline({example}).images[0].save("drawing.png")
```

`autoencoder` holds the frozen encoder with its decoder{tower} and its VAE.

## Licence

Code and weights of the transformer: Apache-2.0. The VAE inside `autoencoder` keeps the licence it came with: one
trained by `encoder.train_vae` is its trainer's; FLUX.1-dev's, which the released OpenVision 3 encoders expect, is
non-commercial, and this folder with it. Text encoders of others keep their own licences too.
"""


def write_card(pipeline: DiffusionPipeline, folder: str | Path) -> None:
    """Writes README.md into a folder that an OpenVision3Pipeline was saved in."""
    transformer, autoencoder = pipeline.transformer, pipeline.autoencoder
    rows, columns = transformer.grid
    classes = transformer.config.num_classes
    text = CARD.format(
        what="what a sentence says" if classes is None else f"{classes} classes",
        height=rows * autoencoder.patch_size, width=columns * autoencoder.patch_size, rows=rows, columns=columns,
        channels=transformer.config.in_channels, shift=pipeline.scheduler.config.shift,
        millions=sum(value.numel() for value in transformer.parameters()) / 1e6,
        example='"a large red circle"' if classes is None else "class_labels=[0]",
        tower="" if autoencoder.text_encoder is None else ", its text towers",
    )  # fmt: skip
    kind = "text-to-image" if classes is None else "unconditional-image-generation"
    data = ModelCardData(library_name="diffusers", license="other", license_name="see-below", pipeline_tag=kind,
                         tags=["openvision3", "flow-matching"])  # fmt: skip
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(Path(folder) / "README.md")
