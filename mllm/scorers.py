"""Public benchmarks exactly as their authors score them."""

import re
from collections import defaultdict
from collections.abc import Sequence

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

LETTERS = "ABCDEFGHIJ"  # of choices
# VQA's table maps each of these words with one apostrophe left out (dont, couldnt've) to the word itself.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()
FULL_FORMS = {word[: at.start()] + word[at.end() :]: word for word in CONTRACTIONS for at in re.finditer("'", word)}
FULL_FORMS["somebody'd"] = "somebodyd"
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
           "seven": "7", "eight": "8", "nine": "9", "ten": "10"}  # fmt: skip
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'  # of EvalAI's list what is left without commas and question marks


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


def vqa_answer(text: str) -> str:
    """EvalAI's normalisation of an answer: lower case, digits for number words, no articles, little punctuation."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    clean = text
    for sign in PUNCTUATION:
        alone = f"{sign} " in text or f" {sign}" in text
        clean = clean.replace(sign, "" if alone else " ")
    clean = re.sub(r"\.(?!\d)", "", clean)
    words = [NUMBERS.get(word, word) for word in clean.split()]
    return " ".join(FULL_FORMS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """VQAv2's and TextVQA's accuracy between 0 and 1.

    Args:
        answers: of each question, one per annotator (ten in both). A prediction that three of them gave is right; the
            score is the mean over the sets that leave one annotator out.
    """
    scores = []
    for prediction, given in zip(predictions, answers, strict=True):
        given, found = [vqa_answer(answer) for answer in given], vqa_answer(prediction)
        hits = [sum(answer == found for answer in given) - (left_out == found) for left_out in given]
        scores.append(sum(min(1.0, count / 3) for count in hits) / len(hits))
    return _ratio(sum(scores), len(scores))


def gqa(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """GQA's accuracy between 0 and 1: equal but for case and a last full stop (LLaVA's convert_gqa_for_eval.py)."""
    hits = [
        prediction.strip().rstrip(".").lower() == answer.lower()
        for prediction, answer in zip(predictions, answers, strict=True)
    ]
    return _ratio(sum(hits), len(hits))


def scienceqa_letter(prediction: str, num_choices: int) -> str | None:
    """The letter that LLaVA's eval_science_qa.py reads: "B", "B. text", or "The answer is B."; else None."""
    letters = LETTERS[:num_choices]
    if prediction in tuple(letters):
        return prediction
    if prediction[:1] in tuple(letters) and prediction[1:3] == ". ":
        return prediction[0]
    found = re.findall(r"The answer is ([A-Z]).", prediction)
    return found[0] if len(found) == 1 and found[0] in letters else None


def seed_letter(prediction: str) -> str:
    """The letter that SEED-Bench's scorer in lmms-eval reads: the first character."""
    return prediction.strip()[:1]


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
