"""The results section of the README, from the report of `make tiny`, and the strip of drawings beside it."""

import json
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from encoder.images import picture_grid
from generator.evaluate import prompt_at
from generator.flow import picture_generators
from generator.pipeline import load_pipeline

START, END = "<!-- results -->", "<!-- /results -->"
# The first prompts of either category in val: a split that is neither trained on nor measured.
STRIP = (("single", 4), ("two_with_relation", 4))
STRIP_ENLARGED, STRIP_COLUMNS, STRIP_SEED = 3, 4, 0


def markdown_table(rows: list[list[str]]) -> str:
    """The first row as heads."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def results_section(report: dict, picture: str | None) -> str:
    """The section's text; `picture`: path of the strip, None without one."""
    texts = report["texts"]
    minutes = ", ".join(f"{name} {spent}" for name, spent in texts["minutes"][1:])
    pieces = [
        "Shares with their 95% Wilson interval and N. `test_iid` holds new scenes of the training's kind, `test_combo` "
        "pairs of colour and shape that no training picture holds. Targets are for `test_iid`; `test_combo` may be 15 "
        "points lower.",
        markdown_table(texts["results"]),
        markdown_table(texts["kinds"]),
        f"`make tiny` on {report['machine']}: {report['minutes']:.0f} minutes for the longest chain "
        f"({', '.join(report['chain'])}). Minutes of each part: {minutes}.",
    ]
    if picture is not None:
        pieces.append(f"The first prompts of `val`, one drawing each, none chosen:\n\n![drawings]({picture})")
    return "\n\n".join(pieces)


def write_readme(report: dict, readme: Path) -> None:
    """Replaces what lies between the two marks of the README.

    Raises:
        ValueError: the file has no such marks.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1 or text.index(END) < text.index(START):
        raise ValueError(f"{readme} needs the lines {START} and {END} once each, in this order, around its results.")
    strip = readme.parent / "docs" / "drawings.png"
    section = results_section(report, "docs/drawings.png" if strip.is_file() else None)
    before, after = text[: text.index(START)], text[text.index(END) :]
    readme.write_text(f"{before}{START}\n{section}\n{after}", encoding="utf-8")


def with_prompt(drawing: Image.Image, prompt: str) -> Image.Image:
    """The drawing enlarged, its prompt under it."""
    width, height = (STRIP_ENLARGED * side for side in drawing.size)
    tile = Image.new("RGB", (width + 16, height + 72), "white")
    tile.paste(drawing.resize((width, height), Image.Resampling.BICUBIC), (8, 8))
    lines = "\n".join(textwrap.wrap(prompt, 32))
    ImageDraw.Draw(tile).multiline_text((8, height + 12), lines, fill="black", font=ImageFont.load_default(12))
    return tile


def draw_strip(run: Path, out: Path) -> None:
    """Draws STRIP's prompts with the run's generator, with the settings its drawings were measured with, into `out`."""
    report = run / "reports" / "drawings_test_iid.json"
    options = json.loads(report.read_text())["settings"] if report.is_file() else {}
    prompts = [prompt_at(category, "val", index)[1] for category, count in STRIP for index in range(count)]
    pipeline = load_pipeline(run / "generator")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(prompts, generator=picture_generators(STRIP_SEED, range(len(prompts))), **options).images
    out.parent.mkdir(parents=True, exist_ok=True)
    picture_grid([with_prompt(*pair) for pair in zip(drawn, prompts, strict=True)], STRIP_COLUMNS).save(out)
