"""Pictures to ask about, and a small training of mllm.train."""

import json

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def pictures():
    return [Image.new("RGB", (40, 30), color) for color in ("red", "blue", "white")]


@pytest.fixture
def arguments(family, tmp_path):
    """arguments(name, *overrides): what mllm.train is given to write tmp_path/name after 4 steps on 7 rows."""
    rows = [
        {
            "id": f"r{index}",
            "image": f"{index % 2}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nwhat color is the circle?"},
                {"from": "gpt", "value": ("red", "blue")[index % 2]},
            ],
        }
        for index in range(6)
    ]
    text = [{"from": "human", "value": "is there a blue square?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {"id": "text", "conversations": text}]))
    for index, color in enumerate(("red", "blue")):
        Image.new("RGB", (32, 32), color).save(tmp_path / f"{index}.png")
    (tmp_path / "recipe.yaml").write_text("trainer: {use_cpu: true}\n")

    def make(name, *overrides):
        return [
            str(tmp_path / "recipe.yaml"),
            f"output_dir={tmp_path / name}",
            f"data={tmp_path / 'rows.json'}",
            f"images={tmp_path}",
            f"init_from={family / 'mllm'}",
            "trainer.max_steps=4",
            "trainer.learning_rate=0.01",
            "trainer.per_device_train_batch_size=4",
            "trainer.disable_tqdm=true",
            *overrides,
        ]

    return make
