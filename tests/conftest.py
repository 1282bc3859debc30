"""Tests run on the CPU, offline, with one thread a process."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from encoder import OpenVision3Autoencoder, OpenVision3ForPreTraining, OpenVision3PreTrainingConfig  # noqa: E402
from encoder.tokenizer import load_tokenizer  # noqa: E402
from encoder.train_tokenizer import train_tokenizer  # noqa: E402
from encoder.vae import tiny_vae  # noqa: E402
from mllm.assemble import assemble  # noqa: E402

SENTENCES = [
    "what color is the circle? red",
    "is there a blue square? yes",
    "a small red circle left of a large blue star",
    "how many objects are there? two",
    "where is the cross? top left",
]


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """Folders tokenizer/, autoencoder/, llm/, mllm/ of random weights at 32 px (4 image tokens), made on the spot."""
    root = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    (root / "corpus.txt").write_text("\n".join(SENTENCES * 20))
    vocab_size = train_tokenizer(root / "corpus.txt", root / "tokenizer", 330)
    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    config = OpenVision3PreTrainingConfig(
        encoder={"image_size": 32, **small},
        decoder=dict(small),
        text={"vocab_size": vocab_size, "projection_dim": 32, **small},
    )
    model = OpenVision3ForPreTraining(config)
    OpenVision3Autoencoder.from_pretraining(model, tiny_vae()).save_pretrained(root / "autoencoder")
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, pad_token_id=0, max_position_embeddings=512, **small))
    llama.save_pretrained(root / "llm")
    load_tokenizer(root / "tokenizer").save_pretrained(root / "llm")
    assemble(root / "autoencoder", root / "llm", root / "mllm")
    return root
