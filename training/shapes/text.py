"""Captions of scenes, and the grammar that reads the facts back out of a caption."""

import re
from dataclasses import dataclass

import numpy as np

from training.shapes.scene import BACKGROUNDS, COLORS, PLACES, RELATIONS, SHAPES, SIZES, Object, Scene, relation

NUMBERS = ("one", "two", "three", "four")
_PLACE_WORDS = tuple(word for row in PLACES for word in row)


@dataclass(frozen=True)
class ObjectFacts:
    """What a caption says of one object; None where it says nothing."""

    color: str
    shape: str
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class CaptionFacts:
    """objects in order; relations as (index, word, index); background None where the caption does not name it."""

    objects: tuple[ObjectFacts, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None


def noun(obj: Object | ObjectFacts, size: bool) -> str:
    """ "red circle" or "small red circle"."""
    return f"{obj.size} {obj.color} {obj.shape}" if size and obj.size else f"{obj.color} {obj.shape}"


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def captions(scene: Scene) -> list[str]:
    """Every wording for the scene, from the barest to the fullest; all true. The last names every captioned factor."""
    plain = [with_article(noun(obj, size=False)) for obj in scene.objects]
    sized = [with_article(noun(obj, size=True)) for obj in scene.objects]
    placed = [f"{words} at the {obj.place}" for words, obj in zip(sized, scene.objects, strict=True)]
    ground = f"on a {scene.background} background"
    if len(scene.objects) == 1:
        bare_place = f"{plain[0]} at the {scene.objects[0].place}"
        texts = [plain[0], sized[0], bare_place, f"{plain[0]} {ground}", f"there is {sized[0]}", placed[0]]
        return [*texts, f"{placed[0]} {ground}"]
    if len(scene.objects) == 2:
        word = relation(*scene.objects)
        if word is None:
            return [_listed(plain), _listed(sized), f"{_listed(placed)} {ground}"]
        other = RELATIONS[word]
        return [
            f"{plain[0]} {word} {plain[1]}",
            f"{plain[1]} {other} {plain[0]}",
            f"there is {sized[1]} {other} {sized[0]}",
            f"{plain[0]} {word} {plain[1]} {ground}",
            _listed(sized),
            f"{sized[0]} {word} {sized[1]} {ground}",
        ]
    number = NUMBERS[len(scene.objects) - 1]
    return [
        _listed(plain),
        f"{number} objects: {_listed(plain)}",
        _listed(sized),
        f"{_listed(plain)} {ground}",
        f"{number} objects: {_listed(sized)} {ground}",
    ]


def sample_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One wording at random."""
    texts = captions(scene)
    return texts[rng.integers(len(texts))]


def full_caption(scene: Scene) -> str:
    """The wording that names every captioned factor."""
    return captions(scene)[-1]


_OBJECT = (
    rf"an? (?:(?P<size>{'|'.join(SIZES)}) )?(?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})"
    rf"(?: at the (?P<place>{'|'.join(sorted(_PLACE_WORDS, key=len, reverse=True))}))?"
)
_LINK = rf" (?P<link>{'|'.join(RELATIONS)}|and) |, "
_PREFIX = re.compile(rf"(?:there (?:is|are) )?(?:(?P<number>{'|'.join(NUMBERS)}) objects?: )?")
_SUFFIX = re.compile(rf"(?: on an? (?P<background>{'|'.join(BACKGROUNDS)}) background)?\.?$")


def caption_facts(text: str) -> CaptionFacts:
    """Parses a caption. Raises ValueError where the text is not in the grammar of captions()."""
    words = " ".join(text.lower().split())
    prefix = _PREFIX.match(words)
    position = prefix.end()
    objects: list[ObjectFacts] = []
    links: list[str | None] = []
    while match := re.compile(_OBJECT).match(words, position):
        objects.append(ObjectFacts(match["color"], match["shape"], match["size"], match["place"]))
        position = match.end()
        link = re.compile(_LINK).match(words, position)
        if link is None:
            break
        links.append(link["link"])
        position = link.end()
    suffix = _SUFFIX.match(words, position)
    if not objects or len(links) != len(objects) - 1 or suffix is None:
        raise ValueError(f"cannot read the caption {text!r}: it goes wrong at {words[position:]!r}")
    if prefix["number"] and NUMBERS.index(prefix["number"]) + 1 != len(objects):
        raise ValueError(f"cannot read the caption {text!r}: it says {prefix['number']} and names {len(objects)}")
    relations = tuple((i, word, i + 1) for i, word in enumerate(links) if word in RELATIONS)
    return CaptionFacts(tuple(objects), relations, suffix["background"])


def facts_hold(facts: CaptionFacts, scene: Scene) -> bool:
    """Whether a caption with these facts describes the scene: every object named rightly, nothing false."""
    if len(facts.objects) != len(scene.objects) or facts.background not in (None, scene.background):
        return False
    return _fits(facts, scene, chosen=[])


def _fits(facts: CaptionFacts, scene: Scene, chosen: list[int]) -> bool:
    if len(chosen) == len(facts.objects):
        return all(
            relation(scene.objects[chosen[a]], scene.objects[chosen[b]]) == word for a, word, b in facts.relations
        )
    wanted = facts.objects[len(chosen)]
    return any(
        _fits(facts, scene, [*chosen, index])
        for index, obj in enumerate(scene.objects)
        if index not in chosen
        and (obj.color, obj.shape) == (wanted.color, wanted.shape)
        and wanted.size in (None, obj.size)
        and wanted.place in (None, obj.place)
    )
