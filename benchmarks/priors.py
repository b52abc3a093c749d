"""Priors over the same codes, equally long trained: `python benchmarks/priors.py [--quick] [--seeds 3] [--out FILE] [--runs FOLDER]`.

Every network learns the codes that the shipped VQ-VAE gives the first 30,000 training digits, for equally many epochs, with batches of 128,
and a rate that climbs to its peak and falls along a cosine, from each of several seeds. A row says what a test digit costs in bits
under it, how many of the digits drawn from it the judge of the appendix reads as asked, and how far they are from real ones. `MaskGIT` is
trained once per seed, and scored at several numbers of steps. The network of the Keras tutorial on VQ-VAEs is not told the digit, so its
samples are not asked for.

A second table holds seconds and memory per map as the grid grows, of untrained networks of the same sizes, and a third what each costs on
the grid of the study: multiplications of a map that is drawn, seconds of a training batch, seconds per map drawn. There the networks take
turns (`--grids` measures these two alone).

The command can be stopped at any time and goes on with the epoch it was at. Chapter 12 shows what it finds.
"""
import argparse
import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from grid import RESULTS, Table  # noqa: E402
from measure import load_digits, stoppable, turns  # noqa: E402
from sampling import naive  # noqa: E402

from vqvae_tutorial import load_pretrained  # noqa: E402
from vqvae_tutorial.pixelcnn import PixelCNN, build_ungated_pixelcnn  # noqa: E402
from vqvae_tutorial.presets import train_prior  # noqa: E402
from vqvae_tutorial.priors import PositionPrior, Prior  # noqa: E402
from vqvae_tutorial.scoring import class_accuracy, features, frechet_distance, load_judge  # noqa: E402
from vqvae_tutorial.transformer import MaskGIT, TransformerPrior  # noqa: E402

FULL = {"maps": 30_000, "epochs": 3, "tested": 2_000, "drawn": 2_000, "sides": {7: 1000, 14: 250, 28: 16, 56: 4}, "sizes": {},
        "batches": 10, "timed": 200}
QUICK = {"maps": 256, "epochs": 1, "tested": 128, "drawn": 100, "sides": {3: 4, 4: 2},
         "sizes": {"num_layers": 1}, "batches": 1, "timed": 4}
STEPS = (4, 8, 12)
PEAKS = {"ungated PixelCNN": 2e-3, "PixelCNN": 2e-3, "transformer": 5e-3, "MaskGIT": 5e-3}  # 2e-3 was too slow for the last two


class Ungated(Prior):
    """The network of the Keras tutorial as a `Prior`, so that its bits are measured like the others'."""

    def __init__(self, num_codes, shape):
        super().__init__(num_codes, shape)
        self.network = build_ungated_pixelcnn(num_codes, shape)

    def call(self, inputs):
        codes, _, flaw = self.read(inputs)
        return self.network(codes) + flaw


class Alike(Prior):
    """The same chances at every place, which is the zero-order entropy: how often each code is used."""

    def __init__(self, num_codes, shape):
        super().__init__(num_codes, shape)
        self.table = self.add_weight(name="table", shape=(num_codes,), initializer="zeros")

    def adapt(self, codes):
        self.table.assign(np.log(np.bincount(codes.ravel(), minlength=self.num_codes) + 0.5))

    def call(self, inputs):
        codes, _, flaw = self.read(inputs)
        return keras.ops.zeros((*keras.ops.shape(codes), self.num_codes)) + self.table + flaw


MAKERS = {
    "ungated PixelCNN": lambda K, shape, seed, **sizes: Ungated(K, shape),
    "PixelCNN": lambda K, shape, seed, **sizes: PixelCNN(K, shape, num_classes=10, seed=seed, **sizes),
    "transformer": lambda K, shape, seed, **sizes: TransformerPrior(K, shape, num_classes=10, seed=seed, **sizes),
    "MaskGIT": lambda K, shape, seed, **sizes: MaskGIT(K, shape, num_classes=10, seed=seed, **sizes),
}


def trained(name, seed, codes, labels, folder, budget):
    """Trains one network, or takes up where that was stopped. The table of counts is adapted."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    if name == "zero order":
        prior = Alike(128, codes.shape[1:])
        prior.adapt(codes)
        return prior
    if name == "by place":
        prior = PositionPrior(128, codes.shape[1:], num_classes=10)
        prior.adapt(codes, labels)
        return prior
    prior = MAKERS[name](128, codes.shape[1:], seed, **budget["sizes"])
    run = folder / f"{name.replace(' ', '_').lower()}{seed}"
    train_prior(prior, codes, labels if prior.num_classes else None, run, epochs=budget["epochs"], peak=PEAKS[name])
    return prior


def scores(prior, test, judged, seed):
    """Bits, and how samples are read. `judged` is `(model, judge, features of test digits, count)`."""
    codes, labels = test
    model, judge, real, count = judged
    asked = np.arange(count) % 10 if prior.num_classes else None
    drawn = model.decode(prior.sample(count, label=asked, seed=seed))
    read = class_accuracy(judge, drawn, asked) if prior.num_classes else float("nan")
    return {"weights": prior.count_params(), "bits": float(prior.bits(codes, labels if prior.num_classes else None, 500).mean()),
            "read_right": read, "frechet": frechet_distance(features(judge, drawn), real)}


def cache_bytes(prior):
    """Bytes that a prior keeps from step to step for each map while it draws; `MaskGIT` keeps the codes alone."""
    if isinstance(prior, MaskGIT):
        return 4 * prior.places
    label = keras.ops.zeros((1,), "int32")
    return sum(int(np.prod(part.shape)) * 4 for part in keras.tree.flatten(prior.start(1, label)))


def ways(side, sizes):
    """For one grid: the networks, untrained, and how each draws. On the smallest grid also the slow ways, to be compared with."""
    priors = {name: MAKERS[name](128, (side, side), 0, **sizes) for name in ("PixelCNN", "transformer", "MaskGIT")}
    if side <= 7:
        priors |= {f"{name} whole": priors[name] for name in ("PixelCNN", "transformer")}
        priors["MaskGIT one by one"] = priors["MaskGIT"].with_steps(side**2)
    return priors, {name: partial(naive, prior) if name.endswith("whole") else prior.sample_with_noise for name, prior in priors.items()}


def grow(budget, repeats, out):
    """Seconds and bytes per map for square grids of codes, of untrained networks; the samplers take turns."""
    table = Table(out, ["prior", "side", "steps", "maps", "seconds", "cache_bytes"], 2, {})
    for side, maps in budget["sides"].items():
        priors, draws = ways(side, budget["sizes"])
        if all((name, side) in table for name in priors):
            continue
        noise = np.random.default_rng(0).gumbel(size=(maps, side, side, 128)).astype("float32")
        label = np.arange(maps, dtype="int32") % 10
        calls = {name: partial(draw, noise, label) for name, draw in draws.items()}
        for name, seconds in turns(calls, repeats).items():
            steps, remembered = getattr(priors[name], "steps", side**2), 0 if name.endswith("whole") else cache_bytes(priors[name])
            table.add({"prior": name, "side": side, "steps": steps, "maps": maps, "seconds": seconds / maps, "cache_bytes": remembered})
        print(f"grid of {side} × {side}: done", flush=True)


def multiplications(prior):
    """Of a map that is drawn: each kernel once at each place, and in attention a query with each key and a weight with each value."""
    kernels = [weight.shape for weight in prior.weights if weight.path.endswith("kernel") and "label" not in weight.path]
    blocks = prior.network.blocks if isinstance(prior, (TransformerPrior, MaskGIT)) else []
    whole = prior.places * sum(map(np.prod, kernels)) + 2 * prior.places**2 * sum(block.width for block in blocks)
    looks = {MaskGIT: getattr(prior, "steps", 1), Ungated: prior.places}  # at the whole map; with a cache each place is computed once
    return int(whole * looks.get(type(prior), 1))


def cost(budget, repeats, out):
    """What each network costs on the grid of the study: counted, and timed in turns on random codes."""
    table = Table(out, ["prior", "steps", "multiplications", "training", "drawing"], 2, {})
    priors = {(name, 49): make(128, (7, 7), 0, **budget["sizes"]) for name, make in MAKERS.items() if name != "MaskGIT"}
    priors |= {("MaskGIT", steps): MaskGIT(128, (7, 7), num_classes=10, steps=steps, **budget["sizes"]) for steps in STEPS}
    if all(key in table for key in priors):
        return
    random, batches, maps = np.random.default_rng(0), budget["batches"], budget["timed"]
    codes, label = random.integers(128, size=(128 * batches, 7, 7)), np.arange(128 * batches, dtype="int32") % 10
    noise = random.gumbel(size=(maps, 7, 7, 128)).astype("float32")
    training, drawing = {}, {}
    for key, prior in priors.items():
        prior.compile("adam")
        told, asked = (label, label[:1].repeat(maps)) if prior.num_classes else (None, None)
        training[key] = partial(prior.fit, {"codes": codes} | ({} if told is None else {"label": told}), batch_size=128, verbose=0)
        drawing[key] = partial(prior.sample_with_noise, noise, asked)
    training, drawing = turns(training, repeats), turns(drawing, repeats)
    for (name, steps), prior in priors.items():
        table.add({"prior": name, "steps": steps, "multiplications": multiplications(prior),
                   "training": training[name, steps] / batches, "drawing": drawing[name, steps] / maps})


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Compare priors over the same codes; goes on where it was stopped.")
    parser.add_argument("--quick", action="store_true", help="a tiny budget, to see that all of it works")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grids", action="store_true", help="measure only times, not what priors are worth")
    parser.add_argument("--out", type=Path, help="the table (default: the one that ships, or priors_quick.csv with --quick)")
    parser.add_argument("--runs", type=Path, help="where trainings are kept (default: nbs/runs/priors, or priors_quick with --quick)")
    options = parser.parse_args(arguments)
    budget = QUICK if options.quick else FULL
    out = options.out or (Path("priors_quick.csv") if options.quick else RESULTS / "priors.csv")
    runs = options.runs or ROOT / "nbs" / "runs" / ("priors_quick" if options.quick else "priors")
    if not options.grids:
        compare(budget, options.seeds, runs, out)
    repeats = 1 if options.quick else 3
    grow(budget, repeats, out.with_name(f"{out.stem}_grids.csv"))
    cost(budget, repeats, out.with_name(f"{out.stem}_costs.csv"))
    return 0


def compare(budget, seeds, runs, out):
    shared = {name: budget[name] for name in ("maps", "epochs", "drawn")}
    columns = ["prior", "steps", "seed", "weights", "bits", "read_right", "frechet", *shared]
    table = Table(out, columns, 3, shared)
    names = ["zero order", "by place", *MAKERS]
    steps = {"MaskGIT": STEPS}
    missing = [(name, seed) for seed in range(seeds) for name in names
               if not all((name, step, seed) in table for step in steps.get(name, [49]))]
    print(f"{seeds * len(names) - len(missing)} of {seeds * len(names)} priors are in {out}", flush=True)
    if not missing:
        return
    digits, (model, _) = load_digits(budget["maps"]), load_pretrained("mnist")
    codes, labels = model.encode(digits.train.images[: budget["maps"]]), digits.train.labels[: budget["maps"]]
    test = model.encode(digits.test.images[: budget["tested"]]), digits.test.labels[: budget["tested"]]
    judge = load_judge()
    judged = model, judge, features(judge, digits.test.images[: budget["drawn"]]), budget["drawn"]
    bar = keras.utils.Progbar(len(missing), unit_name="prior")
    for done, (name, seed) in enumerate(missing, start=1):
        prior = trained(name, seed, codes, labels, runs, budget)
        for step in steps.get(name, [49]):
            each = prior.with_steps(step) if name == "MaskGIT" else prior
            table.add({"prior": name, "steps": step, "seed": seed} | scores(each, test, judged, seed) | shared)
        bar.update(done)


if __name__ == "__main__":
    stoppable(main)
