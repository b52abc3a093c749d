"""Files go from one of Keras's backends to the others. `make test-backends` installs all; what is not installed is skipped."""
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from project import ROOT

BACKENDS = ["tensorflow", "jax", "torch"]

SAVE = """
import sys
import keras, numpy as np
from vqvae_tutorial import VQVAE, PixelCNN, VectorQuantizerEMA, build_networks, load_pretrained
from vqvae_tutorial.data import SAMPLE, load_mnist

folder, backend = sys.argv[1:]
assert keras.backend.backend() == backend
digits = load_mnist(SAMPLE).test
networks = build_networks((28, 28, 1), embedding_dim=4, filters=8, residual_blocks=1)
model = VQVAE(*networks, VectorQuantizerEMA(16, seed=0), value_range=(0, 1))
model.adapt(digits.images[:256])
model.compile("adam")
model.fit(digits.images[:256], batch_size=64, epochs=2, verbose=0)
codes = model.encode(digits.images[:50])
prior = PixelCNN(16, (7, 7), 10, filters=8, num_layers=3, seed=0)
prior.compile("adam")
prior.fit({"codes": codes, "label": digits.labels[:50]}, epochs=2, verbose=0)
model.save(f"{folder}/{backend}.vqvae.keras")
prior.save(f"{folder}/{backend}.prior.keras")
shipped, shipped_prior = load_pretrained()
np.savez(f"{folder}/{backend}.npz", codes=codes, images=model.decode(codes), bits=prior.bits(codes), drawn=prior.sample(20, seed=0),
         shipped_codes=shipped.encode(digits.images[:50]), shipped_drawn=shipped_prior.sample(20, seed=0))
"""

LOAD = """
import sys
import keras, numpy as np
from vqvae_tutorial import load_pretrained
from vqvae_tutorial.data import SAMPLE, load_mnist

folder, backend, *writers = sys.argv[1:]
assert keras.backend.backend() == backend
digits = load_mnist(SAMPLE).test
shipped, shipped_prior = load_pretrained()
for writer in writers:
    # Of PyTorch's files Keras finds no Adam but PyTorch's: see the troubleshooting page.
    known = {"Adam": keras.optimizers.Adam} if writer == "torch" != backend else None
    model, prior = (keras.saving.load_model(f"{folder}/{writer}.{kind}.keras", custom_objects=known) for kind in ("vqvae", "prior"))
    with np.load(f"{folder}/{writer}.npz") as expected:
        codes = model.encode(digits.images[:50])
        np.testing.assert_array_equal(codes, expected["codes"])
        np.testing.assert_allclose(model.decode(codes), expected["images"], atol=1e-5)
        np.testing.assert_allclose(prior.bits(codes), expected["bits"], rtol=1e-4)
        np.testing.assert_array_equal(prior.sample(20, seed=0), expected["drawn"])
        np.testing.assert_array_equal(shipped.encode(digits.images[:50]), expected["shipped_codes"])
        assert np.mean(shipped_prior.sample(20, seed=0) == expected["shipped_drawn"]) > 0.95  # a tie may be broken by rounding
    before = int(model.optimizer.iterations)
    assert sum(np.abs(variable.numpy()).max() for variable in model.optimizer.variables[2:]) > 0  # its moments came along
    model.fit(digits.images[:64], batch_size=64, verbose=0)  # and the training goes on
    assert int(model.optimizer.iterations) == before + 1 == 9
print("fine")
"""


def run(script, backend, *arguments):
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a VQ-VAE and a prior by each backend that is installed, and which these are."""
    here = [backend for backend in BACKENDS if importlib.util.find_spec(backend)]
    if len(here) == 1:
        pytest.skip(f"only {here[0]} is installed; `make test-backends` installs the others")
    folder = tmp_path_factory.mktemp("files")
    for backend in here:
        saved = run(SAVE, backend, str(folder), backend)
        assert saved.returncode == 0, saved.stderr[-3000:]
    return folder, here


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_of_one_backend_gives_the_same_codes_under_another(files, backend):
    folder, here = files
    if backend not in here:
        pytest.skip(f"{backend} is not installed")
    loaded = run(LOAD, backend, str(folder), backend, *here)
    assert loaded.stdout.strip() == "fine", loaded.stderr[-3000:]


def test_backends_learn_alike(files):
    """Not bit for bit, since starting weights and rounding differ: as well drawn."""
    folder, here = files
    errors = {}
    for backend in here:
        with np.load(folder / f"{backend}.npz") as made:
            assert made["codes"].shape == (50, 7, 7) and made["images"].shape == (50, 28, 28, 1)
            errors[backend] = float(made["bits"].mean())
    assert max(errors.values()) < 1.3 * min(errors.values()), errors
