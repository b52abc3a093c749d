"""Where the digits come from, and what happens when they do not come."""

import hashlib
import importlib.util
import inspect
import io
import os
import random
import re
import socket
import threading
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vqvae_tutorial import data
from vqvae_tutorial.data import SAMPLE, load_mnist

ROOT = Path(__file__).parents[1]


def arrays(train=40, test=20):
    """The contents of a small MNIST-like archive."""
    generator = np.random.default_rng(0)
    made = {}
    for name, count in (("train", train), ("test", test)):
        made[f"x_{name}"] = generator.integers(0, 256, (count, 28, 28)).astype("uint8")
        made[f"y_{name}"] = (np.arange(count) % 10).astype("uint8")
    return made


def packed(**changes):
    """The bytes of that archive, with arrays changed, or left out where None is given."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{key: value for key, value in (arrays() | changes).items() if value is not None})
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Keras cache; no other source is configured."""
    monkeypatch.delenv("VQVAE_TUTORIAL_MNIST", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "keras" / "datasets"


def load_with_warnings():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        digits = load_mnist()
    return digits, [warning for warning in caught if warning.category is not ResourceWarning]  # urllib's own sockets


def assert_sample(cache):
    """The sample is given, with one warning that says all; the cache holds nothing. Returns the warning's text."""
    digits, caught = load_with_warnings()
    assert digits.train.images.shape == (7000, 28, 28, 1) and digits.test.images.shape == (1000, 28, 28, 1)
    assert len(caught) == 1 and caught[0].category is UserWarning
    assert caught[0].filename == __file__  # points at the caller
    message = str(caught[0].message)
    for part in ("7,000", "1,000", "because", "70,000", "VQVAE_TUTORIAL_MNIST"):
        assert part in message
    assert not cache.exists() or list(cache.iterdir()) == []
    return message


@pytest.fixture
def server(web, monkeypatch):
    """Serves the official archive."""
    web.files["mnist.npz"] = packed()
    monkeypatch.setattr(data, "_URL", f"{web.address}/mnist.npz")
    monkeypatch.setattr(data, "_SHA256", hashlib.sha256(packed()).hexdigest())
    return web


# What an archive gives


def test_values_types_and_order(tmp_path):
    (tmp_path / "mnist.npz").write_bytes(packed())
    digits = load_mnist(tmp_path / "mnist.npz")
    for name, split in digits._asdict().items():
        assert split.images.dtype == np.float32 and split.labels.dtype == np.int32
        np.testing.assert_allclose(split.images[..., 0], arrays()[f"x_{name}"] / 255, atol=1e-7)
        np.testing.assert_array_equal(split.labels, arrays()[f"y_{name}"])
    assert digits.train.images.max() == 1 and digits.train.images.min() == 0


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", ">i4"])
def test_any_integer_labels(tmp_path, dtype):
    (tmp_path / "m.npz").write_bytes(packed(y_train=arrays()["y_train"].astype(dtype)))
    labels = load_mnist(str(tmp_path / "m.npz")).train.labels
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, arrays()["y_train"])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_compressed(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "m.npz", "w", method) as target, zipfile.ZipFile(io.BytesIO(packed())) as source:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert len(load_mnist(tmp_path / "m.npz").train.images) == 40


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "m.npz").write_bytes(packed())
    assert len(load_mnist("~/m.npz").test.images) == 20


# Damaged archives


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_member(name, content):
    """The archive with one member replaced by raw bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed())) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, content if member == name else source.read(member))
    return buffer.getvalue()


def lying_header():
    """A header that promises many more images than there are."""
    member = saved(arrays()["x_train"])
    return member.replace(b"(40, 28, 28), }      ", b"(40000000, 28, 28), }")


x, y = arrays()["x_train"], arrays()["y_train"]
BAD = {
    "no bytes": (b"", "is empty"),
    "text": (b"<html>log in first</html>", "not a complete .npz archive"),
    "half": (packed()[: len(packed()) // 2], "not a complete .npz archive"),
    "a single array": (saved(x), "not a complete .npz archive"),
    "other keys": (packed(x_train=None), "x_train"),
    "no labels": (packed(y_test=None), "y_test"),
    "pickled images": (packed(x_train=np.array([{"a": 1}] * 40, dtype=object)), "allow_pickle=False"),
    "pickled labels": (packed(y_test=np.array([None] * 20, dtype=object)), "allow_pickle=False"),
    "raw member": (with_member("x_train.npy", b"not an array"), "not an array"),
    "member cut short": (with_member("x_train.npy", saved(x)[:-100]), "cannot be read"),
    "lying header": (with_member("x_train.npy", lying_header()), "cannot be read"),
    "float images": (packed(x_train=x / 255), "type float64, not uint8"),
    "bool images": (packed(x_train=x > 99), "type bool, not uint8"),
    "signed images": (packed(x_test=arrays()["x_test"].astype("int64")), "type int64, not uint8"),
    "flat images": (packed(x_train=x.reshape(40, 784)), "(40, 784)"),
    "small images": (packed(x_train=x[:, :14, :14]), "(40, 14, 14)"),
    "channel axis": (packed(x_train=x[..., None]), "(40, 28, 28, 1)"),
    "one image": (packed(x_train=x[0], y_train=y[:28]), "(28, 28)"),
    "a number": (packed(x_train=np.uint8(3)), "()"),
    "float labels": (packed(y_train=y.astype("float32")), "not integers"),
    "bool labels": (packed(y_train=y > 3), "not integers"),
    "text labels": (packed(y_train=y.astype("U")), "not integers"),
    "one-hot labels": (packed(y_train=np.eye(10, dtype="uint8")[y]), "(40, 10)"),
    "label 10": (packed(y_train=y + np.uint8(1)), "from 1 to 10"),
    "label -1": (packed(y_train=y.astype("int8") - np.int8(1)), "from -1 to 8"),
    "fewer labels": (packed(y_train=y[:-1]), "(39,) for 40 images"),
    "no images": (packed(x_train=x[:0], y_train=y[:0]), "train split"),
    "no test images": (packed(x_test=x[:0], y_test=y[:0]), "test split"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("source", ["path", "environment"])
def test_damage_is_an_error_that_helps(tmp_path, monkeypatch, no_network, kind, source):
    content, part = BAD[kind]
    file = tmp_path / "given digits.npz"
    file.write_bytes(content)
    monkeypatch.setenv("VQVAE_TUTORIAL_MNIST", str(file) if source == "environment" else str(SAMPLE))
    with pytest.raises(ValueError) as caught:
        load_mnist() if source == "environment" else load_mnist(file)
    message = str(caught.value)
    assert str(file) in message and part in message and "expected an .npz with uint8 x_train" in message
    assert ("VQVAE_TUTORIAL_MNIST" if source == "environment" else "`path`") in message.rpartition("of shape (n,)")[2]
    assert file.read_bytes() == content and list(tmp_path.iterdir()) == [file]


def test_pickles_are_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    file = tmp_path / "trap.npz"
    file.write_bytes(packed(y_train=np.array([Trap()] * 40, dtype=object)))
    with pytest.raises(ValueError, match="cannot be read"):
        load_mnist(file)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("where", ["path", "environment"])
def test_missing_file_and_folder_do_not_fall_back(tmp_path, monkeypatch, where):
    def load(target):
        monkeypatch.setenv("VQVAE_TUTORIAL_MNIST", str(target))
        return load_mnist() if where == "environment" else load_mnist(target)

    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        load(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="is not a file"):
        load(tmp_path)


def test_empty_path_is_not_taken_for_no_path():
    with pytest.raises(ValueError, match="is not a file"):
        load_mnist("")


def test_flipped_bytes_never_pass_unnoticed(tmp_path):
    good, file = packed(), tmp_path / "m.npz"
    file.write_bytes(good)
    reference, dice, noticed = load_mnist(file), random.Random(0), 0
    for _ in range(300):
        position = dice.randrange(len(good))
        file.write_bytes(good[:position] + bytes([good[position] ^ 1 << dice.randrange(8)]) + good[position + 1 :])
        try:
            found = load_mnist(file)
        except ValueError as error:
            noticed += str(file) in str(error)
        else:  # a date or an attribute of the zip archive
            for expected, split in zip(reference, found):
                np.testing.assert_array_equal(split.images, expected.images)
                np.testing.assert_array_equal(split.labels, expected.labels)
    assert noticed > 250


def test_cut_files_never_pass_unnoticed(tmp_path):
    good, file = packed(), tmp_path / "m.npz"
    for length in random.Random(1).sample(range(len(good)), 100):
        file.write_bytes(good[:length])
        with pytest.raises(ValueError, match="m.npz"):
            load_mnist(file)


# Order of the sources


def test_a_warning_points_at_the_line_that_asked_for_digits(cache, no_network):
    with pytest.warns(UserWarning, match="Using a sample") as caught:
        load_mnist()
    assert [warning.filename for warning in caught] == [__file__]


def test_path_comes_before_environment_before_cache(cache, tmp_path, monkeypatch, no_network):
    for name, count in (("path", 11), ("environment", 12), ("cache", 13)):
        (tmp_path / f"{name}.npz").write_bytes(packed(x_train=x[:count], y_train=y[:count]))
    cache.mkdir(parents=True)
    content = (tmp_path / "cache.npz").read_bytes()
    (cache / "mnist.npz").write_bytes(content)
    monkeypatch.setattr(data, "_SHA256", hashlib.sha256(content).hexdigest())
    assert len(load_mnist().train.labels) == 13
    monkeypatch.setenv("VQVAE_TUTORIAL_MNIST", "")
    assert len(load_mnist().train.labels) == 13
    monkeypatch.setenv("VQVAE_TUTORIAL_MNIST", str(tmp_path / "environment.npz"))
    assert len(load_mnist().train.labels) == 12
    assert len(load_mnist(tmp_path / "path.npz").train.labels) == 11


def test_official_address_and_hash_are_keras_own():
    from keras.datasets import mnist

    source = inspect.getsource(mnist.load_data)
    assert data._SHA256 in source
    assert data._URL.rpartition("/")[0] in source and data._URL.rpartition("/")[2] in source


# Downloads


def test_download_is_kept_and_used_again(cache, server, capsys):
    digits, caught = load_with_warnings()
    np.testing.assert_array_equal(digits.train.labels, y)
    assert not caught and capsys.readouterr().out == ""  # no progress bar
    assert [file.name for file in cache.iterdir()] == ["mnist.npz"]
    assert (cache / "mnist.npz").read_bytes() == server.files["mnist.npz"]
    load_mnist()
    assert server.requests == ["mnist.npz"]


@pytest.mark.parametrize("mode, reason", [("missing", "404"), ("cut", "incomplete|got only|retrieval")])
def test_failed_download_leaves_nothing(cache, server, mode, reason):
    server.mode = mode
    assert re.search(reason, assert_sample(cache))
    server.mode = "whole"
    assert len(load_mnist().train.labels) == 40  # and the next one is not hindered


def test_wrong_content_is_not_kept(cache, server):
    server.files["mnist.npz"] = packed(x_train=x[::-1])
    assert "hash" in assert_sample(cache)


def test_server_that_accepts_and_never_answers(cache, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(data, "_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/mnist.npz")
        start = time.monotonic()
        message = assert_sample(cache)
        assert time.monotonic() - start < 10
    assert "no answer" in message


def test_server_that_stalls_half_way(cache, server, monkeypatch):
    monkeypatch.setattr(data, "_PATIENCE", 1)
    noise = np.random.default_rng(0).integers(0, 256, (1000, 28, 28)).astype("uint8")
    server.files["mnist.npz"] = packed(x_train=noise, y_train=np.arange(1000) % 10)
    server.mode = "stall"
    start = time.monotonic()
    assert "no answer" in assert_sample(cache)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("step", ["getaddrinfo", "create_connection"])
def test_hanging_name_server_and_hanging_connection(cache, monkeypatch, step):
    release, reached = threading.Event(), threading.Event()

    def hang(*_, **__):
        reached.set()
        release.wait(60)
        raise OSError("let go")

    monkeypatch.setattr(data, "_URL", "http://blocked.invalid/mnist.npz")
    monkeypatch.setattr(data, "_PATIENCE", 1)
    monkeypatch.setattr(socket, step, hang)
    start = time.monotonic()
    try:
        assert "no answer" in assert_sample(cache)
        assert time.monotonic() - start < 5 and reached.is_set()
    finally:
        release.set()


def test_no_network_is_noticed_at_once(cache, no_network):
    start = time.monotonic()
    assert "no network here" in assert_sample(cache)
    assert time.monotonic() - start < 5


def test_interrupted_download_leaves_nothing(cache, server, monkeypatch):
    server.mode = "stall"
    clock = iter([0.0])

    def interrupted():
        try:
            return next(clock)
        except StopIteration:
            raise KeyboardInterrupt from None

    with monkeypatch.context() as patch:
        patch.setattr(data.time, "monotonic", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data._download(cache / "mnist.npz")
    assert list(cache.iterdir()) == []


def test_failed_download_spares_an_earlier_file(tmp_path, server, cache):
    target = tmp_path / "mnist.npz"
    target.write_bytes(b"earlier")
    server.mode = "cut"
    with pytest.raises(Exception, match="retrieval incomplete"):
        data._download(target)
    assert target.read_bytes() == b"earlier" and [file.name for file in tmp_path.iterdir()] == ["mnist.npz"]


def test_leftovers_of_a_killed_process_are_not_picked_up(cache, no_network):
    (cache / ".mnist-killed").mkdir(parents=True)
    (cache / ".mnist-killed" / "mnist.npz").write_bytes(packed()[:999])
    assert len(load_with_warnings()[0].train.labels) == 7000


@pytest.mark.parametrize("content", [packed()[:500], packed(y_train=y[::-1]), b""])
def test_other_file_in_the_cache_is_named_and_kept(cache, server, content):
    server.files["mnist.npz"] = b"never asked for"
    cache.mkdir(parents=True)
    (cache / "mnist.npz").write_bytes(content)
    with pytest.raises(ValueError, match="Delete it") as caught:
        load_mnist()
    assert str(cache / "mnist.npz") in str(caught.value)
    assert (cache / "mnist.npz").read_bytes() == content and server.requests == []


def test_unwritable_cache_falls_back(tmp_path, monkeypatch, server):
    monkeypatch.delenv("VQVAE_TUTORIAL_MNIST", raising=False)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    digits, caught = load_with_warnings()
    assert len(digits.train.labels) == 7000 and len(caught) == 1 and server.requests == []


# The packaged sample


def make_sample():
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "book" / "make_sample.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sample_is_small_balanced_and_mixed():
    assert SAMPLE.stat().st_size <= 1_600_000
    digits = load_mnist(SAMPLE)
    assert np.bincount(digits.train.labels).tolist() == [700] * 10
    assert np.bincount(digits.test.labels).tolist() == [100] * 10
    for split in digits:
        assert len(np.unique(split.images, axis=0)) == len(split.images)
        assert len(set(split.labels[:100])) == 10  # not sorted by class
        assert split.images.mean() == pytest.approx(0.13, abs=0.01)
        assert split.images.var() == pytest.approx(0.095, abs=0.003)


def test_sample_is_a_plain_archive():
    with zipfile.ZipFile(SAMPLE) as archive:
        assert archive.testzip() is None
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_DEFLATED}  # no optional module
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_sample_names_authors_and_licence():
    text = (SAMPLE.parent / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    for part in ("LeCun", "Cortes", "Burges", "CC BY-SA 3.0", "creativecommons.org/licenses/by-sa/3.0"):
        assert part in text


def test_sample_is_made_the_same_way_every_time(tmp_path, monkeypatch):
    maker, digits = make_sample(), load_mnist(SAMPLE)
    monkeypatch.setattr(maker, "SIZES", {"train": 30, "test": 20})
    for name in ("one.npz", "two.npz"):
        maker.make_sample(digits, tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    for original, again, each in zip(digits, load_mnist(tmp_path / "one.npz"), (30, 20)):
        rows = maker.choose(original.labels, each)
        np.testing.assert_array_equal(again.images, original.images[rows])
        np.testing.assert_array_equal(again.labels, original.labels[rows])


def test_choice_is_fixed_balanced_and_in_order():
    labels = np.arange(5000) * 7 % 10
    chosen = make_sample().choose(labels, 12)
    assert np.bincount(labels[chosen]).tolist() == [12] * 10 and (np.diff(chosen) > 0).all()
    assert chosen[:8].tolist() == make_sample().choose(labels, 12)[:8].tolist()
    assert chosen.tolist() != make_sample().choose(labels, 12, seed=1).tolist()


def test_sample_comes_from_the_full_set():
    full = os.environ.get("VQVAE_TUTORIAL_MNIST")
    digits = load_mnist(full) if full else None
    if digits is None or len(digits.train.labels) != 60_000:
        pytest.skip("VQVAE_TUTORIAL_MNIST does not name the full MNIST")
    sample, maker = load_mnist(SAMPLE), make_sample()
    for name, each in maker.SIZES.items():
        split, rows = getattr(digits, name), maker.choose(getattr(digits, name).labels, each)
        np.testing.assert_array_equal(getattr(sample, name).images, split.images[rows])
        np.testing.assert_array_equal(getattr(sample, name).labels, split.labels[rows])
