"""Seconds of training until the test error is that of the known example: `python benchmarks/time_to_quality.py [--quick] [--out FILE]`.

Three models train on the 60,000 digits with batches of 128, in turns (A B C A B C …), once for each seed:

    example     the well-known Keras example, written anew as published (peers.py): its codebook starts uniform and learns by gradient
    quantizer   the same two networks and the same optimizer, and our quantizer: k-means start, EMA updates, revival
    ours        a larger model, with residual networks and the learning-rate schedule of chapter 3 for 30 epochs

The error is the mean squared error on the 10,000 test digits, measured four times an epoch at first and then once an epoch; at the end
also the rate, in bits a digit by place (chapter 5's `PositionPrior`), since an error says little without its price. The clock stands still
meanwhile. It includes the k-means start and the compilation of the first step: what a user waits for.

The command can be stopped at any time and goes on with the training that is missing. The page "How it compares" shows what it finds.
"""
import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from grid import Table  # noqa: E402
from measure import QUALITY, load_digits, made_with, says_who, stoppable, times_to_quality  # noqa: E402
from peers import build_even_model, build_keras_example  # noqa: E402

from vqvae_tutorial.callbacks import StopRevival  # noqa: E402
from vqvae_tutorial.priors import PositionPrior  # noqa: E402

PUBLISHED, SEEDS, FINE = 30, (0, 1, 2), 2  # epochs of the example; seeds; epochs that are measured four times each
FULL = {"digits": 60_000, "test": 10_000, "example": 30, "quantizer": 30, "ours": 30}
QUICK = {"digits": 512, "test": 100, "example": 1, "quantizer": 1, "ours": 1}
COLUMNS = ["model", "seed", "batches", "seconds", "mse", "place_bits", "made_with"]


def build(name, seed, steps):
    """A compiled model, as its user would make it; `steps` is the length of an epoch."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    if name == "ours":
        model = build_even_model(seed=seed)
        rate = keras.optimizers.schedules.CosineDecay(1e-4, max(1, PUBLISHED * steps - 100), alpha=0.01, warmup_target=2e-3,
                                                      warmup_steps=100)
    else:
        model, rate = build_keras_example(seed=seed), 1e-3
        if name == "quantizer":
            model = build_even_model(encoder=model.encoder, decoder=model.decoder, seed=seed)
    model.compile(keras.optimizers.Adam(rate))
    return model


class Clock(keras.callbacks.Callback):
    """Times the training alone, and tells `measured` of batches, seconds and test error."""

    def __init__(self, images, test, steps, measured):
        super().__init__()
        self.images, self.test, self.steps, self.measured = images, test, steps, measured
        self.seconds, self.start = 0.0, time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        done = self.epoch * self.steps + batch + 1
        quarter = max(1, self.steps // 4)
        if done % self.steps and (done > FINE * self.steps or (batch + 1) % quarter or batch + 1 > 3 * quarter):
            return
        self.seconds += time.perf_counter() - self.start
        error = float(np.mean((self.model.predict(self.test, batch_size=500, verbose=0) - self.test) ** 2))
        self.measured(done, self.seconds, error, self.rate() if done == self.params["epochs"] * self.steps else "")
        self.start = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def rate(self):
        prior = PositionPrior(self.model.quantizer.num_codes, self.model.code_shape)
        prior.adapt(self.model.encode(self.images))
        return float(np.mean(prior.bits(self.model.encode(self.test))))


def train(name, seed, images, test, epochs, measured):
    """Trains one model from nothing."""
    steps = -(-len(images) // 128)
    model = build(name, seed, steps)
    clock = Clock(images, test, steps, measured)  # runs from here on
    model.adapt(images)
    revival = [] if name == "example" else [StopRevival(model.quantizer)]
    model.fit(images, batch_size=128, epochs=epochs, verbose=0, callbacks=[*revival, clock])


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Measure the time to the example's quality; goes on where it was stopped.")
    parser.add_argument("--quick", action="store_true", help="a tiny budget, to see that all of it works")
    parser.add_argument("--models", nargs="+", choices=["example", "quantizer", "ours"], default=["example", "quantizer", "ours"])
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help=f"default: {' '.join(map(str, SEEDS))}")
    parser.add_argument("--out", type=Path, help="the table (default: benchmarks/results/time_to_quality.csv)")
    options = parser.parse_args(arguments)
    budget, seeds = (QUICK, options.seeds or SEEDS[:1]) if options.quick else (FULL, options.seeds or SEEDS)
    out = options.out or (Path("time_to_quality_quick.csv") if options.quick else ROOT / "benchmarks" / "results" / "time_to_quality.csv")
    table = Table(out, COLUMNS, 3, {})
    steps = -(-budget["digits"] // 128)
    missing = [(name, seed) for seed in seeds for name in options.models if (name, seed, steps * budget[name]) not in table]
    if missing:
        digits = load_digits(budget["digits"])
        images, test = digits.train.images, digits.test.images
        versions = made_with("keras", "tensorflow", "numpy")
    for name, seed in missing:
        print(f"{name}, seed {seed} …", flush=True)
        train(name, seed, images, test[:budget["test"]], budget[name], lambda *measured, name=name, seed=seed: table.add(
            dict(zip(COLUMNS, (name, seed, *measured, versions)))))
    found = times_to_quality(table.rows.values())
    base = np.median(found["example"]["seconds"]) if "example" in found else np.nan
    print(f"{'':12}seconds to test MSE {QUALITY}, each seed   median   example / this   test MSE at the end")
    for name, entry in found.items():
        told, median = ", ".join("never" if np.isinf(each) else f"{each:.0f}" for each in entry["seconds"]), np.median(entry["seconds"])
        ratio = base / median if np.isfinite(median) else np.nan
        print(f"{name:12}{told:37}{median:8.0f}{ratio:15.1f} ×   {np.mean(entry['mse']):.5f}, from {min(entry['mse']):.5f} to "
              f"{max(entry['mse']):.5f}, after {np.median(entry['batches']) / steps:.0f} epochs, at {np.nanmean(entry['bits']):.0f} bits")
    print(says_who(out))
    return 0


if __name__ == "__main__":
    stoppable(main)
