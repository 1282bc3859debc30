"""What the text towers take from a tokenizer, ours or another one."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from encoder.tokenizer import load_tokenizer, text_settings, tokenize_captions

WORDS = {"[PAD]": 4, "[UNK]": 1, "[CLS]": 5, "[SEP]": 3, "red": 2, "circle": 0}


def bert(single="[CLS] $A [SEP]", pad_token="[PAD]"):
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 5), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad_token, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


def test_ours_has_its_own_ids(family):
    tokenizer = load_tokenizer(family / "tokenizer")
    assert text_settings(tokenizer) == {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def test_berts_are_what_it_puts_around_a_text():
    tokenizer = bert()
    assert text_settings(tokenizer) == {"vocab_size": 6, "bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 4}
    ids, mask = tokenize_captions(tokenizer, ["red circle", "red"], max_length=8)
    assert ids.tolist() == [[5, 2, 0, 3], [5, 2, 3, 4]] and mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize(
    "tokenizer, says",
    [
        (bert(single="[CLS] $A"), "puts 1 tokens around a text"),
        (bert(pad_token=None), "its padding token is None"),
    ],
)
def test_a_tokenizer_without_them_is_one_sentence(tokenizer, says):
    with pytest.raises(ValueError, match=says):
        text_settings(tokenizer)
