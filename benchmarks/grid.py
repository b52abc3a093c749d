"""Train a VQ-VAE for each number K and size D of embeddings, all equally long: `python benchmarks/grid.py [--quick] [--out FILE]`.

Every model adds its row to vqvae_tutorial/results/grid.csv when it is finished, so the command can be stopped at any time and goes
on with the models that are missing. Beside the table it keeps ten test digits as each K draws them (D = 16). Chapter 7 shows both.
"""
import argparse
import csv
import io
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from measure import load_digits, stoppable  # noqa: E402
from peers import build_even_model  # noqa: E402

from vqvae_tutorial.callbacks import StopRevival  # noqa: E402
from vqvae_tutorial.model import build_networks  # noqa: E402
from vqvae_tutorial.quantization import code_frequencies, perplexity, usage  # noqa: E402

RESULTS = ROOT / "vqvae_tutorial" / "results"
FULL = {"numbers": (8, 16, 32, 64, 128, 256, 512, 1024), "sizes": (2, 4, 16, 64), "digits": 8_000, "epochs": 4, "test": 5_000}
QUICK = {"numbers": (8, 16), "sizes": (2, 16), "digits": 256, "epochs": 1, "test": 256, "networks": {"filters": 8, "residual_blocks": 0}}
SHOWN = 16  # the size D whose digits are kept
FIRST = (3, 2, 1, 18, 4, 8, 11, 0, 61, 7)  # the first 0, the first 1, … of MNIST's test digits


def write(path, save):
    """Writes a file as a whole or not at all: `save` gets an open binary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            save(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class Table:
    """A CSV file that grows by whole rows; rows are known by their first columns.

    Args:
        path: the file.
        columns: the names of all columns.
        keys: how many columns name a row.
        budget: dict from column to the value that all rows must share, so that they can be compared.
    """

    def __init__(self, path, columns, keys, budget):
        self.path, self.columns, self.keys, self.rows = Path(path), columns, keys, {}
        if self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    if list(row) != columns or any(row[name] != str(value) for name, value in budget.items()):
                        raise SystemExit(f"{self.path} was made with other settings than {budget}. Move it away, or name another "
                                         "file with --out.")
                    self.rows[tuple(row[name] for name in columns[:keys])] = row

    def __contains__(self, key):
        return tuple(map(str, key)) in self.rows

    def add(self, row):
        """Adds a row, given as a dict, and writes the file anew, in the order of the keys."""
        texts = {name: f"{row[name]:.6g}" if isinstance(row[name], float) else str(row[name]) for name in self.columns}
        self.rows[tuple(texts[name] for name in self.columns[:self.keys])] = texts
        natural = lambda text: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
        ordered = sorted(self.rows.values(), key=lambda row: [natural(row[name]) for name in self.columns[:self.keys]])
        lines = io.StringIO()
        writer = csv.DictWriter(lines, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)
        write(self.path, lambda file: file.write(lines.getvalue().encode()))


def keep_digits(path, number, images, codes, drawn):
    """Adds what K = `number` makes of the shown digits to an archive of small integers."""
    arrays = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    as_bytes = lambda pictures: np.round(255 * pictures[..., 0]).astype("uint8")
    arrays |= {"digits": as_bytes(images), f"codes_{number}": codes.astype("uint16"), f"drawn_{number}": as_bytes(drawn)}
    write(path, lambda file: np.savez_compressed(file, **arrays))


def train_one(number, size, images, test, budget):
    """Trains one model, and measures it on the test digits.

    Returns:
        The model, and a dict of what was measured.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    smaller = build_networks((28, 28, 1), size, **budget["networks"]) if "networks" in budget else ()
    model = build_even_model(number, size, 0, *smaller)
    steps = budget["epochs"] * -(-len(images) // 128)
    rate = keras.optimizers.schedules.CosineDecay(2e-4, max(1, steps - 50), alpha=0.01, warmup_target=2e-3, warmup_steps=50)
    model.compile(keras.optimizers.Adam(rate), jit_compile=False)
    model.adapt(images)
    model.fit(images, batch_size=128, epochs=budget["epochs"], verbose=0, callbacks=[StopRevival(model.quantizer)])
    return model, measure(model, test[:budget["test"]])


def measure(model, images):
    """Error and rates of a model on images, as plain numbers. Rates are bits per image."""
    codes = model.encode(images)
    error = np.mean([np.mean((model.decode(codes[i : i + 500]) - images[i : i + 500]) ** 2) for i in range(0, len(codes), 500)])
    frequencies = code_frequencies(codes, model.quantizer.num_codes)
    places = codes[0].size
    return {"mse": float(error), "usage": int(usage(frequencies)), "perplexity": float(perplexity(frequencies)),
            "zero_order_bits": float(places * np.log2(float(perplexity(frequencies)))),
            "max_bits": float(places * np.log2(model.quantizer.num_codes))}


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Train the grid of K and D; goes on where it was stopped.")
    parser.add_argument("--quick", action="store_true", help="a tiny budget, to see that all of it works")
    parser.add_argument("--out", type=Path, help="the table (default: the one that ships, or grid_quick.csv with --quick)")
    options = parser.parse_args(arguments)
    budget = QUICK if options.quick else FULL
    out = options.out or (Path("grid_quick.csv") if options.quick else RESULTS / "grid.csv")
    shared = {name: budget[name] for name in ("digits", "epochs")}
    columns = ["K", "D", "mse", "usage", "perplexity", "zero_order_bits", "max_bits", *shared]
    table = Table(out, columns, 2, shared)
    wanted = [(number, size) for size in sorted(budget["sizes"], key=lambda size: size != SHOWN) for number in budget["numbers"]]
    missing = [key for key in wanted if key not in table]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} models are in {out}", flush=True)
    if not missing:
        return 0
    digits = load_digits(budget["digits"])
    train, test = digits.train.images, digits.test.images
    shown = test[list(FIRST)]
    bar = keras.utils.Progbar(len(missing), unit_name="model")
    for done, (number, size) in enumerate(missing, start=1):
        model, row = train_one(number, size, train, test, budget)
        if size == SHOWN:
            codes = model.encode(shown)
            keep_digits(out.with_name(f"{out.stem}_digits.npz"), number, shown, codes, model.decode(codes))
        table.add({"K": number, "D": size} | row | shared)
        bar.update(done)
    return 0


if __name__ == "__main__":
    stoppable(main)
