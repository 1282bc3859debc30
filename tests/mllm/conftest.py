"""Pictures to ask about."""

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def pictures():
    return [Image.new("RGB", (40, 30), color) for color in ("red", "blue", "white")]
