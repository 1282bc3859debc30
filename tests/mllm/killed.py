"""mllm.train, killed at given moments, run as a script by the tests: python killed.py WHOLE KILLED [argument ...]

Trains with output_dir=WHOLE without a kill; then with output_dir=KILLED, killed in step 6, killed while it writes
checkpoint 8, and to the end. Each training is a forked process, so that torch is loaded once.
"""

import os
import signal
import sys

import torch

import training.trainer as trainer_module
from mllm.train import main as train


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


class DiesTraining(trainer_module.Trainer):
    def training_step(self, *args, **kwargs):
        if self.state.global_step == 5:
            _die()
        return super().training_step(*args, **kwargs)


def die_saving(folder, keep, write=trainer_module.mark_complete):
    if folder.name == "checkpoint-8":
        _die()
    write(folder, keep)


def _fork(arguments, **patches):
    """Trains in a process of its own; returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child:
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    for name, value in patches.items():
        setattr(trainer_module, name, value)
    train(arguments)
    sys.stderr.flush()
    os._exit(0)


def main(whole, killed, *arguments):
    torch.set_num_threads(1)
    assert _fork([*arguments, f"output_dir={whole}"]) == 0
    killed_run = [*arguments, f"output_dir={killed}"]
    assert _fork(killed_run, Trainer=DiesTraining) == signal.SIGKILL
    assert _fork(killed_run, mark_complete=die_saving) == signal.SIGKILL
    assert _fork(killed_run) == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
