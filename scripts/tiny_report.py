"""The report of `make tiny`: report.json, and report.html with the tables, the curves and the pictures in one file.

    python -m scripts.tiny_report --run runs/tiny --readme README.md

also writes the tables into the README, and docs/drawings.png beside it. What has not been run yet is said so.
"""

import argparse
import base64
import html
import json
from pathlib import Path

from training.cli import run_cli

# What the table asks for, on test_iid; test_combo may be up to 15 points lower. Retrieval: of what an oracle reaches.
TARGETS = {
    "psnr": 32.0,
    "captions": 0.75,
    "retrieval": 0.90,
    "questions": 0.75,
    "swapped": 0.70,
    "single": 0.60,
    "two": 0.25,
}
SPLITS = ("test_iid", "test_combo")
REPORTS = ("encoder", "questions_blind", *(f"{what}_{split}" for what in ("questions", "drawings") for split in SPLITS))
NOT_RUN = "not run"


def read_reports(out: Path) -> dict[str, dict]:
    """The parts' own reports by name; {} for one that is not there."""
    paths = {name: out / "reports" / f"{name}.json" for name in REPORTS}
    return {name: json.loads(path.read_text()) if path.is_file() else {} for name, path in paths.items()}


def figure(report: dict, *keys: str):
    """The value under nested keys, None where one is missing."""
    for key in keys:
        report = (report or {}).get(key)
    return report


def shown(cell: dict | float | None) -> str:
    """A share with its 95% interval and N, a share alone, or a PSNR (a cell with a "unit")."""
    if cell is None:
        return NOT_RUN
    if not isinstance(cell, dict):
        return f"{cell:.1%}"
    if "unit" in cell:
        return f"{cell['value']:.1f} {cell['unit']} (N {cell['count']})"
    low, high = (100 * bound for bound in cell["interval"])
    return f"{cell['value']:.1%} [{low:.1f}, {high:.1f}] (N {cell['count']})"


def table(reports: dict[str, dict]) -> list[dict]:
    """Rows {"what", "target", "test_iid", "test_combo", "beside"}: cells as `shown` takes them, `beside` a text."""
    encoder = reports["encoder"]
    drawings = {split: figure(reports[f"drawings_{split}"], "splits", split) for split in SPLITS}
    asked = {split: reports[f"questions_{split}"] for split in SPLITS}

    def decibels(name: str, key: str = "psnr"):
        def cell(split: str) -> dict | None:
            value = figure(encoder, split, name, key)
            return None if value is None else {"value": value, "unit": "dB", "count": encoder[split]["count"]}

        return cell

    def of_oracle(split: str) -> dict | None:
        found = figure(encoder, split, "retrieval")
        if found is None:
            return None
        share, oracle = found["text_to_image"], found["oracle"]
        return {**share, "value": share["value"] / oracle, "interval": [bound / oracle for bound in share["interval"]]}

    def both(name: str, cell) -> str:
        """A baseline on both splits."""
        values = [cell(split) for split in SPLITS]
        plain = [value["value"] if isinstance(value, dict) else value for value in values]
        if None in plain:
            return f"{name} {NOT_RUN}"
        decimals = isinstance(values[0], dict) and "unit" in values[0]
        return f"{name} {' / '.join(f'{value:.1f} dB' if decimals else f'{value:.1%}' for value in plain)}"

    def of_encoder(*keys: str):
        return lambda split: figure(encoder, split, *keys)

    def of_questions(who: str, *keys: str):
        return lambda split: figure(asked[split], who, *keys)

    def blind(*keys: str) -> str:
        return f"blind {shown(figure(reports['questions_blind'], 'model', *keys, 'value'))}"

    def row(what: str, target: str | None, cell, *beside: str) -> dict:
        cells = {split: cell(split) for split in SPLITS}
        return {"what": what, "target": TARGETS.get(target), **cells, "beside": "; ".join(beside)}

    rows = [
        row("reconstruction, PSNR against the VAE's output", "psnr", decibels("against_vae"),
            both("mean image", decibels("mean_image_against_vae")),
            both("16x down and bicubic", decibels("down16_bicubic_against_vae"))),
        row("the same, objects only", None, decibels("against_vae", "foreground_psnr"),
            both("mean image", decibels("mean_image_against_vae", "foreground_psnr"))),
        row("captions all right", "captions", of_encoder("captions"),
            both("nearest training caption", of_encoder("nearest_caption"))),
        row("objects right per caption", None, of_encoder("caption_objects"),
            both("nearest training caption", of_encoder("nearest_caption_objects"))),
        row("retrieval, text to picture, of the oracle's share", "retrieval", of_oracle,
            both("oracle", of_encoder("retrieval", "oracle")), both("chance", of_encoder("retrieval", "chance"))),
        row("questions, exact", "questions", of_questions("model", "all"),
            both("majority", of_questions("majority", "all")), blind("all"),
            both("wrong pictures", of_questions("shuffled_pictures", "all"))),
        row("yes/no, swapped binding", "swapped", of_questions("model", "kinds", "match_swapped"),
            "chance 50%", blind("kinds", "match_swapped")),
    ]  # fmt: skip
    for name, key in (("single", "single"), ("two", "two_with_relation")):

        def drawn(who: str, key: str = key):
            return lambda split: figure(drawings, split, key, who)

        rows.append(row(f"drawings, {key.replace('_', ' ')}", name, drawn("drawn"), both("ceiling", drawn("ceiling")),
                        both("nearest caption's picture", drawn("nearest_caption"))))  # fmt: skip
    return rows


def kinds_table(reports: dict[str, dict]) -> list[dict]:
    """Rows by kind of question: {"kind", "test_iid", "test_combo", "majority", "blind", "wrong pictures"}."""
    first = reports["questions_test_iid"]
    return [
        {
            "kind": kind,
            **{split: figure(reports[f"questions_{split}"], "model", "kinds", kind) for split in SPLITS},
            "majority": figure(first, "majority", "kinds", kind, "value"),
            "blind": figure(reports["questions_blind"], "model", "kinds", kind, "value"),
            "wrong pictures": figure(first, "shuffled_pictures", "kinds", kind, "value"),
        }
        for kind in figure(first, "model", "kinds") or {}
    ]


def target_text(target: float | None) -> str:
    if target is None:
        return ""
    return f"{target:.1f} dB" if target > 1 else f"{target:.0%}"


def read_parts(out: Path) -> list[dict]:
    """The parts' markers in the order in which each lane ended them."""
    paths = sorted((out / "done").glob("*.json"), key=lambda path: path.stat().st_mtime)
    return sorted((json.loads(path.read_text()) for path in paths), key=lambda part: part["lane"])


def longest_chain(parts: list[dict]) -> dict:
    """{"minutes", "parts"}: the wall time of the whole, and the parts that made it so long.

    A part follows the one before it in its lane, its inputs, and, outside lane 0, all of that lane; lane 3 follows all.
    """
    chains: dict[str, tuple[float, list[str]]] = {}

    def chain(part: dict) -> tuple[float, list[str]]:
        if part["name"] not in chains:
            chains[part["name"]] = (0.0, [])  # a part that is older than its input does not follow it
            before = parts[: parts.index(part)]
            waited = [other for other in before if part["lane"] == 3 or other["lane"] in (0, part["lane"])]
            waited += [other for other in parts if other["name"] in part["after"]]
            minutes, names = max(map(chain, waited), default=(0.0, []))
            chains[part["name"]] = minutes + part["minutes"], [*names, part["name"]]
        return chains[part["name"]]

    minutes, names = max(map(chain, parts), default=(0.0, []))
    return {"minutes": minutes, "parts": names}


def make_report(out: Path) -> dict:
    """What report.json holds: machine, minutes of every part, tables as numbers and as text, the parts' own reports."""
    reports, parts = read_reports(out), read_parts(out)
    rows, kinds = table(reports), kinds_table(reports)
    heads = ["what", "target", *SPLITS, f"beside it ({' / '.join(SPLITS)})"]
    cells = [[row["what"], target_text(row["target"]), *(shown(row[split]) for split in SPLITS), row["beside"]]
             for row in rows]  # fmt: skip
    kind_cells = [[row["kind"], *(shown(value) for key, value in row.items() if key != "kind")] for row in kinds]
    done = [[part["name"], f"{part['minutes']:.1f}" + ("" if part["done"] else ", not finished")] for part in parts]
    chain = longest_chain(parts)
    return {
        "machine": "; ".join(dict.fromkeys(part["machine"] for part in parts)),
        "minutes": chain["minutes"],
        "chain": chain["parts"],
        "parts": parts,
        "table": rows,
        "kinds": kinds,
        "texts": {
            "results": [heads, *cells],
            "kinds": [["questions by kind", *SPLITS, "majority", "blind", "wrong pictures"], *kind_cells],
            "minutes": [["part", "minutes"], *done],
        },
        "reports": reports,
    }


def html_table(rows: list[list[str]]) -> str:
    """The first row as heads."""
    tags = ["th"] + ["td"] * (len(rows) - 1)
    text = ""
    for tag, row in zip(tags, rows, strict=True):
        text += f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
    return f"<table>{text}</table>"


def write_report(out: Path) -> Path:
    """Writes report.json and report.html into `out`; returns the latter's path."""
    report = make_report(out)
    (out / "report.json").write_text(json.dumps(report, indent=1))
    pictures = [*sorted((out / "reports").glob("*.png"))]
    for name in ("encoder", "llm", "align", "mllm", "generator"):
        pictures += [
            path
            for path in [*sorted((out / name / "samples").glob("*.png"))[-1:], out / name / "loss.png"]
            if path.is_file()
        ]
    shown_pictures = "".join(
        f"<h3>{html.escape(str(path.relative_to(out)))}</h3><img src='data:image/png;base64,"
        f"{base64.b64encode(path.read_bytes()).decode()}'>"
        for path in pictures
    )
    page = (
        f"<!doctype html><meta charset='utf-8'><title>make tiny</title><h1>{report['minutes']:.0f} minutes</h1>"
        "<style>body{font:16px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:left}"
        "img{max-width:100%}</style>"
        f"<p>{html.escape(report['machine'])}; the longest chain is {html.escape(', '.join(report['chain']))}.</p>"
        f"{html_table(report['texts']['results'])}<p>{html_table(report['texts']['kinds'])}"
        f"<h2>Minutes</h2>{html_table(report['texts']['minutes'])}{shown_pictures}"
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    return out / "report.html"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tiny_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"), help="folder that make tiny wrote")
    parser.add_argument("--readme", type=Path, default=None, help="file whose results are written anew")
    args = parser.parse_args(argv)
    if not args.run.is_dir():
        raise ValueError(f"There is no run at {args.run}; make one with python -m scripts.tiny.")
    print(write_report(args.run))
    if args.readme is not None:
        from scripts.tiny_readme import draw_strip, write_readme  # here: `make tiny` waits without torch in its memory

        if (args.run / "generator" / "model_index.json").is_file():
            draw_strip(args.run, args.readme.parent / "docs" / "drawings.png")
        write_readme(json.loads((args.run / "report.json").read_text()), args.readme)
        print(args.readme)


if __name__ == "__main__":
    run_cli(main)
