"""The demo: chat about pictures, draw from text, reconstruct. python -m demo.app, then open the printed address.

Everything runs on this machine, on the CPU, offline; the page is served to 127.0.0.1 only.
"""

import argparse
import html
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr  # noqa: E402  reads the variables above when imported
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from demo.assemble import assembled  # noqa: E402
from demo.family import CHECKPOINTS  # noqa: E402
from demo.outside import Outside  # noqa: E402
from encoder import OpenVision3Autoencoder  # noqa: E402
from encoder.images import load_image, to_pil, to_pixel_values  # noqa: E402
from encoder.metrics import psnr  # noqa: E402
from generator import OpenVision3Pipeline  # noqa: E402
from generator.flow import picture_generators  # noqa: E402
from mllm import ChatModel  # noqa: E402
from mllm.conversation import IMAGE  # noqa: E402

# Four scenes of the split `val` of shapes, for visitors who have no picture of that world.
EXAMPLES = Path(__file__).parent / "examples"
MAX_DRAWINGS = 8
# Drawings and reconstructions have 64 pixels a side; the page shows them so many times larger.
ENLARGED = 4
# Longer questions and prompts are refused, waiting visitors beyond so many turned away, larger files not taken.
MAX_CHARACTERS = 1000
MAX_WAITING = 16
MAX_FILE_SIZE = "50mb"
ABOUT = """One frozen encoder, two uses. This small family knows a world of coloured shapes: ask it about their colour,
shape, size, number and place, or have it draw up to four of them."""
NO_ANSWER = "(The model ended its answer before the first word.)"
OUTSIDE = "This picture is unlike the ones this small family was trained on, so expect nonsense about it."


@dataclass
class Family:
    """The loaded models, and what is outside their world."""

    autoencoder: OpenVision3Autoencoder
    chat: ChatModel
    pipeline: OpenVision3Pipeline
    outside: Outside

    @classmethod
    def load(cls, checkpoints: Path = CHECKPOINTS) -> "Family":
        folder = assembled(checkpoints)
        pipeline = OpenVision3Pipeline.from_pretrained(folder / "generator")
        pipeline.set_progress_bar_config(disable=True)
        return cls(
            pipeline.autoencoder, ChatModel.from_pretrained(folder / "mllm"), pipeline, Outside.load(checkpoints)
        )

    def tokens(self, image: Image.Image) -> torch.Tensor:
        """image_tokens [1, num_patches, hidden_size] of a picture, at the family's own size."""
        return self.autoencoder.encode(to_pixel_values([image], self.autoencoder.image_size))

    def note(self, image: Image.Image) -> str:
        """A warning where the picture is outside the family's world, else nothing."""
        distance = self.outside.distance(self.autoencoder.pool(self.tokens(image)))
        return OUTSIDE if distance.item() > self.outside.threshold else ""

    def answer(self, question: str, image: Image.Image | None) -> Iterator[str]:
        """The answer so far, growing. Every question stands alone: that is what the small LLM was trained on."""
        text = ""
        for piece in self.chat.stream([{"role": "user", "content": question}], [] if image is None else [image]):
            text += piece
            yield text

    def draw(self, prompt: str, count: int, seed: int, steps: int, guidance: float) -> list[Image.Image]:
        prompt = plain_text(prompt, "prompt", "say what to draw, for example 'a large red circle'")
        if seed is None:
            raise ValueError("The seed is empty: give a whole number from 0 on.")
        generators = picture_generators(int(seed), range(int(count)))
        return self.pipeline([prompt.lower()] * int(count), int(steps), float(guidance), generators).images

    def reconstruct(self, image: Image.Image) -> tuple[Image.Image, Image.Image, str]:
        """The picture at the family's size, its reconstruction, and how close they are."""
        pixel_values = to_pixel_values([image], self.autoencoder.image_size)
        decoded = self.autoencoder.decode(self.autoencoder.encode(pixel_values))
        text = f"{psnr(decoded.clamp(-1, 1), pixel_values).item():.1f} dB PSNR. {self.note(image)}"
        return to_pil(pixel_values)[0], to_pil(decoded)[0], text


def plain_text(text: str | None, name: str, what_to_do: str) -> str:
    """A visitor's text without the space around it.

    Raises:
        ValueError: empty, too long, or holding the word that stands for a picture; the sentence calls it `name`.
    """
    text = (text or "").strip()
    if not text:
        raise ValueError(f"The {name} is empty: {what_to_do}.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"The {name} has {len(text)} characters and at most {MAX_CHARACTERS} are read: shorten it.")
    if IMAGE in text:
        raise ValueError(f"The {name} holds {IMAGE}, which stands for a picture: leave it out.")
    return text


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture ENLARGED times as wide and high, edges smooth."""
    return picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.BICUBIC)


def _as_html(text: str) -> str:
    """Text to be read as it was typed: Gradio's chat log and messages take theirs for HTML, render_markdown or not."""
    return html.escape(text, quote=False)


def _message(role: str, text: str) -> dict:
    """A line of the chat log."""
    return {"role": role, "content": _as_html(text)}


def _sentence(call, *args):
    """Runs a call; a user's error becomes a message on the page."""
    try:
        return call(*args)
    except ValueError as error:
        raise gr.Error(_as_html(str(error)), print_exception=False) from error


def build_app(family: Family) -> gr.Blocks:
    """The page. User text is shown as text, never as HTML or Markdown."""

    def show(path: str) -> tuple[Image.Image, str]:
        image = _sentence(load_image, path)
        return image, family.note(image)

    def ask(question: str, image: Image.Image | None, history: list[dict]) -> Iterator[tuple[list[dict], str]]:
        question = _sentence(plain_text, question, "question", "ask something about the picture")
        history = [*(history or []), _message("user", question)]
        yield [*history, _message("assistant", "...")], ""
        text = ""
        answers = family.answer(question, image)
        for text in iter(lambda: _sentence(next, answers, None), None):
            yield [*history, _message("assistant", text)], ""
        if not text.strip():
            yield [*history, _message("assistant", NO_ANSWER)], ""

    def redraw(prompt: str, count: int, seed: int, steps: int, guidance: float) -> list[Image.Image]:
        return [enlarged(drawing) for drawing in _sentence(family.draw, prompt, count, seed, steps, guidance)]

    def reconstruct(path: str) -> tuple[Image.Image, Image.Image, str]:
        before, after, text = family.reconstruct(_sentence(load_image, path))
        return enlarged(before), enlarged(after), text

    with gr.Blocks(title="OpenVision 3") as app:
        gr.Markdown(f"# OpenVision 3\n{ABOUT}")
        with gr.Tab("Chat"):
            with gr.Row():
                with gr.Column(scale=1):
                    picture = gr.Image(label="Picture", type="pil", interactive=False, elem_id="chat-picture")
                    upload = gr.UploadButton("Choose a picture", file_types=["image"], elem_id="chat-upload")
                    note = gr.Textbox(show_label=False, interactive=False, elem_id="chat-note", container=False)
                    gr.Examples(sorted(map(str, EXAMPLES.glob("*.png"))), picture, note, family.note,
                                run_on_click=True, label="Pictures of its world", elem_id="chat-examples")  # fmt: skip
                with gr.Column(scale=2):
                    log = gr.Chatbot(label="Chat", render_markdown=False, elem_id="chat-log", height=380)
                    question = gr.Textbox(label="Question", placeholder="what color is the circle?",
                                          elem_id="chat-question")  # fmt: skip
                    with gr.Row():
                        send = gr.Button("Ask", variant="primary", elem_id="chat-send")
                        stop = gr.Button("Stop", elem_id="chat-stop")
            upload.upload(show, upload, [picture, note])
            asked = [
                trigger(ask, [question, picture, log], [log, question]) for trigger in (send.click, question.submit)
            ]
            stop.click(None, cancels=asked)
        with gr.Tab("Draw"):
            prompt = gr.Textbox(label="What to draw", placeholder="a small red circle left of a large blue square",
                                elem_id="draw-prompt")  # fmt: skip
            with gr.Row():
                count = gr.Slider(1, MAX_DRAWINGS, value=4, step=1, label="Drawings", elem_id="draw-count")
                seed = gr.Number(value=0, precision=0, minimum=0, label="Seed", elem_id="draw-seed")
                steps = gr.Slider(5, 100, value=25, step=1, label="Steps")
                guidance = gr.Slider(1, 8, value=5, step=0.5, label="Guidance")
            draw = gr.Button("Draw", variant="primary", elem_id="draw-send")
            gallery = gr.Gallery(label="Drawings", columns=4, format="png", elem_id="draw-gallery")
            for trigger in (draw.click, prompt.submit):
                trigger(redraw, [prompt, count, seed, steps, guidance], gallery)
        with gr.Tab("Reconstruct"):
            choose = gr.UploadButton("Choose a picture", file_types=["image"], elem_id="reconstruct-upload")
            with gr.Row():
                before = gr.Image(label="As the encoder sees it", type="pil", interactive=False)
                after = gr.Image(label="From its tokens alone", type="pil", interactive=False, elem_id="reconstructed")
            close = gr.Textbox(show_label=False, interactive=False, elem_id="reconstruct-note", container=False)
            choose.upload(reconstruct, choose, [before, after, close])
    return app


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo.app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=7860, help="where the page is served, on 127.0.0.1")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="family in the layout of demo.export")
    args = parser.parse_args(argv)
    app = build_app(Family.load(args.checkpoints)).queue(max_size=MAX_WAITING)
    app.launch(
        server_name="127.0.0.1", server_port=args.port, share=False, show_error=True, max_file_size=MAX_FILE_SIZE
    )


if __name__ == "__main__":
    from training.cli import run_cli  # here: using the demo's models needs no training

    run_cli(main)
