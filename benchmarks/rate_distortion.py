"""Error against bits, for several K: `python benchmarks/rate_distortion.py [--quick] [--published] [--out FILE] [--runs FOLDER]`.

For each K a VQ-VAE is trained, and then a small PixelCNN on its codes of the training digits: all equally long, all of the same
size. A row says what a test digit costs in bits under that prior, what error it leaves, and how far digits sampled from it are from
real ones. More models stand under the same small prior: one in even use, with residual networks and revival; the well-known Keras
example, trained as published; and chapter 1's strokes, k-means on patches without any network. `--published` adds the example's own
ungated prior.

Three things differ from the model in even use. The encoders of the curve are two small convolutions, so that a code describes 7×7 pixels
and not the whole digit. No code is revived, since revival makes use even, and even use is dear. And a code is charged for its own bits
when it is chosen. The rows "uncharged" and "revived" show what the last two are worth at K = 32.

The command can be stopped at any time and goes on with the epoch it was at. Chapter 7 shows what it finds.
"""
import argparse
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from grid import RESULTS, Table, measure, write  # noqa: E402
from measure import load_digits, stoppable  # noqa: E402
from peers import build_even_model, build_keras_example  # noqa: E402

from vqvae_tutorial.callbacks import StopRevival, resumable  # noqa: E402
from vqvae_tutorial.model import VQVAE, build_decoder  # noqa: E402
from vqvae_tutorial.pixelcnn import PixelCNN, build_ungated_pixelcnn  # noqa: E402
from vqvae_tutorial.priors import PositionPrior  # noqa: E402
from vqvae_tutorial.quantization import kmeans, nearest_code  # noqa: E402
from vqvae_tutorial.rate import EntropyConstrainedQuantizer  # noqa: E402
from vqvae_tutorial.scoring import features, frechet_distance, load_judge  # noqa: E402

NUMBERS, SIZE, PRIOR = (8, 16, 32, 64, 128, 256), 16, {"filters": 32, "num_layers": 6, "dropout": 0.0}
VARIANTS = {"uncharged": (32, 0.0, 0.0), "revived": (32, 0.0, 0.25)}  # K, rate weight and revival threshold
STROKES = {"strokes 128": 128}
RATE_WEIGHT = 0.1
FULL = {"digits": 60_000, "vqvae_epochs": 30, "prior_epochs": 3}
QUICK = {"digits": 256, "vqvae_epochs": 1, "prior_epochs": 1}
BATCH_SIZE = 64  # twice the steps of 128 in the same epochs
EXAMPLE_EPOCHS = UNGATED_EPOCHS = 30  # as published


class Progress(keras.callbacks.Callback):
    """One bar for all trainings, in epochs; an epoch that an earlier call has trained counts as done."""

    def __init__(self, epochs):
        super().__init__()
        self.bar, self.done, self.end = keras.utils.Progbar(epochs, unit_name="epoch"), 0, 0

    def stage(self, epochs):
        self.done, self.end = self.end, self.end + epochs
        return self

    def on_epoch_end(self, epoch, logs=None):
        self.done = self.end - self.params["epochs"] + epoch + 1
        self.bar.update(self.done)


def schedule(peak, epochs, images, batch_size=BATCH_SIZE, warmup=100):
    steps = epochs * -(-images // batch_size)
    warmup = min(warmup, steps // 4)
    return keras.optimizers.schedules.CosineDecay(peak / 10, steps - warmup, alpha=0.01, warmup_target=peak, warmup_steps=warmup)


def position_bits(train, test, num_codes):
    """Bits per image of a code for each place by itself, which knows how often each code stood there in the training digits."""
    prior = PositionPrior(num_codes, train.shape[1:])
    prior.adapt(train)
    return float(np.mean(prior.bits(test)))


def build_local_encoder():
    """Makes an encoder whose vectors are made of 7×7 pixels each."""
    images = keras.Input((28, 28, 1))
    x = keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(images)
    x = keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(images, keras.layers.Conv2D(SIZE, 1)(x), name="encoder")


class Strokes:
    """Chapter 1's codebook of patches of 4×4 pixels, made by k-means: the model that needs no network. It is used as a `VQVAE` is."""

    def __init__(self, images, num_codes):
        self.codebook = kmeans(self.cut(images), num_codes, seed=0)
        self.quantizer = SimpleNamespace(num_codes=num_codes)

    @staticmethod
    def cut(images):
        return images.reshape(-1, 7, 4, 7, 4).swapaxes(2, 3).reshape(-1, 7, 7, 16)

    def encode(self, images):
        return np.asarray(nearest_code(self.cut(images), self.codebook))

    def decode(self, codes):
        return self.codebook[codes].reshape(-1, 7, 7, 4, 4).swapaxes(2, 3).reshape(-1, 28, 28, 1)


def get_vqvae(name, images, epochs, folder, progress):
    """The model of a row, trained."""
    keras.utils.set_random_seed(0)
    if name in STROKES:
        return Strokes(images, STROKES[name])
    batch_size, rate = 128, 1e-3
    if name == "example":
        model = build_keras_example(seed=0)
    elif name == "even use":
        model, rate = build_even_model(seed=0), schedule(2e-3, epochs, len(images), batch_size)
    else:
        number, weight, threshold = VARIANTS.get(name) or (int(name.removeprefix("K = ")), RATE_WEIGHT, 0.0)
        quantizer = EntropyConstrainedQuantizer(number, rate_weight=weight, revival_threshold=threshold, seed=0, name="quantizer")
        model = VQVAE(build_local_encoder(), build_decoder((28, 28, 1), SIZE), quantizer, value_range=(0, 1))
        batch_size, rate = BATCH_SIZE, schedule(2e-3, epochs, len(images))
    model.compile(keras.optimizers.Adam(rate), jit_compile=False)
    model.adapt(images)
    callbacks = [progress, *([] if name == "example" else [StopRevival(model.quantizer)])]
    model.fit(images, batch_size=batch_size, epochs=epochs, verbose=0, **resumable(folder, callbacks))
    return model


def train_prior(number, codes, epochs, folder, progress):
    """The small prior, which has the same size and training for all."""
    keras.utils.set_random_seed(0)
    prior = PixelCNN(number, codes.shape[1:], seed=0, **PRIOR)
    prior.compile(keras.optimizers.Adam(schedule(3e-3, epochs, len(codes))))
    prior.fit(codes, batch_size=BATCH_SIZE, epochs=epochs, verbose=0, **resumable(folder, [progress]))
    return prior


def ungated_bits(codes, test, epochs, folder, progress):
    """Test bits per image of the example's own prior, trained as published."""
    keras.utils.set_random_seed(0)
    prior = build_ungated_pixelcnn(128, codes.shape[1:])
    prior.compile(keras.optimizers.Adam(3e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    prior.fit(codes, codes, batch_size=128, epochs=epochs, verbose=0, **resumable(folder, [progress]))
    return float(prior.evaluate(test, test, batch_size=500, verbose=0)) * test[0].size / np.log(2)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Measure error against bits for several K; goes on where it was stopped.")
    parser.add_argument("--quick", action="store_true", help="a tiny budget, to see that all of it works")
    parser.add_argument("--published", action="store_true", help="also train the example's own prior, which takes as long as all the rest")
    parser.add_argument("--out", type=Path, help="the table (default: the one that ships, or rate_distortion_quick.csv with --quick)")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs", help="where unfinished trainings are kept")
    options = parser.parse_args(arguments)
    budget = QUICK if options.quick else FULL
    numbers = NUMBERS[:1] if options.quick else NUMBERS
    example_epochs, ungated_epochs = (1, 1) if options.quick else (EXAMPLE_EPOCHS, UNGATED_EPOCHS)
    out = options.out or (Path("rate_distortion_quick.csv") if options.quick else RESULTS / "rate_distortion.csv")
    measured = ["mse", "usage", "perplexity", "prior_bits", "position_bits", "zero_order_bits", "max_bits", "frechet", "frechet_drawn"]
    table = Table(out, ["model", "prior", "K", *measured, "vqvae_epochs", "prior_epochs"], 2, {})
    wanted = [(f"K = {number}", "small") for number in sorted(numbers, key=lambda number: abs(np.log2(number) - 5.4))]
    wanted[2:2] = [("example", "small")]
    wanted += [("even use", "small"), *((name, "small") for name in (*VARIANTS, *STROKES))]
    wanted += [("example", "ungated")] * options.published
    missing = [key for key in wanted if key not in table]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} rows are in {out}", flush=True)
    if not missing:
        return 0

    digits = load_digits(budget["digits"])
    train, test = digits.train.images, digits.test.images
    order = np.random.default_rng(0).permutation(len(test))
    half = min(1000, len(order) // 2)
    some, others = order[:half], order[half:2 * half]
    judge = load_judge()
    real = features(judge, test[some])
    for_model = {"example": example_epochs, "even use": 30} | dict.fromkeys(STROKES, 0)
    epochs = {(name, kind): (for_model.get(name, budget["vqvae_epochs"]), budget["prior_epochs"] if kind == "small" else ungated_epochs)
              for name, kind in missing}
    progress = Progress(sum(map(sum, epochs.values())))
    for name, kind in missing:
        keras.backend.clear_session()
        folder = options.runs / name.replace(" = ", "").replace(" ", "-")
        for_vqvae, for_prior = epochs[name, kind]
        model = get_vqvae(name, train, for_vqvae, folder / "vqvae", progress.stage(for_vqvae))
        codes, test_codes = model.encode(train), model.encode(test)
        row = {"model": name, "prior": kind, "K": model.quantizer.num_codes, **measure(model, test), "vqvae_epochs": for_vqvae,
               "prior_epochs": for_prior, "position_bits": position_bits(codes, test_codes, model.quantizer.num_codes)}
        row["frechet_drawn"] = frechet_distance(real, features(judge, model.decode(test_codes[others])))
        if kind == "small":
            prior = train_prior(model.quantizer.num_codes, codes, for_prior, folder / kind, progress.stage(for_prior))
            row["prior_bits"] = float(np.mean(prior.bits(test_codes)))
            sampled = model.decode(prior.sample(1000, seed=0))
            row["frechet"] = frechet_distance(real, features(judge, sampled))
            keep_samples(out.with_name(f"{out.stem}_digits.npz"), name, sampled[:10])
        else:
            row["prior_bits"] = ungated_bits(codes, test_codes, for_prior, folder / kind, progress.stage(for_prior))
            row["frechet"] = float("nan")
        table.add(row)
        if name != "example":  # whose other prior may be wanted later
            shutil.rmtree(folder, ignore_errors=True)  # so that a table that is deleted is made anew
    return 0


def keep_samples(path, name, drawn):
    """Adds digits that were sampled to an archive of bytes."""
    arrays = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    arrays["sampled_" + name.removeprefix("K = ").replace(" ", "_")] = np.round(255 * drawn[..., 0]).astype("uint8")
    write(path, lambda file: np.savez_compressed(file, **arrays))


if __name__ == "__main__":
    stoppable(main)
