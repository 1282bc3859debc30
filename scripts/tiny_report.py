"""The report of `make tiny`: report.json, and report.html with the table, the curves and the pictures in one file."""

import base64
import html
import json
from pathlib import Path

# What the table asks for, on test_iid; test_combo may be up to 15 points lower.
TARGETS = {
    "psnr": 26.0,
    "captions": 0.75,
    "retrieval": 0.80,
    "questions": 0.75,
    "swapped": 0.70,
    "single": 0.50,
    "two": 0.20,
}
SPLITS = ("test_iid", "test_combo")


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def table(out: Path) -> list[dict]:
    """Rows {"what", "target", "test_iid", "test_combo", "beside"}; shares between 0 and 1, PSNR in dB."""
    encoder, drawings = _read(out / "reports" / "encoder.json"), _read(out / "reports" / "drawings.json")
    questions = {split: _read(out / "reports" / f"questions_{split}.json") for split in SPLITS}

    def row(what: str, target: float, value, beside: str) -> dict:
        return {"what": what, "target": target, **{split: value(split) for split in SPLITS}, "beside": beside}

    blind = _read(out / "reports" / "questions_blind.json")["model"]
    first, asked = encoder["test_iid"], questions["test_iid"]
    rows = [
        row(
            "PSNR against the VAE's output, whole",
            TARGETS["psnr"],
            lambda split: encoder[split]["against_vae"]["psnr"],
            f"mean image {first['mean_image_against_vae']['psnr']:.1f}, 16x down and bicubic "
            f"{first['down16_bicubic_against_vae']['psnr']:.1f}",
        ),
        row("the same, foreground", None, lambda split: encoder[split]["against_vae"]["foreground_psnr"], ""),
        row(
            "captions all right",
            TARGETS["captions"],
            lambda split: encoder[split]["captions"]["value"],
            f"nearest training caption {first['nearest_caption']['value']:.1%}",
        ),
        row(
            "retrieval, text to image",
            TARGETS["retrieval"],
            lambda split: encoder[split]["retrieval"]["text_to_image"]["value"],
            f"oracle {first['retrieval']['oracle']:.0%}, chance {first['retrieval']['chance']:.1%}",
        ),
        row(
            "questions, exact",
            TARGETS["questions"],
            lambda split: questions[split]["model"]["all"]["value"],
            f"majority {asked['majority']['all']['value']:.1%}, blind {blind['all']['value']:.1%}, shuffled pictures "
            f"{asked['shuffled_pictures']['all']['value']:.1%}",
        ),
        row(
            "yes/no, swapped binding",
            TARGETS["swapped"],
            lambda split: questions[split]["model"]["kinds"]["match_swapped"]["value"],
            f"chance 50%, blind {blind['kinds']['match_swapped']['value']:.1%}",
        ),
    ]
    for name, key in (("single", "single"), ("two", "two_with_relation")):
        here = drawings["splits"]["test_iid"][key]
        rows.append(
            row(
                f"drawing, {key.replace('_', ' ')}",
                TARGETS[name],
                lambda split, key=key: drawings["splits"][split][key]["drawn"]["value"],
                f"ceiling {here['ceiling']['value']:.1%}, nearest caption's picture "
                f"{here['nearest_caption']['value']:.1%}",
            )
        )
    return rows


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} dB" if value > 1.5 else f"{value:.1%}"


def write_report(out: Path) -> Path:
    """Writes report.json and report.html into `out`; returns the latter's path."""
    done = [_read(path) for path in sorted((out / "done").glob("*.json"))]
    rows = table(out)
    lanes = [sum(part["minutes"] for part in done if part["lane"] == lane) for lane in range(3)]
    report = {
        "minutes": lanes[0] + max(lanes[1:]),
        "parts": done,
        "table": rows,
        "questions": {name: _read(out / "reports" / f"questions_{name}.json") for name in (*SPLITS, "blind")},
        "encoder": _read(out / "reports" / "encoder.json"),
        "drawings": _read(out / "reports" / "drawings.json"),
    }
    (out / "report.json").write_text(json.dumps(report, indent=1))
    cells = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(text)}</td>"
            for text in (
                row["what"],
                _shown(row["target"]),
                _shown(row["test_iid"]),
                _shown(row["test_combo"]),
                row["beside"],
            )
        )
        + "</tr>"
        for row in rows
    )
    minutes = "".join(f"<tr><td>{html.escape(part['name'])}</td><td>{part['minutes']:.1f}</td></tr>" for part in done)
    pictures = [*sorted((out / "reports").glob("*.png"))]
    for name in ("encoder", "llm", "align", "mllm", "generator"):
        pictures += [
            path
            for path in [*sorted((out / name / "samples").glob("*.png"))[-1:], out / name / "loss.png"]
            if path.is_file()
        ]
    shown = "".join(
        f"<h3>{html.escape(str(path.relative_to(out)))}</h3><img src='data:image/png;base64,"
        f"{base64.b64encode(path.read_bytes()).decode()}'>"
        for path in pictures
    )
    page = (
        f"<!doctype html><meta charset='utf-8'><title>make tiny</title><h1>{report['minutes']:.0f} minutes</h1>"
        "<style>body{font:16px sans-serif;margin:2em}td,th{padding:.2em .8em}img{max-width:100%}</style>"
        "<table><tr><th>what<th>target<th>test_iid<th>test_combo<th>beside it</tr>" + cells + "</table>"
        "<h2>Minutes</h2><table>" + minutes + "</table>" + shown
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    return out / "report.html"
