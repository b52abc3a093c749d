"""Where the pictures of clothes and the emoji come from, and what happens when they do not come or are damaged."""

import gzip
import hashlib
import importlib.util
import inspect
import io
import json
import os
import random
import re
import sys
import tarfile
import time
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from vqvae_tutorial import VQVAE, VectorQuantizerEMA, data, pictures
from vqvae_tutorial.model import build_networks
from vqvae_tutorial.pictures import EMOJI, FASHION_SAMPLE, OnePerGroup, load_emoji, load_fashion_mnist

ROOT = Path(__file__).parents[1]
VARIABLE = "VQVAE_TUTORIAL_FASHION_MNIST"
NAMES = [name for name, _ in pictures._FASHION.values()]
PARTS = ("train", "test")


def clothes(train=40, test=20):
    """The contents of a small archive in the layout of Fashion-MNIST."""
    generator = np.random.default_rng(0)
    made = {}
    for part, count in zip(PARTS, (train, test)):
        made[f"x_{part}"] = generator.integers(0, 256, (count, 28, 28)).astype("uint8")
        made[f"y_{part}"] = (np.arange(count) % 10).astype("uint8")
    return made


def emoji(size=32, train=12, test=6):
    """The contents of a small archive of emoji, of three classes, each with groups of two."""
    generator = np.random.default_rng(1)
    made = {"classes": np.array(["Flags", "Food & Drink", "Symbols"])}
    for part, count in zip(PARTS, (train, test)):
        made[f"x_{part}"] = generator.integers(0, 256, (count, size, size, 3)).astype("uint8")
        made[f"y_{part}"] = (np.arange(count) % 3).astype("uint8")
        made[f"base_{part}"] = (np.arange(count) // 2 + (100 if part == "test" else 0)).astype("int16")
    return made


def packed(arrays, **changes):
    """The bytes of an archive, with arrays changed, or left out where None is given."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return buffer.getvalue()


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_member(archive, name, content):
    """An archive with one member replaced by raw bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, content if member == name else source.read(member))
    return buffer.getvalue()


def keras_files(arrays):
    """The four files, by name, that hold these arrays as those of Keras do."""
    made = {}
    for key, (name, _) in pictures._FASHION.items():
        array, kind = arrays[key], 2051 if key[0] == "x" else 2049
        head = np.array([kind, *array.shape], ">i4").tobytes()
        made[name] = gzip.compress(head + array.tobytes(), mtime=0)
    return made


def declare_official(monkeypatch, arrays):
    """From now on these arrays are the official ones."""
    hashes = {key: (name, hashlib.sha256(arrays[key].tobytes()).hexdigest()) for key, (name, _) in pictures._FASHION.items()}
    monkeypatch.setattr(pictures, "_FASHION", hashes)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of Fashion-MNIST in an empty Keras cache; no other source is configured."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "keras" / "datasets" / "fashion-mnist"


@pytest.fixture
def server(web, monkeypatch):
    """Serves Keras's four files; the first is the one that `mode` is about."""
    web.files, web.bad = keras_files(clothes()), NAMES[0]
    monkeypatch.setattr(pictures, "_FASHION_URL", f"{web.address}/")
    declare_official(monkeypatch, clothes())
    return web


def load_with_warnings():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_fashion_mnist()
    return loaded, [warning for warning in caught if warning.category is not ResourceWarning]  # urllib's own sockets


def assert_sample(cache, kept=()):
    """The sample is given, with one warning that says all; the cache holds whole files only. Returns the warning's text."""
    loaded, caught = load_with_warnings()
    assert loaded.train.images.shape == (2100, 28, 28, 1) and loaded.test.images.shape == (300, 28, 28, 1)
    assert len(caught) == 1 and caught[0].category is UserWarning
    assert caught[0].filename == __file__  # points at the caller
    message = str(caught[0].message)
    for part in ("2,100", "300", "because Fashion-MNIST", "70,000 pictures", "load_fashion_mnist()", f"set {VARIABLE}", "a fashion_mnist"):
        assert part in message
    assert sorted(file.name for file in cache.glob("*")) == sorted(kept)
    return message


# What an archive gives


def test_clothes_values_types_and_order(tmp_path):
    (tmp_path / "f.npz").write_bytes(packed(clothes()))
    loaded = load_fashion_mnist(str(tmp_path / "f.npz"))
    for part in PARTS:
        split = getattr(loaded, part)
        assert split.images.dtype == np.float32 and split.labels.dtype == np.int32 and split.images.shape[1:] == (28, 28, 1)
        np.testing.assert_allclose(split.images[..., 0], clothes()[f"x_{part}"] / 255, atol=1e-7)
        np.testing.assert_array_equal(split.labels, clothes()[f"y_{part}"])
    assert loaded.groups.dtype == np.int32 and loaded.groups.tolist() == list(range(40))


def test_class_names_are_those_of_the_authors(tmp_path):
    (tmp_path / "f.npz").write_bytes(packed(clothes()))
    names = load_fashion_mnist(tmp_path / "f.npz").class_names
    assert names == "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
    names.clear()
    assert len(load_fashion_mnist(tmp_path / "f.npz").class_names) == 10  # a list of its own


@pytest.mark.parametrize("size", [32, 64])
def test_emoji_values_types_and_order(tmp_path, size):
    (tmp_path / "e.npz").write_bytes(packed(emoji(size)))
    loaded = load_emoji(str(tmp_path / "e.npz"))
    for part in PARTS:
        split = getattr(loaded, part)
        assert split.images.dtype == np.float32 and split.labels.dtype == np.int32
        np.testing.assert_allclose(split.images, emoji(size)[f"x_{part}"] / 255, atol=1e-7)
        np.testing.assert_array_equal(split.labels, emoji()[f"y_{part}"])
    assert loaded.groups.dtype == np.int32 and loaded.groups.tolist() == emoji()["base_train"].tolist()
    assert loaded.class_names == ["Flags", "Food & Drink", "Symbols"]


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", ">i4"])
def test_any_integer_labels_and_groups(tmp_path, dtype):
    (tmp_path / "e.npz").write_bytes(packed(emoji(), **{key: emoji()[key].astype(dtype) for key in ("y_train", "base_train")}))
    loaded = load_emoji(tmp_path / "e.npz")
    assert loaded.train.labels.dtype == loaded.groups.dtype == np.int32
    assert loaded.groups.tolist() == emoji()["base_train"].tolist() and loaded.train.labels.tolist() == emoji()["y_train"].tolist()


# Damaged archives


x, y = clothes()["x_train"], clothes()["y_train"]
WHOLE = packed(clothes())
BAD_CLOTHES = {
    "no bytes": (b"", "is empty"),
    "text": (b"<html>log in first</html>", "not a complete .npz archive"),
    "half": (WHOLE[: len(WHOLE) // 2], "not a complete .npz archive"),
    "a file of Keras": (keras_files(clothes())[NAMES[0]], "not a complete .npz archive"),
    "other keys": (packed(clothes(), x_train=None), "x_train"),
    "no labels": (packed(clothes(), y_test=None), "y_test"),
    "pickled labels": (packed(clothes(), y_test=np.array([None] * 20, dtype=object)), "allow_pickle=False"),
    "raw member": (with_member(WHOLE, "x_train.npy", b"not an array"), "not an array"),
    "member cut short": (with_member(WHOLE, "x_train.npy", saved(x)[:-100]), "cannot be read"),
    "float images": (packed(clothes(), x_train=x / 255), "type float64, not uint8"),
    "small images": (packed(clothes(), x_train=x[:, :14, :14]), "(40, 14, 14), not (n, 28, 28)"),
    "colour": (packed(emoji()), "(12, 32, 32, 3), not (n, 28, 28)"),
    "float labels": (packed(clothes(), y_train=y.astype("float32")), "not integers"),
    "one-hot labels": (packed(clothes(), y_train=np.eye(10, dtype="uint8")[y]), "(40, 10)"),
    "label 10": (packed(clothes(), y_train=y + np.uint8(1)), "from 1 to 10, not 0 to 9"),
    "fewer labels": (packed(clothes(), y_train=y[:-1]), "(39,) for 40 images"),
    "no images": (packed(clothes(), x_test=x[:0], y_test=y[:0]), "test split"),
}


@pytest.mark.parametrize("kind", BAD_CLOTHES)
@pytest.mark.parametrize("source", ["path", "environment"])
def test_damaged_clothes_are_an_error_that_helps(tmp_path, monkeypatch, no_network, kind, source):
    content, part = BAD_CLOTHES[kind]
    file = tmp_path / "given clothes.npz"
    file.write_bytes(content)
    monkeypatch.setenv(VARIABLE, str(file) if source == "environment" else str(FASHION_SAMPLE))
    with pytest.raises(ValueError) as caught:
        load_fashion_mnist() if source == "environment" else load_fashion_mnist(file)
    message = str(caught.value)
    assert str(file) in message and part in message and "expected an .npz with uint8 x_train" in message
    advice = message.rpartition("of shape (n,)")[2]
    assert (VARIABLE if source == "environment" else "`path`") in advice and "official pictures" in advice
    assert file.read_bytes() == content and list(tmp_path.iterdir()) == [file]


u, v, base = emoji()["x_train"], emoji()["y_train"], emoji()["base_train"]
DRAWN = packed(emoji())
BAD_EMOJI = {
    "no bytes": (b"", "is empty"),
    "text": (b"<html>log in first</html>", "not a complete .npz archive"),
    "half": (DRAWN[: len(DRAWN) // 2], "not a complete .npz archive"),
    "an archive of digits": (packed(clothes()), "base_train"),
    "no classes": (packed(emoji(), classes=None), "classes"),
    "pickled classes": (packed(emoji(), classes=np.array(["a", None], dtype=object)), "allow_pickle=False"),
    "classes as bytes": (packed(emoji(), classes=np.array([b"a", b"b", b"c"])), "classes of type |S1"),
    "a class": (packed(emoji(), classes=np.array("Flags")), "and shape ()"),
    "raw classes": (with_member(DRAWN, "classes.npy", b"Flags"), "classes of type"),
    "raw groups": (with_member(DRAWN, "base_train.npy", b"0123"), "base_train of type"),
    "raw images": (with_member(DRAWN, "x_train.npy", b"not an array"), "not an array"),
    "member cut short": (with_member(DRAWN, "x_train.npy", saved(u)[:-100]), "cannot be read"),
    "float images": (packed(emoji(), x_train=u / 255), "type float64, not uint8"),
    "grey": (packed(emoji(), x_train=u[..., 0]), "(12, 32, 32), not (n, 32, 32, 3)"),
    "transparency": (packed(emoji(), x_train=np.concatenate([u, u[..., :1]], -1)), "(12, 32, 32, 4)"),
    "channels first": (packed(emoji(), x_train=u.transpose(0, 3, 1, 2)), "(12, 3, 32, 32)"),
    "not square": (packed(emoji(64), x_train=emoji(64)["x_train"][:, :, :32]), "(12, 64, 32, 3), not (n, 64, 64, 3)"),
    "another size": (packed(emoji(16)), "(12, 16, 16, 3), not (n, 32, 32, 3)"),
    "two sizes": (packed(emoji(), x_test=emoji(64)["x_test"]), "(6, 64, 64, 3), not (n, 32, 32, 3)"),
    "a number": (packed(emoji(), x_train=np.uint8(3)), "()"),
    "float labels": (packed(emoji(), y_train=v.astype("float32")), "not integers"),
    "fewer labels": (packed(emoji(), y_test=v[:5]), "(5,) for 6 images"),
    "a label too many": (packed(emoji(), classes=np.array(["a", "b"])), "from 0 to 2, not 0 to 1"),
    "label -1": (packed(emoji(), y_train=v.astype("int8") - np.int8(1)), "from -1 to 1"),
    "float groups": (packed(emoji(), base_train=base / 2), "base_train of type float64"),
    "fewer groups": (packed(emoji(), base_train=base[:-1]), "base_train of type int16 and shape (11,)"),
    "flat groups": (packed(emoji(), base_train=base[:, None]), "shape (12, 1)"),
    "no images": (packed(emoji(), x_test=u[:0], y_test=v[:0]), "test split"),
}


@pytest.mark.parametrize("kind", BAD_EMOJI)
def test_damaged_emoji_are_an_error_that_helps(tmp_path, kind):
    content, part = BAD_EMOJI[kind]
    file = tmp_path / "given emoji.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_emoji(file)
    message = str(caught.value)
    assert str(file) in message and part in message and "expected an .npz as tools/make_emoji.py writes it" in message
    assert "`path`" in message.rpartition("names in classes")[2]
    assert file.read_bytes() == content and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("load", [load_fashion_mnist, load_emoji])
def test_missing_file_and_folder_do_not_fall_back(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="There is no .* archive at .*nowhere.npz. Correct `path`"):
        load(tmp_path / "nowhere.npz")
    for folder in (tmp_path, ""):  # nor is an empty path taken for none
        with pytest.raises(ValueError, match="is not a file"):
            load(folder)


def test_missing_file_in_the_environment_does_not_fall_back(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere.npz"))
    with pytest.raises(FileNotFoundError, match=f"nowhere.npz. Correct {VARIABLE}"):
        load_fashion_mnist()


def test_damaged_package_asks_for_a_new_one(tmp_path, monkeypatch, cache, no_network):
    (tmp_path / "emoji.npz").write_bytes(DRAWN[:500])
    monkeypatch.setattr(pictures, "EMOJI", tmp_path / "emoji.npz")
    monkeypatch.setattr(data, "SAMPLE", tmp_path / "mnist_sample.npz")
    with pytest.raises(ValueError, match="Reinstall vqvae-tutorial"):
        load_emoji()
    with pytest.raises(FileNotFoundError, match="fashion_mnist_sample.npz. Reinstall vqvae-tutorial"):
        load_fashion_mnist()


@pytest.mark.parametrize("load, good", [(load_fashion_mnist, WHOLE), (load_emoji, DRAWN)])
def test_flipped_bytes_and_cut_files_never_pass_unnoticed(tmp_path, load, good):
    file = tmp_path / "m.npz"
    file.write_bytes(good)
    reference, dice, noticed = load(file), random.Random(0), 0
    for _ in range(100):
        position = dice.randrange(len(good))
        file.write_bytes(good[:position] + bytes([good[position] ^ 1 << dice.randrange(8)]) + good[position + 1 :])
        try:
            found = load(file)
        except ValueError as error:
            noticed += str(file) in str(error)
        else:  # a date or an attribute of the zip archive, or an array that is not read
            for part in PARTS:
                np.testing.assert_array_equal(getattr(found, part).images, getattr(reference, part).images)
                np.testing.assert_array_equal(getattr(found, part).labels, getattr(reference, part).labels)
            assert found.class_names == reference.class_names and found.groups.tolist() == reference.groups.tolist()
    assert noticed > 80
    for length in dice.sample(range(len(good)), 40):
        file.write_bytes(good[:length])
        with pytest.raises(ValueError, match="m.npz"):
            load(file)


# Order of the sources


def test_path_comes_before_environment_before_cache(cache, tmp_path, monkeypatch, no_network):
    for name, count in (("path", 11), ("environment", 12)):
        (tmp_path / f"{name}.npz").write_bytes(packed(clothes(), x_train=x[:count], y_train=y[:count]))
    cache.mkdir(parents=True)
    for name, content in keras_files(clothes(13)).items():
        (cache / name).write_bytes(content)
    declare_official(monkeypatch, clothes(13))
    assert len(load_fashion_mnist().train.labels) == 13
    monkeypatch.setenv(VARIABLE, "")
    assert len(load_fashion_mnist().train.labels) == 13
    monkeypatch.setenv(VARIABLE, str(tmp_path / "environment.npz"))
    assert len(load_fashion_mnist().train.labels) == 12
    assert len(load_fashion_mnist(tmp_path / "path.npz").train.labels) == 11


def test_the_variable_of_the_digits_is_not_that_of_the_clothes(cache, tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("VQVAE_TUTORIAL_MNIST", str(tmp_path / "nowhere.npz"))
    assert_sample(cache)


def test_emoji_need_neither_network_nor_warning(no_network):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_emoji().train.labels) == 3410


def test_official_addresses_are_keras_own():
    from keras.datasets import fashion_mnist

    source = inspect.getsource(fashion_mnist.load_data)
    assert f'"{pictures._FASHION_URL}"' in source and '"fashion-mnist"' in source
    assert re.findall(r'"([\w-]+\.gz)"', source) == [NAMES[1], NAMES[0], NAMES[3], NAMES[2]]


# Downloads


def test_downloads_are_kept_and_used_again(cache, server, capsys):
    loaded, caught = load_with_warnings()
    for part in PARTS:
        np.testing.assert_allclose(getattr(loaded, part).images[..., 0], clothes()[f"x_{part}"] / 255, atol=1e-7)
        np.testing.assert_array_equal(getattr(loaded, part).labels, clothes()[f"y_{part}"])
    assert loaded.groups.tolist() == list(range(40))
    assert not caught and capsys.readouterr().out == ""  # no progress bar
    assert {file.name: file.read_bytes() for file in cache.iterdir()} == server.files
    load_fashion_mnist()
    assert server.requests == NAMES


def test_keras_reads_what_was_downloaded(cache, server, monkeypatch):
    from keras.datasets import fashion_mnist
    from keras.src.utils import file_utils

    load_fashion_mnist()
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(cache.parents[1]))
    (images, labels), _ = fashion_mnist.load_data()
    np.testing.assert_array_equal(images, x)
    np.testing.assert_array_equal(labels, y)
    assert server.requests == NAMES


@pytest.mark.parametrize("bad", NAMES)
@pytest.mark.parametrize("mode, reason", [("missing", "404"), ("cut", "incomplete|got only|retrieval")])
def test_failed_download_leaves_no_half_file(cache, server, mode, reason, bad):
    server.mode, server.bad = mode, bad
    assert re.search(reason, assert_sample(cache, kept=NAMES[: NAMES.index(bad)]))
    server.mode = "whole"
    assert len(load_fashion_mnist().train.labels) == 40  # and the next one is not hindered
    assert sorted(server.requests) == sorted([*NAMES, bad])  # nor is anything fetched twice


def compressed(array, head=16):
    return gzip.compress(bytes(head) + array.tobytes())


@pytest.mark.parametrize("content", [compressed(x[::-1]), compressed(x, 15), compressed(x)[:-9], compressed(x[:-1]), b"<html>", b"",
                                     x.tobytes(), gzip.compress(bytes(2**27))],
                         ids=["other order", "shifted", "cut", "one less", "text", "nothing", "not compressed", "a bomb"])
def test_wrong_content_is_neither_kept_nor_returned(cache, server, content):
    server.files[NAMES[0]] = content
    message = assert_sample(cache)
    assert content == b"" or "hash differs" in message


@pytest.mark.parametrize("bad", [NAMES[0], NAMES[3]])
def test_server_that_stalls_half_way(cache, server, monkeypatch, bad):
    monkeypatch.setattr(data, "_PATIENCE", 1)
    server.mode, server.bad = "stall", bad
    start = time.monotonic()
    assert "no answer" in assert_sample(cache, kept=NAMES[: NAMES.index(bad)])
    assert time.monotonic() - start < 5


def test_no_network_is_noticed_at_once(cache, no_network):
    start = time.monotonic()
    assert "no network here" in assert_sample(cache)
    assert time.monotonic() - start < 5


def test_leftovers_of_a_killed_process_are_not_picked_up(cache, no_network):
    (cache / ".train-images-killed").mkdir(parents=True)
    (cache / ".train-images-killed" / NAMES[0]).write_bytes(compressed(x))
    assert len(load_with_warnings()[0].train.labels) == 2100


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["cut", "other", "empty", "folder"])
def test_other_file_in_the_cache_is_named_and_kept(cache, server, name, change):
    cache.mkdir(parents=True)
    for each, content in server.files.items():
        (cache / each).write_bytes(content)
    file, other = cache / name, keras_files(clothes(7, 5))[name]
    if change == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"cut": server.files[name][:-12], "other": other, "empty": b""}[change])
    before = {each.name: each.is_file() and each.read_bytes() for each in cache.iterdir()}
    with pytest.raises(ValueError, match="not the official Fashion-MNIST file.*Delete it to download it again") as caught:
        load_fashion_mnist()
    assert str(file) in str(caught.value) and server.requests == []
    assert {each.name: each.is_file() and each.read_bytes() for each in cache.iterdir()} == before


def test_unwritable_cache_falls_back(tmp_path, monkeypatch, server):
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    loaded, caught = load_with_warnings()
    assert len(loaded.train.labels) == 2100 and len(caught) == 1 and server.requests == []


# The packaged archives


@pytest.mark.parametrize("path, limit", [(FASHION_SAMPLE, 1_100_000), (EMOJI, 3_300_000)])
def test_packaged_archives_are_plain_and_small(path, limit):
    assert path.stat().st_size <= limit
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_DEFLATED}  # no optional module
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_attribution_names_authors_and_licences():
    text = (EMOJI.parent / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    for part in ("fashion_mnist_sample.npz", "Xiao", "Rasul", "Vollgraf", "arXiv:1708.07747", "The MIT License (MIT)",
                 "Copyright (c) 2017 Zalando SE, https://tech.zalando.com", "210 training and 30 test pictures", "emoji.npz", "3,786",
                 "Noto Emoji", "2.048", "emoji-datasource-google 16.0.0", "Apache License 2.0", "Cal Henderson", "What was changed"):
        assert part in text


def test_sample_of_clothes_is_balanced_and_mixed():
    sample = load_fashion_mnist(FASHION_SAMPLE)
    assert np.bincount(sample.train.labels).tolist() == [210] * 10 and np.bincount(sample.test.labels).tolist() == [30] * 10
    for split in (sample.train, sample.test):
        assert len(np.unique(split.images, axis=0)) == len(split.images)
        assert len(set(split.labels[:100])) == 10  # not sorted by class
        assert split.images.mean() == pytest.approx(0.286, abs=0.01)
        assert split.images.var() == pytest.approx(0.1246, abs=0.004)


def make(name, folder):
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sample_of_clothes_is_drawn_from_the_full_set_only(tmp_path, monkeypatch):
    maker = make("make_sample", "book")
    monkeypatch.setattr(maker, "FOLDER", tmp_path)
    with pytest.raises(SystemExit, match="70,000"):
        maker.main(True, FASHION_SAMPLE)
    assert list(tmp_path.iterdir()) == []


def test_sample_of_clothes_is_made_the_same_way_every_time(tmp_path):
    maker, sample = make("make_sample", "book"), load_fashion_mnist(FASHION_SAMPLE)
    for name in ("one.npz", "two.npz"):
        maker.make_sample(sample, tmp_path / name, {"train": 30, "test": 20})
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    again = load_fashion_mnist(tmp_path / "one.npz")
    for part, each in (("train", 30), ("test", 20)):
        rows = maker.choose(getattr(sample, part).labels, each)
        np.testing.assert_array_equal(getattr(again, part).images, getattr(sample, part).images[rows])


def full_clothes():
    full = os.environ.get(VARIABLE)
    loaded = load_fashion_mnist(full) if full else None
    if loaded is None or len(loaded.train.labels) != 60_000:
        pytest.skip(f"{VARIABLE} does not name the full Fashion-MNIST")
    return loaded


def test_sample_of_clothes_comes_from_the_full_set():
    full, sample, maker = full_clothes(), load_fashion_mnist(FASHION_SAMPLE), make("make_sample", "book")
    for part, each in maker.FASHION_SIZES.items():
        rows = maker.choose(getattr(full, part).labels, each)
        np.testing.assert_array_equal(getattr(sample, part).images, getattr(full, part).images[rows])
        np.testing.assert_array_equal(getattr(sample, part).labels, getattr(full, part).labels[rows])


def test_hashes_are_those_of_the_full_set():
    full = full_clothes()
    for part in PARTS:
        images, labels = getattr(full, part)
        for key, array in ((f"x_{part}", np.rint(255 * images)), (f"y_{part}", labels)):
            assert hashlib.sha256(array.astype("uint8").tobytes()).hexdigest() == pictures._FASHION[key][1]


@pytest.fixture(scope="module")
def shipped():
    return load_emoji()


def test_shipped_emoji(shipped):
    assert shipped.train.images.shape == (3410, 32, 32, 3) and shipped.test.images.shape == (376, 32, 32, 3)
    assert shipped.class_names == ["Activities", "Animals & Nature", "Component", "Flags", "Food & Drink", "Objects",
                                   "People & Body", "Smileys & Emotion", "Symbols", "Travel & Places"]
    assert np.bincount(shipped.train.labels).tolist() == [75, 144, 5, 238, 115, 237, 2053, 150, 203, 190]
    assert np.bincount(shipped.test.labels, minlength=10).tolist() == [10, 15, 0, 32, 16, 27, 208, 19, 21, 28]
    values = np.concatenate([shipped.train.images.ravel(), shipped.test.images.ravel()])
    assert values.min() == 0 and values.max() == 1 and values.var() == pytest.approx(0.093, abs=0.001)
    assert (shipped.train.images[:, 0, 0] == 1).all(axis=-1).mean() > 0.95  # corners are white


def test_skin_tones_share_a_group_and_a_side(shipped):
    with np.load(EMOJI, allow_pickle=False) as archive:
        train, test = archive["base_train"], archive["base_test"]
        assert archive["y_train"].dtype == np.uint8 and sorted(archive.files) == sorted([*emoji()])
    assert shipped.groups.tolist() == train.tolist() and len(test) == len(shipped.test.labels)
    assert not set(train) & set(test)
    for groups, labels in ((train, shipped.train.labels), (test, shipped.test.labels)):
        assert (np.diff(groups) >= 0).all()  # in the order of the list
        sizes = np.bincount(groups)
        assert set(sizes[sizes > 0]) <= {1, 6, 26, 25}  # without and with five skin tones; couples have pairs of them
        for group in set(groups[sizes[groups] > 1]):
            assert len(set(labels[groups == group])) == 1
    assert len(set(train)) == 1705 and len(set(test)) == 206


def test_a_group_looks_alike(shipped):
    """Two skin tones of one emoji are nearer than two emoji of People & Body."""
    people = shipped.train.labels == 6
    images, groups = shipped.train.images[people], shipped.groups[people]
    same = groups[1:] == groups[:-1]
    steps = np.square(images[1:] - images[:-1]).mean(axis=(1, 2, 3))
    assert np.median(steps[same]) < np.median(steps[~same]) / 3


# The tool that makes archives of emoji


def png(colour, size=64):
    buffer = io.BytesIO()
    Image.new("RGBA", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def small_package(count=70):
    """A package with a few emoji in plain colours, every third with two skin tones, and one without a picture."""
    entries, files = [], {"package/README.md": b"not needed"}
    for number in range(count):
        code = f"1F{number:03X}"
        entry = {"unified": code, "image": f"{code}.png", "category": ["Symbols", "Flags"][number % 2], "has_img_google": number != 4}
        if number % 3 == 0:
            entry["skin_variations"] = {tone: {"unified": f"{code}-{tone}", "image": f"{code}-{tone}.png", "has_img_google": True}
                                        for tone in ("1F3FB", "1F3FF")}
        entries.append(entry)
        for variant in (entry, *entry.get("skin_variations", {}).values()):
            if variant["has_img_google"]:
                files["package/img/google/64/" + variant["image"]] = png((number, 100, len(variant["image"]), 255))
    files["package/emoji.json"] = json.dumps(entries).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def tool(monkeypatch):
    """The tool, for which the small package is the one that was published."""
    loaded, package = make("make_emoji", "tools"), small_package()
    monkeypatch.setattr(loaded, "SHA512", loaded.base64.b64encode(hashlib.sha512(package).digest()).decode())
    loaded.package = package
    return loaded


def run(tool, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["make_emoji.py", *map(str, arguments)])
    tool.main()


@pytest.mark.parametrize("size", [32, 64])
def test_what_the_tool_writes_is_read_and_is_the_same_every_time(tool, tmp_path, monkeypatch, size, capsys):
    (tmp_path / "package.tgz").write_bytes(tool.package)
    for name in ("one.npz", "two.npz"):
        run(tool, monkeypatch, tmp_path / name, "--size", size, "--package", tmp_path / "package.tgz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.npz", "package.tgz", "two.npz"]
    loaded = load_emoji(tmp_path / "one.npz")
    assert loaded.train.images.shape[1:] == (size, size, 3) and loaded.class_names == ["Flags", "Symbols"]
    assert len(loaded.train.labels) + len(loaded.test.labels) == 70 + 2 * 24 - 1
    assert f"{len(loaded.train.labels)} + {len(loaded.test.labels)} pictures" in capsys.readouterr().out
    numbers = np.rint(255 * loaded.train.images[:, 0, 0, 0]).astype(int)  # the picture's red says whose it is
    assert loaded.groups.tolist() == numbers.tolist() and 4 not in numbers
    assert loaded.train.labels.tolist() == [1 - number % 2 for number in numbers]


def test_the_tool_splits_by_emoji_a_tenth_for_testing(tool):
    made = tool.make(tool.unpack(tool.package), 32)
    assert len(made["base_test"]) and not set(made["base_train"]) & set(made["base_test"])
    for part in PARTS:
        for number in set(made[f"base_{part}"]):
            assert (made[f"base_{part}"] == number).sum() == (3 if number % 3 == 0 else 1)
    tested = [tool.is_test({"unified": f"{number:X}"}) for number in range(5000)]
    assert 0.08 < np.mean(tested) < 0.12


def test_the_tool_lays_pictures_on_white_and_takes_means(tool):
    assert (tool.draw(png((9, 9, 9, 0)), 32) == 255).all()
    half = tool.draw(png((255, 0, 0, 128)), 64)
    assert half[0, 0].tolist() == [255, 127, 127] and half.shape == (64, 64, 3)
    fine = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(fine).save(buffer, "PNG")
    means = fine.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert abs(tool.draw(buffer.getvalue(), 32) - means).max() <= 1 and (tool.draw(buffer.getvalue(), 64) == fine).all()


def test_another_package_is_refused(tool, tmp_path, monkeypatch):
    (tmp_path / "package.tgz").write_bytes(small_package(69))
    with pytest.raises(SystemExit, match="not emoji-datasource-google 16.0.0 as published"):
        run(tool, monkeypatch, tmp_path / "e.npz", "--package", tmp_path / "package.tgz")
    assert [file.name for file in tmp_path.iterdir()] == ["package.tgz"]


@pytest.mark.parametrize("arguments", [(), ("{}",), ("{}/nowhere/e.npz",), ("{}/e.npz", "--size", "48"),
                                       ("{}/e.npz", "--package", "{}/no.tgz")])
def test_wrong_arguments_are_refused_before_the_download(tool, tmp_path, monkeypatch, no_network, arguments):
    monkeypatch.setattr(tool, "fetch", None)
    with pytest.raises(SystemExit) as caught:
        run(tool, monkeypatch, *(argument.format(tmp_path) for argument in arguments))
    assert caught.value.code == 2 and list(tmp_path.iterdir()) == []


def test_the_registry_is_the_public_one_or_the_one_given(tool, tmp_path, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(tool.package)

    monkeypatch.delenv("npm_config_registry", raising=False)
    assert make("make_emoji", "tools").REGISTRY == "https://registry.npmjs.org"
    monkeypatch.setenv("npm_config_registry", "http://mirror.invalid/npm/")
    assert make("make_emoji", "tools").REGISTRY == "http://mirror.invalid/npm/"
    monkeypatch.setattr(tool, "urlopen", urlopen)
    run(tool, monkeypatch, tmp_path / "e.npz", "--registry", "http://mirror.invalid/npm/")
    assert asked == ["http://mirror.invalid/npm/emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz"]
    assert len(load_emoji(tmp_path / "e.npz").test.labels)


def test_without_a_network_nothing_is_written(tool, tmp_path, monkeypatch, no_network):
    with pytest.raises(SystemExit, match="could not be downloaded.*--registry or --package"):
        run(tool, monkeypatch, tmp_path / "e.npz", "--registry", "http://mirror.invalid")
    assert list(tmp_path.iterdir()) == []


# Batches of one example per group

def seen(batches):
    return [batches[number][0] for number in range(len(batches))]


def test_an_epoch_has_one_example_of_each_group_and_epochs_differ():
    groups = np.repeat([7, 2, 40, 3], [5, 1, 9, 2])
    batches = OnePerGroup(np.arange(17), groups, batch_size=3, seed=1)
    epochs = []
    for _ in range(60):
        rows = np.concatenate(seen(batches))
        assert sorted(groups[rows]) == [2, 3, 7, 40]
        epochs.append(rows.tolist())
        batches.on_epoch_end()
    assert set(np.concatenate(epochs)) == set(range(17)), "each example gets its turn"
    assert len({tuple(groups[rows]) for rows in epochs}) > 12, "and so does each order of the groups"


def test_batches_hold_matching_parts_and_the_last_is_smaller():
    data = {"codes": np.arange(20).reshape(10, 2), "label": np.arange(10)}
    batches = OnePerGroup(data, np.arange(10), batch_size=4)
    sizes = []
    for batch in seen(batches):
        np.testing.assert_array_equal(batch["codes"][:, 0], 2 * batch["label"])
        sizes.append(len(batch["label"]))
    assert sizes == [4, 4, 2] and len(batches) == 3


def test_a_seed_repeats_the_choices_and_another_does_not():
    def drawn(seed):
        batches = OnePerGroup(np.arange(60), np.arange(60) // 6, seed=seed)
        first = np.concatenate(seen(batches)).tolist()
        batches.on_epoch_end()
        return first, np.concatenate(seen(batches)).tolist()

    assert drawn(3) == drawn(3) != drawn(4)


def test_keras_trains_on_such_batches_and_asks_for_a_new_choice_each_epoch():
    class Remember(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.epochs = []

        def on_epoch_begin(self, epoch, logs=None):
            self.epochs.append(tuple(batches.chosen))

    model = VQVAE(*build_networks((8, 8, 3), 4, filters=4), VectorQuantizerEMA(4, seed=0))
    batches, remember = OnePerGroup(np.random.default_rng(0).random((40, 8, 8, 3), "float32"), np.arange(40) // 4, 5), Remember()
    model.compile("adam")
    model.fit(batches, epochs=3, verbose=0, callbacks=[remember])
    assert len(set(remember.epochs)) == 3 and len(remember.epochs[0]) == 10


@pytest.mark.parametrize("groups", [np.arange(5), np.zeros(6), np.zeros((6, 1), int), "abc", None], ids=str)
def test_groups_that_do_not_fit_are_refused(groups):
    with pytest.raises(ValueError, match=r"`groups` must be integers, one for each of the 6 examples.*Received.*load_emoji"):
        OnePerGroup(np.zeros((6, 2)), groups)


def test_parts_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"`groups` must be integers, one for each of the 5, 6 examples"):
        OnePerGroup({"codes": np.zeros((6, 2)), "label": np.zeros(5)}, np.arange(6))


@pytest.mark.parametrize("size", [0, -1, 2.5, None])
def test_batches_of_no_size_are_refused(size):
    with pytest.raises(ValueError, match=r"`batch_size` must be a whole number of at least 1.*Received"):
        OnePerGroup(np.zeros((6, 2)), np.arange(6), batch_size=size)
