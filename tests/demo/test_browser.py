"""The real demo in a real browser: 12 questions and 6 drawings, about scenes the family never saw.

Always the same ones, and half of the questions and a third of the drawings suffice: here the page is tested, how much
the family knows is measured by `make tiny` (README, Results).
"""

import io
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from training.shapes import ShapesChecker, caption_facts, captions, questions, render
from training.shapes.write import scene_at

ROOT = Path(__file__).parent.parent.parent
QUESTIONS, DRAWINGS = 12, 6


@pytest.fixture(scope="module")
def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "demo.app", "--port", str(port)], cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert server.poll() is None, "the demo ended"
            try:
                urllib.request.urlopen(url, timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page(address):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        outside = []
        page.on("request", lambda request: outside.append(request.url) if "127.0.0.1" not in request.url else None)
        page.goto(address)
        page.get_by_role("tab", name="Chat").wait_for()
        yield page
        browser.close()
        assert not [url for url in outside if not url.startswith(("data:", "blob:"))], outside


@pytest.fixture(scope="module")
def rng():
    return random.Random(0)


def _choose(page, selector, name, data):
    """Clicks the button and picks a file, as a visitor does."""
    with page.expect_file_chooser() as chooser:
        page.locator(selector).click()
    chooser.value.set_files({"name": name, "mimeType": "image/png", "buffer": data})


def _upload(page, selector, picture, size):
    buffer = io.BytesIO()
    picture.resize((size, size)).save(buffer, "PNG")
    _choose(page, selector, "picture.png", buffer.getvalue())


def _answers(page):
    return page.locator("#chat-log [data-testid=bot]").all_inner_texts()


def _whole_answer(page):
    """The last answer, once it is there and has stopped growing."""
    for _ in range(240):
        before = _answers(page)[-1].strip()
        page.wait_for_timeout(500)
        if before not in ("", "...") and _answers(page)[-1].strip() == before:
            return before
    raise AssertionError("the answer never ended")


def test_half_the_questions_are_answered_rightly(page, rng, tmp_path):
    right = 0
    for _ in range(QUESTIONS):
        scene = scene_at("val", rng.randrange(100_000))
        asked = rng.choice(questions(scene))
        old = (
            page.locator("#chat-picture img").get_attribute("src") if page.locator("#chat-picture img").count() else ""
        )
        _upload(page, "#chat-upload", render(scene, 64), 64)
        page.wait_for_function(
            "old => { const i = document.querySelector('#chat-picture img'); return i && i.src != old }", arg=old
        )
        count = len(_answers(page))
        page.locator("#chat-question textarea").fill(asked.text)
        page.locator("#chat-send").click()
        page.wait_for_function(
            "count => document.querySelectorAll('#chat-log [data-testid=bot]').length > count", arg=count
        )
        answer = _whole_answer(page).lower()
        print(f"{asked.text!r}: {answer!r}, right is {asked.answer!r}")
        right += answer == asked.answer.lower()
    page.screenshot(path=tmp_path / "chat.png")
    assert right >= QUESTIONS / 2


def test_a_third_of_the_drawings_are_right(page, rng, tmp_path):
    checker, right = ShapesChecker(), 0
    page.get_by_role("tab", name="Draw").click()
    page.locator("#draw-count input[type=number]").fill("1")
    last = None
    for _ in range(DRAWINGS):
        index = rng.randrange(100_000)
        scene = next(scene_at("val", i) for i in range(index, index + 1000) if len(scene_at("val", i).objects) == 1)
        prompt = rng.choice(captions(scene))
        page.locator("#draw-prompt textarea").fill(prompt)
        page.locator("#draw-seed input").fill(str(rng.randrange(1000)))
        page.locator("#draw-send").click()
        page.wait_for_function(
            "last => { const i = document.querySelector('#draw-gallery img'); return i && i.src != last }", arg=last,
            timeout=60_000,
        )  # fmt: skip
        last = page.locator("#draw-gallery img").first.get_attribute("src")
        data = page.request.get(last).body()
        drawing = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        fits = checker.check_facts(drawing, caption_facts(prompt))
        print(f"{prompt!r}: {'right' if fits else 'wrong'}")
        right += fits
    page.screenshot(path=tmp_path / "draw.png")
    assert right >= DRAWINGS / 3


def test_mistakes_are_told_in_a_sentence(page):
    page.get_by_role("tab", name="Draw").click()
    page.locator("#draw-prompt textarea").fill("")
    page.locator("#draw-send").click()
    page.get_by_text(re.compile("The prompt is empty")).first.wait_for(timeout=10_000)
    page.get_by_role("tab", name="Chat").click()
    _choose(page, "#chat-upload", "broken.png", b"this is no picture")
    page.get_by_text(re.compile("cannot be read as a picture")).first.wait_for(timeout=10_000)


def test_what_the_user_types_stays_text(page):
    page.get_by_role("tab", name="Chat").click()
    page.locator("#chat-question textarea").fill("<img src=x id=injected> what?")
    page.locator("#chat-send").click()
    page.get_by_text("<img src=x id=injected>").first.wait_for(timeout=20_000)
    assert page.locator("#injected").count() == 0
    page.get_by_role("tab", name="Draw").click()
    page.locator("#draw-prompt textarea").fill("<image>")
    page.locator("#draw-send").click()
    page.get_by_text("The prompt holds <image>").first.wait_for(timeout=20_000)
