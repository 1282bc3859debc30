"""What an installed wheel must do without the repository: load, and chat and draw where the family is packed in."""

from pathlib import Path

import encoder
import generator
import mllm

print("loaded", encoder.OpenVision3Model.__name__, mllm.ChatModel.__name__, generator.OpenVision3Pipeline.__name__)
assert Path.cwd() not in Path(encoder.__file__).parents or "site-packages" in encoder.__file__

import demo.assemble  # noqa: E402

folder = demo.assemble.assembled()
picture = generator.OpenVision3Pipeline.from_pretrained(folder / "generator")("a large red circle", 10).images[0]
answer = mllm.ChatModel.from_pretrained(folder / "mllm").chat(
    [{"role": "user", "content": "what shape is the red object?"}], [picture]
)
print(f"drew {picture.size}, answered {answer!r}")
assert answer
