"""What chapter 6 cannot show: odd shapes, probabilities that add up, files, and input that does not fit."""

import keras
import numpy as np
import pytest

from vqvae_tutorial import load_pretrained
from vqvae_tutorial.pixelcnn import GatedLayer, MaskedConv2D, PixelCNN, build_ungated_pixelcnn
from vqvae_tutorial.priors import Prior, Sampler, check_pair

values = keras.ops.convert_to_numpy


def shaken(model, seed=0):
    """The model with weights large enough that nothing is hidden by being nearly zero."""
    random = np.random.default_rng(seed)
    model.set_weights([w + random.normal(0, 0.3, w.shape).astype(w.dtype) if w.dtype.kind == "f" else w for w in model.get_weights()])
    return model


def draw(shape, limit, count, seed=0):
    return np.random.default_rng(seed).integers(limit, size=(count, *shape)).astype("int32")


def moved_by_each(network, codes):
    """For each place: which positions' outputs change when its code changes."""
    before = values(network(codes))
    for place in range(codes[0].size):
        other = codes.copy()
        other.reshape(len(codes), -1)[:, place] = (other.reshape(len(codes), -1)[:, place] + 1) % 5
        yield place, (np.abs(values(network(other)) - before) > 0).any(axis=(0, 3)).ravel()


SHAPES = [((5, 7), 3, 6), ((7, 5), 3, 6), ((1, 6), 3, 6), ((6, 1), 3, 5), ((4, 4), 5, 3), ((1, 1), 3, 1)]


@pytest.mark.parametrize("shape, kernel_size, layers", SHAPES)
def test_sees_all_that_came_before_and_nothing_else(shape, kernel_size, layers):
    prior = shaken(PixelCNN(5, shape, filters=8, num_layers=layers, kernel_size=kernel_size))
    codes = draw(shape, 5, 40)  # in some of which the change is not lost where a tanh is saturated
    for place, moved in moved_by_each(prior, codes):
        assert not moved[: place + 1].any()
        assert moved[place + 1 :].all()


def test_ungated_never_looks_ahead_but_has_a_blind_spot():
    network = shaken(build_ungated_pixelcnn(5, (7, 7), filters=8))
    codes, seen = draw((7, 7), 5, 8), 0
    for place, moved in moved_by_each(network, codes):
        assert not moved[: place + 1].any()
        seen += moved.sum()
    assert 0 < seen < 49 * 48 // 2


def test_channels_first_is_a_setting_for_others():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        network = build_ungated_pixelcnn(5, (4, 6), filters=8)
        assert network(draw((4, 6), 5, 2)).shape == (2, 4, 6, 5)
    finally:
        keras.config.set_image_data_format(before)


@pytest.mark.parametrize("mask, kernel_size", [("A", 1), ("A", 3), ("B", 3), ("B", 5), ("A", 7)])
def test_masked_convolution_is_a_convolution_with_zeros(mask, kernel_size):
    layer = MaskedConv2D(3, kernel_size, mask, activation="relu")
    images = np.random.default_rng(0).normal(size=(2, 6, 5, 2)).astype("float32")
    given = values(layer(images))
    whole = np.zeros((kernel_size, kernel_size, 2, 3), "float32")
    reach = kernel_size // 2
    whole[: reach + 1] = layer.get_weights()[0]
    whole[reach, reach + (mask == "B") :] = 0
    expected = np.maximum(values(keras.ops.conv(images, whole, padding="same")) + layer.get_weights()[1], 0)
    np.testing.assert_allclose(given, expected, atol=1e-5)
    assert layer.compute_output_shape((None, 6, 5, 2)) == (None, 6, 5, 3)


def test_layers_come_back_from_their_config():
    for layer in (MaskedConv2D(3, 5, "A", activation="relu"), GatedLayer(4, kernel_size=5, dropout=0.1, seed=1)):
        again = type(layer).from_config(layer.get_config())
        assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("shape, kernel_size, layers", SHAPES)
@pytest.mark.parametrize("classes", [None, 4])
def test_cached_sampler_is_exact(shape, kernel_size, layers, classes):
    prior = shaken(PixelCNN(6, shape, classes, filters=5, num_layers=layers, kernel_size=kernel_size))
    noise = np.random.default_rng(1).gumbel(size=(5, *shape, 6)).astype("float32")
    labels = np.arange(5, dtype="int32") % 4 if classes else None
    codes, logits = Sampler(prior, keep_logits=True).predict_on_batch({"noise": noise} | ({"label": labels} if classes else {}))
    whole = values(prior({"codes": codes, "label": labels} if classes else codes))
    # Place by place, as each sees only those before it: what a loop over the whole network draws, and nothing else, is its own argmax.
    np.testing.assert_array_equal(codes, np.argmax(whole + noise, axis=-1))
    np.testing.assert_array_equal(prior.sample_with_noise(noise, labels), codes)
    np.testing.assert_allclose(logits, whole, atol=1e-4)


def test_sampling_is_repeatable_and_batches_do_not_matter():
    prior = shaken(PixelCNN(6, (3, 4), 4, filters=4, num_layers=3))
    first = prior.sample(11, seed=7)
    np.testing.assert_array_equal(first, prior.sample(11, seed=7, batch_size=3))
    assert (first != prior.sample(11, seed=8)).any()
    assert first.dtype == np.int32 and first.shape == (11, 3, 4)
    assert prior.sample(1, label=3, seed=0).shape == (1, 3, 4)


def test_low_temperature_takes_the_most_probable_code():
    prior = shaken(PixelCNN(6, (3, 4), filters=4, num_layers=3))
    greedy = prior.sample_with_noise(np.zeros((1, 3, 4, 6), "float32"))
    np.testing.assert_array_equal(prior.sample(4, temperature=1e-6, seed=0), np.repeat(greedy, 4, axis=0))


def test_completion_keeps_the_start():
    prior = shaken(PixelCNN(6, (5, 4), 3, filters=4, num_layers=3))
    start = np.full((5, 4), -1)
    start[:2] = draw((2, 4), 6, 1)[0]
    drawn = prior.sample(6, start=start, seed=0)
    assert (drawn[:, :2] == start[:2]).all() and (drawn[:, 2:] != drawn[0, 2:]).any()
    own = draw((5, 4), 6, 6)
    np.testing.assert_array_equal(prior.sample(6, start=own, seed=0), own)
    np.testing.assert_array_equal(prior.sample(2, start=np.full((5, 4), -1), seed=0), prior.sample(2, seed=0))


@pytest.mark.parametrize("classes", [None, 3])
def test_file_round_trip(tmp_path, classes):
    prior = shaken(PixelCNN(6, (3, 4), classes, filters=4, num_layers=2, kernel_size=5, dropout=0.2, seed=1))
    prior.compile("adam")
    codes, labels = draw((3, 4), 6, 16), np.arange(16) % 3 if classes else None
    prior.fit({"codes": codes, "label": labels} if classes else codes, verbose=0)
    prior.sample(2, seed=0)  # the sampler must not find its way into the file
    prior.save(tmp_path / "prior.keras")
    again = keras.saving.load_model(tmp_path / "prior.keras")
    np.testing.assert_array_equal(again.bits(codes, labels), prior.bits(codes, labels))
    np.testing.assert_array_equal(again.sample(4, seed=2), prior.sample(4, seed=2))
    assert again.get_config() == prior.get_config() and len(again.weights) == len(prior.weights)


GOOD = draw((3, 4), 6, 8)
BAD_CODES = {"too large": GOOD + 6, "negative": GOOD - 9, "another grid": GOOD[:, :2], "one map": GOOD[0], "floats": GOOD * 1.0,
             "text": np.full(GOOD.shape, "1"), "booleans": GOOD > 2}
BAD_LABELS = {"too large": np.full(8, 3), "negative": np.full(8, -1), "too few": np.zeros(7, int), "floats": np.zeros(8),
              "two axes": np.zeros((8, 1), int)}


def fresh(**options):
    """A new prior: after a `fit` that failed in its first step, Keras cannot fit the same model again before it is compiled anew."""
    model = PixelCNN(6, (3, 4), 3, filters=4, num_layers=2)
    model.compile("adam", jit_compile=False, **options)
    return model


@pytest.fixture(scope="module")
def prior():
    return fresh()


def given(codes, label):
    return {"codes": codes, "label": label}


@pytest.mark.parametrize("name", BAD_CODES)
def test_bad_codes(prior, name):
    codes, label = BAD_CODES[name], np.zeros(8, "int32")
    with pytest.raises(ValueError, match="`codes` must be integers .*Received: "):
        prior.bits(codes, label)
    with pytest.raises(ValueError, match="`codes` must be integers|Invalid dtype|unsupported|cardinality|Data"):  # or Keras's words
        prior(given(codes, label))


@pytest.mark.parametrize("name", ["another grid", "one map", "floats", "booleans"])
def test_bad_codes_end_a_fit_before_it_begins(name):
    codes = BAD_CODES[name]
    bad, good = given(codes, np.zeros(len(codes), "int32")), given(GOOD, np.zeros(8, int))
    for use in (lambda: fresh().fit(bad, verbose=0), lambda: fresh().predict(bad, verbose=0),
                lambda: fresh(run_eagerly=True).fit(good, validation_data=(bad,), verbose=0)):
        with pytest.raises(ValueError, match="`codes` must be integers"):
            use()


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels(prior, name):
    label = BAD_LABELS[name]
    for use in (lambda: prior.bits(GOOD, label), lambda: prior.sample(8, label=label), lambda: prior(given(GOOD, label))):
        with pytest.raises(ValueError, match="`label` must be integers .*Received: "):
            use()


def test_a_cache_changes_nothing_but_the_time():
    class Uncached(PixelCNN):
        start, call_with_cache = Prior.start, Prior.call_with_cache

    for classes in (None, 3):
        prior = shaken(PixelCNN(6, (3, 4), classes, filters=4, num_layers=3))
        slow = Uncached.from_config(prior.get_config())
        slow.set_weights(prior.get_weights())
        np.testing.assert_array_equal(prior.sample(6, seed=0), slow.sample(6, seed=0))


def test_order_and_names_of_weights_are_those_that_ship():
    names = [weight.path.split("/", 1)[1] for weight in PixelCNN(6, (3, 4), 3, filters=4, num_layers=1).weights]
    layer = ["vertical/kernel", "vertical/bias", "horizontal/kernel", "horizontal/bias", "link/kernel", "link/bias",
             "output/kernel", "output/bias"]
    found = [name for name in names if "seed" not in name]
    assert found == ["position", "embedding/embeddings", "label/kernel", *[f"gated_0/{name}" for name in layer],
                     "logits/kernel", "logits/bias"]


@pytest.mark.parametrize("options", [{"num_codes": 0}, {"shape": (0, 7)}, {"filters": 2.5}, {"num_layers": 0}, {"kernel_size": 4},
                                     {"num_classes": -1}, {"shape": (2, 2, 2)}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="must be .*Received: "):
        PixelCNN(**({"num_codes": 4, "shape": (3, 4)} | options))
    with pytest.raises(ValueError, match="`kernel_size` must be odd"):
        MaskedConv2D(4, 4)
    with pytest.raises(ValueError, match="`mask` must be"):
        MaskedConv2D(4, 3, "C")


def test_the_pair_that_ships():
    model, prior = load_pretrained("mnist")
    assert model.quantizer.num_codes == prior.num_codes == 128 and prior.num_classes == 10
    digits = model.decode(prior.sample(20, label=np.arange(20) % 10, seed=0))
    assert digits.shape == (20, 28, 28, 1) and 0 <= digits.min() < digits.max() <= 1
    with pytest.raises(ValueError, match="`name` must be one of the pairs that ship"):
        load_pretrained("cifar")
    with pytest.raises(ValueError, match="number of codes, 128. Received: 64"):
        check_pair(model, PixelCNN(64, (7, 7), filters=4, num_layers=1))
    with pytest.raises(ValueError, match="grid"):
        check_pair(model, PixelCNN(128, (4, 4), filters=4, num_layers=1))
    with pytest.raises(ValueError, match="codes"):
        model.decode(np.full((1, 7, 7), 200))
