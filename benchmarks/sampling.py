"""Time to draw digits with the shipped prior, side by side: `python benchmarks/sampling.py [--counts 10 100] [--grids 14] [--repeats 3]`.

Three samplers draw the same codes from the same noise: a loop of `predict` calls of the whole network, one for each position; the same
loop compiled as one; and `PixelCNN.sample_with_noise`, which computes each position once. They take turns (A B C A B C …), after one
round that does not count unless it was long; the table gives medians. Then untrained priors of the same size draw a few maps on larger
grids: the loops compute all positions for each position, and grow with the square of their number. Times mean nothing alone: compare
within one run.
"""
import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import ops  # noqa: E402
from measure import made_with, options, says_who, turns, write  # noqa: E402

from vqvae_tutorial import load_pretrained  # noqa: E402
from vqvae_tutorial.pixelcnn import PixelCNN  # noqa: E402


class WholeLoop(keras.Model):
    """Every step computes the whole network, in one compiled loop."""

    def __init__(self, prior):
        super().__init__(name="whole_loop")
        self.prior = prior

    def call(self, inputs):
        noise, labels = inputs["noise"], inputs["label"]
        rows, columns = self.prior.shape

        def step(k, codes):
            i, j = k // columns, k % columns
            logits = self.prior({"codes": codes, "label": labels})
            scores = ops.take(ops.take(logits + noise, i, axis=1), j, axis=1)
            return ops.slice_update(codes, [0, i, j], ops.cast(ops.argmax(scores, axis=-1), "int32")[:, None, None])

        return ops.fori_loop(0, rows * columns, step, ops.zeros((ops.shape(noise)[0], rows, columns), "int32"))


def naive(prior, noise, labels):
    codes = np.zeros(noise.shape[:3], "int32")
    for i, j in np.ndindex(prior.shape):
        logits = prior.predict({"codes": codes, "label": labels}, batch_size=len(codes), verbose=0)
        codes[:, i, j] = np.argmax(logits[:, i, j] + noise[:, i, j], axis=-1)
    return codes


def compare(prior, count, repeats):
    """Median seconds of each sampler; refuses where they do not draw the same."""
    whole, noise = WholeLoop(prior), np.random.default_rng(0).gumbel(size=(count, *prior.shape, prior.num_codes)).astype("float32")
    labels = np.arange(count, dtype="int32") % prior.num_classes
    samplers = {"loop of predict": lambda: naive(prior, noise, labels),
                "compiled loop": lambda: whole.predict_on_batch({"noise": noise, "label": labels}),
                "cached": lambda: prior.sample_with_noise(noise, labels)}
    drawn = {}
    medians = turns({name: lambda name=name: drawn.update({name: samplers[name]()}) for name in samplers}, repeats)
    if not all(np.array_equal(codes, drawn["cached"]) for codes in drawn.values()):
        raise SystemExit("The samplers drew different codes from the same noise.")
    return medians


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Compare three samplers.")
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 10, 100, 1000], help="digits drawn with the shipped prior")
    parser.add_argument("--grids", type=int, nargs="*", default=[7, 14, 28], help="rows and columns of maps for untrained priors")
    parser.add_argument("--few", type=int, default=4, help="how many maps these draw")
    chosen = options(parser, "sampling", arguments, repeats=3)
    if chosen.quick:
        chosen.counts, chosen.grids, chosen.few = [], [2, 3], 2
    prior = load_pretrained("mnist")[1]
    sizes = {name: getattr(prior, name) for name in ("num_codes", "num_classes", "filters", "num_layers")}
    priors = [("shipped", prior, count) for count in chosen.counts]
    priors += [("untrained", PixelCNN(shape=(side, side), seed=0, **sizes), chosen.few) for side in chosen.grids]
    line = made_with("keras", keras.backend.backend())
    print(f"{line}; medians of {chosen.repeats}")
    print(f"{'prior':>10}{'grid':>7}{'digits':>8}" + "".join(f"{name:>20}" for name in ("loop of predict", "compiled loop", "cached"))
          + f"{'images a second':>18}{'loop / cached':>16}")
    for name, prior, count in priors:
        medians, side = compare(prior, count, chosen.repeats), prior.shape[0]
        print(f"{name:>10}{side:>4}×{side:<2}{count:8}" + "".join(f"{seconds:18.3f} s" for seconds in medians.values())
              + f"{count / medians['cached']:18.1f}{medians['loop of predict'] / medians['cached']:14.0f} ×", flush=True)
        rows = [{"prior": name, "grid": side, "digits": count, "sampler": sampler, "seconds": seconds,
                 "images_per_second": count / seconds, "made_with": line} for sampler, seconds in medians.items()]
        if chosen.out:
            write(chosen.out, rows, ("prior", "grid", "digits", "sampler"))
    print(says_who(chosen.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
