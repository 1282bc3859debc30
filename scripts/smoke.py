"""What an installed wheel must do without the repository: load, and chat and draw where the family is packed in."""

from pathlib import Path

import demo.assemble
import encoder
import generator
import mllm
from demo.family import CHECKPOINTS, WEIGHTS

assert "site-packages" in encoder.__file__, f"encoder comes from {encoder.__file__}, not from the installed wheel"
print("loaded", encoder.OpenVision3Model.__name__, mllm.ChatModel.__name__, generator.OpenVision3Pipeline.__name__)

if (CHECKPOINTS / Path(WEIGHTS["encoder"])).is_file():
    folder = demo.assemble.assembled()
    picture = generator.OpenVision3Pipeline.from_pretrained(folder / "generator")("a large red circle", 10).images[0]
    question = {"role": "user", "content": "what shape is the red object?"}
    answer = mllm.ChatModel.from_pretrained(folder / "mllm").chat([question], [picture])
    print(f"drew {picture.size}, answered {answer!r}")
    assert answer
else:
    print("the wheel holds no family: nothing to chat or draw with")
