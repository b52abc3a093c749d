"""Several devices learn what one does: the engines of the appendix, as they stand there, each in a Python of its own."""
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from project import ROOT, cells

EMA = {"revived": {"revival": 0.9}, "ema": {"revival": 0.0}}
CASES = EMA | {"gradient": {"update": "gradient"}, "sgd": {"optimizer": "sgd"}, "counts": {"revival": 0.0}}
BAR = 1e-5
STATES = ("codebook", "ema_frequency", "ema_sum")

SCRIPT = """
import sys, json
import chapter
from keras import ops
from vqvae_tutorial import model as models, quantizers

engine, name, cases = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
chapter.K, chapter.D, chapter.BATCH, chapter.DIGITS, chapter.EPOCHS = 16, 2, 32, 128, 2
build, train, shares = chapter.build, chapter.train, quantizers.code_frequencies
networks = models.build_networks
models.build_networks = lambda shape, **sizes: networks(shape, **sizes | {"residual_blocks": 0})  # which take long to trace


def train_all(made, name):
    for case, model in made.items():
        counts = lambda codes, K, weights=None: shares(codes, K, weights) * ops.cast(ops.size(codes), "float32")
        quantizers.code_frequencies = counts if case == "counts" else shares
        train(model, f"{name}_{case}")


if len(cases) > 1:  # all in one process: build in the engine's scope, train outside of it
    chapter.build, chapter.train = lambda: {case: build(**options) for case, options in cases.items()}, train_all
    getattr(chapter, engine)(name)
else:
    [options] = cases.values()
    getattr(chapter, engine)(name, **options)
"""


@pytest.fixture(scope="module")
def chapter():
    """The functions of the appendix."""
    path = ROOT / "nbs" / "92_scaling_out.ipynb"
    return "import json, socket\n\n" + "\n\n\n".join(cell for cell in cells(path, "code") if cell.startswith("def "))


@pytest.fixture(scope="module")
def runs(chapter, tmp_path_factory):
    """A function that runs engines side by side, and gives what each has written down."""
    folder = tmp_path_factory.mktemp("scaling")
    (folder / "chapter.py").write_text(chapter, encoding="utf-8")
    (folder / "run.py").write_text(SCRIPT, encoding="utf-8")

    def run(*jobs):
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        started = [subprocess.Popen([sys.executable, "run.py", engine, name, json.dumps(cases)], cwd=folder, text=True,
                                    env=os.environ | {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": path} | more,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for engine, name, cases, more in jobs]
        try:
            for process in started:
                told = process.communicate(timeout=900)  # a busy machine is slow[1]
                assert process.returncode == 0, told[-3000:]
        finally:
            for process in started:
                process.kill()
        return {file.stem: dict(np.load(file)) for file in folder.glob("*.npz")}

    return run


@pytest.fixture(scope="module")
def tensorflow(chapter, runs):
    """One device, and two in a process."""
    return runs(("single", "single", CASES, {}), ("mirrored", "mirrored", CASES, {}))


@pytest.fixture(scope="module")
def processes(chapter, tensorflow, runs):
    """Two processes, for two of the cases."""
    space = {}
    exec(chapter, space)
    return runs(*[("worker", f"worker_{case}", {case: CASES[case]}, {"TF_CONFIG": config})
                  for case in ("revived", "gradient") for config in space["cluster"](2)])


@pytest.fixture(scope="module")
def jax(runs):
    if not importlib.util.find_spec("jax"):
        pytest.skip("jax is not installed; `make test-backends` installs it")
    return runs(*[(engine, name, CASES, {"KERAS_BACKEND": "jax"}) for engine, name in (("single", "jax"), ("sharded", "sharded"))])


def far(one, other, names):
    return max(np.abs(one[name] - other[name]).max() for name in names)


def check(one, other, case):
    """The same k-means start, and the same weights after each epoch."""
    assert one["codebook"].shape == (3, 16, 2) and np.ptp(one["codebook"][0]) > 0, "at the start and after each epoch"
    assert far(one, other, [name for name in STATES if name in one]) < BAR
    assert far(one, other, ["trained"]) < BAR and far(one, other, ["mse", "perplexity"]) < 1e-4
    assert ("ema_sum" in one) == (case != "gradient")


@pytest.mark.parametrize("case", ["revived", "ema", "gradient", "sgd"])
def test_two_devices_of_a_process_learn_what_one_does(tensorflow, case):
    check(tensorflow[f"single_{case}"], tensorflow[f"mirrored_{case}"], case)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["revived", "gradient"])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_learn_what_one_does(processes, case, rank):
    check(processes[f"single_{case}"], processes[f"worker_{case}_{rank}"], case)


@pytest.mark.parametrize("case", ["revived", "ema", "gradient", "sgd"])
def test_two_devices_of_jax_learn_what_one_does(jax, case):
    check(jax[f"jax_{case}"], jax[f"sharded_{case}"], case)


def test_codes_were_revived_where_it_says_so(tensorflow):
    assert far(tensorflow["single_revived"], tensorflow["single_ema"], ["codebook"]) > 0.01


def test_counts_instead_of_shares_would_be_noticed(tensorflow):
    assert far(tensorflow["single_counts"], tensorflow["mirrored_counts"], ["ema_frequency"]) > 1


def test_every_cell_with_an_engine_is_tried(chapter):
    engines = {name for name in ("single", "mirrored", "worker", "sharded") if f"def {name}(" in chapter}
    assert engines == {"single", "mirrored", "worker", "sharded"}
