"""Assembly, data and training of a tiny random multimodal LLM."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CohereConfig, CohereForCausalLM, LlavaForConditionalGeneration

from mllm import ChatModel
from mllm.assemble import assemble
from mllm.conversation import IGNORED, encode_conversation, images_of
from mllm.data import ConversationCollator, Conversations, load_rows, without_pictures
from mllm.objective import MultimodalObjective, next_token_loss, tower_tokens
from mllm.train import main as train
from tests.processes import ROOT, launch

QUESTION = [{"role": "user", "content": "what color is the circle?"}]


def test_an_llm_with_scaled_logits_is_refused_by_name(family, tmp_path):
    torch.manual_seed(0)
    llm = CohereForCausalLM(
        CohereConfig(
            vocab_size=400,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            logit_scale=0.1,
        )
    )
    llm.save_pretrained(tmp_path / "cohere")
    for file in (family / "tokenizer").glob("tokenizer*"):
        (tmp_path / "cohere" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="cohere.*head|cohere.*logits"):
        assemble(family / "autoencoder", tmp_path / "cohere", tmp_path / "out")


def test_loss_on_trained_positions_equals_the_full_loss(family):
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    ids = torch.randint(4, 300, (2, 9))
    labels = ids.clone()
    labels[:, :4] = IGNORED
    mask = torch.ones_like(ids)
    full = model(input_ids=ids, labels=labels, attention_mask=mask).loss
    objective = MultimodalObjective(model, cached=True)
    ours = objective(ids, labels, mask, torch.zeros(1, 4, 32))["loss"]
    assert torch.allclose(full, ours, atol=1e-6)


def test_rows_grouped_by_length_give_the_full_loss_and_gradient(family):
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    ids = torch.randint(4, 300, (64, 20))
    mask = (torch.arange(20) < torch.randint(4, 21, (64, 1))).long()
    labels = ids.masked_fill((mask == 0) | (torch.rand(64, 20) < 0.5), IGNORED)
    labels[:, 1] = ids[:, 1]
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    full = model(inputs_embeds=embeds, labels=labels, attention_mask=mask).loss
    ours = next_token_loss(model.model.language_model, model.lm_head, embeds, labels, mask)
    assert torch.allclose(full, ours, atol=1e-6)
    gradients = [torch.autograd.grad(loss, embeds)[0] for loss in (full, ours)]
    assert torch.allclose(*gradients, atol=1e-7)  # of 1e-3: rounding only


def test_a_conversation_that_returns_is_tokenised_once(family, arguments, tmp_path, monkeypatch):
    rows = load_rows(tmp_path / "rows.json")
    tokenizer = AutoTokenizer.from_pretrained(family / "mllm")
    tokens = {f"{index}.png": torch.full((4, 32), float(index)) for index in range(2)}
    options = {"template": "chat", "num_image_tokens": 4, "max_length": 64, "root": tmp_path, "tokens": tokens}
    calls = []

    def counted(row, *args):
        calls.append(row["id"])
        return encode_conversation(row, *args)

    monkeypatch.setattr("mllm.data.encode_conversation", counted)
    dataset = Conversations(rows, tokenizer, **options)
    for row, item in zip(rows * 2, [dataset[index % 7] for index in range(14)], strict=True):
        assert item["input_ids"].tolist() == encode_conversation(row, tokenizer, "chat", 4, 64)["input_ids"]
    assert calls == ["r0", "r1", "text"]  # r2 asks what r0 asks, of the same picture or another


def test_a_row_brings_as_many_pictures_as_it_has_places(family, tmp_path):
    def row(name, images, *turns):
        turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(turns)]
        return {"id": name, "image": images, "conversations": turns}

    rows = [
        row("cut", ["a", "lost"], "<image> what?", "red", "<image> and?", "blue " * 60),
        row("two placeholders", "b", "<image><image> what?", "red"),
        row("dropped", ["c", "lost"], "what? <image>", "red", "<image> and?"),
        row("text", "lost", "what?", "red", "<image> and?"),
    ]
    tokenizer = AutoTokenizer.from_pretrained(family / "mllm")
    tokens = {name: torch.full((4, 32), float(index)) for index, name in enumerate("abc")}  # "lost" is never loaded
    dataset = Conversations(
        rows, tokenizer, template="chat", num_image_tokens=4, max_length=64, root=tmp_path, tokens=tokens
    )
    batch = ConversationCollator(tokenizer.pad_token_id, (4, 32))([dataset[index] for index in range(4)])
    places = batch["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")
    assert places.sum(dim=1).tolist() == [4, 4, 4, 0] and batch["images"].mean(dim=(1, 2)).tolist() == [0, 1, 2]


def _train(arguments, name, *overrides, launched=False):
    """Trains in this process, or `launched` in one of its own, as DeepSpeed must: it leaves a process group behind.

    Returns the weights. test_train_processes.py trains in two.
    """
    command = arguments(name, *overrides)
    if launched:
        launch("mllm.train", command, processes=1)
    else:
        train(command)
    return LlavaForConditionalGeneration.from_pretrained(Path(command[0]).parent / name).state_dict()


def test_stage_one_moves_the_connector_alone_and_stage_two_the_llm_too(family, arguments):
    before = LlavaForConditionalGeneration.from_pretrained(family / "mllm").state_dict()
    align = _train(arguments, "align", "trainable=[connector]")
    tune = _train(arguments, "tune", "trainable=[connector,llm,head]", "cache_tokens=true")
    moved = {name for name in before if not torch.equal(before[name], align[name])}
    assert moved and all("multi_modal_projector" in name for name in moved)
    moved = {name for name in before if not torch.equal(before[name], tune[name])}
    assert any("language_model" in name for name in moved)
    assert not any("vision_tower" in name for name in moved)


def test_both_stages_run_under_zero2(family, arguments, tmp_path):
    before = LlavaForConditionalGeneration.from_pretrained(family / "mllm").state_dict()
    zero2 = f"trainer.deepspeed={ROOT / 'training' / 'deepspeed' / 'zero2.json'}"
    align = _train(arguments, "align", "trainable=[connector]", zero2, launched=True)
    stage_two = (f"init_from={tmp_path / 'align'}", "trainable=[connector,llm,head]", "cache_tokens=true")
    tune = _train(arguments, "tune", *stage_two, zero2, launched=True)
    moved = {name for name in before if not torch.equal(before[name], align[name])}
    assert moved and all("multi_modal_projector" in name for name in moved)
    moved = {name for name in align if not torch.equal(align[name], tune[name])}
    assert any("language_model" in name for name in moved) and not any("vision_tower" in name for name in moved)
    plain = _train(arguments, "plain", *stage_two)
    for name, value in plain.items():
        assert torch.allclose(value, tune[name], atol=1e-4), name


@pytest.mark.parametrize("template", ["vicuna_v1", "plain"])
def test_a_model_speaks_the_template_it_was_trained_with(family, arguments, tmp_path, pictures, template):
    _train(arguments, template, f"template={template}", "trainable=[connector,llm,head]", "trainer.max_steps=1")
    model = ChatModel.from_pretrained(tmp_path / template, max_new_tokens=4)
    row = {"id": "r", "image": "a.png", "conversations": [{"from": "human", "value": QUESTION[0]["content"]}]}
    prompt = encode_conversation(row, model.tokenizer, template, 4, add_generation_prompt=True)["input_ids"]
    assert model._inputs([(QUESTION, pictures[:1])])["input_ids"][0].tolist() == prompt
    answer = encode_conversation(
        {**row, "conversations": [*row["conversations"], {"from": "gpt", "value": "red"}]}, model.tokenizer, template, 4
    )
    assert answer["input_ids"][: len(prompt)] == prompt and answer["input_ids"][-1] in model.end_ids
    assert isinstance(model.chat(QUESTION, pictures[:1]), str)


def test_a_blind_model_is_trained_on_the_questions_alone(family, arguments, tmp_path):
    rows = without_pictures(load_rows(tmp_path / "rows.json"))
    assert rows[0]["conversations"][0]["value"] == "what color is the circle?"
    assert not any(images_of(row) for row in rows)
    before = LlavaForConditionalGeneration.from_pretrained(family / "mllm").state_dict()
    after = _train(arguments, "blind", "blind=true", "trainable=[connector,llm,head]")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("multi_modal_projector" in name or "vision_tower" in name for name in moved)


def test_cached_tokens_train_the_same(arguments):
    live = _train(arguments, "live", "trainable=[connector]")
    cached = _train(arguments, "cached", "trainable=[connector]", "cache_tokens=true")
    for name, value in live.items():
        assert torch.allclose(value, cached[name], atol=2e-3), name


def test_the_frozen_tower_keeps_no_graph(family):
    model = LlavaForConditionalGeneration.from_pretrained(family / "mllm")
    tokens = tower_tokens(model)(torch.randn(2, 3, 32, 32))
    assert tokens.shape == (2, 4, 32) and not tokens.requires_grad
    # "meta" stands for a GPU: the tower goes where its pictures are.
    assert tower_tokens(model)(torch.zeros(2, 3, 32, 32, device="meta")).device.type == "meta"
    assert next(model.model.vision_tower.parameters()).device.type == "meta"
