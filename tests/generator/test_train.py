"""Training from a latent cache: it runs, exports a pipeline, depends on pictures and not on batches, and refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import get_scheduler

from encoder.cache import CacheKey
from encoder.views import Views
from generator import DiTDHTransformer2DModel
from generator.data import Collator, DrawingDataset, Drawings, cache_tokens
from generator.flow import dimension_shift, sample, uniform_timesteps
from generator.objective import FlowObjective
from generator.pipeline import load_pipeline
from generator.text import TextStates, encode_texts, states_width
from generator.train import GeneratorRecipe, build_transformer
from generator.train import main as train
from tests.generator.small_training import write_cache
from training.arguments import training_arguments
from training.recipes import RecipeError, load_recipe


def test_training_exports_a_pipeline_that_draws(files, capsys):
    train([str(files / "recipe.yaml")])
    assert "beyond 5 sigma" in capsys.readouterr().out
    pipeline = load_pipeline(files / "run")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red circle", 2).images[0].size == (64, 64)
    assert (files / "run" / "samples" / "step-000002.png").is_file()
    assert pipeline.autoencoder_tokenizer("a red circle").input_ids == pipeline.tokenizer("a red circle").input_ids
    assert pipeline.transformer.token_std.min() > 0 and pipeline.transformer.token_mean.any()


def test_the_next_stage_starts_from_this_one_on_a_larger_grid(files, make_transformer):
    recipe = GeneratorRecipe(init_from=str(files / "stage"))
    first = make_transformer(text_hidden_size=192)
    first.save_pretrained(files / "stage")
    moved = build_transformer(recipe, torch.zeros(1, 64, 192), (8, 8), 192).eval()
    assert moved.grid == (8, 8)
    tokens, states = torch.randn(1, 192, 8, 8), torch.randn(1, 3, 192)
    velocity = first(tokens, torch.tensor([0.5]), encoder_hidden_states=states).sample
    again = moved(tokens, torch.tensor([0.5]), encoder_hidden_states=states).sample
    assert torch.allclose(velocity, again, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_classes": 4, "init_from": "text"}, "has num_classes None, the recipe 4"),
     ({"num_classes": 4, "init_from": "classes"}, "has num_classes 5, the recipe 4"),
     ({"num_classes": 4, "transformer": {"null_class": False}}, "no class for a label left out"),
     ({"num_classes": 4, "transformer": {"statistics_per_position": True}}, "measures statistics per channel")],
)  # fmt: skip
def test_a_transformer_that_cannot_learn_this_is_refused(options, words, make_transformer, tmp_path):
    make_transformer(text_hidden_size=192).save_pretrained(tmp_path / "text")
    make_transformer(num_classes=5).save_pretrained(tmp_path / "classes")
    if "init_from" in options:
        options = {**options, "init_from": str(tmp_path / options["init_from"])}
    with pytest.raises(ValueError, match=words):
        build_transformer(GeneratorRecipe(**options), torch.zeros(1, 16, 192), (4, 4), None)


def test_classes_train_too(files):
    train([str(files / "recipe.yaml"), "num_classes=4", f"output_dir={files}/classes",
           "cache_gb=0", "trainer.max_steps=1"])  # fmt: skip
    pipeline = load_pipeline(files / "classes")
    assert pipeline.text_encoder is None
    assert len(pipeline(class_labels=[3], num_inference_steps=1).images) == 1


def test_micro_batches_and_checkpointed_blocks_have_the_same_gradient(files, first_gradient):
    whole = first_gradient("whole", "trainer.per_device_train_batch_size=32")
    parts = first_gradient(
        "parts", "trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=4"
    )
    checkpointed = first_gradient(
        "checkpointed", "trainer.per_device_train_batch_size=32", "trainer.activation_checkpointing=true"
    )
    for name, value in whole.items():
        assert value.norm() > 0, name
        for other in (parts, checkpointed):
            assert (value - other[name]).norm() <= 1e-3 * value.norm() + 1e-6, name


def test_random_choices_belong_to_the_picture(autoencoder, tokenizer):
    drawings = Drawings(["a", "b"], torch.randn(2, 16, 8, 8).half(), [["a red circle", "a blue circle"]] * 2)
    tokens = cache_tokens(autoencoder, drawings.latents)
    dataset = DrawingDataset(
        drawings, tokens, (16, 192), seed=0, drop=0.5, last_caption_probability=0.0, null_label=None
    )
    first, again, other = dataset[0], dataset[0], dataset[1]
    assert torch.equal(first["noise"], again["noise"]) and first["text"] == again["text"]
    assert not torch.equal(first["noise"], other["noise"])
    seen = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        seen.add(dataset[0]["text"])
    assert seen == {"", "a red circle", "a blue circle"}


def test_cached_tokens_and_online_encoding_give_the_same_loss(autoencoder, tokenizer, make_transformer):
    drawings = Drawings(["a", "b"], torch.randn(2, 16, 8, 8).half(), [["a red circle"], ["a blue square"]])
    text_encoder = autoencoder.text_encoder
    transformer = make_transformer(text_hidden_size=states_width(text_encoder))
    objective = FlowObjective(transformer, 1.0, autoencoder, text_encoder)
    assert not hasattr(objective, "config")
    assert all(name.startswith("transformer.") for name, _ in objective.named_parameters())
    losses = []
    for tokens in (None, cache_tokens(autoencoder, drawings.latents)):
        dataset = DrawingDataset(
            drawings, tokens, (16, 192), seed=0, drop=0.1, last_caption_probability=0.0, null_label=None
        )
        batch = Collator(tokenizer, 64)([dataset[0], dataset[1]])
        batch.pop("keys")
        losses.append(objective(**batch)["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_cached_and_online_text_states_give_the_same_loss(autoencoder, tokenizer, make_transformer):
    """64 pictures: the texts also pass the transformer in groups of like length."""
    captions = ["a red circle", "a large blue square on a red background", "a blue square left of a small red circle"]
    texts = ["", *(captions[index % 3] for index in range(63))]
    text_encoder = autoencoder.text_encoder
    states = TextStates.compute(text_encoder, tokenizer, texts, 64, most_gb=1.0)
    assert len(states.numbers) == 4 and len(states.states) == 2 + 5 + 10 + 11  # distinct, without padding
    assert TextStates.compute(text_encoder, tokenizer, texts, 64, most_gb=1e-9) is None
    transformer = make_transformer(text_hidden_size=states_width(text_encoder))
    objective = FlowObjective(transformer, 1.0, autoencoder, text_encoder)
    noise, tokens = torch.randn(2, 64, 16, 192)
    items = [
        {"key": "", "text": text, "timestep": index / 64, "noise": noise[index], "image_tokens": tokens[index]}
        for index, text in enumerate(texts)
    ]
    results = []
    for cache in (None, states):
        batch = Collator(tokenizer, 64, cache)(items)
        batch.pop("keys")
        transformer.zero_grad()
        loss = objective(**batch)["loss"]
        loss.backward()
        results.append((loss.item(), transformer.text_embedder.proj.weight.grad.clone()))
    (online, gradient), (cached, cached_gradient) = results
    # float16 keeps 11 bits of a state, 5e-4 of it
    assert online == pytest.approx(cached, rel=1e-4)
    assert (gradient - cached_gradient).norm() < 2e-3 * gradient.norm()
    halves = [  # fewer than 64 pictures stay whole: grouping changes rounding only
        objective(**{name: value[part] for name, value in batch.items()})["loss"].item()
        for part in (slice(32), slice(32, 64))
    ]
    assert cached == pytest.approx(sum(halves) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("override", "words"),
    [("autoencoder=missing", "no autoencoder at missing"), ("data=[]", "data is empty"), ("shfit=3", "shfit"),
     ("num_classes=3", "Picture 003 .* no class below 3"), ("text_encoder=missing", "no folder missing"),
     ("init_from=missing", "init_from: there is no model at missing"),
     ("transformer.hidden_size=[16,96]", "last width is 96, below the token width 192")],
)  # fmt: skip
def test_refusals(files, override, words):
    with pytest.raises((ValueError, RecipeError), match=words):
        train([str(files / "recipe.yaml"), override])


def test_a_state_holds_its_word_in_any_text(pipeline):
    states, _ = encode_texts(pipeline.text_encoder, pipeline.tokenizer, ["a red circle", "the circle is red"])
    width = pipeline.text_encoder.config.hidden_size
    assert torch.equal(states[0, 3, width:], states[1, 2, width:])
    assert not torch.allclose(states[0, 3, :width], states[1, 2, :width], atol=1e-3)
    assert torch.allclose(states[0, :, width:].square().mean(-1), torch.ones(states.shape[1]), atol=1e-3)


def test_a_cache_of_another_vae_is_refused(files, autoencoder):
    write_cache(files / "other", replace(CacheKey.of(autoencoder.vae, 64, Views()), vae="other"))
    with pytest.raises(ValueError, match="was made by VAE other, not by this one"):
        train([str(files / "recipe.yaml"), f"data=[{files}/other]"])


def test_it_learns_which_text_belongs_to_which_tokens():
    torch.manual_seed(0)
    transformer = DiTDHTransformer2DModel(
        sample_size=2, in_channels=8, hidden_size=(32, 32), num_layers=(2, 1), num_attention_heads=(2, 2),
        text_hidden_size=6,
    )  # fmt: skip
    data, states = torch.randn(2, 8, 2, 2), torch.randn(2, 3, 6)
    optimizer = torch.optim.Adam(transformer.parameters(), lr=3e-3)
    for _ in range(200):
        which, times, noise = torch.randint(2, (64,)), torch.rand(64), torch.randn(64, 8, 2, 2)
        mixing = times[:, None, None, None]
        noisy = (1 - mixing) * data[which] + mixing * noise
        velocity = transformer(noisy, times, encoder_hidden_states=states[which]).sample
        optimizer.zero_grad()
        (velocity - (noise - data[which])).square().mean().backward()
        optimizer.step()
    drawn = sample(transformer, torch.randn(2, 8, 2, 2), uniform_timesteps(20, 1.0), encoder_hidden_states=states)
    error, mixed_up = (drawn - data).square().mean(), (drawn - data.flip(0)).square().mean()
    assert error < 0.15 and mixed_up > 5 * error


@pytest.mark.parametrize("size", ["s", "xl"])
def test_the_imagenet_recipes_are_raes_schedule(size):
    path = Path(__file__).parents[2] / "generator" / "recipes" / f"ditdh_{size}_imagenet256.yaml"
    recipe = load_recipe(GeneratorRecipe, [str(path), "trainer.bf16=false", "trainer.torch_compile=false"])
    assert recipe.shift == pytest.approx(dimension_shift(768, 16, 16)) and recipe.size == size.upper()
    assert 0.5 ** (1 / recipe.ema_half_life) == pytest.approx(0.9995, abs=1e-6)
    arguments = training_arguments(recipe)
    assert 8 * arguments.per_device_train_batch_size == 1024 and arguments.weight_decay == 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type, optimizer, num_warmup_steps=arguments.warmup_steps,
        num_training_steps=arguments.max_steps, scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )  # fmt: skip
    epoch = 1251  # steps of 1024 of ImageNet's pictures
    for at, rate in ((0, 2e-4), (40, 2e-4), (420, 1.1e-4), (800, 2e-5)):
        assert 2e-4 * schedule.lr_lambdas[0](at * epoch) == pytest.approx(rate)
