"""The README's snippets, one after the other, as a reader would paste them."""
import re

import numpy as np
import pytest
from project import ROOT

SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)


@pytest.fixture(scope="module")
def names():
    """What a reader has: pictures, sounds and speakers. Later snippets go on with what earlier ones made."""
    import keras

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    waves = np.sin(np.arange(256) * random.uniform(0.05, 0.5, (64, 1)))[..., None]
    return {"pictures": random.random((64, 32, 32, 3)).astype("float32"), "sounds": waves.astype("float32"),
            "speakers": random.integers(4, size=64)}


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(names, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where snippets write
    before = None if "model" not in names or number < 2 else np.asarray(names["model"].quantizer.codebook)
    exec(compile(SNIPPETS[number], f"README.md, snippet {number + 1}", "exec"), names)
    if "trainable = False" in SNIPPETS[number]:
        np.testing.assert_array_equal(names["model"].quantizer.codebook, before)


def test_snippets_did_what_they_say(names):
    assert names["codes"].shape == (10, 7, 7) and names["threes"].shape == (10, 28, 28, 1)
    assert names["dreamt"].shape == (4, 32, 32, 3) and 0 <= names["dreamt"].min() <= names["dreamt"].max() <= 1
    assert names["converted"].shape == names["sounds"].shape
    assert not np.allclose(names["converted"], names["codec"].decode(names["codec"].encode(names["sounds"]), speaker=names["speakers"]))
    assert names["sound"].shape == (80 * len(names["said"][0]),) and 0.001 < np.abs(names["sound"]).max() <= 1
    assert isinstance(names["data"], bytes) and np.array_equal(names["again"], names["maps"])
    again = names["mine"].predict(names["pictures"], verbose=0)
    assert again.shape == names["pictures"].shape
    codes = names["coder"].predict(names["pictures"], verbose=0)
    embeddings = np.asarray(names["quantizer"].codebook)[codes]
    assert codes.shape == (64, 8, 8) and embeddings.shape == (64, 8, 8, 8)
