"""Makes the packaged sample of MNIST from the full set: `python book/make_sample.py [mnist.npz]`."""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from vqvae_tutorial.data import load_mnist

SIZES = {"train": 700, "test": 100}  # digits of each class
TARGET = Path(__file__).parents[1] / "vqvae_tutorial" / "data" / "mnist_sample.npz"


def choose(labels, each, seed=0):
    """Gives the sorted positions of `each` random digits of every class; the same ones every time."""
    random = np.random.RandomState(seed)  # unlike default_rng, its stream is frozen for good
    chosen = [random.permutation(np.flatnonzero(labels == label))[:each] for label in range(10)]
    return np.sort(np.concatenate(chosen))


def make_sample(digits, target):
    """Writes the sample of `digits` to `target`, in Keras's layout, with the same bytes on every run."""
    with zipfile.ZipFile(target, "w") as archive:
        for name, each in SIZES.items():
            split = getattr(digits, name)
            rows = choose(split.labels, each)
            images = np.rint(255 * split.images[rows, :, :, 0]).astype("uint8")
            for key, array in ((f"x_{name}", images), (f"y_{name}", split.labels[rows].astype("uint8"))):
                content = io.BytesIO()
                np.lib.format.write_array(content, array, allow_pickle=False)
                member = zipfile.ZipInfo(f"{key}.npy")  # dated 1980, whenever it is made
                archive.writestr(member, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


if __name__ == "__main__":
    digits = load_mnist(*sys.argv[1:2])
    if (len(digits.train.labels), len(digits.test.labels)) != (60_000, 10_000):
        sys.exit("The sample is drawn from the full MNIST: give the path of an mnist.npz with all 70,000 digits.")
    make_sample(digits, TARGET)
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes")
