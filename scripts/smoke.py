"""What an installed wheel must do without the repository: load, chat and draw with the family packed in."""

import demo.assemble
import encoder
import generator
import mllm
from demo.family import CHECKPOINTS, WEIGHTS

assert "site-packages" in encoder.__file__, f"encoder comes from {encoder.__file__}, not from the installed wheel"
print("loaded", encoder.OpenVision3Model.__name__, mllm.ChatModel.__name__, generator.OpenVision3Pipeline.__name__)

if not (CHECKPOINTS / WEIGHTS["encoder"]).is_file():
    raise SystemExit("The wheel holds no family: demo/checkpoints must be committed and packed as package data.")
folder = demo.assemble.assembled()
picture = generator.OpenVision3Pipeline.from_pretrained(folder / "generator")("a large red circle", 10).images[0]
question = {"role": "user", "content": "what shape is the red object?"}
answer = mllm.ChatModel.from_pretrained(folder / "mllm").chat([question], [picture])
print(f"drew {picture.size}, answered {answer!r}")
assert answer
