"""Studies of editing: figures against hand-made cases, the same cases after a stop, masks that spare the neighbour."""

import json

import numpy as np
import pytest

from generator.edit_studies import inpaint_figures, inpainting_at, interpolate_figures, rerank_figures
from generator.evaluate_edit import main
from training.shapes import HELD_OUT_PAIRS, ShapesChecker, caption_facts, facts_hold, render

FAST = ["--steps", "1", "--guidance", "1"]


def row(right: list[int], fidelity: list[float], caption: list[float]) -> dict:
    right = [bool(each) for each in right]
    return {"right": right, "fidelity": fidelity, "caption": caption, "draw_seconds": 10.0, "rank_seconds": 0.5}


def test_the_share_of_the_gap_closed_is_that_of_the_picks():
    rows = [
        row([0, 1, 0, 0], fidelity=[1.0, 4, 2, 3], caption=[9.0, 1, 1, 1]),  # fidelity finds it, caption does not
        row([1, 0, 1, 0], fidelity=[4.0, 5, 1, 1], caption=[7.0, 2, 1, 1]),  # the other way round
        row([0, 0, 0, 0], fidelity=[1.0, 2, 3, 4], caption=[1.0, 2, 3, 4]),  # nobody can
    ]
    figures = rerank_figures(rows)
    assert list(figures["best_of"]) == [1, 2, 4] and figures["rank_share_of_drawing"] == pytest.approx(0.05)
    best = figures["best_of"][4]
    assert best["random"] == pytest.approx((0.25 + 0.5) / 3) and best["oracle"] == pytest.approx(2 / 3)
    assert best["fidelity"]["picked"] == best["caption"]["picked"] == pytest.approx(1 / 3)
    assert best["fidelity"]["gap_closed"]["value"] == pytest.approx((1 / 3 - 0.25) / (2 / 3 - 0.25))
    low, high = best["caption"]["gap_closed"]["interval"]
    assert low < best["caption"]["gap_closed"]["value"] < high
    pairs = figures["best_of"][2]  # groups (0, 1) and (2, 3): the oracle finds 1 + 0, 1 + 1 and 0 of two each
    assert pairs["oracle"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert pairs["fidelity"]["picked"] == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert figures["best_of"][1]["both"]["picked"] == pytest.approx(best["random"])
    assert figures["best_of"][1]["both"]["gap_closed"]["value"] is None


@pytest.mark.parametrize("command", ["rerank", "inpaint", "interpolate"])
def test_a_stopped_study_goes_on_to_the_same_report(command, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("generator.evaluate_edit.load_pipeline", lambda folder: pipeline)
    monkeypatch.setattr("generator.edit_studies.prompt_at", lambda *given: (None, "a red circle left of a blue square"))
    options = ["--model", "m", *FAST, *(["--candidates", "2"] if command == "rerank" else [])]
    main([command, "--count", "3", "--out", str(tmp_path / "whole.json"), *options])
    main([command, "--count", "1", "--out", str(tmp_path / "parts.json"), *options])
    rows = tmp_path / "parts.rows.jsonl"
    rows.write_text(rows.read_text() + '{"cut": ')
    main([command, "--count", "3", "--out", str(tmp_path / "parts.json"), *options])

    def without_times(path):
        return [{key: value for key, value in json.loads(line).items() if "seconds" not in key}
                for line in path.read_text().splitlines()]  # fmt: skip

    assert without_times(rows) == without_times(tmp_path / "whole.rows.jsonl")
    assert len(rows.read_text().splitlines()) == 4
    with pytest.raises(ValueError, match="another seed: name another --out"):
        main([command, "--count", "3", "--out", str(tmp_path / "parts.json"), *options, "--seed", "1"])
    other = "inpaint" if command == "interpolate" else "interpolate"
    with pytest.raises(ValueError, match="measured with another study"):
        main([other, "--count", "3", "--out", str(tmp_path / "parts.json"), "--model", "m", *FAST])
    assert json.loads((tmp_path / "parts.json").read_text())["count"] == 3


@pytest.mark.parametrize("candidates", ["0", "1001"])
def test_candidates_that_have_no_noise_of_their_own_are_refused(candidates, tmp_path):
    with pytest.raises(ValueError, match="must be from 1 to 1000"):
        main(["rerank", "--model", "m", "--count", "1", "--candidates", candidates, "--out", str(tmp_path / "r.json")])


def test_inpainting_asks_for_what_the_picture_can_become():
    for index in range(20):
        scene, wanted, prompt, patches = inpainting_at("test_iid", index, 0, 4)
        assert facts_hold(caption_facts(prompt), wanted) and not facts_hold(caption_facts(prompt), scene)
        assert scene.objects[0] == wanted.objects[0]
        assert not HELD_OUT_PAIRS.intersection((each.color, each.shape) for each in wanted.objects)
        before, after = (np.asarray(render(each, 64), dtype=int) for each in (scene, wanted))
        changed = np.abs(before - after).max(axis=2).reshape(4, 16, 4, 16).max(axis=(1, 3)) > 0
        assert changed.any() and not (changed & ~patches).any()
        kept = np.asarray(render(type(scene)((scene.objects[0],), scene.background), 64))
        assert len(ShapesChecker().read(np.where(np.kron(patches, np.ones((16, 16)))[..., None] > 0, 128, kept))) == 1


def test_shares_are_over_all_pictures():
    verdict = {"kept_unchanged": True, "new_obeys": False}
    figures = inpaint_figures([{"drawn": verdict, "ceiling": verdict, "seconds": 2.0}] * 3)
    assert figures["kept_unchanged"]["drawn"]["value"] == 1 and figures["new_obeys"]["drawn"]["count"] == 3
    rows = [{"valid": {"middle": [each], "ends": [True, each]}, "seconds": 1.0} for each in (True, False)]
    figures = interpolate_figures(rows)
    assert figures["middle"]["value"] == 0.5 and figures["ends"] == {**figures["ends"], "value": 0.75, "count": 4}
