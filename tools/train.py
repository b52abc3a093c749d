"""Train the pair that ships, VQ-VAE and prior, on any backend: `python tools/train.py mnist`.

    python tools/train.py mnist [--seed N] [--part vqvae|prior] [--recipe λ E F] [--quick] [--release] [--score]

It trains by the very functions that chapters 3 and 6 call, and keeps both trainings in `nbs/runs`; for seed 0 in the folders
where the chapters look, so that they go on from there and train nothing again. A training that was stopped goes on with the epoch
it was at, on this machine or, when its folder has been copied, on another. `KERAS_BACKEND=jax` and the like choose the backend.
The prior needs the VQ-VAE, which is trained first where it is not finished.

The last line is a JSON object with what was measured on the test digits; it is also kept as `scores.json` beside the training, and
a pair that was trained in full becomes a row of `vqvae_tutorial/results/recipes.csv`, which chapter 7 shows. `--score` trains
nothing, and measures the pair that ships.
`--recipe 0.1 10 6` tries another charge for bits, and other numbers of epochs of the VQ-VAE and of the prior, in folders of its own.
`--quick` trains on 512 digits for two epochs, in folders of its own, to see that everything works. `--release` writes the weights of
both, once they are trained, to `vqvae_tutorial/pretrained`, from where `load_pretrained` takes them: a pair is released together.
"""
import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
from measure import load_digits, write  # noqa: E402

TABLE = ROOT / "vqvae_tutorial" / "results" / "recipes.csv"
SAMPLES, REFERENCE = 2_000, 5_000  # digits drawn, and test digits that they are held against
HELD_OUT = 5_000  # of the training digits: the prior's best epoch is judged by them, as in chapter 6
QUICK_DIGITS, QUICK_EPOCHS = 512, 2


def folder(part, seed=0, quick=False, recipe=None):
    """Where a training is kept."""
    name = "_".join([part, *map(str, recipe or ())]) + ("" if seed == 0 else f"_seed{seed}") + ("_quick" if quick else "")
    return ROOT / "nbs" / "runs" / name


def train(parts, seed=0, quick=False, data=None, recipe=None):
    """Trains the parts that were asked for, and gives the pair.

    Args:
        parts: `["vqvae"]` or `["vqvae", "prior"]`; a prior is trained over the codes of a finished VQ-VAE.
        seed: of the weights, the codebook's start, dropout and the order of the digits.
        quick: whether to train next to nothing.
        data: `Digits`; all of MNIST where it is not given.
        recipe: `(λ, epochs of the VQ-VAE, epochs of the prior)`, other than those of the presets.
    """
    import keras
    import numpy as np

    from vqvae_tutorial.presets import build_mnist, train_prior, train_vqvae

    count = QUICK_DIGITS if quick else 60_000
    digits = load_digits(count) if data is None else data
    images, labels = digits.train.images[:count], digits.train.labels[:count]
    test, test_labels = digits.test.images[:count], digits.test.labels[:count]
    options = {"verbose": 1 if sys.stdout.isatty() else 2} | ({"epochs": QUICK_EPOCHS} if quick else {})

    def keep(part, place, scores):  # prints them, and writes them beside the training
        known = {"part": part, "seed": seed, "quick": quick, "backend": keras.backend.backend()}
        line = json.dumps(known | {name: round(float(value), 6) for name, value in scores.items()})
        (place / "scores.json").write_text(line + "\n", encoding="utf-8")
        print(line, flush=True)

    keras.utils.set_random_seed(seed)
    model, prior = build_mnist(seed)
    first = second = options
    if recipe:
        model.quantizer.rate_weight = recipe[0]
        first, second = ({"epochs": epochs} | options for epochs in recipe[1:])
    place = folder("vqvae", seed, quick, recipe)
    print(f"VQ-VAE of {count:,} digits, in {place.relative_to(ROOT)}", flush=True)
    train_vqvae(model, images, place, validation_data=(test, test), **first)
    keep("vqvae", place, model.evaluate(test, batch_size=250, verbose=0, return_dict=True))
    if "prior" in parts:
        codes, test_codes = model.encode(images), model.encode(test)
        learned = count - min(HELD_OUT, count // 4)
        held_out = ({"codes": codes[learned:], "label": labels[learned:]},)
        place = folder("prior", seed, quick, recipe)
        print(f"prior over its codes, in {place.relative_to(ROOT)}", flush=True)
        keras.utils.set_random_seed(seed)
        train_prior(prior, codes[:learned], labels[:learned], place, validation_data=held_out, **second)
        keep("prior", place, {"bits": np.mean(prior.bits(test_codes, test_labels))})
    return model, prior


def score(model, prior, digits):
    """Error, bits and samples of a pair, on test digits and by the judge of the appendix."""
    import numpy as np

    from vqvae_tutorial.quantization import perplexity
    from vqvae_tutorial.scoring import class_accuracy, features, frechet_distance, load_judge

    images, labels = digits.test
    codes, judge = model.encode(images), load_judge()
    again, frequencies = model.decode(codes), np.bincount(codes.ravel(), minlength=prior.num_codes)
    order = np.random.default_rng(0).permutation(len(images))
    reference, others = order[:REFERENCE], order[REFERENCE : REFERENCE + SAMPLES]
    asked = np.arange(SAMPLES, dtype="int32") % 10
    drawn = model.decode(prior.sample(SAMPLES, label=asked, seed=0))
    real = features(judge, images[reference])
    numbers = {"mse": np.mean((again - images) ** 2), "perplexity": perplexity(frequencies), "bits": np.mean(prior.bits(codes, labels)),
               "accuracy": class_accuracy(judge, drawn, asked), "frechet": frechet_distance(real, features(judge, drawn)),
               "frechet_drawn": frechet_distance(real, features(judge, again[others]))}
    return {"usage": int(np.count_nonzero(frequencies))} | {name: float(value) for name, value in numbers.items()}


def keep_row(pair, seed, digits, epochs=None):
    """Puts what a pair is worth into the table, in the place of the row that the same recipe and seed had."""
    from vqvae_tutorial.presets import PRIOR_EPOCHS, VQVAE_EPOCHS

    first, second = epochs or (VQVAE_EPOCHS, PRIOR_EPOCHS)
    row = {"recipe": f"λ = {pair[0].quantizer.rate_weight}: {first} + {second} epochs", "seed": seed} | score(*pair, digits)
    print(json.dumps(row, ensure_ascii=False), flush=True)
    write(TABLE, [row], ["recipe", "seed"])


def release(model, prior):
    """Writes the weights that the package ships."""
    from vqvae_tutorial.presets import build_mnist

    for trained, part, kind in zip((model, prior), build_mnist(), ("vqvae", "prior")):
        part.set_weights(trained.get_weights())  # a model that was never compiled, so that no optimizer is written
        path = ROOT / "vqvae_tutorial" / "pretrained" / f"mnist_{kind}.weights.h5"
        part.save_weights(path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["mnist"], help="what to train")
    parser.add_argument("--seed", type=int, default=0, help="default: 0, the one that ships")
    parser.add_argument("--part", choices=["vqvae", "prior"], help="default: both; a prior also needs its VQ-VAE")
    parser.add_argument("--recipe", nargs=3, type=float, metavar=("λ", "EPOCHS", "EPOCHS"),
                        help="another charge, and epochs of VQ-VAE and prior")
    parser.add_argument("--quick", action="store_true", help="two epochs on 512 digits")
    parser.add_argument("--release", action="store_true", help="write the weights that the package ships")
    parser.add_argument("--score", action="store_true", help="train nothing, and measure the pair that ships")
    chosen = parser.parse_args(arguments)
    if chosen.release and (chosen.quick or chosen.part == "vqvae"):
        parser.error("--release needs both parts, fully trained: leave out --quick and --part vqvae")
    if chosen.release and chosen.recipe:
        parser.error("--release ships the recipe of the presets: leave out --recipe, or change the presets")
    recipe = chosen.recipe and (chosen.recipe[0], *map(int, chosen.recipe[1:]))
    if recipe and not (recipe[0] >= 0 and min(recipe[1:]) > 0 and list(recipe) == chosen.recipe):
        parser.error(f"--recipe takes a charge from 0 on and two whole numbers of epochs, such as 0.1 10 6; given: {chosen.recipe}")
    if chosen.score:
        from vqvae_tutorial import load_pretrained

        keep_row(load_pretrained(chosen.name), 0, load_digits())
        return 0
    try:
        pair = train(["vqvae"] if chosen.part == "vqvae" else ["vqvae", "prior"], chosen.seed, chosen.quick, recipe=recipe)
        if chosen.part != "vqvae" and not chosen.quick:
            keep_row(pair, chosen.seed, load_digits(), recipe and recipe[1:])
        if chosen.release:
            release(*pair)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
