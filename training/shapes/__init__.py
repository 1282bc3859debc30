"""A procedural world in which seeing and drawing can both be checked: scenes, pictures, text and an analytic judge."""

from training.shapes.checker import Check, Found, ObjectCheck, ShapesChecker
from training.shapes.questions import Question, questions
from training.shapes.render import foreground, render
from training.shapes.scene import BACKGROUNDS, COLORS, HELD_OUT_PAIRS, SHAPES, SIZES, Object, Scene, sample_scene
from training.shapes.text import CaptionFacts, ObjectFacts, caption_facts, captions, facts_hold, full_caption

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "HELD_OUT_PAIRS",
    "SHAPES",
    "SIZES",
    "CaptionFacts",
    "Check",
    "Found",
    "Object",
    "ObjectCheck",
    "ObjectFacts",
    "Question",
    "Scene",
    "ShapesChecker",
    "caption_facts",
    "captions",
    "facts_hold",
    "foreground",
    "full_caption",
    "questions",
    "render",
    "sample_scene",
]
