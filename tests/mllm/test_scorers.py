"""POPE and MME on odd answers: the published scorers' own numbers."""

import json
from pathlib import Path

import pytest

from mllm.scorers import mme, pope

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "scorers" / "scorers.json").read_text())


def test_pope_is_eval_pope():
    assert pope(GOLDEN["pope"]["predictions"], GOLDEN["pope"]["labels"]) == pytest.approx(GOLDEN["pope"]["expected"])


def test_mme_is_lmms_evals():
    assert mme(GOLDEN["mme"]["rows"]) == pytest.approx(GOLDEN["mme"]["expected"])


def test_nothing_to_divide_by():
    assert pope(["no"], ["no"])["f1"] == 0 and pope([], [])["accuracy"] == 0


def test_mismatches_are_refused():
    with pytest.raises(ValueError, match="2 predictions and 1 labels"):
        pope(["yes", "no"], ["yes"])
    with pytest.raises(ValueError, match="no category 'taste'"):
        mme([{"question_id": 1, "category": "taste", "answer": "Yes", "prediction": "yes"}])
