"""The codebook's tools beyond what chapter 4 shows: properties and bad input."""
import itertools

import numpy as np
import pytest
from keras import ops

from vqvae_tutorial import VQVAE, VectorQuantizerEMA, build_networks, load_mnist
from vqvae_tutorial.codebook import (
    change_colors,
    class_frequencies,
    code_atlas,
    order_codes,
    position_frequencies,
    project,
)
from vqvae_tutorial.quantization import code_frequencies


@pytest.fixture(scope="module")
def images():
    return load_mnist().train.images[:64]


@pytest.fixture(scope="module")
def model(images):
    model = tiny()
    model.adapt(images)
    kernel, bias = model.decoder.weights[-2:]
    kernel.assign(50 * kernel)  # untrained, but each code draws something
    bias.assign(bias + 0.5)
    return model


@pytest.fixture
def codes():
    return np.random.default_rng(0).integers(0, 11, size=(30, 3, 5))


def tiny(shape=(28, 28, 1), num_codes=16):
    parts = build_networks(shape, embedding_dim=4, filters=8, residual_blocks=1)
    return VQVAE(*parts, VectorQuantizerEMA(num_codes, seed=0), value_range=(0, 1))


# Counting


def test_counts_agree_with_loops_on_grids_that_are_not_square(codes):
    labels = np.arange(30) % 4
    where, which = position_frequencies(codes, 12), class_frequencies(codes, labels, 12, num_classes=5)
    for row, column, code in itertools.product(range(3), range(5), range(12)):
        assert where[row, column, code] == pytest.approx(np.mean(codes[:, row, column] == code))
    for label, code in itertools.product(range(4), range(12)):
        assert which[label, code] == pytest.approx(np.mean(codes[labels == label] == code))
    assert where.dtype == which.dtype == "float32" and (which[4] == 0).all(), "a class without images has no shares, and no NaN"


def test_counts_add_up(codes):
    labels = np.arange(30) % 3  # as many of each
    expected = code_frequencies(codes, 11)
    np.testing.assert_allclose(position_frequencies(codes, 11).mean(axis=(0, 1)), expected, rtol=1e-5)
    np.testing.assert_allclose(class_frequencies(codes, labels, 11, 3).mean(axis=0), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["uint8", "int64", "tensor"])
def test_small_integers_do_not_overflow(kind):
    codes = np.full((2, 7, 7), 127)
    codes = ops.convert_to_tensor(codes.astype("int32")) if kind == "tensor" else codes.astype(kind)
    assert position_frequencies(codes, 128)[6, 6, 127] == 1
    assert class_frequencies(codes, np.array([9, 9], "uint8"), 128)[9, 127] == 1


@pytest.mark.parametrize("wrong, part", [
    (lambda codes: position_frequencies(codes, 10),
     "`codes` must be integers from 0 to 9 of shape (n, any, any). Received: int64 from 0 to 10"),
    (lambda codes: position_frequencies(codes - 1, 12), "Received: int64 from -1"),
    (lambda codes: position_frequencies(codes[0], 12), "shape (3, 5)"),
    (lambda codes: position_frequencies(codes[:0], 12), "at least one map"),
    (lambda codes: position_frequencies(codes / 2, 12), "Received: float64 of shape (30, 3, 5)"),
    (lambda codes: position_frequencies(codes, 0), "`num_codes` must be a whole number of at least 1"),
    (lambda codes: class_frequencies(codes, np.zeros(29, int), 12), "of shape (30,). Received: int64 of shape (29,)"),
    (lambda codes: class_frequencies(codes, np.zeros(30), 12), "Received: float64 of shape (30,)"),
    (lambda codes: class_frequencies(codes, np.full(30, 10), 12),
     "`labels` must be integers from 0 to 9 of shape (30,). Received: int64 of shape (30,), from 10 to 10"),
    (lambda codes: class_frequencies(codes, np.full(30, -1), 12), "from -1 to -1"),
])
def test_what_cannot_be_counted_is_refused(codes, wrong, part):
    with pytest.raises(ValueError) as caught:
        wrong(codes)
    assert part in str(caught.value)


# Order and projection


def test_projection_agrees_with_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    codebook = np.random.default_rng(1).normal(size=(40, 6)) @ np.diag([5, 4, 3, 2, 1, 0.5]) + 7
    expected = decomposition.PCA(3).fit_transform(codebook)
    np.testing.assert_allclose(np.abs(project(codebook, 3)), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(project(codebook, 3), project(codebook + 100, 3), atol=1e-4)


def test_projection_of_codes_that_are_all_alike():
    assert np.isfinite(project(np.ones((5, 3)))).all()


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_order_is_a_permutation_and_repeatable(count):
    codebook = np.random.default_rng(count).normal(size=(count, 4))
    order = order_codes(codebook)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == order_codes(ops.convert_to_tensor(codebook.astype("float32"))).tolist()


def test_order_survives_codes_that_are_equal():
    assert sorted(order_codes(np.zeros((6, 2)))) == list(range(6))


def test_order_finds_a_curve_and_no_reversal_shortens_it():
    turn = np.linspace(0, 1.5 * np.pi, 40)
    names = np.random.default_rng(0).permutation(40)
    place = np.argsort(names)[order_codes(np.stack([np.cos(turn), np.sin(turn)], axis=1)[names].copy())]
    order = names[order_codes(np.stack([np.cos(turn), np.sin(turn)], axis=1)[names])]
    assert len(place) == 40 and order.tolist() in (list(range(40)), list(range(39, -1, -1)))

    codebook = np.random.default_rng(0).normal(size=(25, 3))
    length = lambda by: np.linalg.norm(np.diff(codebook[by], axis=0), axis=1).sum()
    order = order_codes(codebook)
    for first, last in itertools.combinations(range(1, 25), 2):
        turned = order.copy()
        turned[first:last] = turned[first:last][::-1]
        assert length(turned) >= length(order) - 1e-6


@pytest.mark.parametrize("wrong, part", [
    (lambda: project(np.zeros(5)), "`codebook` must be finite numbers of shape (K, D). Received: float64 of shape (5,)"),
    (lambda: project(np.full((4, 2), np.nan)), "8 of them not finite"),
    (lambda: project(np.zeros((4, 3)), 4), "`dimensions` must be 1 to 3"),
    (lambda: project(np.zeros((4, 3)), 0), "`dimensions` must be a whole number of at least 1"),
    (lambda: order_codes(np.zeros((0, 3))), "of shape (0, 3)"),
    (lambda: order_codes(np.array([[np.inf]])), "1 of them not finite"),
])
def test_what_has_no_order_is_refused(wrong, part):
    with pytest.raises(ValueError) as caught:
        wrong()
    assert part in str(caught.value)


def test_changes_have_a_sign():
    change = np.linspace(-1, 1, 6).reshape(1, 2, 3)
    painted = change_colors(change)
    assert painted.shape == (1, 2, 3, 3) and painted.min() >= 0 and painted.max() <= 1
    np.testing.assert_array_equal(painted, change_colors(change[..., None]))
    assert (change_colors(np.zeros((28, 28))) == 0).all() and change_colors(np.zeros((28, 28, 1))).shape == (28, 28, 3)
    np.testing.assert_array_equal(change_colors(np.array([[5.0, -5.0]])), change_colors(np.array([[1.0, -1.0]])))


# The atlas


def test_atlas_is_what_one_sees_at_the_place(model, images):
    codes = model.encode(images[:8])
    atlas = code_atlas(model, codes, margin=2, places=10_000)
    blank = np.bincount(codes.ravel()).argmax()
    assert atlas.blank == blank and atlas.counts.tolist() == np.bincount(codes.ravel(), minlength=16).tolist()
    drawn = np.pad(model.decode(codes)[..., 0], ((0, 0), (2, 2), (2, 2)))
    for code in range(16):
        places = np.argwhere(codes == code)
        if len(places):
            mean = np.mean([drawn[n, 4 * i : 4 * i + 8, 4 * j : 4 * j + 8] for n, i, j in places], axis=0)
            np.testing.assert_allclose(atlas.context[code, ..., 0], mean, atol=1e-5)
        one = np.full((1, 7, 7), blank)
        one[0, 3, 3] = code
        np.testing.assert_allclose(atlas.alone[code, ..., 0], model.decode(one)[0, 10:18, 10:18, 0], atol=1e-5)
    assert (atlas.effect[blank] == 0).all()


def test_effect_is_the_change_by_blank(model, images):
    codes = model.encode(images[:1])
    code, blank = codes[0, 2, 5], (codes[0, 2, 5] + 1) % 16
    codes[codes == code] = blank
    codes[0, 2, 5] = code
    without = codes.copy()
    without[0, 2, 5] = blank
    atlas = code_atlas(model, codes, blank=blank, margin=0)
    expected = (model.decode(codes) - model.decode(without))[0, 8:12, 20:24]
    np.testing.assert_allclose(atlas.effect[code], expected, atol=1e-5)
    assert atlas.counts[code] == 1


def test_atlas_of_codes_that_nobody_uses_is_black_and_repeatable(model):
    codes = np.zeros((1, 7, 7), "int32")
    atlas = code_atlas(model, codes)
    assert (atlas.counts[1:] == 0).all() and (atlas.context[1:] == 0).all() and (atlas.effect == 0).all()
    codes = np.random.default_rng(0).integers(0, 16, size=(20, 7, 7))
    once, twice = (code_atlas(model, codes, places=3, seed=5) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(once, twice)) and (once.counts == 3).all()


def test_atlas_of_another_grid_and_of_colour():
    model = tiny((16, 24, 3), 8)
    codes = np.random.default_rng(0).integers(0, 8, size=(5, 4, 6))
    assert code_atlas(model, codes, places=2).effect.shape == (8, 12, 12, 3)


@pytest.mark.parametrize("wrong, part", [
    (lambda model: code_atlas(model, np.full((1, 7, 7), 16)),
     "`codes` must be integers from 0 to 15 of shape (n, 7, 7). Received: int64 from 16 to 16"),
    (lambda model: code_atlas(model, np.zeros((1, 6, 7), int)), "Received: int64 of shape (1, 6, 7)"),
    (lambda model: code_atlas(model, np.zeros((1, 7, 7), int), blank=16), "`blank` must be one of the codes, 0 to 15. Received: 16"),
    (lambda model: code_atlas(model, np.zeros((1, 7, 7), int), margin=-1), "`margin` must be a whole number of at least 0"),
    (lambda model: code_atlas(model, np.zeros((1, 7, 7), int), places=0), "`places` must be a whole number of at least 1"),
])
def test_an_atlas_of_nonsense_is_refused(model, wrong, part):
    with pytest.raises(ValueError) as caught:
        wrong(model)
    assert part in str(caught.value)
