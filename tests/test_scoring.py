"""The judge and its scores beyond what the appendix shows: a reference, properties, and bad input."""
import keras
import numpy as np
import pytest
from scipy.linalg import sqrtm

from vqvae_tutorial import load_mnist
from vqvae_tutorial.scoring import build_classifier, class_accuracy, features, frechet_distance, load_judge


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def test():
    return load_mnist().test


@pytest.fixture
def random():
    return np.random.default_rng(0)


def cloud(random, rows, columns):
    return random.normal(size=(rows, columns)) @ random.normal(size=(columns, columns)) + random.normal(size=columns)


def by_scipy(a, b):
    """The formula as it stands, with a general matrix root."""
    one, other = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(one + other - 2 * sqrtm(one @ other).real)


@pytest.mark.parametrize("columns", [1, 2, 5, 12])
def test_distance_agrees_with_scipy(random, columns):
    for rows in (columns + 2, 50):
        a, b = cloud(random, rows, columns), cloud(random, rows + 7, columns)
        assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6)


def test_distance_is_symmetric_never_negative_and_does_not_depend_on_axes(random):
    a, b = cloud(random, 40, 6), cloud(random, 60, 6)
    turn = np.linalg.qr(random.normal(size=(6, 6)))[0]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * frechet_distance(a, b))
    assert frechet_distance(random.permutation(a), b) == pytest.approx(frechet_distance(a, b))
    for scale in (1e-6, 1, 1e6):
        assert 0 <= frechet_distance(scale * a, scale * a) <= 1e-6 * scale**2


def test_features_that_never_vary_are_no_trouble(random):
    a = np.concatenate([cloud(random, 100, 3), np.zeros((100, 2))], axis=1)
    b = a + [0, 0, 0, 0, 2]
    assert frechet_distance(a, b) == pytest.approx(4, rel=1e-5)
    assert frechet_distance(np.zeros((9, 2)), np.ones((9, 2))) == pytest.approx(2)


def test_distance_takes_float32_and_leaves_it_alone(random):
    a, b = (cloud(random, 30, 4).astype("float32") for _ in range(2))
    before = a.copy()
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a.astype("float64"), b.astype("float64")), rel=1e-5)
    np.testing.assert_array_equal(a, before)


def test_few_rows_are_warned_of(random):
    with pytest.warns(UserWarning, match="too few"):
        frechet_distance(random.normal(size=(5, 8)), random.normal(size=(50, 8)))


@pytest.mark.parametrize("a, b, message", [
    (np.zeros((1, 3)), np.zeros((5, 3)), r"`a` must be features .* Received: shape \(1, 3\)"),
    (np.zeros((5, 3)), np.zeros(3), r"`b` must be features .* Received: shape \(3,\)"),
    (np.zeros((5, 0)), np.zeros((5, 0)), "`a` must be features"),
    (np.zeros((5, 3)), np.zeros((5, 4)), "`b` must be of 3 features, as `a`. Received: 4"),
    (np.zeros((5, 2, 2)), np.zeros((5, 4)), "`a` must be features"),
    (np.full((5, 3), np.nan), np.zeros((5, 3)), "`a` must be finite. Received: 15 of 15 numbers"),
    (np.zeros((5, 3)), np.full((5, 3), np.inf), "`b` must be finite"),
])
def test_distance_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_the_judge_that_ships_reads_digits(judge, test):
    assert class_accuracy(judge, test.images, test.labels) >= 0.99
    assert judge.count_params() <= 150_000


def test_features_come_before_the_decision(judge, test):
    seen = features(judge, test.images[:20])
    assert seen.shape == (20, 64) and seen.dtype == np.float32
    logits = judge.get_layer("logits")(seen)
    expected = judge(test.images[:20])
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (logits, expected)), atol=1e-4)


def test_features_do_not_depend_on_the_batch(judge, test):
    images = test.images[:501]  # one more than goes through at once
    np.testing.assert_allclose(features(judge, images)[-1:], features(judge, images[-1:]), atol=1e-4)


def test_reading_does_not_train(judge, test):
    before = judge.get_weights()
    class_accuracy(judge, test.images[:50], test.labels[:50])
    features(judge, test.images[:50])
    for was, now in zip(before, judge.get_weights()):
        np.testing.assert_array_equal(was, now)


def test_a_new_judge_can_be_trained_and_kept(test, tmp_path):
    keras.utils.set_random_seed(0)
    judge = build_classifier()
    judge.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    judge.fit(test.images[:512], test.labels[:512], batch_size=32, epochs=2, verbose=0)
    judge.save(tmp_path / "judge.keras")
    again = keras.saving.load_model(tmp_path / "judge.keras")
    np.testing.assert_array_equal(features(judge, test.images[:9]), features(again, test.images[:9]))
    assert class_accuracy(again, test.images[512:], test.labels[512:]) > 0.3


@pytest.mark.parametrize("bad, message", [
    (np.zeros((2, 28, 28)), "shape"), (np.zeros((0, 28, 28, 1)), "at least one"),
    (np.full((2, 28, 28, 1), 255), "from 255 to 255. Divide by 255"),
    (np.full((2, 28, 28, 1), np.nan), "NaN"), (np.full((2, 28, 28, 1), "x"), "<U1"), (np.zeros(()), "shape"),
])
def test_bad_images_are_refused(judge, bad, message):
    with pytest.raises(ValueError, match=message):
        features(judge, bad)
    with pytest.raises(ValueError, match=message):
        class_accuracy(judge, bad, [0, 0])


@pytest.mark.parametrize("labels, message", [
    ([1, 2, 3], r"shape \(3,\)"), ([0.5, 1.0], "float64"),
    ([0, 10], "`labels` must be from 0 to 9. Received: 0 to 10"), ([-1, 0], "-1"), ([[1], [2]], "shape"),
])
def test_bad_labels_are_refused(judge, labels, message):
    with pytest.raises(ValueError, match=message):
        class_accuracy(judge, np.zeros((2, 28, 28, 1)), labels)


def test_channels_first_is_a_setting_for_others():
    images = np.random.default_rng(0).uniform(size=(5, 28, 28, 1)).astype("float32")
    right, before = features(load_judge(), images), keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        np.testing.assert_array_equal(features(load_judge(), images), right)
    finally:
        keras.config.set_image_data_format(before)
