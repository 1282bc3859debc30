"""Every recipe in the repository is accepted: its keys, its trainer block, and the objective of the encoder's."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from encoder.pretraining import OpenVision3PreTrainingConfig
from encoder.train import EncoderRecipe
from encoder.train_decoder import DecoderRecipe
from encoder.train_vae import VAERecipe
from generator.train import GeneratorRecipe
from mllm.train import MultimodalRecipe
from mllm.train_language import LanguageRecipe
from training.arguments import training_arguments
from training.recipes import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("*/recipes/*.yaml"))


# What needs a GPU or a launcher.
PLAIN = ("trainer.bf16=false", "trainer.torch_compile=false", "trainer.deepspeed=null")


def schema_of(path: str) -> type:
    package, name = path.split("/")[0], path.split("/")[-1]
    if package == "encoder":
        if "decoder" in name:
            return DecoderRecipe
        return VAERecipe if name.startswith("tiny_vae") else EncoderRecipe
    if package == "mllm":
        return LanguageRecipe if "language" in name else MultimodalRecipe
    return GeneratorRecipe


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_is_accepted(path):
    recipe = load_recipe(schema_of(path), [str(ROOT / path), *PLAIN])
    arguments = training_arguments(recipe)
    assert arguments.max_steps > 0 and arguments.learning_rate == recipe.trainer["learning_rate"]
    if isinstance(recipe, EncoderRecipe):
        OpenVision3PreTrainingConfig.preset(recipe.size, 100, 64, **recipe.objective)


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_says_how_it_ran(path):
    text = (ROOT / path).read_text()
    assert text.startswith("# ") and ("python -m" in text or "torchrun" in text)
    assert "Result" in text or "result" in text
    assert OmegaConf.load(ROOT / path).output_dir.startswith("runs/")
