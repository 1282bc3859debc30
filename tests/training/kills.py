"""Runs a training that kills itself: KILL_AT=training:3 python kills.py generator.train RECIPE [key=value ...]

KILL_AT=training:N kills the process after step N; KILL_AT=saving:N in the middle of writing checkpoint N.
"""

import importlib
import os
import signal
import sys

import training.trainer as trainer_module


def install_kills() -> None:
    """Puts what KILL_AT says into the Trainer."""
    kind, _, at = os.environ.get("KILL_AT", "never:0").partition(":")
    saved = trainer_module.mark_complete

    def mark_or_die(folder, keep):
        if kind == "saving" and folder.name == f"checkpoint-{at}":
            os.kill(os.getpid(), signal.SIGKILL)
        saved(folder, keep)

    trainer_module.mark_complete = mark_or_die
    if kind == "training":

        class Dies(trainer_module.Trainer):
            def training_step(self, *args, **kwargs):
                if self.state.global_step == int(at):
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().training_step(*args, **kwargs)

        trainer_module.Trainer = Dies


if __name__ == "__main__":
    install_kills()
    importlib.import_module(sys.argv[1]).main(sys.argv[2:])
