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

SIGNALS = {"sound": (64, 1), "stereo": (32, 2), "picture": (16, 24, 3), "film": (4, 8, 8, 3)}


@pytest.fixture(scope="module")
def images():
    return load_mnist().train.images[:300]


@pytest.fixture(scope="module")
def pretrained():
    model = load_pretrained("mnist")[0]
    model.compile()
    return model


def tiny(shape=(28, 28, 1), quantizer=None, adapt_to=None, eager=True, **options):
    keras.utils.set_random_seed(0)
    quantizer = quantizer or VectorQuantizerEMA(16, revival_threshold=0.25, seed=0)
    model = VQVAE(*build_networks(shape, 4, filters=8, residual_blocks=1), quantizer, **options)
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


def test_without_adapt_the_variance_is_that_of_the_batch(images):
    model = tiny()
    assert float(model.variance) == 0
    scores = model.evaluate(images, batch_size=300, verbose=0, return_dict=True)
    assert scores["loss"] == pytest.approx(scores["mse"] / images.var() + scores["quantizer_loss"], rel=1e-4)
    model.fit(images, verbose=0)
    assert float(model.variance) == 0  # `fit` measures nothing


def test_adapt_sees_all_of_an_array(images):
    x = np.concatenate([np.zeros((500, 28, 28, 1), "float32"), images])
    model = tiny(adapt_to=x)
    assert float(model.variance) == pytest.approx(x.var(), rel=1e-4)
    vectors = numpy(model.encoder(x)).reshape(-1, 4)
    expected = VectorQuantizerEMA(16, seed=0)
    expected.adapt(vectors)
    np.testing.assert_allclose(numpy(model.quantizer.embeddings), numpy(expected.embeddings), atol=1e-5)


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


def test_weights_of_zero_train_no_decoder(images):
    model = tiny(adapt_to=images)
    before = [numpy(weight) for weight in model.decoder.trainable_weights]
    model.fit(images, images, sample_weight=np.zeros(300), verbose=0)
    for old, new in zip(before, model.decoder.trainable_weights):
        np.testing.assert_array_equal(old, numpy(new))


def test_validation_data_may_have_weights(images):
    model = tiny(adapt_to=images)
    weights = np.repeat([1.0, 0.0], 50)
    history = model.fit(images, verbose=0, validation_data=(images[:100], images[:100], weights)).history
    assert history["val_mse"][0] == pytest.approx(model.evaluate(images[:50], verbose=0, return_dict=True)["mse"], rel=1e-4)


# ---------------------------------------------------------------- compile


class PerExample(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=(1, 2, 3))


LOSSES = {"name": "mae", "loss": keras.losses.MeanAbsoluteError(), "an example": PerExample(),
          "function of places": lambda y, drawn: ops.mean(ops.abs(y - drawn), axis=-1),
          "function of examples": lambda y, drawn: ops.mean(ops.abs(y - drawn), axis=(1, 2, 3))}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_ones_own_is_taken_as_it_is(images, name):
    x = images[:28]  # as many as a picture has columns, where weights of another axis would go unnoticed
    model = tiny(adapt_to=images)
    model.compile("adam", loss=LOSSES[name], metrics=["mae"], run_eagerly=True)
    each = np.mean(np.abs(model.predict(x, verbose=0) - x), axis=(1, 2, 3))
    scores = model.evaluate(x, batch_size=28, verbose=0, return_dict=True)
    assert scores["mae"] == pytest.approx(each.mean(), rel=1e-4)
    assert scores["loss"] == pytest.approx(each.mean() + scores["quantizer_loss"], rel=1e-4)
    weights = np.linspace(0, 3, 28)
    scores = model.evaluate(x, x, sample_weight=weights, batch_size=28, verbose=0, return_dict=True)
    assert scores["loss"] == pytest.approx(np.mean(weights * each) + scores["quantizer_loss"], rel=1e-4)


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 3},
                                     {"loss": "mae", "metrics": ["mae"], "weighted_metrics": ["mse"]}], ids=str)
def test_every_way_to_compile_trains_alike(images, options):
    def trained(**options):
        model = tiny(adapt_to=images)
        model.compile(keras.optimizers.SGD(0.01), **{"jit_compile": False} | options)
        return model, model.fit(images[:192], verbose=0, shuffle=False, epochs=2).history

    model, history = trained(**options)
    assert np.isfinite(history["loss"]).all()
    if "loss" not in options:
        plain, expected = trained()
        assert history["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        same_weights(model.trainable_weights, plain.trainable_weights, atol=1e-4)


def test_a_training_step_by_hand(images):
    model, by_fit = tiny(adapt_to=images), tiny(adapt_to=images)
    by_fit.fit(images[:64], batch_size=64, verbose=0)
    loss = model.train_on_batch(images[:64])
    assert np.isfinite(loss).all()
    same_weights(model.trainable_weights, by_fit.trainable_weights, atol=1e-5)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(images[:64], y_pred=model(images[:64], training=True))
    assert all(gradient is not None for gradient in tape.gradient(loss, [w.value for w in model.encoder.trainable_weights]))


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("form", ["array", "pairs", "dataset", "dataset of pairs", "dataset of dicts", "dict", "PyDataset"])
def test_fit_takes_data_in_every_form(images, form):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return (images[index * 100 : index * 100 + 100],)

    dataset = tf.data.Dataset.from_tensor_slices(images).batch(100)
    data = {"array": (images,), "pairs": (images, images), "dataset": (dataset,), "dict": ({"signal": images},),
            "dataset of dicts": (dataset.map(lambda x: {"signal": x}),),
            "dataset of pairs": (dataset.map(lambda x: (x, x)),), "PyDataset": (Batches(),)}[form]
    model = tiny(adapt_to=data[0])
    assert float(model.variance) == pytest.approx(images.var(), rel=1e-3)
    size = {"batch_size": 100} if form in ("array", "pairs", "dict") else {}
    history = model.fit(*data, verbose=0, epochs=3, shuffle=False, **size).history
    assert history["loss"][-1] < history["loss"][0]
    expected = tiny(adapt_to=images).fit(images, batch_size=100, shuffle=False, verbose=0).history
    assert history["mse"][0] == pytest.approx(expected["mse"][0], rel=1e-3)


def test_validation_split_and_generators(images):
    model = tiny(adapt_to=images)
    assert "val_mse" in model.fit(images, validation_split=0.2, verbose=0).history
    seen = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    model.fit(((images[i : i + 50],) for i in range(0, 300, 50)), verbose=0, callbacks=[count])
    assert len(seen) == 6


def test_adapt_uses_up_no_generator(images):
    batches = (images[i : i + 50] for i in range(0, 300, 50))
    with pytest.raises(ValueError, match="generator"):
        tiny().adapt(batches)
    assert len(list(batches)) == 6


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return (np.zeros((500, 28, 28, 1), "float32") + index % 2,)


def test_adapt_ends_on_endless_data():
    model = tiny(adapt_to=Endless())
    assert float(model.variance) == pytest.approx(0.25, abs=0.01)
    tiny(adapt_to=tf.data.Dataset.from_tensors(np.zeros((8, 28, 28, 1), "float32")).repeat())


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


def test_codes_in_a_pipeline_follow_training(images):
    model = tiny(adapt_to=images)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(100)
    codes = dataset.map(model.encode)
    model.fit(images, verbose=0, epochs=2)
    mapped = np.concatenate([numpy(part) for part in codes])
    np.testing.assert_array_equal(mapped, model.encode(images))
    drawn = np.concatenate([numpy(part) for part in codes.map(model.decode)])
    np.testing.assert_allclose(drawn, model.decode(mapped), atol=1e-5)


def test_other_targets_can_be_learned(images):
    model = tiny(adapt_to=images)
    assert model.evaluate(images, 1 - images, verbose=0, return_dict=True)["mse"] == pytest.approx(
        np.mean((model.predict(images, verbose=0) - (1 - images)) ** 2), rel=1e-4)


# ---------------------------------------------------------------- signals of every rank


@pytest.mark.parametrize("kind", SIGNALS)
def test_signals_of_every_rank_train_and_are_kept(kind, tmp_path):
    shape = SIGNALS[kind]
    x = signals(shape)
    model = tiny(shape, adapt_to=x)
    history = model.fit(x, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    codes = model.encode(x)
    assert codes.shape == (len(x), *(size // 4 for size in shape[:-1])) and codes.dtype == "int32"
    drawn = model.decode(codes)
    assert drawn.shape == x.shape and drawn.dtype == "float32"
    np.testing.assert_allclose(drawn, model.predict(x, verbose=0), atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.encode(x), codes)
    np.testing.assert_array_equal(loaded.decode(codes), drawn)


def conditioned(adapt_to):
    keras.utils.set_random_seed(0)
    speaker, embeddings = keras.Input((), name="speaker", dtype="int32"), keras.Input((16, 4), name="embeddings")
    who = layers.RepeatVector(16)(layers.Embedding(3, 6)(speaker))
    drawn = build_decoder((64, 1), 10, filters=8, residual_blocks=1)(layers.Concatenate()([embeddings, who]))
    decoder = keras.Model({"embeddings": embeddings, "speaker": speaker}, drawn)
    model = VQVAE(build_encoder((64, 1), 4, filters=8, residual_blocks=1), decoder, VectorQuantizerEMA(16, seed=0))
    model.adapt(adapt_to)
    model.compile(keras.optimizers.Adam(3e-3), weighted_metrics=["mae"], run_eagerly=True)
    return model


def test_a_condition_reaches_the_decoder(tmp_path):
    who = np.arange(96) % 3
    x = {"signal": signals((64, 1)) + who[:, None, None].astype("float32"), "speaker": who}
    model = conditioned(x)
    assert float(model.variance) == pytest.approx(x["signal"].var(), rel=1e-4)
    history = model.fit(x, epochs=8, verbose=0, validation_data=(x,)).history
    assert history["loss"][-1] < 0.9 * history["loss"][0] and "val_mae" in history
    codes = model.encode(x)
    np.testing.assert_array_equal(codes, model.encode(x["signal"]))
    drawn = model.decode(codes, speaker=who, batch_size=40)
    np.testing.assert_allclose(drawn, model.predict(x, verbose=0), atol=1e-5)
    others = model.decode(codes, speaker=(who + 1) % 3)
    assert np.abs(others - drawn).mean() > 0.05
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.decode(codes, speaker=who), drawn)
    with pytest.raises(ValueError, match="length"):
        model.decode(codes, speaker=who[:5])
    graph = tf.data.Dataset.from_tensor_slices((codes, who)).batch(96).map(lambda c, s: model.decode(c, speaker=s))
    np.testing.assert_allclose(next(iter(graph)), drawn, atol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Down(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(4, 4, 4)

    def call(self, x):
        return self.convolution(x)


@keras.saving.register_keras_serializable("tests")
class Up(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2DTranspose(1, 4, 4)

    def call(self, x):
        return self.convolution(x)


@pytest.mark.parametrize("first", ["adapt", "fit", "encode"])
def test_encoders_and_decoders_may_be_subclassed(images, tmp_path, first):
    keras.utils.set_random_seed(0)
    model = VQVAE(Down(), Up(), VectorQuantizerEMA(16, seed=0))
    model.compile("adam", run_eagerly=True)
    getattr(model, first)(images, **{"verbose": 0} if first == "fit" else {})
    model.adapt(images)
    history = model.fit(images, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert model.code_shape == (7, 7) and model.signal_shape == (28, 28, 1)
    codes, drawn = model.encode(images), model.predict(images, verbose=0)
    assert codes.shape == (300, 7, 7)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.encode(images), codes)
    np.testing.assert_allclose(loaded.predict(images, verbose=0), drawn, atol=1e-6)


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


def test_padding_behind_a_mask_changes_nothing():
    short = signals((24, 1), 60)
    padded = {"signal": np.pad(short, [(0, 0), (0, 40), (0, 0)], constant_values=7), "mask": np.tile(np.arange(64) < 24, (60, 1))}
    ours, theirs = patchwise(), patchwise()
    for _ in range(2):
        alone = ours.fit(short, batch_size=20, verbose=0, shuffle=False).history
        masked = theirs.fit(padded, batch_size=20, verbose=0, shuffle=False).history
        assert alone.keys() == masked.keys()
        for name in alone:
            assert masked[name] == pytest.approx(alone[name], rel=1e-4), name
    same_weights(ours.weights[:-1], theirs.weights[:-1], atol=1e-5)
    whole = theirs.evaluate(padded["signal"], verbose=0, return_dict=True)
    assert whole["mse"] > 2 * masked["mse"][0]  # the mask did something


def test_masked_metrics_do_not_depend_on_the_batches():
    x, lengths = signals((64, 1), 50), np.repeat([64, 16, 8], [10, 20, 20])
    given = {"signal": x, "mask": np.arange(64) < lengths[:, None]}
    model = patchwise()
    model.variance.assign(0.1)
    at_once, uneven = (model.evaluate(given, batch_size=size, verbose=0, return_dict=True) for size in (50, 13))
    error = np.square(model.predict(x, verbose=0) - x)[..., 0]
    real = given["mask"]
    codes = model.encode(x)[real[:, ::8]]
    share = np.bincount(codes, minlength=8) / len(codes)
    perplexity = 2 ** -np.sum(share[share > 0] * np.log2(share[share > 0]))
    for scores in (at_once, uneven):
        assert scores["mse"] == pytest.approx(error[real].mean(), rel=1e-4)
        assert scores["mae"] == pytest.approx(np.sqrt(error)[real].mean(), rel=1e-4)
        assert scores["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert at_once["loss"] - at_once["quantizer_loss"] == pytest.approx(error[real].mean() / 0.1, rel=1e-4)


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
    error = np.square(model.predict(x, verbose=0) - x)
    assert scores["mse"] == pytest.approx(error[mask].mean(), rel=1e-4)
    codes = model.encode(x)[:, :2, :3]
    assert scores["usage"] == len(np.unique(codes))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_file_brings_back_everything(images, tmp_path, jit_compile):
    model = tiny(adapt_to=images, value_range=(0, 1))
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


def test_adapt_leaves_a_given_or_frozen_codebook(images):
    book = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    given = tiny(quantizer=VectorQuantizerEMA(16, embeddings_initializer=book, revival_threshold=0), adapt_to=images)
    np.testing.assert_array_equal(numpy(given.quantizer.embeddings), book)
    frozen = tiny()
    before = numpy(frozen.quantizer.embeddings)
    frozen.quantizer.trainable = False
    frozen.adapt(images)
    frozen.compile("adam", run_eagerly=True)
    frozen.fit(images, verbose=0)
    np.testing.assert_array_equal(numpy(frozen.quantizer.embeddings), before)
    assert float(frozen.variance) == pytest.approx(images.var(), rel=1e-4)


def test_same_seed_same_model(images):
    def trained():
        model = tiny(adapt_to=images, eager=False)
        model.fit(images, verbose=0, epochs=2)
        return model

    same_weights(trained().weights, trained().weights, atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_policies_are_kept_to_the_bit(images, tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = tiny(adapt_to=images)
        history = model.fit(images, verbose=0, epochs=2).history
        assert np.isfinite(history["loss"]).all()
        codes, drawn = model.encode(images), model.predict(images, verbose=0)
        model.save(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    assert {str(weight.dtype) for weight in model.quantizer.weights} == {"float32"}
    assert drawn.dtype == np.float32
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    ours, theirs = ([layer.dtype_policy.name for layer in each.encoder.layers[1:]] for each in (model, loaded))  # an input has none
    assert ours == theirs and policy in ours
    np.testing.assert_array_equal(loaded.encode(images), codes)
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), drawn)


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


@pytest.mark.parametrize("use", ["fit", "evaluate", "dataset", "validation", "one-hot"])
def test_labels_are_no_targets(images, use):
    model, labels = tiny(adapt_to=images), load_mnist().train.labels[:300]
    pairs = tf.data.Dataset.from_tensor_slices((images, labels)).batch(28)
    with pytest.raises(ValueError, match="labels"):
        if use == "fit":
            model.fit(images, labels, batch_size=28, verbose=0)
        elif use == "evaluate":
            model.evaluate(images, labels, verbose=0)
        elif use == "dataset":
            model.fit(pairs, verbose=0)
        elif use == "validation":
            model.fit(images, validation_data=pairs, verbose=0)
        else:
            model.fit(images, np.eye(10)[labels], verbose=0)


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
