"""The model beyond what chapter 3 shows: signals, data and losses of every form, weights, masks, conditions, files, bad input."""
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from vqvae_tutorial import VectorQuantizer, VectorQuantizerEMA, load_mnist, load_pretrained
from vqvae_tutorial.callbacks import StopRevival, read_history, resumable
from vqvae_tutorial.model import (
    VQVAE,
    build_decoder,
    build_encoder,
    build_networks,
    relative_error,
    residual_block,
    some_examples,
    upsample,
)


@pytest.fixture(scope="module")
def images():
    return load_mnist().train.images[:300]


@pytest.fixture(scope="module")
def pretrained():
    model = load_pretrained("mnist")[0]
    model.compile()
    return model


def tiny(shape=(28, 28, 1), quantizer=None, adapt_to=None, eager=True, blocks=1, **options):
    keras.utils.set_random_seed(0)
    quantizer = quantizer or VectorQuantizerEMA(16, revival_threshold=0.25, seed=0)
    model = VQVAE(*build_networks(shape, 4, filters=8, residual_blocks=blocks), quantizer, **options)
    if adapt_to is not None:
        model.adapt(adapt_to)
    model.compile(keras.optimizers.Adam(3e-3), run_eagerly=eager)  # to trace takes longer than all steps
    return model


def signals(shape, count=96, seed=0):
    """Mixtures of four patterns, so that there is something to learn."""
    random = np.random.default_rng(seed)
    mixed = random.dirichlet([0.3] * 4, count) @ np.random.default_rng(9).uniform(size=(4, int(np.prod(shape))))
    return mixed.reshape(count, *shape).astype("float32")


def numpy(x):
    return ops.convert_to_numpy(x)


def same_weights(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs):
        np.testing.assert_allclose(numpy(mine), numpy(other), err_msg=mine.path, **{"rtol": 0, "atol": 0} | tolerance)


# ---------------------------------------------------------------- numbers


def test_metrics_do_not_depend_on_the_batches(pretrained, images):
    at_once, uneven = (pretrained.evaluate(images, batch_size=size, verbose=0, return_dict=True) for size in (300, 77))
    codes = pretrained.encode(images)
    frequencies = np.bincount(codes.ravel(), minlength=128) / codes.size
    used = frequencies[frequencies > 0]
    expected = {"mse": np.mean((pretrained.decode(codes) - images) ** 2), "usage": len(used),
                "perplexity": 2 ** -(used * np.log2(used)).sum()}
    for name, value in expected.items():
        assert at_once[name] == pytest.approx(value, rel=1e-4)
        assert uneven[name] == pytest.approx(value, rel=1e-4)


def test_loss_is_the_formula(pretrained, images):
    scores = pretrained.evaluate(images, batch_size=300, verbose=0, return_dict=True)
    assert set(scores) == {"loss", "mse", "quantizer_loss", "usage", "perplexity"}
    assert scores["loss"] == pytest.approx(scores["mse"] / float(pretrained.variance) + scores["quantizer_loss"], rel=1e-5)
    vectors = numpy(pretrained.encoder(images))
    nearest = numpy(pretrained.quantizer.decode(pretrained.encode(images)))
    assert scores["quantizer_loss"] == pytest.approx(0.25 * np.mean((vectors - nearest) ** 2), rel=1e-4)


def test_relative_error_is_one_for_the_mean():
    y = np.random.default_rng(0).normal(3, 5, (8, 6, 2)).astype("float32")
    assert float(relative_error(y, np.full_like(y, y.mean()), y.var())) == pytest.approx(1, rel=1e-5)
    assert float(relative_error(y, y + 2, 0.5)) == pytest.approx(8, rel=1e-5)
    assert float(relative_error(y, y + 2, 0.0)) == pytest.approx(4 / y.var(), rel=1e-5)  # 0 is "not measured yet"
    weights = np.repeat([[1.0], [0.0]], 4, axis=0)
    half = np.concatenate([y[:4] + 1, y[4:] + 9])
    assert float(relative_error(y, half, 1.0, np.broadcast_to(weights, (8, 6)))) == pytest.approx(0.5, rel=1e-5)


def test_some_examples_are_spread_over_the_array():
    assert some_examples(np.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert some_examples(np.arange(3), 4).tolist() == [0, 1, 2]
    assert some_examples(np.arange(2048), 2048).tolist() == list(range(2048))
    dataset = tf.data.Dataset.range(100).batch(8)
    assert some_examples(dataset, 10).tolist() == list(range(10))


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("shape", [(150,), (150, 1), (150, 1, 1), (150, 28, 28), (150, 28, 28, 1)], ids=str)
def test_loss_and_metrics_are_weighted_means(images, shape):
    x = images[:150]
    model = tiny(adapt_to=images)
    model.compile("adam", weighted_metrics=["mae"], run_eagerly=True)
    each = np.linspace(0, 2, 150).reshape(-1, *[1] * (len(shape) - 1)).astype("float32")
    weights = np.broadcast_to(each, shape).copy()
    if len(shape) > 2 and shape[1] > 1:
        weights[:, :10] = 0  # the upper rows count nothing
    drawn = model.predict(x, verbose=0)
    places = np.broadcast_to(weights.reshape(*shape[:3], *[1] * (3 - len(shape))), (150, 28, 28))
    error = np.square(x - drawn)[..., 0]
    for batch_size in (150, 40):
        scores = model.evaluate(x, x, sample_weight=weights, batch_size=batch_size, verbose=0, return_dict=True)
        assert scores["mse"] == pytest.approx(np.average(error, weights=places), rel=1e-4)
        assert scores["mae"] == pytest.approx(np.average(np.abs(x - drawn)[..., 0], weights=places), rel=1e-4)
    scores = model.evaluate(x, x, sample_weight=weights, batch_size=150, verbose=0, return_dict=True)
    expected = np.mean(error * places) / float(model.variance) + scores["quantizer_loss"]
    assert scores["loss"] == pytest.approx(expected, rel=1e-4)


def test_weights_of_one_and_zero(pretrained, images):
    weights = np.repeat([1.0, 0.0], 150)
    scores = pretrained.evaluate(images, images, sample_weight=weights, batch_size=300, verbose=0, return_dict=True)
    alone = pretrained.evaluate(images[:150], verbose=0, return_dict=True)
    assert scores["mse"] == pytest.approx(alone["mse"], rel=1e-4)
    assert scores["loss"] - scores["quantizer_loss"] == pytest.approx(alone["mse"] / float(pretrained.variance) / 2, rel=1e-3)


# ---------------------------------------------------------------- compile


# ---------------------------------------------------------------- data


def test_adapt_uses_up_no_generator(images):
    batches = (images[i : i + 50] for i in range(0, 300, 50))
    with pytest.raises(ValueError, match="generator"):
        tiny().adapt(batches)
    assert len(list(batches)) == 6


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 28, 28, 1)), tf.data.Dataset.from_tensor_slices(np.zeros((0, 28, 28, 1))).batch(4)],
                         ids=["list", "array", "dataset"])
def test_no_data_is_an_error(nothing):
    with pytest.raises(ValueError, match="at least one"):
        tiny().adapt(nothing)


def test_a_missing_channel_axis_changes_nothing(images):
    model = tiny(adapt_to=images[..., 0])
    assert float(model.variance) == pytest.approx(images.var(), rel=1e-4)
    np.testing.assert_array_equal(model.encode(images[:9, ..., 0]), model.encode(images[:9]))
    for size in (1, 28, 300):  # 1 and 28 broadcast where shapes are not compared
        with_axis, without = (model.evaluate(x, batch_size=size, verbose=0, return_dict=True) for x in (images[:28], images[:28, ..., 0]))
        assert with_axis == pytest.approx(without, rel=1e-5)


def test_other_targets_can_be_learned(images):
    model = tiny(adapt_to=images)
    assert model.evaluate(images, 1 - images, verbose=0, return_dict=True)["mse"] == pytest.approx(
        np.mean((model.predict(images, verbose=0) - (1 - images)) ** 2), rel=1e-4)


# ---------------------------------------------------------------- signals of every rank


# ---------------------------------------------------------------- masks


def patchwise():
    """Patches do not overlap, so that padding is seen by no real place."""
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential([keras.Input((None, 1)), layers.Conv1D(4, 8, strides=8)])
    decoder = keras.Sequential([keras.Input((None, 4)), layers.Conv1DTranspose(1, 8, strides=8)])
    quantizer = VectorQuantizerEMA(8, revival_threshold=0, embeddings_initializer=keras.initializers.RandomNormal(seed=1))
    model = VQVAE(encoder, decoder, quantizer)
    model.variance.assign(0.1)
    model.compile(keras.optimizers.SGD(0.1), weighted_metrics=["mae"], run_eagerly=True)
    return model


def test_masks_and_weights_go_together():
    x, weights = signals((64, 1), 50), np.linspace(0, 2, 50)
    mask = np.arange(64) < np.repeat([64, 16], 25)[:, None]
    model = patchwise()
    scores = model.evaluate({"signal": x, "mask": mask}, x, sample_weight=weights, batch_size=50, verbose=0, return_dict=True)
    error = np.square(model.predict(x, verbose=0) - x)[..., 0]
    counts = mask * weights[:, None]
    assert scores["mse"] == pytest.approx(np.average(error, weights=counts), rel=1e-4)
    assert scores["mae"] == pytest.approx(np.average(np.sqrt(error), weights=counts), rel=1e-4)
    expected = np.sum(error * counts) / mask.sum() / 0.1  # over real places
    assert scores["loss"] - scores["quantizer_loss"] == pytest.approx(expected, rel=1e-4)


def test_masks_of_pictures():
    x = signals((16, 24, 3), 20)
    mask = np.zeros((20, 16, 24), bool)
    mask[:, :8, :12] = True
    model = tiny((16, 24, 3), adapt_to=x)
    scores = model.evaluate({"signal": x, "mask": mask}, verbose=0, return_dict=True, batch_size=20)
    error = np.square(model.predict({"signal": x, "mask": mask}, verbose=0) - x)
    assert scores["mse"] == pytest.approx(error[mask].mean(), rel=1e-4)
    codes = model.encode({"signal": x, "mask": mask})
    assert scores["usage"] == len(np.unique(codes[:, :2, :3]))
    alone = model.encode(np.where(mask[..., None], x, 0))
    np.testing.assert_array_equal(codes, alone)  # what padding holds cannot be seen from where it ends


def test_adapt_does_not_look_behind_a_mask(monkeypatch):
    x, mask, found = signals((16, 3), 40), np.arange(16) < np.linspace(4, 16, 40).astype(int)[:, None], []
    for padding in (0, 50):
        model = tiny((16, 3))
        given = []
        monkeypatch.setattr(type(model.quantizer), "adapt", lambda self, vectors, given=given: given.append(np.asarray(vectors)))
        model.adapt({"signal": np.where(mask[..., None], x, padding), "mask": mask})
        assert float(model.variance) == pytest.approx(x[mask].var(), rel=1e-5)
        found += given
    assert found[0].shape == (mask[:, ::4].sum(), found[0].shape[-1])
    np.testing.assert_array_equal(*found)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_file_brings_back_everything(images, tmp_path, jit_compile):
    model = tiny(adapt_to=images, value_range=(0, 1), blocks=0)  # quicker to compile, three times each
    model.compile("adam", jit_compile=jit_compile)
    model.fit(images, verbose=0, epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.value_range == (0, 1) and loaded.code_shape == (7, 7)
    same_weights(model.variables, loaded.variables)
    same_weights(model.optimizer.variables, loaded.optimizer.variables)
    assert loaded.evaluate(images, verbose=0) == model.evaluate(images, verbose=0)


def test_weights_alone_and_a_copy_by_configuration(images, tmp_path):
    quantizer = VectorQuantizerEMA(16, decay=0.97, revival_threshold=0.3, commitment_cost=0.5, seed=4)
    model = tiny(adapt_to=images, quantizer=quantizer, value_range=[0, 1], name="mine")
    copy = VQVAE.from_config(model.get_config())
    assert copy.name == "mine" and copy.value_range == (0, 1)
    for name in ("num_codes", "decay", "revival_threshold", "commitment_cost", "seed"):
        assert getattr(copy.quantizer, name) == getattr(quantizer, name)
    model.save_weights(tmp_path / "some.weights.h5")
    copy.load_weights(tmp_path / "some.weights.h5")
    same_weights(model.weights, copy.weights)
    np.testing.assert_array_equal(copy.encode(images), model.encode(images))


def test_the_order_of_weights_is_part_of_the_format():
    model = tiny()
    names = [weight.path.split("/")[-1] for weight in model.quantizer.weights]
    assert names == ["frequencies", "codebook", "revival", "ema_steps", "ema_frequency", "ema_sum"]
    assert model.weights[-1].path.endswith("variance") or model.weights[0].path.endswith("variance")
    assert [metric.name for metric in model.metrics if metric.name != "loss"] == ["mse", "quantizer_loss", "usage", "perplexity"]


def test_fit_adapts_nothing(images, tmp_path, monkeypatch):
    model = tiny(adapt_to=images)
    model.fit(images, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    monkeypatch.setattr(VQVAE, "adapt", lambda *_: pytest.fail("adapted again"))
    monkeypatch.setattr(VectorQuantizer, "adapt", lambda *_: pytest.fail("adapted again"))
    assert float(loaded.variance) == float(model.variance)
    loaded.fit(images, verbose=0)


def test_a_stopped_training_goes_on(images, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny(adapt_to=images).fit(images, verbose=0, epochs=4, **resumable(tmp_path, [Stop()]))
    model = tiny(adapt_to=images)
    assert model.fit(images, verbose=0, epochs=4, **resumable(tmp_path)).epoch == [2, 3]
    assert len(read_history(tmp_path)["mse"]) == 4
    assert int(model.optimizer.iterations) == 4 * 10
    again = tiny(adapt_to=images)
    assert again.fit(images, verbose=0, epochs=4, **resumable(tmp_path)).epoch == []
    np.testing.assert_array_equal(again.encode(images[:5]), model.encode(images[:5]))


def test_an_epoch_that_was_cut_off_counts_once(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,mse\n0,0.5\n1,0.4\n1,0.3\n")
    assert read_history(tmp_path)["mse"].tolist() == [0.5, 0.3]


def test_revival_ends_before_training_does(images):
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(float(self.model.quantizer.revival))

    model = tiny(adapt_to=images)
    model.fit(images[:64], verbose=0, epochs=5, callbacks=[StopRevival(model.quantizer), Watch()])
    assert seen == pytest.approx([0.25, 0.25, 0.25, 0.25, 0.0])


# ---------------------------------------------------------------- ranges, slices, threads


def test_predictions_keep_the_range(pretrained):
    noise = np.random.default_rng(0).uniform(size=(8, 28, 28, 1)).astype("float32")
    drawn = pretrained.predict(noise, verbose=0)
    assert drawn.min() >= 0 and drawn.max() <= 1
    np.testing.assert_allclose(drawn, pretrained.decode(pretrained.encode(noise)), atol=1e-5)


def test_the_range_is_checked_before_training_and_clips_only_afterwards(images):
    for wrong, advice in ((images * 255, "255"), (images - 0.5, r"x \+ 0.5"), (images * 40 - 9, "value_range=None")):
        with pytest.raises(ValueError, match=advice):
            tiny(value_range=(0, 1)).adapt(wrong)
    centred = tiny(value_range=(-0.5, 0.5), adapt_to=images - 0.5)
    free = tiny(adapt_to=images * 255)
    assert np.abs(free.predict(images * 255, verbose=0)).max() > 1
    ends = VQVAE(centred.encoder, Far(), centred.quantizer, value_range=(-0.5, 0.5))
    assert ends.predict(images[:2], verbose=0).max() == 0.5 and ends.decode(ends.encode(images[:2] / 2)).max() == 0.5
    assert float(ops.max(ends(images[:2], training=True))) > 0.5


class Far(keras.layers.Layer):
    """A decoder whose signals lie far out of any range."""

    def call(self, x, training=False):
        return ops.repeat(ops.repeat(100 + x[..., :1], 4, axis=1), 4, axis=2)


def test_encode_and_decode_do_not_depend_on_the_batch_size(pretrained, images):
    codes = pretrained.encode(images[:50])
    np.testing.assert_array_equal(pretrained.encode(images[:50], batch_size=7), codes)
    np.testing.assert_allclose(pretrained.decode(codes, batch_size=7), pretrained.decode(codes), atol=1e-5)


def test_nothing_in_nothing_out(pretrained):
    for nothing, function, shape, dtype in ((np.zeros((0, 28, 28, 1)), pretrained.encode, (0, 7, 7), "int32"),
                                            (np.zeros((0, 7, 7), int), pretrained.decode, (0, 28, 28, 1), "float32")):
        assert function(nothing).shape == shape and function(nothing).dtype == dtype


def test_codes_of_every_integer_dtype_and_pictures_of_integers(pretrained, images):
    codes = pretrained.encode(images[:4])
    for dtype in ("uint8", "int16", "int64"):
        np.testing.assert_array_equal(pretrained.decode(codes.astype(dtype)), pretrained.decode(codes))
    np.testing.assert_array_equal(pretrained.decode(codes.tolist()), pretrained.decode(codes))
    drawn = np.round(images[:4]).astype("uint8")
    np.testing.assert_array_equal(pretrained.encode(drawn), pretrained.encode(drawn.astype("float32")))


def test_threads_get_their_own_answers(pretrained, images):
    expected = [pretrained.encode(image[None]) for image in images[:24]]
    with ThreadPoolExecutor(4) as pool:
        for codes, right in zip(pool.map(pretrained.encode, images[:24, None]), expected):
            np.testing.assert_array_equal(codes, right)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad, message", [
    (np.zeros((2, 28, 29)), r"\(n, 28, 28, 1\)"), (np.zeros((2, 32, 32, 1)), r"\(2, 32, 32, 1\)"), (np.zeros(()), "shape"),
    (np.full((2, 28, 28, 1), 255), "255"), (np.full((2, 28, 28, 1), -0.1), "from 0 to 1"),
    (np.full((2, 28, 28, 1), np.nan), "NaN"), (np.full((2, 28, 28, 1), "x"), "<U1"), ({"image": np.zeros((2, 28, 28, 1))}, "'image'"),
])
def test_encode_refuses(pretrained, bad, message):
    with pytest.raises(ValueError, match=message) as refusal:
        pretrained.encode(bad)
    assert "Received" in str(refusal.value)


@pytest.mark.parametrize("bad, message", [
    (np.zeros((2, 7, 7)), "float64"), (np.zeros((2, 49), int), "shape"), (np.full((2, 7, 7), 128), "127"),
    (np.full((2, 7, 7), -1), "-1"), (np.zeros((7, 7), int), "shape"),
])
def test_decode_refuses(pretrained, bad, message):
    with pytest.raises(ValueError, match=message):
        pretrained.decode(bad)


@pytest.mark.parametrize("parts, message", [
    (lambda: (build_encoder((28, 28, 1), 8), build_decoder((28, 28, 1), 16), VectorQuantizer(16)), "`decoder`.*8.*16"),
    (lambda: (build_encoder((32, 32, 1), 16), build_decoder((28, 28, 1), 16), VectorQuantizer(16)), "`decoder`"),
    (lambda: (build_encoder((28, 28, 1), 8), build_decoder((28, 28, 1), 8), made_for(16)), "`quantizer`.*8.*16"),
    (lambda: build_networks((30, 30, 1)) + (VectorQuantizer(16),), "multiples of 4"),
    (lambda: build_networks((28, 28, 28, 28, 1)) + (VectorQuantizer(16),), "one to three sizes"),
    (lambda: build_networks((28,)) + (VectorQuantizer(16),), "one to three sizes"),
])
def test_parts_that_do_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        VQVAE(*parts())


def made_for(dim):
    quantizer = VectorQuantizer(16)
    quantizer.build((None, 7, 7, dim))
    quantizer.built = True
    return quantizer


def test_a_decoder_of_other_signals_is_refused_when_its_signals_are_compared(images):
    model = VQVAE(build_encoder((28, 28, 1), 4, 8), build_decoder((28, 28, 3), 4, 8), VectorQuantizer(8))
    model.compile("adam")
    with pytest.raises(ValueError, match="target must have the shape"):
        model.fit(images, verbose=0)


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("places", [(3,), (3, 5), (2, 3, 4)], ids=str)
def test_upsample_lays_out_what_a_place_holds(places):
    rank, channels = len(places), 2
    x = keras.Input((*places, 2**rank * channels))
    model = keras.Model(x, upsample(x, channels))
    assert model.output_shape == (None, *(2 * size for size in places), channels)
    kernel = np.zeros([3] * rank + [2**rank * channels] * 2, "float32")
    kernel[(1,) * rank] = np.eye(2**rank * channels)
    model.layers[1].set_weights([kernel, np.zeros(2**rank * channels, "float32")])
    given = np.random.default_rng(0).normal(size=(2, *places, 2**rank * channels)).astype("float32")
    drawn = numpy(model(given))
    for place in np.ndindex(*places):
        for inside in np.ndindex(*[2] * rank):
            number = int(np.ravel_multi_index(inside, [2] * rank))
            at = tuple(2 * p + i for p, i in zip(place, inside))
            np.testing.assert_array_equal(drawn[(slice(None), *at)], given[(slice(None), *place)][:, number * channels:][:, :channels])


def test_a_residual_block_adds_and_ends_without_activation():
    x = keras.Input((6, 5))
    block = keras.Model(x, residual_block(x, 3))
    given = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("float32")
    block.layers[-2].set_weights([np.zeros((1, 3, 5), "float32"), np.zeros(5, "float32")])
    np.testing.assert_array_equal(numpy(block(given)), given)


def test_networks_have_the_sizes_asked_for():
    encoder, decoder = build_networks((32, 16, 3), embedding_dim=5, filters=12, residual_blocks=3, halvings=3)
    assert encoder.output_shape == (None, 4, 2, 5) and decoder.output_shape == (None, 32, 16, 3)
    assert sum(isinstance(layer, layers.Add) for layer in encoder.layers) == 3
    assert sum(isinstance(layer, layers.Add) for layer in decoder.layers) == 3
    assert [layer.filters for layer in encoder.layers if isinstance(layer, layers.Conv2D)][:3] == [3, 3, 12]
    assert float(ops.min(decoder(100 * np.random.default_rng(0).normal(size=(2, 4, 2, 5))))) < 0


def test_pictures_have_their_channels_last_whatever_the_setting(images):
    expected = tiny(adapt_to=images).encode(images[:20])
    keras.config.set_image_data_format("channels_first")
    try:
        np.testing.assert_array_equal(tiny(adapt_to=images).encode(images[:20]), expected)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("halvings", [0, -1, 1.5])
def test_networks_halve_once_at_least(halvings):
    for build in (build_encoder, build_decoder):
        with pytest.raises(ValueError, match="`halvings` must be"):
            build((16, 3), 4, halvings=halvings)
        assert build((16, 3), 4, filters=4, halvings=2.0).count_params() == build((16, 3), 4, filters=4, halvings=2).count_params()


@pytest.mark.parametrize("shape, mask", [((4,), (1, 1, 1)), ((4, 4), (4, 1, 1)), ((4, 4, 8, 8, 1), (4, 8, 8, 1))], ids=str)
def test_a_mask_may_be_that_of_examples_or_of_frames(shape, mask):
    """It says the same as one of all places."""
    random = np.random.default_rng(0)
    clips, real = signals((4, 8, 8, 1), 4), random.random(shape) < 0.6
    model = tiny((4, 8, 8, 1), adapt_to=clips, blocks=0)
    whole = np.broadcast_to(real.reshape(4, *mask)[..., 0] if len(shape) == 5 else real.reshape(4, *mask), (4, 4, 8, 8))
    found = [model.evaluate({"signal": clips, "mask": each}, verbose=0, return_dict=True) for each in (real, whole)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_compiled_metrics_do_not_see_what_padding_holds():
    """Neither those of each place nor those of each example."""
    clean, real = signals((8, 8, 1), 16), np.arange(8) < 6
    real = np.broadcast_to(real[:, None], (16, 8, 8))

    def worst(y, y_pred):
        return ops.max(ops.abs(y - y_pred), axis=(1, 2, 3))

    model = tiny((8, 8, 1), adapt_to=clean, blocks=0)
    model.compile("adam", weighted_metrics=["mae"], metrics=[worst], run_eagerly=True)
    found = [model.evaluate({"signal": np.where(real[..., None], clean, fill), "mask": real}, verbose=0, return_dict=True)
             for fill in (0.0, 100.0, np.nan)]
    assert found[1] == pytest.approx(found[0], rel=1e-6) and found[2] == pytest.approx(found[0], rel=1e-6)
