"""Kill trainings at random moments and resume them: `python benchmarks/kill_and_resume.py [--trials 20] [--seed 0]`.

Each trial trains the same small VQ-VAE with the callbacks of `resumable`, in a process that is killed once or twice at a random moment
(SIGKILL: it cannot defend itself) and started again. What it ends with is compared bit for bit with a training that nobody
disturbed: all weights, the running means of the codebook, the optimizer, the quantizer's random numbers, and the history.

The digits keep their order (`shuffle=False`): where Keras shuffles, a training that goes on draws another order than one that never
stopped.
"""
import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

EPOCHS = 10


def state(model):
    """All that training changes: weights, optimizer, and where the quantizer's random numbers are."""
    from keras import ops

    parts = {"weight": model.weights, "optimizer": model.optimizer.variables, "random": [model.quantizer.seed_generator.state]}
    return {f"{part} {number}": ops.convert_to_numpy(variable).copy()
            for part, variables in parts.items() for number, variable in enumerate(variables)}


def make_model():
    import keras

    from vqvae_tutorial.model import VQVAE, build_networks
    from vqvae_tutorial.quantizers import VectorQuantizerEMA

    keras.utils.set_random_seed(0)
    networks = build_networks((28, 28, 1), embedding_dim=4, filters=8, residual_blocks=1)
    model = VQVAE(*networks, VectorQuantizerEMA(16, revival_threshold=0.25, seed=0))
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, 8 * EPOCHS)))
    return model


def train(folder, begun=None):
    """Trains, or goes on, and keeps the state it ends with in `folder`; sets `begun` when the first epoch starts."""
    import keras

    from vqvae_tutorial.callbacks import StopRevival, read_history, resumable
    from vqvae_tutorial.data import SAMPLE, load_mnist

    model, images = make_model(), load_mnist(SAMPLE).train.images[:256]
    start = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: begun.set() if begun else None)
    again = resumable(folder, callbacks=[StopRevival(model.quantizer), start])
    model.adapt(images)
    model.fit(images, batch_size=32, epochs=EPOCHS, shuffle=False, verbose=0, **again)
    history = {f"history {name}": column for name, column in read_history(folder).items()}
    np.savez(Path(folder) / "part.npz", **state(model), **history)
    os.replace(Path(folder) / "part.npz", Path(folder) / "end.npz")


def processes():
    """A way to start processes; where there is a fork server, it imports once for all."""
    ways = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in ways else "spawn")
    if "forkserver" in ways:
        context.set_forkserver_preload(["vqvae_tutorial.model"])
    return context


def run(context, folder, kill_after=None):
    """Trains in a process that is killed so many seconds after training began; gives how long it trained, and whether it ended."""
    begun = context.Event()
    process = context.Process(target=train, args=(folder, begun))
    process.start()
    while process.is_alive() and not begun.wait(0.01):
        pass
    start = time.monotonic()
    process.join(kill_after)
    process.kill()
    process.join()
    if process.exitcode not in (0, -9):
        raise RuntimeError(f"The training ended by itself, with {process.exitcode}.")
    return time.monotonic() - start, process.exitcode == 0


def end(folder):
    with np.load(Path(folder) / "end.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def differences(one, other):
    """The names of what is not the same to the last bit."""
    return [name for name in one if name not in other or one[name].tobytes() != other[name].tobytes()] + [*(other.keys() - one.keys())]


def trials(count, seed=0):
    """Two trainings that nobody disturbs, and `count` that are killed; gives one row for each: when they were killed, and what differs."""
    context, dice = processes(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        seconds = [run(context, f"{folder}/{name}")[0] for name in ("alone", "again")]
        alone = end(f"{folder}/alone")
        yield [], differences(alone, end(f"{folder}/again"))
        for trial in range(count):
            kills, wanted = [], dice.choice((1, 2))
            while len(kills) < wanted:
                lived, ended = run(context, f"{folder}/{trial}", dice.uniform(0, min(seconds)))
                if ended:  # faster than the ones before: that was no trial, so it begins anew
                    shutil.rmtree(f"{folder}/{trial}")
                    kills.clear()
                else:
                    kills.append(lived)
            run(context, f"{folder}/{trial}")
            yield kills, differences(alone, end(f"{folder}/{trial}"))


def main():
    parser = argparse.ArgumentParser(description="Kill trainings at random moments, and compare what they end with.")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    options = parser.parse_args()
    equal = -1
    print(f"{'training':>10}  {'killed after':<20} what differs in the end")
    for number, (kills, found) in enumerate(trials(options.trials, options.seed)):
        equal += not found
        moments = ", ".join(f"{seconds:.2f} s" for seconds in kills) or "nobody killed it"
        print(f"{number:>10}  {moments:<20} {', '.join(found) or 'nothing'}", flush=True)
    print(f"{equal} of {options.trials} trainings ended equal to the last bit.")
    return 0 if equal == options.trials else 1


if __name__ == "__main__":
    sys.exit(main())
