"""The strip of drawings in the README."""

from PIL import Image

from scripts.tiny_readme import draw_strip


def test_the_strip_shows_eight_drawings_always_the_same(run, tmp_path):
    draw_strip(run, tmp_path / "docs" / "first.png")
    draw_strip(run, tmp_path / "docs" / "second.png")
    strip = Image.open(tmp_path / "docs" / "first.png")
    assert strip.size == (4 * (32 * 3 + 16), 2 * (32 * 3 + 72))
    assert (tmp_path / "docs" / "first.png").read_bytes() == (tmp_path / "docs" / "second.png").read_bytes()
