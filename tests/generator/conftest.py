"""An untrained tiny family: autoencoder with text towers, word tokenizer, transformer, pipeline."""

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from encoder import OpenVision3Autoencoder, OpenVision3ForPreTraining, OpenVision3PreTrainingConfig
from encoder.cache import CacheKey
from encoder.vae import tiny_vae
from encoder.views import Views
from generator import DiTDHTransformer2DModel, OpenVision3Pipeline
from generator.pipeline import make_scheduler
from generator.text import states_width
from generator.train import main as train
from tests.generator.small_training import run_python, write_cache

WORDS = "a red blue circle square left of there is small large on background the at".split()


def make_tokenizer(vocabulary: list[str] = WORDS) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(special + vocabulary)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_of():
    """words -> a tokenizer that knows them and no others."""
    return make_tokenizer


@pytest.fixture(scope="session")
def autoencoder():
    torch.manual_seed(0)
    model = OpenVision3ForPreTraining(OpenVision3PreTrainingConfig.preset("tiny", vocab_size=32, image_size=64))
    return OpenVision3Autoencoder.from_pretraining(model, tiny_vae())


@pytest.fixture(scope="session")
def make_transformer():
    def make(**options) -> DiTDHTransformer2DModel:
        torch.manual_seed(1)
        options = {"hidden_size": (32, 192), "num_layers": (1, 1), "num_attention_heads": (2, 3), **options}
        model = DiTDHTransformer2DModel(sample_size=4, in_channels=192, **options).eval()
        for name, value in model.named_parameters():
            # zero at the start, and then nothing would be tested
            if any(part in name for part in ("adaLN", "final_layer", "text_embedder.position")):
                torch.nn.init.normal_(value, std=0.05)
        return model

    return make


@pytest.fixture()
def pipeline(autoencoder, tokenizer, make_transformer):
    transformer = make_transformer(text_hidden_size=states_width(autoencoder.text_encoder))
    pipe = OpenVision3Pipeline(
        transformer, autoencoder, make_scheduler(1.0), autoencoder.text_encoder, tokenizer,
        autoencoder_tokenizer=tokenizer,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def files(tmp_path_factory, autoencoder, tokenizer):
    """An autoencoder folder, a cache of random latents and a recipe."""
    folder = tmp_path_factory.mktemp("generator")
    autoencoder.save_pretrained(folder / "autoencoder")
    tokenizer.save_pretrained(folder / "autoencoder" / "tokenizer")
    write_cache(folder / "cache", CacheKey.of(autoencoder.vae, 64, Views()))
    (folder / "recipe.yaml").write_text(f"""
output_dir: {folder}/run
data: [{folder}/cache]
autoencoder: {folder}/autoencoder
transformer: {{hidden_size: [16, 192], num_layers: [1, 1], num_attention_heads: [2, 3]}}
sample_inference_steps: 2
ema_half_life: 2
trainer: {{max_steps: 2, per_device_train_batch_size: 8, learning_rate: 1.0e-3, use_cpu: true, seed: 0}}
""")
    return folder


@pytest.fixture(scope="session")
def first_gradient(files, make_transformer, autoencoder):
    """(name, overrides, launcher) -> gradients of a first step: what an unclipped step of SGD at rate 1 moves.

    It starts from weights that are nowhere zero and so cut nothing off. launcher: python's arguments before the module,
    for a training in processes of its own.
    """
    start = make_transformer(text_hidden_size=states_width(autoencoder.text_encoder))
    start.save_pretrained(files / "start")

    def gradient(name: str, *overrides: str, launcher: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        arguments = [str(files / "recipe.yaml"), f"output_dir={files}/{name}", f"init_from={files}/start",
                     "ema_half_life=0", "trainer.optim=sgd", "trainer.learning_rate=1", "trainer.max_grad_norm=0",
                     "trainer.max_steps=1", *overrides]  # fmt: skip
        if launcher:
            done = run_python(*launcher, "-m", "generator.train", *arguments)
            assert done.returncode == 0, done.stderr
        else:
            train(arguments)
        after = load_file(files / name / "transformer" / "diffusion_pytorch_model.safetensors")
        return {name: (value - after[name]).detach() for name, value in start.named_parameters()}

    return gradient
