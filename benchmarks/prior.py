"""Seconds that an epoch of training takes, of two priors on the same codes: `python benchmarks/prior.py [--quick] [--out FILE]`.

    published   the configuration of the well-known Keras example: one stack of masked convolutions, compiled as published
    ours        the two gated stacks of chapter 6, with classes

Both train on the codes that the shipped VQ-VAE gives digits, in turns (A B A B …), so many batches of 128 each time; the table holds the
median, scaled to an epoch of chapter 6. How many bits a digit costs under each, `prior_ablation.py` measures.
"""
import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import keras  # noqa: E402
from measure import made_with, options, says_who, turns, write  # noqa: E402

from vqvae_tutorial import load_mnist, load_pretrained  # noqa: E402
from vqvae_tutorial.data import SAMPLE  # noqa: E402
from vqvae_tutorial.pixelcnn import PixelCNN, build_ungated_pixelcnn  # noqa: E402

EPOCH = 55_000  # maps in an epoch of chapter 6


def priors(shipped, codes, labels):
    """For each configuration the model, compiled, and a call that trains it on the codes once."""
    published = build_ungated_pixelcnn(shipped.num_codes, shipped.shape)
    published.compile(keras.optimizers.Adam(3e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ours = PixelCNN.from_config(shipped.get_config())
    ours.compile("adam")
    fit = {"batch_size": 128, "epochs": 1, "verbose": 0}
    return {"published": (published, lambda: published.fit(codes, codes, **fit)),
            "ours": (ours, lambda: ours.fit({"codes": codes, "label": labels}, **fit))}


def main(arguments=None):
    chosen = options(argparse.ArgumentParser(description="Time the training of two priors."), "prior", arguments)
    digits = load_mnist(SAMPLE).train
    count = 128 * (1 if chosen.quick else 15)
    model, shipped = load_pretrained("mnist")
    codes, labels = model.encode(digits.images[:count]), digits.labels[:count]
    found = priors(shipped, codes, labels)
    medians = turns({name: train for name, (_, train) in found.items()}, chosen.repeats)
    machine = made_with("keras", "tensorflow", "numpy")
    rows = [{"prior": name, "weights": prior.count_params(), "seconds_per_epoch": medians[name] * EPOCH / len(codes), "made_with": machine}
            for name, (prior, _) in found.items()]
    print(f"{machine}; medians of {chosen.repeats} rounds of {len(codes) // 128} batches, scaled to {EPOCH:,} maps")
    print(f"{'prior':12}{'weights':>10}{'seconds an epoch':>20}{'published / this':>20}")
    for row in rows:
        ratio = medians["published"] / medians[row["prior"]]
        print(f"{row['prior']:12}{row['weights']:10,}{row['seconds_per_epoch']:20.1f}{ratio:18.2f} ×")
    if chosen.out:
        write(chosen.out, rows, ["prior"])
    print(says_who(chosen.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
