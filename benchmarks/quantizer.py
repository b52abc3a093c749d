"""Time and memory of quantizer layers, side by side.

    python benchmarks/quantizer.py [--numbers 128 …] [--sizes 16 …] [--vectors 6272 …] [--kinds]

Five layers get the same N vectors of size D and the same K codes: ours on TensorFlow, on JAX and on PyTorch; the one-hot form, in
which the well-known Keras example writes it; and that of `vector-quantize-pytorch`. Two pairs share a framework, and so compare layers
and nothing else: ours and one-hot on TensorFlow, ours and `vector-quantize-pytorch` on PyTorch. Forward is what a trained model does.
A training step is forward and backward, from a given gradient of the output to that of the input, and the update of the codebook: running
means in ours and in PyTorch's, a step of Adam in the one-hot form. All run as in training: TensorFlow in a graph that does not know the
size of the batch, as in `fit`; JAX compiled for the size it is given; PyTorch eagerly.

For each cell of the table every layer has a process of its own, on the same two CPUs. The processes stay alive and are asked in turns,
A B C D E A B C D E …; the table gives medians. Peak memory is the most that a process ever held (`VmHWM` on Linux), less what it held after
imports, inputs and a first run with eight vectors. So it counts what the layer makes of N vectors, and neither libraries nor compilers.

`--kinds` makes another table instead: ours and that of `vector-quantize-pytorch` for each of the other kinds, with about a thousand codes.
There a step computes the gradients of what a layer learns, and takes no step of an optimizer.

JAX and PyTorch are optional: `make test-backends` puts them into .venv/backends, where this script finds them.
"""
import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from measure import made_with, options, says_who, seconds, write  # noqa: E402

NUMBERS, SIZES, VECTORS = (128, 1024, 8192), (16, 64, 256), (6_272, 65_536)
DECAY, BETA = 0.99, 0.25
MOST_BYTES = 10e9  # a layer that would need more is left out
LEAST = 0.1  # seconds of calls in each turn, so that short calls are repeated


def arrays(vectors, number, size):
    """The inputs, the gradient of the outputs, and the codebook."""
    random = np.random.default_rng(0)
    draw = lambda *shape: random.standard_normal(shape, "float32")
    return draw(vectors, size), draw(vectors, size), draw(number, size)


# The layers. Each gives two functions of inputs and slope: forward gives outputs, step gives the gradient of the inputs.


def ours(codebook, kind="EMA"):
    layer = KINDS[kind][1](codebook)
    layer.build((None, KINDS[kind][0] or codebook.shape[1]))
    for each in getattr(layer, "quantizers", [layer]):
        if hasattr(each, "ema_steps"):
            each.ema_steps.assign(10_000)  # in the midst of training: the first steps, debiased, would replace the codebook
    return layer


def ours_ema(codebook, **options):
    from vqvae_tutorial.quantizers import VectorQuantizerEMA

    return VectorQuantizerEMA(len(codebook), decay=DECAY, commitment_cost=BETA, embeddings_initializer=codebook, seed=0, **options)


def ours_residual(codebook):
    from vqvae_tutorial.composite import ResidualQuantizer

    return ResidualQuantizer([ours_ema(part) for part in np.split(codebook, 4)])


def of_zoo(name, *arguments, **options):
    """One of chapter 9's; `arguments` take the place of a codebook."""
    def make(codebook):
        from vqvae_tutorial import zoo

        if arguments:
            return getattr(zoo, name)(*arguments, **options)
        return getattr(zoo, name)(len(codebook), embeddings_initializer=codebook, **options)

    return make


def compiled(tf, size, function):
    """As Keras compiles what `fit` calls: for any number of vectors."""
    spec = tf.TensorSpec((None, size), "float32")
    return tf.function(function, input_signature=[spec] * function.__code__.co_argcount, jit_compile=False)


def ours_tensorflow(codebook, kind="EMA"):
    import tensorflow as tf

    layer = ours(codebook, kind)
    learned = [variable.value for variable in layer.trainable_variables]

    def step(inputs, slope):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(outputs * slope) + sum(layer.losses)
        return tape.gradient(loss, [inputs, *learned])

    size = KINDS[kind][0] or codebook.shape[1]
    return compiled(tf, size, lambda inputs: layer(inputs)), compiled(tf, size, step)


def ours_jax(codebook, kind="EMA"):
    import jax
    import jax.numpy as jnp

    layer = ours(codebook, kind)
    learned, state = ([variable.value for variable in part] for part in (layer.trainable_variables, layer.non_trainable_variables))

    @jax.jit
    def forward(state, inputs):
        return layer.stateless_call(learned, state, inputs)[0]

    def loss(inputs, learned, state, slope):
        outputs, state, losses = layer.stateless_call(learned, state, inputs, training=True, return_losses=True)
        return jnp.sum(outputs * slope) + sum(losses), state

    update = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), donate_argnums=2)  # as Keras's trainer gives away the old state

    def step(inputs, slope):
        nonlocal state
        gradients, state = update(inputs, learned, state, slope)
        return [gradients[0].block_until_ready(), *gradients[1]]

    return lambda inputs: forward(state, inputs).block_until_ready(), step


def ours_torch(codebook, kind="EMA"):
    import torch

    layer = ours(codebook, kind)

    def forward(inputs):
        with torch.no_grad():
            return layer(inputs)

    def step(inputs, slope):
        inputs = inputs.detach().requires_grad_()
        layer.zero_grad()
        outputs = layer(inputs, training=True)
        ((outputs * slope).sum() + sum(layer.losses)).backward()
        return [inputs.grad]

    return forward, step


def one_hot_tensorflow(codebook, kind="EMA"):
    """Distances, argmin, a one-hot matrix of N×K, and its product with the codebook, which learns by gradient (equation 3)."""
    import keras
    import tensorflow as tf

    (number, size), codes = codebook.shape, tf.Variable(codebook)
    adam = keras.optimizers.Adam(1e-3)
    adam.build([codes])

    def quantize(inputs):
        distances = (tf.reduce_sum(inputs**2, axis=1, keepdims=True) + tf.reduce_sum(codes**2, axis=1)
                     - 2 * tf.matmul(inputs, codes, transpose_b=True))
        return tf.matmul(tf.one_hot(tf.argmin(distances, axis=1), number), codes)

    def forward(inputs):
        return inputs + tf.stop_gradient(quantize(inputs) - inputs)

    def step(inputs, slope):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            quantized = quantize(inputs)
            loss = (BETA * tf.reduce_mean((tf.stop_gradient(quantized) - inputs) ** 2)
                    + tf.reduce_mean((quantized - tf.stop_gradient(inputs)) ** 2))
            loss += tf.reduce_sum(slope * (inputs + tf.stop_gradient(quantized - inputs)))
        gradient, for_codes = tape.gradient(loss, [inputs, codes])
        adam.apply([for_codes], [codes])
        return [gradient]

    return compiled(tf, size, forward), compiled(tf, size, step)


def their_ema(codebook, **options):
    import torch
    from vector_quantize_pytorch import VectorQuantize

    settings = {"decay": DECAY, "eps": 1e-6, "commitment_weight": BETA, "rotation_trick": False} | options
    layer = VectorQuantize(codebook.shape[1], len(codebook), **settings)
    return fill(layer, torch.from_numpy(codebook))


def fill(layer, codebook):
    """Their layer with its codebook and running means at a given one."""
    for buffer in (layer._codebook.embed, layer._codebook.embed_avg):
        buffer.data.copy_(codebook[None])
    layer._codebook.cluster_size.data.fill_(1.0)
    return layer


def their_cosine(codebook):
    return their_ema(codebook / np.linalg.norm(codebook, axis=-1, keepdims=True), use_cosine_sim=True)


def their_residual(codebook):
    import torch
    from vector_quantize_pytorch import ResidualVQ

    layer = ResidualVQ(dim=codebook.shape[1], num_quantizers=4, codebook_size=len(codebook) // 4, decay=DECAY, eps=1e-6,
                       commitment_weight=BETA, rotation_trick=False)
    for level, part in zip(layer.layers, np.split(codebook, 4)):
        fill(level, torch.from_numpy(part))
    return layer


def their_simvq(codebook):
    import torch
    from vector_quantize_pytorch import SimVQ

    layer = SimVQ(codebook.shape[1], len(codebook), rotation_trick=False)
    layer.frozen_codebook.copy_(torch.from_numpy(codebook))
    layer.code_transform.weight.data.copy_(torch.eye(codebook.shape[1]))
    return layer


def their(name, **options):
    """One that has no codebook."""
    def make(codebook):
        import vector_quantize_pytorch

        return getattr(vector_quantize_pytorch, name)(**options)

    return make


def vector_quantize_pytorch(codebook, kind="EMA"):
    import torch

    layer = KINDS[kind][2](codebook)

    def forward(inputs):
        with torch.no_grad():
            return layer.eval()(inputs[None])[0][0]

    def step(inputs, slope):
        inputs = inputs.detach().requires_grad_()
        layer.zero_grad()
        outputs, _, *loss = layer.train()(inputs[None])
        ((outputs[0] * slope).sum() + sum(each.sum() for each in loss)).backward()
        return [inputs.grad]

    return forward, step


# The size of vectors, where it is not for the caller to choose; ours and theirs of a codebook (K, D).
KINDS = {
    "EMA": (None, ours_ema, their_ema),
    "rotation": (None, lambda codebook: ours_ema(codebook, gradient="rotation"), lambda codebook: their_ema(codebook, rotation_trick=True)),
    "cosine": (None, of_zoo("CosineQuantizer"), their_cosine),
    "SimVQ": (None, of_zoo("SimVQ"), their_simvq),
    "residual, 4 × 256": (None, ours_residual, their_residual),
    "FSQ 7 · 5 · 5 · 5": (4, of_zoo("FSQ", (7, 5, 5, 5)), their("FSQ", levels=[7, 5, 5, 5])),
    "LFQ, 10 bits": (10, of_zoo("BinaryQuantizer", 10), their("LFQ", dim=10, codebook_size=1024, commitment_loss_weight=BETA)),
    "BSQ, 10 bits": (10, of_zoo("BinaryQuantizer", 10, sphere=True),
                     their("LFQ", dim=10, codebook_size=1024, commitment_loss_weight=BETA, spherical=True)),
}
# The layer, its backend, what it is made with, and the arrays of N×K numbers of four bytes that it may hold at once.
LAYERS = {
    "ours, TensorFlow": (ours_tensorflow, "tensorflow", ["keras", "tensorflow"], 2),
    "ours, JAX": (ours_jax, "jax", ["keras", "jax"], 2),
    "ours, PyTorch": (ours_torch, "torch", ["keras", "torch"], 2),
    "one-hot, TensorFlow": (one_hot_tensorflow, "tensorflow", ["keras", "tensorflow"], 4),
    "vector-quantize-pytorch": (vector_quantize_pytorch, "torch", ["torch", "vector-quantize-pytorch"], 8),
}


# A layer in its own process


def peak(anew=False):
    """The most that this process has held until now, in bytes; `anew` counts from what it holds now, where the system can (Linux)."""
    status = Path("/proc/self/status")
    if anew:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    if status.exists():  # where `ru_maxrss` would begin with what the parent held
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(name, kind, vectors, number, size):
    """Answers a parent that writes what it wants measured, a word a line, with a line of JSON each."""
    make, backend, packages, _ = LAYERS[name]
    converters = {"tensorflow": ("tensorflow", "convert_to_tensor"), "jax": ("jax.numpy", "array"), "torch": ("torch", "tensor")}
    module, function = converters[backend]
    try:
        versions, convert = made_with(*packages), getattr(import_module(module), function)
    except ImportError as error:
        return print(json.dumps({"missing": str(error)}), flush=True)
    inputs, slope, codebook = arrays(vectors, number, size)
    forward, step = make(codebook, kind)
    given = [convert(array) for array in (inputs, slope)]
    few = [convert(array[:8].copy()) for array in (inputs, slope)]
    calls = {"forward": lambda x, _: np.asarray(forward(x)), "step": lambda *both: np.asarray(step(*both)[0])}
    error = float(np.mean(np.sum((calls["forward"](*few) - inputs[:8]) ** 2, axis=-1)))  # before the codebook moves
    calls["step"](*few)
    print(json.dumps({"made_with": versions, "error": error}), flush=True)
    sys.stdin.readline()  # one layer after the other: memory may be short
    start, memory = peak(anew=True), {}
    for kind, call in calls.items():
        call(*given)
        memory[kind] = peak() - start
    print(json.dumps(memory), flush=True)
    for line in sys.stdin:
        print(seconds(partial(calls[line.strip()], *given), LEAST), flush=True)


def python():
    """The Python that has JAX and PyTorch, if `make test-backends` has made one; else this one."""
    found = [path for path in (HERE.parent / ".venv" / "backends").glob("*/python*") if path.stem == "python"]
    return str(found[0]) if found else sys.executable


class Worker:
    """A layer in a process of its own, that can be asked."""

    def __init__(self, name, *cell):
        environment = os.environ | {"KERAS_BACKEND": LAYERS[name][1], "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [python(), str(Path(__file__).resolve()), "--serve", name, *map(str, cell)]
        self.errors = tempfile.TemporaryFile("w+")  # read only if something goes wrong: TensorFlow has much to say
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"{self.errors.read()}A layer's process has ended by itself, with {self.process.wait()}.")
        return json.loads(line)

    def ask(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def cell(kind, vectors, number, size, repeats):
    """One row for each layer that is there."""
    layers = {name: layer for name, layer in LAYERS.items() if kind == "EMA" or "one-hot" not in name}
    left_out = [name for name, layer in layers.items() if 4 * layer[3] * vectors * number > MOST_BYTES and "ours" not in name]
    workers = {name: Worker(name, kind, vectors, number, size) for name in layers if name not in left_out}
    try:
        answers = {name: worker.answer() for name, worker in workers.items()}
        for name, answer in answers.items():
            if "missing" in answer:
                print(f"{name} is left out: {answer['missing']} (see --help)", flush=True)
                workers[name].end()
        workers = {name: worker for name, worker in workers.items() if "missing" not in answers[name]}
        errors = [answers[name]["error"] for name in workers]
        if not np.allclose(errors, errors[0], rtol=1e-3):
            raise SystemExit(f"The layers do not agree on the mean squared distance: {dict(zip(workers, errors))}")
        memory = {name: worker.ask("memory") for name, worker in workers.items()}
        rounds = [{(name, kind): worker.ask(kind) for kind in ("forward", "step") for name, worker in workers.items()}
                  for _ in range(repeats)]
    finally:
        for worker in workers.values():
            worker.end()
    for name in workers:
        times = {f"{kind}_seconds": median(each[name, kind] for each in rounds) for kind in ("forward", "step")}
        most = {f"{kind}_megabytes": memory[name][kind] / 1e6 for kind in ("forward", "step")}
        yield {"N": vectors, "K": number, "D": size, "layer": name} | times | most | {"made_with": answers[name]["made_with"]}
    for name in left_out:
        print(f"{name} is left out at N = {vectors:,}, K = {number:,}: it would hold several gigabytes", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Compare quantizer layers; cells that are not asked for keep their rows.")
    for name, values in {"numbers": NUMBERS, "sizes": SIZES, "vectors": VECTORS}.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=values)
    parser.add_argument("--kinds", action="store_true", help="compare the other kinds of quantizers, into quantizer_kinds.csv")
    chosen = options(parser, "quantizer", arguments)
    if chosen.quick:
        chosen.numbers, chosen.sizes, chosen.vectors = (128,), (16,), (6_272,)
    cells = [("EMA", *sizes) for sizes in product(chosen.vectors, chosen.numbers, chosen.sizes)]
    if chosen.kinds:
        chosen.out = chosen.out and chosen.out.with_name(f"{chosen.out.stem}_kinds.csv")
        cells = [(kind, 6_272, 1024, size or 16) for kind, (size, *_) in KINDS.items()]
    print(f"{'kind':<19}{'N':>7}{'K':>6}{'D':>5}  {'layer':<24}{'forward':>12}{'step':>12}{'forward':>12}{'step':>12}")
    for kind, *sizes in cells:
        rows = list(cell(kind, *sizes, chosen.repeats))
        for row in rows:
            print(f"{kind:<19}{row['N']:7}{row['K']:6}{row['D']:5}  {row['layer']:<24}"
                  + "".join(f"{1000 * row[f'{part}_seconds']:9.2f} ms" for part in ("forward", "step"))
                  + "".join(f"{row[f'{part}_megabytes']:9.1f} MB" for part in ("forward", "step")), flush=True)
        if chosen.out:
            named = [({"kind": kind} if chosen.kinds else {}) | row for row in rows]
            write(chosen.out, named, ("kind", "layer") if chosen.kinds else ("N", "K", "D", "layer"))
    print(says_who(chosen.out))
    return 0


if __name__ == "__main__":
    if "--serve" in sys.argv:
        name, kind, *size = sys.argv[2:]
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        sys.exit(serve(name, kind, *map(int, size)))
    sys.exit(main())
