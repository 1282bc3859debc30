"""mllm.train, killed at given moments, run as a script by the tests: python killed.py WHOLE KILLED [argument ...]

Trains with output_dir=WHOLE without a kill; then with output_dir=KILLED, killed in step 6, killed while it writes
checkpoint 8, and to the end. Each training is a forked process, so that torch is loaded once.
"""

import os
import signal
import sys

import torch

from mllm.train import main as train
from tests.training.kills import install_kills


def _fork(arguments, kill="never:0"):
    """Trains in a process of its own; returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WTERMSIG(status)
    os.environ["KILL_AT"] = kill
    install_kills()
    train(arguments)
    sys.stderr.flush()
    os._exit(0)


def main(whole, killed, *arguments):
    torch.set_num_threads(1)
    assert _fork([*arguments, f"output_dir={whole}"]) == 0
    killed_run = [*arguments, f"output_dir={killed}"]
    assert _fork(killed_run, "training:5") == signal.SIGKILL
    assert _fork(killed_run, "saving:8") == signal.SIGKILL
    assert _fork(killed_run) == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
