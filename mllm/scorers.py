"""POPE and MME exactly as their authors score them."""

from collections import defaultdict
from collections.abc import Sequence

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def pope(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """POPE by LLaVA's eval_pope.py: free answers become yes or no, anything without a "no" counts as yes.

    Args:
        predictions: answers as generated; only the text before the first full stop is read.
        labels: "yes" or "no".

    Returns:
        tp, fp, tn, fn, accuracy, precision, recall, f1, yes_ratio (shares between 0 and 1; 0 where nothing is counted).
    """
    if len(predictions) != len(labels):
        raise ValueError(f"There are {len(predictions)} predictions and {len(labels)} labels; they must pair up.")
    counts = {"tp": 0, "fp": 0, "tn": 0, "fn": 0}
    for prediction, label in zip(predictions, labels, strict=True):
        words = prediction.split(".")[0].replace(",", "").split(" ")
        yes, truth = not {"No", "not", "no"} & set(words), label != "no"
        counts[("t" if yes == truth else "f") + ("p" if yes else "n")] += 1
    tp, fp, fn, total = counts["tp"], counts["fp"], counts["fn"], len(labels)
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    return {**counts, "accuracy": _ratio(tp + counts["tn"], total), "precision": precision, "recall": recall,
            "f1": _ratio(2 * precision * recall, precision + recall), "yes_ratio": _ratio(tp + fp, total)}  # fmt: skip


def mme(rows: Sequence[dict]) -> dict[str, float]:
    """MME by lmms-eval's utils.py: for each picture, the share of right answers and whether all of them are right.

    Args:
        rows: {"question_id" (the picture), "category", "answer" ("Yes" or "No"), "prediction"}.

    Returns:
        perception (at most 2000), cognition (at most 800): sums over categories of the mean score of their pictures.
    """
    pictures: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["category"] not in PERCEPTION + COGNITION:
            raise ValueError(f"MME has no category {row['category']!r}; it has {', '.join(PERCEPTION + COGNITION)}.")
        right = _mme_answer(row["prediction"]) == row["answer"].lower().strip().replace(".", "")
        pictures[row["category"]][row["question_id"]].append(right)
    scores = {
        category: sum(100 * sum(hits) / len(hits) + 100 * all(hits) for hits in found.values()) / len(found)
        for category, found in pictures.items()
    }
    return {"perception": float(sum(scores.get(category, 0) for category in PERCEPTION)),
            "cognition": float(sum(scores.get(category, 0) for category in COGNITION))}  # fmt: skip


def _mme_answer(prediction: str) -> str:
    text = prediction.lower().strip().replace(".", "")
    if text in ("yes", "no"):
        return text
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    if "yes" in text[:4]:
        return "yes"
    return "no" if "no" in text[:4] else "other"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
