"""Makes the packaged samples from the full sets: `python book/make_sample.py [mnist.npz]`, and with `--fashion` that of Fashion-MNIST."""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

SIZES = {"train": 700, "test": 100}  # digits of each class
FASHION_SIZES = {"train": 210, "test": 30}
FOLDER = Path(__file__).parents[1] / "vqvae_tutorial" / "data"


def choose(labels, each, seed=0):
    """Gives the sorted positions of `each` random pictures of every class; the same ones every time."""
    random = np.random.RandomState(seed)  # unlike default_rng, its stream is frozen for good
    chosen = [random.permutation(np.flatnonzero(labels == label))[:each] for label in range(10)]
    return np.sort(np.concatenate(chosen))


def make_sample(pictures, target, sizes=None):
    """Writes the sample of `pictures` to `target`, in Keras's layout, with the same bytes on every run."""
    with zipfile.ZipFile(target, "w") as archive:
        for name, each in (sizes or SIZES).items():
            split = getattr(pictures, name)
            rows = choose(split.labels, each)
            images = np.rint(255 * split.images[rows, :, :, 0]).astype("uint8")
            for key, array in ((f"x_{name}", images), (f"y_{name}", split.labels[rows].astype("uint8"))):
                content = io.BytesIO()
                np.lib.format.write_array(content, array, allow_pickle=False)
                member = zipfile.ZipInfo(f"{key}.npy")  # dated 1980, whenever it is made
                archive.writestr(member, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main(fashion, path=None):
    from vqvae_tutorial.data import load_mnist
    from vqvae_tutorial.pictures import load_fashion_mnist

    load, sizes = (load_fashion_mnist, FASHION_SIZES) if fashion else (load_mnist, SIZES)
    pictures, target = load(path), FOLDER / f"{load.__name__.removeprefix('load_')}_sample.npz"
    if (len(pictures.train.labels), len(pictures.test.labels)) != (60_000, 10_000):
        sys.exit("The sample is drawn from the full set: give the path of an .npz with all 70,000 pictures.")
    make_sample(pictures, target, sizes)
    print(f"{target.name}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main("--fashion" in sys.argv, *(argument for argument in sys.argv[1:] if argument != "--fashion"))
