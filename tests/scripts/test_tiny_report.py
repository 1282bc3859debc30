"""The report and the README's section, of figures made up here: nothing run, something run, everything run."""

import json

import pytest

from scripts.tiny_readme import END, START, write_readme
from scripts.tiny_report import SPLITS, longest_chain, main, make_report, write_report
from training.statistics import share

KINDS = {"color": share(9, 10), "match_swapped": share(5, 10)}


def psnr(value):
    return {"psnr": value, "foreground_psnr": value - 6}


ENCODER = {
    "count": 16, "against_vae": psnr(33.0), "mean_image_against_vae": psnr(11.0),
    "down16_bicubic_against_vae": psnr(17.0), "captions": share(8, 10), "caption_objects": share(18, 20),
    "nearest_caption": share(1, 10), "nearest_caption_objects": share(7, 20),
    "retrieval": {"text_to_image": share(8, 10), "oracle": 0.8, "chance": 0.1},
}  # fmt: skip
QUESTIONS = {who: {"all": share(7, 10), "kinds": KINDS} for who in ("model", "majority", "shuffled_pictures")}
DRAWN = {"drawn": share(6, 10), "ceiling": share(9, 10), "nearest_caption": share(2, 10)}
REPORTS = {
    "encoder": {split: ENCODER for split in SPLITS},
    "questions_test_iid": QUESTIONS,
    "questions_test_combo": QUESTIONS,
    "questions_blind": {"model": QUESTIONS["model"]},
    **{f"drawings_{split}": {"splits": {split: {"single": DRAWN, "two_with_relation": DRAWN}}} for split in SPLITS},
}


@pytest.fixture()
def out(tmp_path):
    for folder in ("reports", "done"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    for name, lane, minutes, done in (("data", 0, 1.0, True), ("tune", 1, 5.0, True), ("generator", 2, 9.0, False)):
        marker = {"name": name, "lane": lane, "after": [], "key": "0", "machine": "a machine", "minutes": minutes,
                  "done": done}  # fmt: skip
        (tmp_path / "run" / "done" / f"{name}.json").write_text(json.dumps(marker))
    return tmp_path / "run"


def measure(out, *names):
    for name in names:
        (out / "reports" / f"{name}.json").write_text(json.dumps(REPORTS[name]))


def rows(out):
    return {row[0]: row[1:] for row in make_report(out)["texts"]["results"]}


def test_what_was_not_run_is_said_so(out):
    for row in list(rows(out).values())[1:]:
        assert row[1:3] == ["not run", "not run"]
    measure(out, "encoder", "questions_test_iid")
    found = rows(out)
    assert found["captions all right"][1].startswith("80.0% [")
    assert found["questions, exact"][1].startswith("70.0% [") and found["questions, exact"][2] == "not run"
    assert "blind not run" in found["questions, exact"][3]
    assert found["drawings, single"][1:] == ["not run", "not run", "ceiling not run; nearest caption's picture not run"]
    write_report(out)
    assert "not run" in (out / "report.html").read_text()


def test_figures_stand_beside_targets_and_baselines(out):
    measure(out, *REPORTS)
    found = rows(out)
    assert found["reconstruction, PSNR against the VAE's output"] == [
        "32.0 dB", "33.0 dB (N 16)", "33.0 dB (N 16)",
        "mean image 11.0 dB / 11.0 dB; 16x down and bicubic 17.0 dB / 17.0 dB",
    ]  # fmt: skip
    assert found["retrieval, text to picture, of the oracle's share"][:2][0] == "90%"
    assert found["retrieval, text to picture, of the oracle's share"][1].startswith("100.0% [")
    assert found["objects right per caption"][1].startswith("90.0% [")
    assert found["yes/no, swapped binding"][:2] == ["70%", "50.0% [23.7, 76.3] (N 10)"]
    assert found["drawings, two with relation"][0] == "25%"
    report = make_report(out)
    assert [row["kind"] for row in report["kinds"]] == ["color", "match_swapped"]
    assert (report["minutes"], report["chain"]) == (10.0, ["data", "generator"])
    assert report["texts"]["minutes"][-1] == ["generator", "9.0, not finished"]


def test_the_longest_chain_waits_for_inputs_of_the_other_lane():
    parts = [
        {"name": name, "lane": lane, "after": after, "minutes": minutes}
        for name, lane, after, minutes in (
            ("data", 0, [], 1.0),
            ("tune", 1, ["data"], 5.0),
            ("drawings", 1, ["generator"], 3.0),
            ("generator", 2, ["data"], 9.0),
            ("beside", 2, [], 2.0),
            ("last", 3, [], 1.0),
        )
    ]
    assert longest_chain(parts) == {"minutes": 14.0, "parts": ["data", "generator", "drawings", "last"]}
    assert longest_chain([]) == {"minutes": 0.0, "parts": []}


def test_the_readme_gets_the_tables_between_its_marks(out, tmp_path):
    measure(out, *REPORTS)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nstale\n{END}\nafter\n")
    for _ in range(2):
        main(["--run", str(out), "--readme", str(readme)])
        text = readme.read_text()
        assert text.startswith(f"before\n{START}\n") and text.endswith(f"\n{END}\nafter\n") and "stale" not in text
        assert text.count("| captions all right | 75% | 80.0% [") == 1 and "| color | 90.0% [" in text
        assert "a machine: 10 minutes" in text and "tune 5.0" in text and "drawings.png" not in text
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="README.md needs the lines"):
        write_readme(make_report(out), readme)
    with pytest.raises(ValueError, match="no run at"):
        main(["--run", str(tmp_path / "nowhere")])
