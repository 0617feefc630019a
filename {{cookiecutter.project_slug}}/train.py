"""Train on packed images, then measure the best weights on the test split.

    uv run train.py                                              # the sample images, about a minute on any CPU
    uv run train.py --config configs/desktop.yaml --data.path D  # your images on one GPU
    uv run train.py --resume last                                # go on where the newest run stopped
    uv run train.py --help                                       # the settings; --help-all: every one

Everything that a run leaves behind is in runs/<run>/. Exit status: 0 done, 1 failed, 2 bad input, 75 stopped by a
signal with everything saved.
"""

import signal
import sys

try:
    from lightning_shards.entry import command, importing
    from lightning_shards.terminal import say
except ModuleNotFoundError:
    print("error: this Python has not what the project needs: start it by `uv run train.py`", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # Slurm's: kept until a training can obey it
    with command():
        with importing():  # takes seconds, in which Ctrl-C may come
            from lightning_shards.train import TrainingCLI

            from {{cookiecutter.package_name}}.data import fields, transform
            from {{cookiecutter.package_name}}.model import ImageModel

        # settings -> data, model, trainer; nothing is written yet. Own callbacks=[...] and loggers=[...] go here, too.
        cli = TrainingCLI(ImageModel, fields=fields, transform=transform)
        with cli.run as run:
            cli.start()
            cli.test()
        say(run.report())


if __name__ == "__main__":
    main()
