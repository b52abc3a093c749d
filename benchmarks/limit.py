"""How far training is from what the machine can do: `python benchmarks/limit.py [--repeats 10]`.

The limit is the rate at which TensorFlow multiplies two large float32 matrices, measured in the same run, in turns with the rest.
Against it stand a training step of a VQ-VAE with residual networks, of the PixelCNN of chapter 6, both with a batch of 128, and of
the quantizer layer.

Multiplications are counted from the shapes of the layers: a kernel's size times the positions where it is applied, and N·K·D in the
quantizer. A backward pass counts as two forward ones, for the gradients of kernel and input; the quantizer has none. What is no product
counts nothing: activations, sums, the optimizer. To see where the time goes, each kernel is also applied alone, forward and backward, to
random input of the shape that it has in the model; what a step takes beyond the sum of these is not spent in products.
"""
import argparse
import os
import sys
from functools import partial
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from measure import made_with, options, says_who, turns, write  # noqa: E402
from peers import build_even_model  # noqa: E402
from quantizer import arrays, ours_tensorflow  # noqa: E402

from vqvae_tutorial.pixelcnn import PixelCNN  # noqa: E402

PLACES = 49  # codes in a map
QUANTIZERS = ((128, 16), (1024, 64), (8192, 256))  # K and D


def kernels(model, inputs):
    """The layers of a model that have a kernel, each with the shape of its input and its multiplications, forward."""
    found, layers = [], [layer for layer in model._flatten_layers() if hasattr(layer, "kernel")]

    def noting(layer, call):
        def noted(x, *arguments, **options):
            outputs = call(x, *arguments, **options)
            found.append((layer, tuple(x.shape), int(np.prod(layer.kernel.shape) * np.prod(outputs.shape[:-1]))))
            return outputs
        return noted

    for layer in layers:
        layer.call = noting(layer, layer.call)
    model(inputs)
    for layer in layers:
        del layer.call
    return found


def alone(found):
    """Forward and backward of each kernel by itself, one after the other."""
    inputs = [tf.random.normal(shape) for _, shape, _ in found]

    @tf.function
    def run():
        parts = []
        for (layer, _, _), x in zip(found, inputs):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(layer(x) ** 2)
            gradients = tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_weights)])
            parts += [tf.reshape(gradient, [-1])[0] for gradient in gradients]  # so that each is made
        return tf.add_n(parts)

    return lambda: run().numpy()


def training(model, inputs):
    """A training step as `fit` does it."""
    model.compile(keras.optimizers.Adam(1e-3))
    model.optimizer.build(model.trainable_variables)
    batches = tf.data.Dataset.from_tensors((inputs,)).repeat()
    iterator = iter(batches)
    model.make_train_function()
    return lambda: float(model.train_function(iterator)["loss"])


def product(side):
    left, right = (tf.random.normal((side, side)) for _ in range(2))
    run = tf.function(lambda: tf.reduce_sum(tf.matmul(left, right)[:1]))
    return lambda: run().numpy()


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Compare rates of multiplications with that of a large matrix product.")
    chosen = options(parser, "limit", arguments, repeats=10)
    batch, side, quantizers = (8, 256, QUANTIZERS[:1]) if chosen.quick else (128, 4096, QUANTIZERS)
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    images = tf.constant(random.random((batch, 28, 28, 1), "float32"))
    codes = tf.constant(random.integers(0, 128, (batch, 7, 7)), "int32")
    labels = tf.constant(np.arange(batch) % 10, "int32")
    vqvae, prior = build_even_model(seed=0), PixelCNN(128, (7, 7), num_classes=10, seed=0)
    calls, counts = {"matrix product": product(side)}, {"matrix product": side**3}
    for name, model, inputs in (("VQ-VAE", vqvae, images), ("PixelCNN", prior, {"codes": codes, "label": labels})):
        found = kernels(model, inputs)
        products = 3 * sum(count for _, _, count in found)
        counts[f"{name}, products alone"], calls[f"{name}, products alone"] = products, alone(found)
        counts[f"{name}, training step"] = products + (batch * PLACES * 128 * 16 if model is vqvae else 0)
        calls[f"{name}, training step"] = training(model, inputs)
    for number, size in quantizers:
        name, given = f"quantizer, K = {number}, D = {size}", arrays(batch * PLACES, number, size)
        counts[name] = batch * PLACES * number * size
        calls[name] = partial(ours_tensorflow(given[2])[1], *map(tf.constant, given[:2]))
    medians, line = turns(calls, chosen.repeats, least=0.2), made_with("keras", "tensorflow")
    rates = {name: counts[name] / medians[name] / 1e9 for name in calls}
    print(f"{line}; medians of {chosen.repeats}")
    print(f"{'':<32}{'multiplications':>18}{'time':>13}{'10⁹ a second':>14}{'of the limit':>14}")
    for name in calls:
        share = rates[name] / rates["matrix product"]
        print(f"{name:<32}{counts[name]:18,}{1000 * medians[name]:10.2f} ms{rates[name]:14.1f}{share:14.0%}")
    rows = [{"what": name, "multiplications": counts[name], "seconds": medians[name], "billions_per_second": rates[name],
             "share": rates[name] / rates["matrix product"], "made_with": line} for name in calls]
    if chosen.out:
        write(chosen.out, rows, ("what",))
    print(says_who(chosen.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
