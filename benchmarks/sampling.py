"""Time to draw digits with the shipped prior, side by side: `python benchmarks/sampling.py [--counts 10 100] [--repeats 3]`.

Three samplers draw the same codes from the same noise: a loop of `predict` calls of the whole network, one for each position; the same
loop compiled as one; and `PixelCNN.sample_with_noise`, which computes each position once. They take turns (A B C A B C …), after one
untimed round each; the table gives medians. Times mean nothing alone: compare within one run.
"""
import argparse
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import ops  # noqa: E402

from vqvae_tutorial import load_pretrained  # noqa: E402


class WholeLoop(keras.Model):
    """Every step computes the whole network, in one compiled loop."""

    def __init__(self, prior):
        super().__init__(name="whole_loop")
        self.prior = prior

    def call(self, inputs):
        noise, labels = inputs
        rows, columns = self.prior.shape

        def step(k, codes):
            i, j = k // columns, k % columns
            scores = ops.take(ops.take(self.prior((codes, labels)) + noise, i, axis=1), j, axis=1)
            return ops.slice_update(codes, [0, i, j], ops.cast(ops.argmax(scores, axis=-1), "int32")[:, None, None])

        return ops.fori_loop(0, rows * columns, step, ops.zeros((ops.shape(noise)[0], rows, columns), "int32"))


def naive(prior, noise, labels):
    codes = np.zeros(noise.shape[:3], "int32")
    for i, j in np.ndindex(prior.shape):
        logits = prior.predict((codes, labels), batch_size=len(codes), verbose=0)
        codes[:, i, j] = np.argmax(logits[:, i, j] + noise[:, i, j], axis=-1)
    return codes


def main():
    parser = argparse.ArgumentParser(description="Compare three samplers.")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    prior = load_pretrained("mnist")[1]
    whole = WholeLoop(prior)
    samplers = {"loop of predict": lambda *inputs: naive(prior, *inputs),
                "compiled loop": lambda *inputs: whole.predict_on_batch(list(inputs)),
                "cached": prior.sample_with_noise}
    print(f"keras {keras.__version__} on {keras.backend.backend()}, {os.cpu_count()} CPUs, {platform.machine()}; "
          f"medians of {options.repeats}")
    print(f"{'digits':>8}" + "".join(f"{name:>20}" for name in samplers) + f"{'loop / cached':>16}")
    for count in options.counts:
        noise = np.random.default_rng(0).gumbel(size=(count, *prior.shape, prior.num_embeddings)).astype("float32")
        labels = np.arange(count, dtype="int32") % prior.num_classes
        drawn = [draw(noise, labels) for draw in samplers.values()]
        if not all(np.array_equal(codes, drawn[0]) for codes in drawn):
            raise SystemExit("The samplers drew different codes from the same noise.")
        times = {name: [] for name in samplers}
        for _ in range(options.repeats):
            for name, draw in samplers.items():
                start = time.perf_counter()
                draw(noise, labels)
                times[name].append(time.perf_counter() - start)
        medians = {name: np.median(each) for name, each in times.items()}
        print(f"{count:8}" + "".join(f"{seconds:18.3f} s" for seconds in medians.values())
              + f"{medians['loop of predict'] / medians['cached']:14.0f} ×", flush=True)


if __name__ == "__main__":
    main()
