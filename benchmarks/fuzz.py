"""Feed the loaders damaged and malicious files: `python benchmarks/fuzz.py [--count 240] [--seed 0]`.

Half of the files are archives of digits for `load_mnist`, half are .keras files of a `VQVAE` or a `PixelCNN`. Each must end in a Python
error that says something, within seconds. A file may also be read as if nothing were wrong, where the damage hit bytes that mean nothing,
such as a date; then it must give exactly what the whole file gives. Anything else is silent, and counted. Some files hold a trap, code
that would leave a file behind if it ran.
"""
import argparse
import io
import json
import os
import random
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras  # noqa: E402
import numpy as np  # noqa: E402

from vqvae_tutorial.data import load_mnist  # noqa: E402
from vqvae_tutorial.model import VQVAE, build_networks  # noqa: E402
from vqvae_tutorial.pixelcnn import PixelCNN  # noqa: E402
from vqvae_tutorial.quantizers import VectorQuantizerEMA  # noqa: E402

ENDS = ("error", "harmless", "silent", "code ran")
JUNK = [None, "many", "", -1, 0, 2.5, 1e308, float("nan"), [], [-1], {}, {"class_name": "Nothing"}, "../../..", [[[]]]]


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unzipped(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# Damage to any file


def cut(content, dice):
    return content[: dice.randrange(len(content))]


def flip(content, dice):
    place = dice.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :]


def overwrite(content, dice):
    place, noise = dice.randrange(len(content)), dice.randbytes(dice.randrange(1, 400))
    return content[:place] + noise + content[place + len(noise) :]


def noise(content, dice):
    return dice.choice([b"", b"PK\3\4", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY"]) + dice.randbytes(dice.randrange(2000))


def lose_member(content, dice):
    members = unzipped(content)
    del members[dice.choice([name for name in members if name != "metadata.json"])]
    return zipped(members)


def cut_member(content, dice):
    members = unzipped(content)
    name = dice.choice([name for name in members if name != "metadata.json"])
    return zipped(members | {name: cut(members[name], dice)})


# Damage to archives of digits


def wrong_array(content, dice):
    shape = dice.choice([(), (0,), (4,), (3, 28), (3, 28, 27), (3, 28, 28, 1), (2, 28, 28)])
    kind = dice.choice(["uint8", "float32", "int64", "bool", "U3", "complex64", "datetime64[s]", "O"])
    return zipped(unzipped(content) | {f"{dice.choice('xy')}_{dice.choice(['train', 'test'])}.npy": npy(np.zeros(shape, kind))})


def lying_header(content, dice):
    members = unzipped(content)
    name = dice.choice(list(members))
    header = {"descr": dice.choice(["|u1", "<f8", "|O", "nonsense"]), "fortran_order": dice.choice([True, 3]),
              "shape": dice.choice([(10**15,), (10**9, 28, 28), (-1, 28, 28), "wide"])}
    text = repr(header).encode().ljust(118) + b"\n"
    return zipped(members | {name: b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(100)})


def pickled(content, dice, trap):
    return zipped(unzipped(content) | {f"{dice.choice('xy')}_train.npy": npy(np.array([Trap(trap)] * 3, dtype=object))})


# Damage to models


def places(config):
    """Every dict in a configuration, with one of its keys."""
    if isinstance(config, dict):
        yield from ((config, key) for key in config)
        config = config.values()
    if not isinstance(config, (str, int, float, type(None))):
        for value in config:
            yield from places(value)


OPTIONAL = {"value_range"}  # which may be None
ARGUMENTS = OPTIONAL | {"encoder", "decoder", "quantizer", "num_codes", "shape", "num_layers", "filters", "kernel_size"}


def configured(content, change):
    members = unzipped(content)
    config = json.loads(members["config.json"])
    change(config)
    return zipped(members | {"config.json": json.dumps(config)})


def wrong_argument(content, dice):
    def change(config):
        holder, key = dice.choice([(holder, key) for holder, key in places(config) if key in ARGUMENTS])
        holder[key] = dice.choice([junk for junk in JUNK if key not in OPTIONAL or junk is not None])

    return configured(content, change)


def wrong_class(content, dice):
    def change(config):
        holder, key = dice.choice([(holder, key) for holder, key in places(config) if key in ("class_name", "registered_name")])
        holder.update({"class_name": dice.choice(["Nothing", "", 3]), "registered_name": "Nothing"})

    return configured(content, change)


def not_json(content, dice):
    text = dice.choice([b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"3" * 10_000])
    return zipped(unzipped(content) | {"config.json": text})


def callable_from_afar(content, dice, trap):
    """The configuration asks for a function that does things, where it should ask for a layer."""
    module, name = dice.choice([("os", "mkdir"), ("os", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("shutil", "rmtree"),
                                ("builtins", "exec"), ("numpy", "save")])
    argument = f"__import__('os').mkdir({str(trap)!r})" if name in ("eval", "exec") else str(trap)
    config = dice.choice([argument, [argument], {"path": argument}])
    poison = {"module": module, "class_name": name, "registered_name": name, "config": config}

    def change(config):
        holder, key = dice.choice([(config["config"], key) for key in config["config"]] + [({}, "")])
        holder.update({key: poison}) if holder else config.update(poison)

    return configured(content, change)


def lambda_layer(content, dice, trap):
    """A layer that holds Python code, as Keras's own format allows where `safe_mode` is off."""
    layer = keras.layers.Lambda(eval(f"lambda x: (__import__('os').mkdir({str(trap)!r}), x)[1]"), name="trap")
    poison = keras.saving.serialize_keras_object(layer)

    def change(config):
        key = dice.choice(["encoder", "decoder", "quantizer", "dtype", "name"])
        config["config"][key] = poison

    return configured(content, change)


def other_weights(content, others):
    return zipped(unzipped(content) | {"model.weights.h5": unzipped(others)["model.weights.h5"]})


def digits():
    """A small good archive."""
    arrays = {"x": np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype("uint8"), "y": np.arange(3, dtype="uint8")}
    return zipped({f"{kind}_{split}.npy": npy(array) for split in ("train", "test") for kind, array in arrays.items()})


def models(folder):
    """The contents of two good files: a VQ-VAE whose parts stand in its configuration, and a prior."""
    keras.utils.set_random_seed(0)
    networks = build_networks((8, 8, 1), embedding_dim=2, filters=4, residual_blocks=1)
    vqvae = VQVAE(*networks, VectorQuantizerEMA(5, seed=0), value_range=(0, 1))
    for model in (vqvae, PixelCNN(5, (2, 2), 3, filters=2, num_layers=1)):
        model.save(folder / "good.keras")
        yield (folder / "good.keras").read_bytes()


def load_digits(path):
    return [array.tobytes() for split in load_mnist(path) for array in split]


def load_model(path):
    """What a model does, and its weights."""
    model = keras.saving.load_model(path, compile=False)
    if isinstance(model, VQVAE):
        pictures = np.linspace(0, 1, 256, dtype="float32").reshape(-1, 8, 8, 1)
        codes = model.encode(pictures)
        done = [codes, model.decode(codes)]
    else:
        done = [model.bits(np.arange(12).reshape(-1, 2, 2) % 5, 1)]
    return [array.tobytes() for array in (*done, *model.get_weights())]


def attacks(count, dice, folder, trap):
    """Gives `count` bad files: the kind, the name of the file, its content, how to load it, and what the whole file gives."""
    archive, (vqvae, prior) = digits(), models(folder)
    general = [cut, flip, overwrite, noise, lose_member, cut_member]
    hostile = {pickled, callable_from_afar, lambda_layer}
    good = {}
    for number in range(count):
        if number % 2:
            name, whole, load, damage = "digits.npz", archive, load_digits, [wrong_array, lying_header, pickled]
        else:
            name, whole, load = "model.keras", dice.choice([vqvae, prior]), load_model
            damage = [wrong_argument, wrong_class, not_json, callable_from_afar, lambda_layer, other_weights]
        if whole not in good:
            (folder / name).write_bytes(whole)
            good[whole] = load(folder / name)
        kind = dice.choice(general + 2 * damage)
        content = kind(whole, prior if whole is vqvae else vqvae) if kind is other_weights else (
            kind(whole, dice, trap) if kind in hostile else kind(whole, dice))
        yield f"{name}: {kind.__name__.replace('_', ' ')}", name, content, load, good[whole]


def main():
    parser = argparse.ArgumentParser(description="Feed the loaders bad files.")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice, tried, ends, slowest = random.Random(options.seed), Counter(), Counter(), 0.0
    with tempfile.TemporaryDirectory() as home:
        folder, trap = Path(home), Path(home) / "sprung"
        for kind, name, content, load, good in attacks(options.count, dice, folder, trap):
            (folder / name).write_bytes(content)
            start = time.monotonic()
            try:
                found = load(folder / name)
                end = "harmless" if found == good else "silent"
            except Exception as error:
                end = "error" if str(error).strip() else "silent"
            slowest = max(slowest, time.monotonic() - start)
            if trap.exists():
                trap.rmdir()
                end = "code ran"
            if end in ("silent", "code ran"):
                print(f"{end}: {kind}")
            tried[kind] += 1
            ends[kind, end] += 1
    print(f"{'bad input':40}{'tried':>7}" + "".join(f"{end:>10}" for end in ENDS))
    for kind in sorted(tried):
        print(f"{kind:40}{tried[kind]:7}" + "".join(f"{ends[kind, end]:10}" for end in ENDS))
    total = {end: sum(number for (_, how), number in ends.items() if how == end) for end in ENDS}
    print(f"{options.count} tried, {', '.join(f'{number} {end}' for end, number in total.items())}; the slowest took {slowest:.1f} s")
    return 1 if total["silent"] or total["code ran"] else 0


if __name__ == "__main__":
    sys.exit(main())
