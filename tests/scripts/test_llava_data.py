"""Miniatures of LLaVA's two data sets, laid out as its downloads are."""

import json

import pytest
from PIL import Image

from mllm.data import load_picture
from scripts.llava_data import SETS, TORN, find_picture, main


def row(name, image=None):
    turns = [{"from": "human", "value": "<image>\nwhat?" if image else "what?"}, {"from": "gpt", "value": "a cat"}]
    return {"id": name, **({"image": image} if image else {}), "conversations": turns}


def picture(path, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 40).convert("RGB").save(path)


@pytest.fixture
def root(tmp_path):
    """Both files; whole pictures of every folder, and one of every kind of trouble."""
    torn = sorted(TORN)[0]
    rows = [
        row("coco", "coco/train2017/1.jpg"), row("gqa", "gqa/images/1.jpg"), row("text", None),
        row("textvqa", "textvqa/train_images/1.jpg"), row("vg", "vg/VG_100K/1.jpg"), row("vg2", "vg/VG_100K_2/1.jpg"),
        row("ocr", "ocr_vqa/images/1.jpg"), row("ocr gif", "ocr_vqa/images/2.jpg"),
        row("again", "ocr_vqa/images/2.jpg"), row("ocr absent", "ocr_vqa/images/3.jpg"),
        row("ocr one pixel", "ocr_vqa/images/4.jpg"), row("ocr page", "ocr_vqa/images/5.jpg"), row("ocr torn", torn),
        row("outside", "../1.jpg"),
    ]  # fmt: skip
    for item in rows[:7]:
        if "image" in item:
            picture(tmp_path / item["image"])
    picture(tmp_path / "ocr_vqa/images/2.gif", (30, 40))
    picture(tmp_path / "ocr_vqa/images/4.jpg", (1, 1))
    (tmp_path / "ocr_vqa/images/5.jpg").write_text("<html>no such cover</html>")
    picture(tmp_path / torn, (64, 64))
    (tmp_path / torn).write_bytes((tmp_path / torn).read_bytes()[:700])
    (tmp_path / SETS["665k"].file).write_text(json.dumps(rows))
    picture(tmp_path / "LLaVA-Pretrain/images/00453/1.jpg")
    (tmp_path / SETS["558k"].file).write_text(json.dumps([row("blip", "00453/1.jpg")]))
    return tmp_path


def test_whole_rows_are_joined_and_the_others_counted_by_folder(root, capsys):
    main([str(root), "--sets", "558k", "665k", "--out", str(root / "out" / "joined.json"), "--max-share=0.5"])
    joined = json.loads((root / "out" / "joined.json").read_text())
    assert [item["id"] for item in joined] == [
        "blip", "coco", "gqa", "text", "textvqa", "vg", "vg2", "ocr", "ocr gif", "again"
    ]  # fmt: skip
    for item in joined:  # what mllm.train will do with images=ROOT
        assert "image" not in item or load_picture(item["image"], root, item["id"])
    assert joined[-1]["image"] == "ocr_vqa/images/2.gif" and joined[0]["image"] == "LLaVA-Pretrain/images/00453/1.jpg"
    printed = capsys.readouterr().out
    assert "558k: 1 of 1 rows can be used" in printed and "665k: 9 of 14 rows can be used" in printed
    ocr = next(line for line in printed.splitlines() if "ocr_vqa/images" in line)
    assert "7 rows (published: 80,000), 2 pictures of 16 to 40 px, 1 under another extension" in ocr
    for problem in ("missing", "below 10 px", "not a picture", "torn"):
        assert f"1 rows left out: {problem}" in ocr, problem
    assert "..: 1 rows; 1 rows left out: outside ROOT" in printed
    assert "text only: 1 rows (published: 40,688)\n" in printed and "  vg: 2 rows (published: 86,417), 2 pic" in printed


def test_too_many_broken_rows_and_absent_files_are_refused(root):
    out = root / "out.json"
    with pytest.raises(ValueError, match="5 of 14 rows of 665k have no whole picture, more than the share of 0.01"):
        main([str(root), "--sets", "665k", "--out", str(out)])
    assert not out.exists()
    (root / SETS["558k"].file).unlink()
    with pytest.raises(ValueError, match="There is no LLaVA-Pretrain/blip_laion_cc_sbu_558k.json in "):
        main([str(root), "--sets", "558k", "--out", str(out)])


@pytest.mark.parametrize("side", [8_000, 20_000])  # beyond our own limit, and beyond Pillow's
def test_a_picture_that_would_not_be_read_is_too_large(tmp_path, side):
    (tmp_path / "1.jpg").write_bytes(b"P4\n%d %d\n" % (side, side))
    assert find_picture(tmp_path, "1.jpg").problem == "too large"
