"""Which change of the prior saves how many bits, one at a time: `python benchmarks/prior_ablation.py [--quick] [--out FILE]`.

From the network of the Keras tutorial on VQ-VAEs (one stack of masked convolutions) to that of chapter 6, each row adds one change
to the row above. All train on the codes that the shipped VQ-VAE gives the first 55,000 training digits, for equally many epochs, with
batches of 128 and Adam; of each, the epoch that is best on the last 5,000 is kept. The table holds bits per digit of train,
validation and test.
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
from keras import layers  # noqa: E402
from measure import load_digits, made_with, write  # noqa: E402

from vqvae_tutorial import load_pretrained  # noqa: E402
from vqvae_tutorial.pixelcnn import MaskedConv2D, PixelCNN, build_ungated_pixelcnn  # noqa: E402
from vqvae_tutorial.presets import cosine_schedule  # noqa: E402
from vqvae_tutorial.priors import Prior  # noqa: E402


class AddPosition(layers.Layer):
    """Adds a learned vector for each place."""

    def build(self, input_shape):
        self.position = self.add_weight(name="position", shape=input_shape[1:], initializer="random_normal")

    def call(self, x):
        return x + self.position


class OneStack(Prior):
    """The ungated network as a `Prior`, so that its bits are measured like the others'."""

    def __init__(self, num_codes, shape, positions=False):
        super().__init__(num_codes, shape)
        self.network = build_ungated_pixelcnn(num_codes, shape)
        if positions:  # between the first layer and the rest
            first = next(layer for layer in self.network.layers if isinstance(layer, MaskedConv2D))
            rest = keras.Model(first.output, self.network.output)
            self.network = keras.Model(self.network.input, rest(AddPosition()(first.output)))

    def call(self, inputs):
        codes, _, flaw = self.read(inputs)
        return self.network(codes) + flaw


# name: makes the prior of K codes on a shape; whether the rate follows the schedule; whether it is told the label
VARIANTS = {
    "the Keras tutorial's network": (lambda K, shape: OneStack(K, shape), False, False),
    "+ warm-up and cosine": (lambda K, shape: OneStack(K, shape), True, False),
    "+ a vector for each place": (lambda K, shape: OneStack(K, shape, positions=True), True, False),
    "+ two gated stacks": (lambda K, shape: PixelCNN(K, shape, dropout=0.0), True, False),
    "+ dropout": (lambda K, shape: PixelCNN(K, shape, dropout=0.1), True, False),
    "+ the label": (lambda K, shape: PixelCNN(K, shape, num_classes=10, dropout=0.1), True, True),
}


def given(codes, labels, told):
    return {"codes": codes, "label": labels} if told else codes


def row(name, seed, parts, K, epochs):
    """Trains one variant, and gives its row of the table."""
    make, scheduled, told = VARIANTS[name]
    keras.utils.set_random_seed(seed)
    train, held, test = (given(*part, told) for part in parts)
    prior, steps = make(K, parts[0][0].shape[1:]), epochs * -(-len(parts[0][0]) // 128)
    prior.compile(keras.optimizers.Adam(cosine_schedule(steps) if scheduled else 3e-4))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/best.weights.h5"
        best = keras.callbacks.ModelCheckpoint(path, monitor="val_bits", mode="min", save_best_only=True, save_weights_only=True)
        history = prior.fit(train, batch_size=128, epochs=epochs, validation_data=(held,), verbose=0, callbacks=[best]).history
        prior.load_weights(path)
    bits = [prior.bits(codes[:10_000], labels[:10_000] if told else None, 1000).mean() for codes, labels in parts]
    return {"variant": name, "seed": seed, "weights": prior.count_params(), "best_epoch": int(np.argmin(history["val_bits"])) + 1,
            "train_bits": bits[0], "val_bits": bits[1], "test_bits": bits[2], "made_with": made_with("keras", keras.backend.backend())}


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Ablation of the prior, one change at a time.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out")
    chosen = parser.parse_args(arguments)
    digits, (model, shipped) = load_digits(512 if chosen.quick else 60_000), load_pretrained("mnist")
    maps, tested, epochs, seeds = (512, 128, 1, 1) if chosen.quick else (55_000, 10_000, chosen.epochs, chosen.seeds)
    codes, labels = model.encode(digits.train.images[: maps + maps // 11]), digits.train.labels[: maps + maps // 11]
    parts = [(codes[:maps], labels[:maps]), (codes[maps:], labels[maps:]),
             (model.encode(digits.test.images[:tested]), digits.test.labels[:tested])]
    rows = []
    for seed in range(seeds):
        for name in VARIANTS:
            rows.append(row(name, seed, parts, shipped.num_codes, epochs))
            print({key: value for key, value in rows[-1].items() if key != "made_with"}, flush=True)
            if chosen.out:
                write(chosen.out, rows, ["variant", "seed"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
