"""OpenVision3Pipeline: a sentence (or a class) -> image tokens -> a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from encoder.images import to_pil
from generator.card import write_card
from generator.flow import draw_noise, sample
from generator.text import encode_texts, states_width
from generator.transformer import DiTDHTransformer2DModel

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Generators = torch.Generator | Sequence[torch.Generator] | None


def check_width(transformer: DiTDHTransformer2DModel) -> None:
    """A head narrower than a token cannot express noise of full rank."""
    width, token_width = transformer.config.hidden_size[1], transformer.config.in_channels
    if width < token_width:
        raise ValueError(
            f"The transformer's last width is {width}, below the token width {token_width}: it cannot express "
            f"full-rank noise; make hidden_size[1] at least {token_width}."
        )


def check_text(transformer: DiTDHTransformer2DModel, text_encoder: PreTrainedModel) -> None:
    """A transformer reads the states of the text encoder it was trained on."""
    reads, gives = transformer.config.text_hidden_size, states_width(text_encoder)
    if reads != gives:
        raise ValueError(
            f"The transformer reads text states of width {reads}, the text encoder gives {gives}: "
            "use the text encoder it was trained on."
        )


def make_scheduler(shift: float) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler that stores the time shift."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)


def scheduler_timesteps(scheduler: FlowMatchEulerDiscreteScheduler, num_inference_steps: int) -> Tensor:
    """num_inference_steps + 1 times from 1 to 0, with the scheduler's shift applied once.

    Explicit sigmas: left to itself set_timesteps shifts an already shifted range again.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}: give at least 1.")
    scheduler.set_timesteps(sigmas=[1 - step / num_inference_steps for step in range(num_inference_steps)])
    return scheduler.sigmas.clone()


class OpenVision3Pipeline(DiffusionPipeline):
    """Draws by flow matching in the encoder's token space.

    transformer draws normalised tokens and holds their statistics; autoencoder turns tokens into pictures; scheduler
    stores the time shift; text_encoder and tokenizer are absent where the transformer draws classes, and where it draws
    from text they are the autoencoder's own text tower and autoencoder_tokenizer unless others are given;
    guidance_transformer, where present, is the weaker network of AutoGuidance; autoencoder_tokenizer is the one the
    encoder was trained with, which generator.rerank needs whatever text_encoder is.
    """

    model_cpu_offload_seq = "text_encoder->transformer->autoencoder"
    _optional_components = ["text_encoder", "tokenizer", "guidance_transformer", "autoencoder_tokenizer"]
    _callback_tensor_inputs = ["hidden_states", "predicted"]

    def __init__(
        self,
        transformer: DiTDHTransformer2DModel,
        autoencoder: PreTrainedModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guidance_transformer: DiTDHTransformer2DModel | None = None,
        autoencoder_tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        super().__init__()
        check_width(transformer)
        if text_encoder is None and transformer.config.text_hidden_size is not None:
            text_encoder, tokenizer = autoencoder.text_encoder, tokenizer or autoencoder_tokenizer
        if text_encoder is not None:
            check_text(transformer, text_encoder)
        self.register_modules(
            transformer=transformer,
            autoencoder=autoencoder,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            guidance_transformer=guidance_transformer,
            autoencoder_tokenizer=autoencoder_tokenizer,
        )

    def save_pretrained(self, save_directory: str | Path, **options) -> None:
        """As in diffusers, with a model card; the autoencoder's own text tower and tokenizer are stored once."""
        doubled: dict = {}
        if self.text_encoder is not None and self.text_encoder is self.autoencoder.text_encoder:
            doubled["text_encoder"] = self.text_encoder
            if self.tokenizer is self.autoencoder_tokenizer:
                doubled["tokenizer"] = self.tokenizer
        self.register_modules(**dict.fromkeys(doubled))
        try:
            super().save_pretrained(save_directory, **options)
        finally:
            self.register_modules(**doubled)
        write_card(self, save_directory)

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a drawing's tokens."""
        return (self.transformer.config.in_channels, *self.transformer.grid)

    def to_grid(self, image_tokens: Tensor) -> Tensor:
        """Raw image tokens [batch, num_patches, channels] -> normalised float32 [batch, channels, height, width]."""
        states = image_tokens.transpose(1, 2).unflatten(2, self.transformer.grid)
        return self.transformer.normalize(states.to(self._execution_device, torch.float32))

    def to_tokens(self, hidden_states: Tensor) -> Tensor:
        """The inverse of to_grid."""
        return self.transformer.denormalize(hidden_states).flatten(2).transpose(1, 2)

    def _brought(self, module: nn.Module) -> nn.Module:
        """The module on the device it computes on: under model offload, `forward` alone would bring it there."""
        if hasattr(module, "_hf_hook"):
            module._hf_hook.pre_forward(module)
        return module

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [batch, 3, height, width] in [-1, 1] -> normalised tokens [batch, channels, rows, columns]."""
        autoencoder = self._brought(self.autoencoder)
        return self.to_grid(autoencoder.encode(pixel_values.to(self._execution_device, autoencoder.dtype)))

    @torch.no_grad()
    def decode(self, hidden_states: Tensor, output_type: str = "pil") -> list[Image.Image] | np.ndarray | Tensor:
        """Normalised tokens on their grid -> one picture each.

        output_type: pil; np [batch, height, width, 3] or pt [batch, 3, height, width], both float32 in [0, 1]; latent,
        raw image_tokens [batch, num_patches, channels].
        """
        image_tokens = self.to_tokens(hidden_states)
        if output_type == "latent":
            return image_tokens
        autoencoder = self._brought(self.autoencoder)
        image_tokens = image_tokens.to(self._execution_device, autoencoder.dtype)
        pixel_values = autoencoder.decode(image_tokens, grid=tuple(hidden_states.shape[-2:])).float()
        if output_type == "pil":
            return to_pil(pixel_values)
        return VaeImageProcessor().postprocess(pixel_values, output_type=output_type)

    def encode_prompt(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Text states [batch, text, width] and their mask [batch, text]."""
        if self.transformer.config.num_classes is not None:
            raise ValueError("This pipeline draws classes and has no text encoder: give class_labels, not a prompt.")
        for name in ("text_encoder", "tokenizer"):
            if getattr(self, name) is None:
                raise ValueError(f"This pipeline has no {name} to read a prompt: make it with {name}=...")
        states, mask = encode_texts(self.text_encoder, self.tokenizer, texts)
        return states.to(self._execution_device), mask.to(self._execution_device)

    def condition(
        self,
        prompt: str | Sequence[str] | None,
        class_labels: Sequence[int] | Tensor | None,
        negative_prompt: str | Sequence[str] | None = None,
        guidance_scale: float = 1.0,
    ) -> tuple[int, dict]:
        """How many pictures, and the arguments of `sample` that say what to draw."""
        if (prompt is None) == (class_labels is None):
            raise ValueError("Give either a prompt or class_labels.")
        if class_labels is not None:
            labels = torch.as_tensor(class_labels, dtype=torch.long, device=self._execution_device).reshape(-1)
            limit = self.transformer.config.num_classes
            if limit is None:
                raise ValueError("This pipeline draws from text: give a prompt instead of class_labels.")
            if negative_prompt is not None:
                raise ValueError("A negative prompt needs a pipeline that draws from text; this one draws classes.")
            if not bool(((labels >= 0) & (labels < limit)).all()):
                raise ValueError(f"class_labels are {labels.tolist()}: they must lie between 0 and {limit - 1}.")
            return len(labels), {"class_labels": labels}
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(text.strip() for text in prompts):
            raise ValueError("The prompt is empty: say what to draw, for example 'a red circle'.")
        states, mask = self.encode_prompt(prompts)
        arguments = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        if self.guidance_transformer is not None and negative_prompt is not None:
            raise ValueError("This pipeline guides by a weaker network: it takes no negative prompt.")
        if guidance_scale != 1.0 and self.guidance_transformer is None:
            negative = negative_prompt if negative_prompt is not None else ""
            negatives = [negative] if isinstance(negative, str) else list(negative)
            if len(negatives) not in (1, len(prompts)):
                raise ValueError(
                    f"There are {len(negatives)} negative prompts for {len(prompts)} prompts: give one or as many."
                )
            states, mask = self.encode_prompt(negatives)
            arguments |= {"negative_encoder_hidden_states": states, "negative_encoder_attention_mask": mask}
        return len(prompts), arguments

    def timesteps(self, num_inference_steps: int) -> Tensor:
        """The time grid: num_inference_steps + 1 noise levels from 1 to 0."""
        return scheduler_timesteps(self.scheduler, num_inference_steps)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        generator: Generators = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        negative_prompt: str | Sequence[str] | None = None,
        class_labels: Sequence[int] | Tensor | None = None,
        method: str = "euler",
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        callback_on_step_end: Callable[["OpenVision3Pipeline", int, float, dict[str, Tensor]], dict | None]
        | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("hidden_states", "predicted"),
    ) -> ImagePipelineOutput:
        """Draws pictures for every prompt (or class label); `.images` holds them, those of one prompt side by side.

        num_inference_steps: intervals of the time grid. guidance_scale: 1 is none. guidance_interval: the noise levels
        between which guidance acts; outside them its second pass is not computed. negative_prompt: what to be guided
        away from, one for all or one each; None: the empty text. generator: one for all pictures or one each; a
        picture's noise does not depend on the batch it is drawn in. method: euler or heun. output_type: see `decode`.
        callback_on_step_end(pipeline, step, timestep, states): after each step, with the noise level reached and the
        named states, "hidden_states" and "predicted", normalised tokens that `pipeline.decode` turns into a preview; a
        dictionary it returns replaces "hidden_states". Objects of diffusers.callbacks name their states themselves.

        Raises:
            ValueError: prompt, labels, output_type or the states asked for are not of this kind, or `sample` refuses an
                argument.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}.")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}: give at least 1.")
        wanted = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        if unknown := set(wanted) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end asks for {', '.join(sorted(unknown))}: there are "
                f"{' and '.join(self._callback_tensor_inputs)}."
            )
        times = self.timesteps(num_inference_steps)
        count, arguments = self.condition(prompt, class_labels, negative_prompt, guidance_scale)
        arguments = {  # one negative text is for all pictures as it is
            name: value if len(value) < count else value.repeat_interleave(num_images_per_prompt, dim=0)
            for name, value in arguments.items()
        }
        noise = draw_noise(count * num_images_per_prompt, self.token_shape, generator).to(self._execution_device)
        with self.progress_bar(total=num_inference_steps) as progress:

            def on_step(step: int, timestep: float, hidden_states: Tensor, predicted: Tensor) -> Tensor | None:
                progress.update()
                if callback_on_step_end is None:
                    return None
                states = {"hidden_states": hidden_states, "predicted": predicted}
                states = {name: states[name] for name in wanted}
                return (callback_on_step_end(self, step, timestep, states) or {}).get("hidden_states")

            drawn = sample(
                self.transformer,
                noise,
                times,
                guidance_scale=guidance_scale,
                guidance_interval=guidance_interval,
                guidance_transformer=self.guidance_transformer,
                method=method,
                on_step=on_step,
                **arguments,
            )
        images = self.decode(drawn, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images)


def load_pipeline(folder: str | Path) -> OpenVision3Pipeline:
    """The pipeline of a local folder; one sentence when it is not there."""
    if not (Path(folder) / "model_index.json").is_file():
        raise FileNotFoundError(f"There is no generator at {folder}: name a folder with a model_index.json.")
    return OpenVision3Pipeline.from_pretrained(folder, local_files_only=True)
