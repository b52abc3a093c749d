"""Exported parts: in each runtime, by the very lines of the chapter, without Keras, codes, pictures and logits are Keras's."""
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from project import ROOT, cells

from vqvae_tutorial import (
    VQVAE,
    MaskGIT,
    PixelCNN,
    PositionPrior,
    ProductQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    build_networks,
    load_mnist,
    load_pretrained,
)
from vqvae_tutorial.data import SAMPLE
from vqvae_tutorial.export import ENDINGS, export_parts, model_parts, prior_parts, walk

MODULES = {"onnx": "onnxruntime", "litert": "ai_edge_litert", "tf_saved_model": "tensorflow"}
TEXT = "\n".join(cells(ROOT / "nbs" / "97_export.ipynb", "markdown"))
PROGRAMS = {name: next(code for code in re.findall(r"```python\n(.*?)```", TEXT, re.S) if module in code)
            for name, module in MODULES.items()}
BEFORE = """
import sys
for name in ("keras", "vqvae_tutorial"):
    sys.modules[name] = None
import numpy
given = numpy.load("given.npz")
digits = given["digits"]
"""
AFTER = """
found = {"codes": codes, "again": again, "first": first["logits"]}
labels, maps = given["labels"], given["codes"]
state, flat = start(label=labels)["state"], maps.reshape(len(maps), -1)
for place in range(49):
    so_far = np.where(np.arange(49) < place, flat, 0).astype("int32")
    step = next_place(codes=so_far, index=np.full(len(maps), place, "int32"), state=state)
    found[f"place{place}"], state = step["logits"], step["next_state"]
np.savez("found.npz", **found)
"""

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras exports to these formats from TensorFlow")


@pytest.fixture(scope="module")
def pair():
    return load_pretrained("mnist")


@pytest.mark.parametrize("format", MODULES)
def test_parts_run_elsewhere(pair, format, tmp_path):
    needed = [MODULES[format], *(["tf2onnx", "onnx"] if format == "onnx" else [])]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    model, prior = pair
    test = load_mnist(SAMPLE).test
    digits, labels = test.images[:100], test.labels[:100].astype("int32")
    codes = model.encode(digits)
    paths = export_parts(model, prior, tmp_path, format)
    assert {name: Path(path).name for name, path in paths.items()} == {
        name: name + ENDINGS[format] for name in ("encode", "decode", "start", "next_place")}
    np.savez(tmp_path / "given.npz", digits=digits, labels=labels, codes=codes)
    (tmp_path / "program.py").write_text(BEFORE + PROGRAMS[format] + AFTER, encoding="utf-8")
    ran = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    with np.load(tmp_path / "found.npz") as found:
        assert np.array_equal(found["codes"], codes)
        assert np.abs(found["again"] - model.decode(codes)).max() < 1e-5
        logits = np.stack([found[f"place{place}"] for place in range(49)], axis=1)
        first = found["first"]
    expected = prior.predict({"codes": codes, "label": labels}, verbose=0).reshape(logits.shape)
    assert np.abs(logits - expected).max() < 1e-3
    seven = prior.predict({"codes": codes[:1], "label": np.array([7], "int32")}, verbose=0)
    assert np.abs(first - seven.reshape(49, -1)[:1]).max() < 1e-3


def in_numpy(part):
    return lambda **given: {name: np.asarray(value) for name, value in part(given).items()}


def logits_by_steps(prior, codes, label, branch):
    parts = map(in_numpy, prior_parts(prior, branch).values())
    return np.stack([logits for _, logits in walk(*parts, codes.reshape(len(codes), -1), label)], axis=1)


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("prior", [PixelCNN(8, (3, 4), filters=4, num_layers=2), PixelCNN(8, (5,), 3, filters=4, num_layers=2),
                                   PositionPrior(8, (3, 4)), PositionPrior(8, (3, 4), 3)], ids=lambda prior: f"{prior.name}")
def test_steps_of_any_prior_are_its_logits(prior, branch):
    random = np.random.default_rng(0)
    codes = random.integers(0, 8, (4, *prior.shape)).astype("int32")
    label = random.integers(0, prior.num_classes or 1, 4).astype("int32")
    if isinstance(prior, PositionPrior):
        prior.adapt(codes, label if prior.num_classes else None)
    given = {"codes": codes, "label": label} if prior.num_classes else codes
    expected = np.asarray(prior(given)).reshape(4, prior.places, 8)
    assert np.abs(logits_by_steps(prior, codes, label, branch) - expected).max() < 1e-5


def test_places_without_a_code_are_not_looked_at(pair):
    prior, random = pair[1], np.random.default_rng(0)
    parts = prior_parts(prior)
    state = np.asarray(parts["start"]({"label": np.array([3], "int32")})["state"])
    found = []
    for _ in range(2):
        codes = random.integers(0, 128, (1, 49)).astype("int32")
        found.append(np.asarray(parts["next_place"]({"codes": codes, "index": np.zeros(1, "int32"), "state": state})["logits"]))
    assert np.array_equal(*found)


def test_bad_arguments_write_nothing(pair, tmp_path):
    model, _ = pair
    with pytest.raises(ValueError, match="`format` must be one of 'tf_saved_model', 'onnx', 'litert'. Received: 'h5'"):
        export_parts(model, None, tmp_path / "new", "h5")
    with pytest.raises(ValueError, match="number of codes"):
        export_parts(model, PixelCNN(64, (7, 7), filters=4, num_layers=1), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_exported_is_refused_for_what_it_is(pair):
    networks = build_networks((8, 8, 1), 4, filters=4, residual_blocks=0)
    for levels in (ResidualQuantizer([VectorQuantizer(4) for _ in range(2)]), ProductQuantizer([VectorQuantizer(4) for _ in range(2)])):
        with pytest.raises(ValueError, match=f"`quantizer` must be one with a single code a place. Received: {type(levels).__name__}"):
            model_parts(VQVAE(*networks, levels))
    embeddings, speaker = keras.Input((2, 2, 4)), keras.Input((), dtype="int32")
    drawn = networks[1](embeddings + keras.layers.Embedding(3, 4)(speaker)[:, None, None])
    told = keras.Model({"embeddings": embeddings, "speaker": speaker}, drawn)
    with pytest.raises(ValueError, match="`model` must be one whose decoder is given embeddings alone. Received: a decoder of 2 inputs"):
        model_parts(VQVAE(networks[0], told, VectorQuantizer(4)))
    with pytest.raises(ValueError, match="`prior` must be one that draws place after place. Received: MaskGIT"):
        prior_parts(MaskGIT(4, (2, 2), steps=2, width=8, num_layers=1))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_parts_compute_as_the_pair_does_whatever_the_policy_is_now(pair, policy):
    model, prior = pair
    digits = load_mnist(SAMPLE).test.images[:50]
    codes = model.encode(digits)
    label = np.arange(50, dtype="int32") % 10
    expected = prior.predict_on_batch({"codes": codes, "label": label})[:, 0, 0]
    keras.config.set_dtype_policy(policy)
    try:
        parts = model_parts(model) | prior_parts(prior)
        assert np.array_equal(parts["encode"]({"signal": digits})["codes"], codes)
        state = np.asarray(parts["start"]({"label": label})["state"])
        given = {"codes": codes.reshape(50, 49), "index": np.zeros(50, "int32"), "state": state}
        assert np.abs(np.asarray(parts["next_place"](given)["logits"]) - expected).max() < 1e-4
    finally:
        keras.config.set_dtype_policy("float32")


def test_parts_are_models_with_names(pair):
    parts = model_parts(pair[0])
    digits = load_mnist(SAMPLE).test.images[:3]
    codes = parts["encode"]({"signal": digits})["codes"]
    assert np.array_equal(codes, pair[0].encode(digits))
    assert np.allclose(parts["decode"]({"codes": codes})["signal"], pair[0].decode(np.asarray(codes)), atol=1e-6)
