"""What a user can get wrong about the language model's training is one sentence."""

import pytest

from mllm.train_language import Lines, main


def test_a_corpus_that_is_missing_or_empty_is_named(tmp_path):
    (tmp_path / "corpus.txt").write_text("a red circle\n\na star\n")
    rows = list(Lines(tmp_path / "corpus.txt"))
    assert rows == [{"text": "a red circle", "key": "line 1"}, {"text": "a star", "key": "line 3"}]
    (tmp_path / "corpus.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match="corpus.txt holds no text"):
        Lines(tmp_path / "corpus.txt")
    with pytest.raises(ValueError, match="no corpus at nowhere"):
        Lines("nowhere")


def test_init_from_is_refused_not_ignored(tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"corpus: c\ntokenizer: t\ninit_from: x\noutput_dir: {tmp_path}/out")
    with pytest.raises(ValueError, match="init_from: this training starts a new Llama and reads none"):
        main([str(tmp_path / "recipe.yaml")])
