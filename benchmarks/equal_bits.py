"""Quantizers at equal bits: `python benchmarks/equal_bits.py [--quick] [--data digits clothes] [--seeds 3] [--large] [--out FILE]`.

Every quantizer stands between the same two networks, is trained equally long on the same pictures from each of several seeds, and has
codes of 343 bits a picture, within one percent: 49 places of 7 bits. (Three codes of 5 at a place are one of 125.) Then one and the same
small PixelCNN learns its codes. A row holds the test error, what the codes cost under the prior that counts at each place and under the
PixelCNN, and how far 2,000 pictures drawn from it are from real ones, in the features of a judge: the one that ships, or one that is
trained here for clothes. Every row is written when it is finished, so the command can be stopped at any time, and goes on with what is
missing.

`--large` makes a second table: how many of 1,024, 8,192 and 65,536 codes are used after one pass over the same digits, and what a step of
training takes a model of a dense layer and the quantizer; there the quantizers take turns.

Chapter 9 shows both.
"""
import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from grid import RESULTS, Table  # noqa: E402
from measure import load_all_clothes, load_digits, made_with, stoppable, turns  # noqa: E402

from vqvae_tutorial.callbacks import StopRevival  # noqa: E402
from vqvae_tutorial.composite import ProductQuantizer, ResidualQuantizer  # noqa: E402
from vqvae_tutorial.model import VQVAE, build_networks  # noqa: E402
from vqvae_tutorial.pixelcnn import PixelCNN  # noqa: E402
from vqvae_tutorial.presets import cosine_schedule  # noqa: E402
from vqvae_tutorial.priors import PositionPrior  # noqa: E402
from vqvae_tutorial.quantization import code_frequencies, perplexity, usage  # noqa: E402
from vqvae_tutorial.quantizers import VectorQuantizer, VectorQuantizerEMA  # noqa: E402
from vqvae_tutorial.rate import EntropyConstrainedQuantizer  # noqa: E402
from vqvae_tutorial.scoring import build_classifier, class_accuracy, features, frechet_distance, load_judge  # noqa: E402
from vqvae_tutorial.zoo import FSQ, BinaryQuantizer, CosineQuantizer, SimVQ  # noqa: E402

FULL = {"images": 15_000, "epochs": 5, "prior_epochs": 3, "tested": 10_000, "drawn": 2_000,
        "networks": {"filters": 32, "residual_blocks": 1}, "prior": {"filters": 48, "num_layers": 4}, "judge_epochs": 4, "needed": 60_000}
QUICK = {"images": 256, "epochs": 1, "prior_epochs": 1, "tested": 128, "drawn": 100,
         "networks": {"filters": 8, "residual_blocks": 0}, "prior": {"filters": 4, "num_layers": 1}, "judge_epochs": 1, "needed": 256}
DATA = {"digits": load_digits, "clothes": load_all_clothes}

# The size D of the vectors, and a maker.
QUANTIZERS = {
    "gradient": (16, lambda: VectorQuantizer(128)),
    "EMA revived": (16, lambda: VectorQuantizerEMA(128, revival_threshold=0.25)),
    "EMA rotation": (16, lambda: VectorQuantizerEMA(128, revival_threshold=0.25, gradient="rotation")),
    "charged λ = 0.1": (16, lambda: EntropyConstrainedQuantizer(128)),
    "cosine": (16, lambda: CosineQuantizer(128)),
    "SimVQ": (16, lambda: SimVQ(128)),
    "FSQ 8 · 4 · 4": (3, lambda: FSQ((8, 4, 4))),
    "FSQ 5 · 5 · 5": (3, lambda: FSQ((5, 5, 5))),
    "LFQ 7 bits": (7, lambda: BinaryQuantizer(7)),
    "BSQ 7 bits": (7, lambda: BinaryQuantizer(7, sphere=True)),
    "residual 5 · 5 · 5": (16, lambda: ResidualQuantizer([VectorQuantizer(5) for _ in range(3)])),
    "product 5 · 5 · 5": (18, lambda: ProductQuantizer([VectorQuantizer(5) for _ in range(3)])),
}


def radix(quantizer):
    """What each code of a place is multiplied by where they are joined to one number."""
    return quantizer.num_codes ** np.arange(len(getattr(quantizer, "quantizers", "1")))


def joined(codes, quantizer):
    """One code for each place, where a place has several."""
    return codes @ radix(quantizer) if codes.ndim == 4 else codes


def parted(codes, quantizer):
    """What `joined` joined."""
    factors = radix(quantizer)
    return codes[..., None] // factors % quantizer.num_codes if len(factors) > 1 else codes


def train(size, make, seed, images, budget, start=VQVAE.adapt):
    """Trains one VQ-VAE; `start(model, images)` gives a codebook its start."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = VQVAE(*build_networks((28, 28, 1), size, **budget["networks"]), make(), value_range=(0, 1))
    start(model, images)
    rate = cosine_schedule(budget["epochs"] * -(-len(images) // 64))
    model.compile(keras.optimizers.Adam(rate), jit_compile=False)
    rests = [StopRevival(model.quantizer)] if hasattr(model.quantizer, "revival_threshold") else []
    model.fit(images, batch_size=64, epochs=budget["epochs"], verbose=0, callbacks=rests)
    return model


def used(codes, number):
    frequencies = code_frequencies(codes, number)
    return {"used": int(usage(frequencies)), "perplexity": float(perplexity(frequencies))}


def score(model, seed, data, judged, budget):
    """All that a row says of a trained model."""
    train_images, train_labels, images, labels = data
    error = float(model.evaluate(images, batch_size=500, verbose=0, return_dict=True)["mse"])
    codes, test = (joined(model.encode(each), model.quantizer) for each in (train_images, images))
    number = model.quantizer.num_codes ** len(radix(model.quantizer))
    counts = PositionPrior(number, (7, 7))
    counts.adapt(codes)
    keras.utils.set_random_seed(seed)
    prior = PixelCNN(number, (7, 7), num_classes=10, seed=seed, **budget["prior"])
    prior.compile(keras.optimizers.Adam(cosine_schedule(budget["prior_epochs"] * -(-len(codes) // 64), peak=5e-3)), jit_compile=False)
    prior.fit({"codes": codes, "label": train_labels}, batch_size=64, epochs=budget["prior_epochs"], verbose=0)
    judge, real = judged
    asked = np.arange(budget["drawn"]) % 10
    drawn = model.decode(parted(prior.sample(budget["drawn"], label=asked, seed=seed), model.quantizer))
    return {"mse": error, **used(test, number), "place_bits": float(np.mean(counts.bits(test))),
            "prior_bits": float(np.mean(prior.bits(test, labels, 500))), "frechet": frechet_distance(features(judge, drawn), real),
            "read_right": class_accuracy(judge, drawn, asked)}


def judge_for(name, pictures, folder, budget):
    """The judge that ships, or for clothes one that is trained once, and kept."""
    if name == "digits":
        return load_judge()
    keras.utils.set_random_seed(0)
    judge, path = build_classifier(), folder / f"judge_of_{name}.weights.h5"
    if path.exists():
        judge.load_weights(path)
        return judge
    judge.compile(keras.optimizers.Adam(cosine_schedule(budget["judge_epochs"] * -(-len(pictures.train.images) // 128))),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    judge.fit(*pictures.train[:2], batch_size=128, epochs=budget["judge_epochs"], verbose=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    judge.save_weights(path)
    return judge


def compare(names, seeds, budget, folder, out):
    """Adds the rows that are missing."""
    shared = {name: budget[name] for name in ("images", "epochs", "prior_epochs")}
    columns = ["data", "quantizer", "seed", "mse", "used", "perplexity", "place_bits", "prior_bits", "frechet", "read_right", *shared]
    table = Table(out, columns, 3, shared)
    wanted = [(name, quantizer, seed) for seed in range(seeds) for name in names for quantizer in QUANTIZERS]
    missing = [key for key in wanted if key not in table]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} models are in {out}", flush=True)
    bar, loaded = keras.utils.Progbar(len(missing), unit_name="model"), {}
    for done, (name, quantizer, seed) in enumerate(missing, start=1):
        if name not in loaded:
            pictures = DATA[name](budget["needed"])
            judge = judge_for(name, pictures, folder, budget)
            first = [part[: budget["images"]] for part in pictures.train[:2]], [part[: budget["tested"]] for part in pictures.test[:2]]
            right = class_accuracy(judge, *pictures.test[:2])
            print(f"\nThe judge of {name} reads {right:.1%} of the test pictures right.", flush=True)
            loaded[name] = (*first[0], *first[1]), (judge, features(judge, pictures.test.images[: budget["drawn"]]))
        data, judged = loaded[name]
        model = train(*QUANTIZERS[quantizer], seed, data[0], budget)
        table.add({"data": name, "quantizer": quantizer, "seed": seed} | score(model, seed, data, judged, budget) | shared)
        bar.update(done)


# For K codes: the size D of the vectors, and a maker. Embeddings start at vectors of the encoder, drawn at random: k-means would take
# minutes for the largest codebook.
LARGE = {
    "gradient": lambda K: (16, VectorQuantizer(K)),
    "EMA revived": lambda K: (16, VectorQuantizerEMA(K, revival_threshold=0.25)),
    "cosine": lambda K: (16, CosineQuantizer(K)),
    "SimVQ": lambda K: (16, SimVQ(K)),
    "FSQ": lambda K: (len(LEVELS[K]), FSQ(LEVELS[K])),
    "LFQ": lambda K: (int(np.log2(K)), BinaryQuantizer(int(np.log2(K)))),
    "BSQ": lambda K: (int(np.log2(K)), BinaryQuantizer(int(np.log2(K)), sphere=True)),
}
LEVELS = {256: (8, 8, 4), 1024: (8, 8, 4, 4), 8192: (8, 8, 8, 4, 4), 65_536: (8, 8, 8, 8, 4, 4)}


def start_from_data(model, images):
    """Puts embeddings on vectors of the encoder, drawn at random."""
    quantizer = model.quantizer
    if quantizer.starts_from_data:
        vectors = model.encoder.predict(images[: 2 + quantizer.num_codes // 32], verbose=0).reshape(-1, quantizer.embedding_dim)
        quantizer.set_codebook(np.random.default_rng(0).permutation(vectors)[: quantizer.num_codes])


def step_of(number, make):
    """A step of training of a dense layer and the quantizer, on as many vectors as 64 pictures have."""
    keras.utils.set_random_seed(0)
    size, quantizer = make(number)
    inputs = keras.Input((7, 7, size))
    layer = keras.Model(inputs, quantizer(keras.layers.Dense(size)(inputs)))
    layer.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=False)
    vectors = np.random.default_rng(0).normal(size=(64, 7, 7, size)).astype("float32")
    return lambda: layer.train_on_batch(vectors, vectors)


def enlarge(numbers, repeats, budget, out):
    """Adds the rows that are missing to the table of large codebooks."""
    shared = {"images": budget["images"], "epochs": 1}
    table = Table(out, ["K", "quantizer", "mse", "used", "perplexity", "seconds", *shared, "made_with"], 2, shared)
    digits = load_digits(budget["images"])
    images, test = digits.train.images[: budget["images"]], digits.test.images[: budget["tested"]]
    for number in (number for number in numbers if not all((number, name) in table for name in LARGE)):
        took = turns({name: step_of(number, make) for name, make in LARGE.items()}, repeats)
        for name in (name for name in LARGE if (number, name) not in table):
            size, quantizer = LARGE[name](number)
            model = train(size, lambda made=quantizer: made, 0, images, budget | {"epochs": 1}, start_from_data)
            error = float(model.evaluate(test, batch_size=500, verbose=0, return_dict=True)["mse"])
            table.add({"K": number, "quantizer": name, "mse": error, **used(model.encode(test), number), "seconds": took[name],
                       "made_with": made_with("keras", "tensorflow").replace(",", ";")} | shared)
            print(f"K = {number:,}, {name}: done", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Compare quantizers at equal bits; goes on where it was stopped.")
    parser.add_argument("--quick", action="store_true", help="a tiny budget, to see that all of it works")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="the table of large codebooks instead")
    parser.add_argument("--out", type=Path, help="the table (default: the one that ships, or equal_bits_quick.csv with --quick)")
    parser.add_argument("--runs", type=Path, default=ROOT / "nbs" / "runs" / "equal_bits", help="where the judge of clothes is kept")
    options = parser.parse_args(arguments)
    budget = QUICK if options.quick else FULL
    out = options.out or (Path("equal_bits_quick.csv") if options.quick else RESULTS / "equal_bits.csv")
    folder = options.runs.with_name("equal_bits_quick") if options.quick else options.runs
    if options.large:
        sizes, repeats = ((256,), 1) if options.quick else ((1024, 8192, 65_536), 5)
        enlarge(sizes, repeats, budget, out.with_name(f"{out.stem}_large.csv"))
    else:
        compare(options.data, options.seeds, budget, folder, out)
    return 0


if __name__ == "__main__":
    stoppable(main)
