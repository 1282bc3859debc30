"""`make tiny`: every training of the family from scratch at 64 px, its evaluation, and a report.

    python -m scripts.tiny [--out runs/tiny] [--scale 1.0]

Each part is a command of this project, printed before it runs, with its log in OUT/logs. Killed and started again, it
goes on where it was; a part whose command, recipe or inputs changed since starts anew, its old output removed. The VAE
is the one that ships (demo/checkpoints/vae); nothing else is read from there.
"""

import argparse
import fcntl
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.lanes import Part, Run, part_keys
from scripts.tiny_report import write_report
from training.cli import run_cli

VAE = Path("demo/checkpoints/vae")


def parts(out: Path, vae: Path, scale: float) -> list[Part]:
    """Everything `make tiny` runs, in order. `scale` multiplies pictures and steps; tests run it small."""
    data, reports = out / "data", out / "reports"
    train_64, corpus = data / "64" / "train", data / "64" / "train" / "corpus.txt"
    autoencoder, mllm = out / "encoder" / "autoencoder", out / "mllm"
    questions = [f"data={train_64}/questions.json", f"images={train_64}/images"]
    pairs = [f"vae={vae}", f"tokenizer={out}/tokenizer"]
    drawings = [f"data=[{out}/cache64]", f"autoencoder={autoencoder}"]
    on_both_cores = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]

    def some(count: int, least: int) -> int:
        return max(least, round(count * scale))

    def steps(count: int) -> str:
        return f"trainer.max_steps={some(count, 2)}"

    def write(split: str, count: int, size: int, *more: str) -> list[str]:
        return ["training.shapes.write", f"--out={data}/{size}", f"--split={split}", f"--count={count}",
                f"--size={size}", *more]  # fmt: skip

    def latents(size: int) -> list[str]:
        return ["encoder.cache_latents", f"--shards={data}/{size}/train/shards", f"--vae={vae}",
                f"--image-size={size}", f"--out={out}/cache{size}"]  # fmt: skip

    def ask(split: str) -> list[str]:
        folder = data / "64" / split
        return ["mllm.evaluate", f"--model={mllm}", f"--data={folder}/questions.json", f"--images={folder}/images",
                f"--train={train_64}/questions.json", "--shuffle",
                f"--out={reports}/questions_{split}.json"]  # fmt: skip

    def draw(split: str) -> list[str]:
        return ["generator.evaluate", f"--model={out}/generator", f"--count={some(500, 2)}", "--split", split,
                "--categories", "single", "two_with_relation", f"--nearest={out}/cache64", "--guidance=5",
                f"--out={reports}/drawings_{split}.json"]  # fmt: skip

    return [
        Part("data", 0.6, (), train_64,
             write("train", some(20000, 400), 64, f"--question-images={some(12000, 200)}",
                   f"--corpus={some(12000, 400)}")),
        Part("data_128", 0.1, (), data / "128" / "train", write("train", some(512, 64), 128)),
        Part("data_test_iid", 0.1, (), data / "64" / "test_iid",
             write("test_iid", some(500, 8), 64, f"--question-images={some(250, 40)}")),
        Part("data_test_combo", 0.1, (), data / "64" / "test_combo",
             write("test_combo", some(500, 8), 64, f"--question-images={some(250, 40)}")),
        Part("tokenizer", 0.2, ("data",), out / "tokenizer",
             ["encoder.train_tokenizer", f"--corpus={corpus}", f"--out={out}/tokenizer"]),
        Part("latents", 1.1, ("data", "vae"), out / "cache64", latents(64)),
        Part("latents_128", 0.2, ("data_128", "vae"), out / "cache128", latents(128)),
        Part("encoder", 24.0, ("latents", "tokenizer"), out / "encoder",
             ["encoder.train", "encoder/recipes/tiny.yaml", steps(1500), f"output_dir={out}/encoder",
              f"cache={out}/cache64", *pairs]),

        Part("encoder_128", 0.7, ("encoder", "latents_128"), out / "encoder128",
             ["encoder.train", "encoder/recipes/tiny_128.yaml", "trainer.max_steps=5", f"output_dir={out}/encoder128",
              f"cache={out}/cache128", *pairs, f"init_from={out}/encoder/pretraining",
              "trainer.per_device_train_batch_size=32"], lane=1),
        Part("encoder_evaluation", 1.0, ("encoder",), reports / "encoder.json",
             ["encoder.evaluate", f"--model={autoencoder}", "--image-size=64", f"--count={some(512, 16)}",
              f"--train={out}/cache64", f"--out={reports}/encoder.json"], lane=1),
        Part("language", 2.0, ("data", "tokenizer"), out / "llm",
             ["mllm.train_language", "mllm/recipes/tiny_language.yaml", steps(200), f"output_dir={out}/llm",
              f"corpus={corpus}", f"tokenizer={out}/tokenizer"], lane=1),
        Part("assemble", 0.2, ("encoder", "language"), out / "assembled",
             ["mllm.assemble", f"--encoder={autoencoder}", f"--llm={out}/llm", f"--out={out}/assembled"], lane=1),
        Part("align", 1.5, ("assemble", "data"), out / "align",
             ["mllm.train", "mllm/recipes/tiny_align.yaml", steps(100), f"output_dir={out}/align",
              f"init_from={out}/assembled", *questions], lane=1),
        Part("tune", 25.0, ("align", "data"), out / "tune",
             ["mllm.train", "mllm/recipes/tiny_tune.yaml", steps(1100), f"output_dir={out}/tune",
              f"init_from={out}/align", *questions], lane=1),
        Part("mllm", 17.0, ("tune", "data"), mllm,
             ["mllm.train", "mllm/recipes/tiny_finish.yaml", steps(700), f"output_dir={mllm}", f"init_from={out}/tune",
              *questions], lane=1),
        Part("questions_test_iid", 0.8, ("mllm", "data_test_iid"), reports / "questions_test_iid.json",
             ask("test_iid"), lane=1),
        Part("questions_test_combo", 0.8, ("mllm", "data_test_combo"), reports / "questions_test_combo.json",
             ask("test_combo"), lane=1),
        Part("blind", 3.0, ("assemble", "data"), out / "blind",  # the baseline without pictures
             ["mllm.train", "mllm/recipes/tiny_tune.yaml", steps(300), f"output_dir={out}/blind",
              f"init_from={out}/assembled", "blind=true", "cache_tokens=false", *questions], lane=1),
        Part("questions_blind", 0.5, ("blind", "data_test_iid"), reports / "questions_blind.json",
             ["mllm.evaluate", f"--model={out}/blind", f"--data={data}/64/test_iid/questions.json",
              f"--images={data}/64/test_iid/images", "--blind", f"--out={reports}/questions_blind.json"], lane=1),

        Part("generator_start", 17.5, ("encoder", "latents"), out / "generator_start",
             ["generator.train", "generator/recipes/tiny.yaml", steps(1000), f"output_dir={out}/generator_start",
              *drawings], lane=2),
        Part("generator_more", 23.0, ("generator_start", "encoder", "latents"), out / "generator_more",
             ["generator.train", "generator/recipes/tiny_more.yaml", steps(1400), f"output_dir={out}/generator_more",
              f"init_from={out}/generator_start/transformer", *drawings], lane=2),
        Part("generator_outlines", 20.0, ("generator_more", "encoder", "latents"), out / "generator_outlines",
             ["generator.train", "generator/recipes/tiny_outlines.yaml", steps(1200),
              f"output_dir={out}/generator_outlines", f"init_from={out}/generator_more/transformer",
              *drawings], lane=2),

        Part("generator_longer", 25.0, ("generator_outlines", "encoder", "latents"), out / "generator_longer",
             [*on_both_cores, "generator.train", "generator/recipes/tiny_finish.yaml", steps(1400),
              f"output_dir={out}/generator_longer", f"init_from={out}/generator_outlines/transformer",
              *drawings], lane=3),
        Part("generator", 25.0, ("generator_longer", "encoder", "latents"), out / "generator",
             [*on_both_cores, "generator.train", "generator/recipes/tiny_finish.yaml", steps(1400),
              f"output_dir={out}/generator", f"init_from={out}/generator_longer/transformer", "trainer.seed=4",
              *drawings], lane=3),
        Part("drawings_test_iid", 4.0, ("generator", "latents"), reports / "drawings_test_iid.json",
             draw("test_iid"), lane=3),
        Part("drawings_test_combo", 4.0, ("generator", "latents"), reports / "drawings_test_combo.json",
             draw("test_combo"), lane=3),
    ]  # fmt: skip


def run(out: Path, vae: Path, scale: float) -> None:
    """Runs what is not done yet, then writes the report.

    Raises:
        ValueError: there is no VAE, a command of another `make tiny` works in `out`, or parts failed; names them all.
    """
    if not (vae / "config.json").is_file():
        raise ValueError(f"There is no VAE at {vae}; train one with encoder/recipes/tiny_vae.yaml.")
    for name in ("done", "logs", "reports"):
        (out / name).mkdir(parents=True, exist_ok=True)
    todo = parts(out, vae, scale)
    with open(out / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"A command of another make tiny works in {out}; wait for its end or end it.") from error
        running = Run(out, todo, part_keys(todo, out, vae), scale, lock.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, running.stop)
        running.run_lane(0)
        with ThreadPoolExecutor(2) as pool:
            lanes = [pool.submit(running.run_lane, lane) for lane in (1, 2)]
        for lane in lanes:
            lane.result()
        running.run_lane(3)
        print(f"report: {write_report(out)}")
    if running.failures:
        raise ValueError(" ".join(running.failures.values()))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.tiny", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder of everything it writes")
    parser.add_argument("--vae", type=Path, default=VAE, help="folder of the frozen VAE")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies pictures and steps")
    args = parser.parse_args(argv)
    run(args.out, args.vae, args.scale)


if __name__ == "__main__":
    run_cli(main)
