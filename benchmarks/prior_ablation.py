"""Which change of the prior saves how many bits, one at a time: `python benchmarks/prior_ablation.py [--quick] [--seeds 3] [--out FILE]`.

From the network of the Keras tutorial on VQ-VAEs (one stack of masked convolutions) to that of chapter 6, each row adds one change
to the row above; chapter 6 also hides codes in training, for the sake of its samples, which is not tried here. All train from each of
several seeds on the codes that the shipped VQ-VAE gives the first 30,000 training digits, for three epochs, as in `priors.py`, with
batches of 128 and Adam; of each, the epoch that is best on the next 5,000 is kept. The table holds bits per digit: of the first 5,000
training digits, of the 5,000 held out, and of all test digits. Every row is written when it is finished, so the command can be stopped at
any time, and goes on with what is missing.
"""
import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from grid import RESULTS, Table  # noqa: E402
from keras import layers  # noqa: E402
from measure import load_digits, stoppable  # noqa: E402
from priors import Ungated  # noqa: E402

from vqvae_tutorial import load_pretrained  # noqa: E402
from vqvae_tutorial.pixelcnn import MaskedConv2D, PixelCNN  # noqa: E402
from vqvae_tutorial.presets import cosine_schedule  # noqa: E402

FULL = {"maps": 30_000, "held": 5_000, "tested": 10_000, "epochs": 3}
QUICK = {"maps": 256, "held": 128, "tested": 128, "epochs": 1}


class AddPosition(layers.Layer):
    """Adds a learned vector for each place."""

    def build(self, input_shape):
        self.position = self.add_weight(name="position", shape=input_shape[1:], initializer="random_normal")

    def call(self, x):
        return x + self.position


class Placed(Ungated):
    """The ungated network with a vector for each place, between its first layer and the rest."""

    def __init__(self, num_codes, shape):
        super().__init__(num_codes, shape)
        first = next(layer for layer in self.network.layers if isinstance(layer, MaskedConv2D))
        rest = keras.Model(first.output, self.network.output)
        self.network = keras.Model(self.network.input, rest(AddPosition()(first.output)))


# name: makes the prior of K codes on a shape; its rate, or None for the schedule of chapter 6, which climbs to 2e-3 and falls along a
# cosine; whether it is told the digit. What comes with the two stacks: 64 filters instead of 128, eight layers, embedded codes.
VARIANTS = {
    "the Keras tutorial's network": (Ungated, 3e-4, False),
    "+ a rate of 2e-3": (Ungated, 2e-3, False),
    "+ warm-up and cosine": (Ungated, None, False),
    "+ a vector for each place": (Placed, None, False),
    "+ two gated stacks": (lambda K, shape: PixelCNN(K, shape, dropout=0.0), None, False),
    "+ dropout": (lambda K, shape: PixelCNN(K, shape, dropout=0.1), None, False),
    "+ the label": (lambda K, shape: PixelCNN(K, shape, num_classes=10, dropout=0.1), None, True),
}


def row(name, seed, parts, K, epochs):
    """Trains one variant, and gives its row of the table."""
    make, rate, told = VARIANTS[name]
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    train, held, _ = ({"codes": codes, "label": labels} if told else codes for codes, labels in parts)
    prior, steps = make(K, parts[0][0].shape[1:]), epochs * -(-len(parts[0][0]) // 128)
    prior.compile(keras.optimizers.Adam(rate or cosine_schedule(steps)))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/best.weights.h5"
        best = keras.callbacks.ModelCheckpoint(path, monitor="val_bits", mode="min", save_best_only=True, save_weights_only=True)
        history = prior.fit(train, batch_size=128, epochs=epochs, validation_data=(held,), verbose=0, callbacks=[best]).history
        prior.load_weights(path)
    size = len(parts[1][0])  # of the training digits no more than were held out
    measured = [(codes[:size] if at == 0 else codes, labels[:size] if at == 0 else labels) for at, (codes, labels) in enumerate(parts)]
    bits = [prior.bits(codes, labels if told else None, 1000).mean() for codes, labels in measured]
    return {"number": list(VARIANTS).index(name), "variant": name, "seed": seed, "weights": prior.count_params(),
            "best_epoch": int(np.argmin(history["val_bits"])) + 1}, dict(zip(("train_bits", "val_bits", "test_bits"), map(float, bits)))


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Change a prior step by step; goes on where it was stopped.")
    parser.add_argument("--quick", action="store_true", help="a tiny budget, to see that all of it works")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the table (default: the one that ships, or prior_ablation_quick.csv with --quick)")
    options = parser.parse_args(arguments)
    budget = QUICK if options.quick else FULL
    out = options.out or (Path("prior_ablation_quick.csv") if options.quick else RESULTS / "prior_ablation.csv")
    shared = {name: budget[name] for name in ("maps", "epochs")}
    columns = ["number", "variant", "seed", "weights", "best_epoch", "train_bits", "val_bits", "test_bits", *shared]
    table = Table(out, columns, 3, shared)
    missing = [(name, seed) for seed in range(options.seeds) for number, name in enumerate(VARIANTS) if (number, name, seed) not in table]
    print(f"{options.seeds * len(VARIANTS) - len(missing)} of {options.seeds * len(VARIANTS)} priors are in {out}", flush=True)
    if not missing:
        return 0
    maps, held = budget["maps"], budget["maps"] + budget["held"]
    digits, (model, shipped) = load_digits(held), load_pretrained()
    codes, labels = model.encode(digits.train.images[:held]), digits.train.labels[:held]
    test = model.encode(digits.test.images[: budget["tested"]]), digits.test.labels[: budget["tested"]]
    parts = [(codes[:maps], labels[:maps]), (codes[maps:], labels[maps:]), test]
    bar = keras.utils.Progbar(len(missing), unit_name="prior")
    for done, (name, seed) in enumerate(missing, start=1):
        known, bits = row(name, seed, parts, shipped.num_codes, budget["epochs"])
        table.add(known | bits | shared)
        bar.update(done)
    return 0


if __name__ == "__main__":
    stoppable(main)
