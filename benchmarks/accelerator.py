"""Right and fast on an accelerator? `python benchmarks/accelerator.py [--seconds 480] [--steps codes …] [--tiny --out FILE]`.

For a machine with a GPU or a TPU, and the full MNIST set; a processor will do, and the table then says that it is one. Keras runs on what
KERAS_BACKEND names, or else on JAX where that is installed. One step after the other:

    contract   tests of the contract of quantizers and priors, by pytest; what fails is tried again without TF32 and bfloat16
    codes      the shipped pair's codes of the test digits, here and on the processor alone
    ema        DataParallel and one device, where JAX has several (a processor: XLA_FLAGS=--xla_force_host_platform_device_count=2)
    training   seconds to the example's test error, and for 30 epochs: the larger model of time_to_quality.py, on chapter 3's schedule
    quantizer  a training step of our layer beside that of vector-quantize-pytorch, where that is installed
    sampling   digits drawn a second by the shipped prior, the first call apart

Each has its share of the seconds, and of what those before have left. Where it needs more it is stopped, and where none are left it is
skipped; the table says so, and has each figure as soon as it is known. The same command goes on with what is missing, and new seconds; only
a training begins again, as its time would not be that of one piece.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import import_module, metadata, util
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from measure import BACKENDS, QUALITY, RESULTS, load_digits, made_with, read, says_who, seconds, stoppable, turns, write  # noqa: E402

STEPS = {"contract": 22, "codes": 18, "ema": 8, "training": 28, "quantizer": 12, "sampling": 12}  # and their shares of the time
LEAST = 5  # seconds without which no step begins
FULL = {"contract": "decoders_gradient or losses_are or running_means or worse_quantized or charged or loss_and_bits_are or drawn_place_by",
        "digits": 60_000, "test": 10_000, "batches": 32, "epochs": 30, "numbers": (1024, 8192, 65_536), "vectors": 6_272, "size": 64,
        "counts": (1000, 10_000)}
TINY = {"contract": "running_means or charged or loss_and_bits_are and position", "digits": 512, "test": 100, "batches": 4, "epochs": 1,
        "numbers": (128, 256), "vectors": 256, "size": 8, "counts": (2, 4)}
ALWAYS = {"PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
HIDDEN = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "KERAS_TORCH_DEVICE": "cpu"}  # the accelerator
PRECISE = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "NVIDIA_TF32_OVERRIDE": "0"}
PEER = "vector-quantize-pytorch"


class Report:
    """The rows of one machine and backend in the table, which is written anew with each."""

    def __init__(self, out, head):
        self.out, self.head, self.processor = out, head, head.get("machine", "").startswith("processor")

    def add(self, what, value, unit="", note="", say=True):
        write(self.out, [self.head | {"what": what, "value": value, "unit": unit, "note": note}], ("machine", "backend", "what"))
        if say:
            value = f"{value:.4g}" if isinstance(value, float) else str(value)
            print(f"  {what}:", *filter(None, [value, unit * (value != ""), f"({note})" * (note != "")]), flush=True)

    def note(self, what):
        """The note of a row that was made with the same versions; None where there is no such row."""
        rows = read(self.out) if self.out.exists() else []
        return next((row["note"] for row in rows if row == row | self.head and row["what"] == what), None)


def run(limit, *arguments, capture=True, allowed=(0,), **environment):
    """Runs Python in a process of its own, and gives what it has told; so does the TimeoutError where its time was up."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        try:
            status = subprocess.run([sys.executable, *map(str, arguments)], timeout=max(limit, 1), stdout=file if capture else None,
                                    stderr=file, env=os.environ | ALWAYS | {"PYTHONPATH": path} | environment,
                                    cwd=ROOT if "pytest" in arguments else None).returncode
        except subprocess.TimeoutExpired:
            status = None
        file.seek(0)
        told = file.read()
    if status is None:
        raise TimeoutError(told)
    if status not in allowed:
        raise RuntimeError(next(filter(None, map(str.strip, reversed(told.splitlines()))), f"exit status {status}"))
    return told


# Steps that ask other processes, with and without the accelerator


def contract(report, size, limit, child):
    asked, end, late = ["-m", "pytest", "-v", "-p", "no:cacheprovider"], time.monotonic() + limit, None
    files = [f"tests/contract/test_contract_{name}.py" for name in ("quantizers", "priors")]
    try:
        told = run(limit, *asked, *files, "-k", size["contract"], allowed=(0, 1))
    except TimeoutError as error:
        told, late = str(error), error
    failed, chosen = re.findall(r"^(tests/.*) (?:FAILED|ERROR)", told, re.M), re.search(r"(\d+) selected", told)
    passed = len(re.findall(r"^tests/.* PASSED", told, re.M))
    report.add("contract tests passed", passed, "tests", f"of {chosen[1] if chosen else '?'}" + ", when time was up" * bool(late))
    report.add("contract tests failed", len(failed), "tests", ", ".join(name.partition("::test_")[2] for name in failed))
    if late:
        raise late
    if failed:
        told = run(end - time.monotonic(), *asked, *failed, allowed=(0, 1), **PRECISE)
        still = len(re.findall(r"^tests/.* (?:FAILED|ERROR)", told, re.M))
        report.add("contract tests failed, at full precision", still, "tests", f"of those {len(failed)}")


def codes(report, size, limit, child):
    end, found = time.monotonic() + limit, {}
    runs = {"the processor": HIDDEN, "": {}} | ({} if report.processor else {", at full precision": PRECISE})
    with tempfile.TemporaryDirectory() as folder:
        for name, environment in runs.items():
            path = Path(folder) / "codes.npz"
            child("encode", str(path), end - time.monotonic(), **environment)
            with np.load(path) as arrays:
                found[name] = dict(arrays)
            if len(found) > 1:
                count, gap, further = differing(found[name], found["the processor"])
                note = f"the second best costs at most {gap:.1e} more than the best, relatively; {further} took neither" if count else ""
                report.add(f"codes that are not the processor's{name}", count, f"of {found[name]['codes'].size:,}", note)


def differing(one, other):
    """How many codes differ; the largest relative gap between the two least costs where they do, by `other` with 64 bits; and how many
    codes of `one` are neither of those two."""
    places = np.flatnonzero(one["codes"].ravel() != other["codes"].ravel())
    embeddings = other["embeddings"].astype("float64")
    vectors = other["vectors"].reshape(-1, embeddings.shape[1])[places].astype("float64")
    costs = np.square(vectors).sum(axis=1)[:, None] - 2 * vectors @ embeddings.T + np.square(embeddings).sum(axis=1) + other["charge"]
    order = np.argsort(costs, axis=1)[:, :2]
    least, second = np.take_along_axis(costs, order, axis=1).T
    neither = (one["codes"].ravel()[places, None] != order).all(axis=1)
    return len(places), float(max((second - least) / np.maximum(least, 1e-12), default=0)), int(neither.sum())


# What runs in a process of its own


def device(report, size):
    """Tells what Keras runs on, as the backend names it, and versions. Ends where there are not all digits."""
    import keras

    load_digits(size["digits"])
    module = import_module(backend := keras.backend.backend())
    if backend == "jax":
        kinds = [each.device_kind for each in module.devices() if each.platform != "cpu"]
    elif backend == "torch":
        kinds = [module.cuda.get_device_name(each) for each in range(module.cuda.device_count())]
    else:
        details = map(module.config.experimental.get_device_details, module.config.list_physical_devices("GPU"))
        kinds = [each.get("device_name", "GPU") for each in details]
    processor, *versions = made_with("keras", backend, "numpy").split("; ")
    machine = f"{len(kinds)} × " * (len(kinds) > 1) + kinds[0] if kinds else f"processor: {processor}"
    print(json.dumps({"machine": machine + "; tiny sizes" * (size is TINY), "backend": backend, "versions": "; ".join(versions)}))


def encode(path, size):
    from keras.ops import convert_to_numpy

    from vqvae_tutorial.checks import in_batches
    from vqvae_tutorial.presets import load_pretrained
    from vqvae_tutorial.rate import code_bits

    images, model = load_digits(size["digits"]).test.images[:size["test"]], load_pretrained("mnist")[0]
    layer = model.quantizer
    charge = layer.rate_weight * convert_to_numpy(layer.mean_distance) * convert_to_numpy(code_bits(layer.ema_frequency.value))
    np.savez(path, codes=model.encode(images, 500), vectors=in_batches(model.encoder, images, 500), charge=charge,
             embeddings=convert_to_numpy(layer.embeddings))


def ema(report, size):
    import keras

    from vqvae_tutorial.quantizers import VectorQuantizerEMA

    what, jax = "EMA on several devices, largest relative difference from one", keras.backend.backend() == "jax"
    if (count := len(keras.distribution.list_devices()) if jax else 0) < 2:
        return report.add(what, "", "", "one device: not tried" if jax else "Keras spreads batches on JAX alone: not tried")
    vectors, found = np.random.default_rng(0).standard_normal((size["batches"] * 64 * count, 16), "float32"), []
    for distribution in (None, keras.distribution.DataParallel()):
        keras.distribution.set_distribution(distribution)
        layer = VectorQuantizerEMA(64, decay=0.9, revival_threshold=0.25, embeddings_initializer=vectors[:64], seed=0)
        model = keras.Sequential([keras.Input((16,)), layer])
        model.compile(keras.optimizers.SGD(0.0))
        model.fit(vectors, batch_size=64 * count, shuffle=False, verbose=0)
        found.append([keras.ops.convert_to_numpy(each) for each in (layer.embeddings, layer.ema_frequency, layer.ema_sum)])
    far = max(float(np.abs(one - other).max() / np.abs(one).max()) for one, other in zip(*found))
    report.add(what, far, "", f"{count} devices, {size['batches']} batches of {64 * count}")


def training(report, size):
    from time_to_quality import train

    digits, until, reached = load_digits(size["digits"]), f"training until test MSE {QUALITY}", []
    steps = -(-len(digits.train.images) // 128)

    def measured(batches, spent, mse, bits):
        end, note = batches == size["epochs"] * steps, f"after {batches / steps:.3g} of {size['epochs']} epochs"
        if not reached and (end or mse <= QUALITY):
            reached.append(batches)
            report.add(until, *((spent, "s", note) if mse <= QUALITY else ("", "s", f"not reached {note}")))
        report.add("training, test MSE", mse, "", note, say=end)
        report.add("training", spent, "s", note, say=end)

    train("ours", 0, digits.train.images, digits.test.images[:size["test"]], size["epochs"], measured)


def quantizer(report, size):
    import keras
    import quantizer as layers

    own, there = f"ours, {BACKENDS[keras.backend.backend()]}", all(map(util.find_spec, ("torch", "vector_quantize_pytorch")))
    if there:
        import torch

        torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    for number in size["numbers"]:
        what, calls = {name: f"quantizer, a training step, K = {number:,}, {name}" for name in (own, PEER)}, {}
        if all(report.note(each) is not None for each in what.values()):
            continue
        inputs, slope, codebook = layers.arrays(size["vectors"], number, size["size"])
        large = report.processor and 4 * layers.LAYERS[PEER][3] * len(inputs) * number > layers.MOST_BYTES
        for name in what:
            if name == PEER and (large or not there):
                why = "it would hold several gigabytes" if there else "it or PyTorch is not installed"
                report.add(what[name], "", "ms", f"left out: {why}")
                continue
            try:
                given = list(map(keras.ops.convert_to_tensor if name == own else torch.tensor, (inputs, slope)))
                step = layers.LAYERS[name][0](codebook)[1]
                call = lambda step=step, given=given: float(step(*given)[0, 0])  # what is read has been computed
                calls |= {name: call} if call() is not None else {}
            except Exception as error:  # such as one of memory, which each framework names its own way
                report.add(what[name], "", "ms", f"failed: {type(error).__name__}, {str(error)[:80]}")
        for name, spent in turns(calls, 3, least=0.2).items():
            versions = "".join(f"; {each} {metadata.version(each)}" for each in (PEER, "torch") if name == PEER)
            report.add(what[name], 1000 * spent, "ms", f"N = {size['vectors']:,}, D = {size['size']}{versions}")


def sampling(report, size):
    from vqvae_tutorial.presets import load_pretrained

    model, prior = load_pretrained("mnist")
    for count in size["counts"]:
        what, drawn = f"{count:,} digits at once", []
        if report.note(f"sampling and decoding, {what}") is not None:
            continue
        draw = lambda: drawn.append(prior.sample(count, seed=0, batch_size=count))  # noqa: B023
        first, again = seconds(draw), median(seconds(draw) for _ in range(3))
        report.add(f"sampling, {what}, first call", first, "s", f"{max(0, first - again):.3g} s more than later ones: compilation")
        report.add(f"sampling, {what}", count / again, "digits a second", "their codes")
        _, decoding = (seconds(lambda: model.decode(drawn[0], batch_size=1000)) for _ in range(2))  # noqa: B023
        report.add(f"sampling and decoding, {what}", count / (again + decoding), "digits a second")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Check and time the library on an accelerator; goes on where it was stopped.")
    parser.add_argument("--seconds", type=float, default=480, help="for all steps together")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that all of it works; needs --out")
    parser.add_argument("--out", type=Path, help="the table (default: benchmarks/results/accelerator.csv)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.tiny and not chosen.out:
        parser.error("--tiny needs --out")
    out, size, start = (chosen.out or RESULTS / "accelerator.csv").resolve(), TINY if chosen.tiny else FULL, time.monotonic()
    os.environ.setdefault("KERAS_BACKEND", "jax" if util.find_spec("jax") else "tensorflow")
    if chosen.child:
        name, given = chosen.child
        return globals()[name](given if name == "encode" else Report(out, json.loads(given)), size)

    def child(name, given, limit, **more):
        return run(limit, Path(__file__).resolve(), "--out", out, "--child", name, given, *["--tiny"] * chosen.tiny, **more)

    try:
        report = Report(out, json.loads(child("device", "{}", 120).splitlines()[-1]))
    except (RuntimeError, TimeoutError) as error:
        raise SystemExit(str(error) or "Keras has not started within two minutes.") from None
    print(f"{report.head['machine']}, {report.head['backend']}: {report.head['versions']}")
    failed = False
    for place, name in enumerate(chosen.steps):
        begun, left = time.monotonic(), chosen.seconds - (time.monotonic() - start)
        limit, note = left * STEPS[name] / sum(STEPS[each] for each in chosen.steps[place:]), "done"
        if report.note(f"step {name}") == "done":
            print(f"{name} is in the table.")
            continue
        print(f"{name}, for {max(0, limit):.0f} seconds at most …", flush=True)
        try:
            if left < LEAST:
                note = "skipped: no time was left"
            elif name in ("contract", "codes"):
                globals()[name](report, size, limit, child)
            else:
                child(name, json.dumps(report.head), limit, capture=False)
        except TimeoutError:
            note = "stopped: its time was up"
        except RuntimeError as error:
            note = f"failed: {error}"
        failed |= note.startswith("failed")
        report.add(f"step {name}", time.monotonic() - begun, "s", note)
    print(says_who(out))
    return int(failed)


if __name__ == "__main__":
    stoppable(main)
