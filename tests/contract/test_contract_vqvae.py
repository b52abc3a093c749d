"""VQVAE × Keras's customs: what `compile` and `fit` are given must count, in numbers. See `parts.py` for the kinds of signal."""
import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from parts import (
    JAX,
    NEARLY,
    POLICIES,
    QUANTIZERS,
    ROOT,
    SIGNALS,
    TENSORFLOW,
    TORCH,
    D,
    K,
    model_for,
    moved,
    numbers,
    patch_model,
    remembered,
    same,
    signals,
    state,
    vectors,
)

from vqvae_tutorial import VQVAE, build_networks

GREY = SIGNALS["grey"]
needs_tensorflow = pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow's own")


@pytest.fixture(autouse=True)
def clean():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


def new(shape=GREY, rate=0.01, eager=True, make=QUANTIZERS["ema"], **options):
    keras.utils.set_random_seed(0)
    model = model_for(shape, make, value_range=(0, 1))
    model.adapt(signals(shape))
    model.compile(keras.optimizers.SGD(rate), run_eagerly=eager, **options)
    return model


compiled = remembered(new)


@pytest.fixture(scope="module")
def still():
    """A model that nobody trains: rate 0, evaluated only."""
    return new(rate=0.0)


def fitted(*data, model=None, **options):
    """The weights after a pass over data in order, and what `fit` reported."""
    model = compiled() if model is None else model
    history = model.fit(*data, **({"batch_size": 16, "shuffle": False, "verbose": 0} | options)).history
    return state(model), history


def drawn(model, x):
    """What a model draws in evaluation, without the limits of its range."""
    return numbers(model.decoder(model.quantizer.decode(model.quantizer.encode(model.encoder(x)))))


def clipped_errors(model, x, y=None):
    return np.mean((np.clip(drawn(model, x), 0, 1) - (x if y is None else y)) ** 2, axis=-1)


# Signals of every kind


@pytest.mark.parametrize("shape", SIGNALS.values(), ids=SIGNALS)
def test_every_kind_of_signal_trains_and_comes_back_from_a_file(shape, tmp_path):
    x, model = signals(shape), model_for(shape, value_range=(0, 1))
    assert model.signal_shape == shape and model.code_shape == tuple(size // 2 for size in shape[:-1])
    model.adapt(x)
    model.compile(keras.optimizers.Adam(0.01), run_eagerly=shape != GREY)  # one is compiled, the others are quicker without
    history = model.fit(x, batch_size=16, epochs=4, verbose=0).history
    assert {"loss", "mse", "quantizer_loss", "usage", "perplexity"} == set(history)
    assert history["mse"][-1] < 0.7 * history["mse"][0] and history["loss"][-1] < history["loss"][0]
    codes = model.encode(x)
    assert codes.dtype == "int32" and codes.shape == (32, *model.code_shape)
    np.testing.assert_allclose(model.decode(codes), model.predict(x, verbose=0), atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.encode(x), codes)
    np.testing.assert_array_equal(again.decode(codes), model.decode(codes))
    assert again.signal_shape == shape and again.code_shape == model.code_shape
    assert again.value_range == (0, 1) and float(again.variance) == float(model.variance)


@pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)
def test_every_quantizer_in_it_and_forwards_is_decode_of_encode(make):
    x, model = signals(GREY), compiled(make=make)
    losses = fitted(x, model=model, epochs=3)[1]["loss"]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(numbers(model(x)), np.clip(drawn(model, x), 0, 1))
    np.testing.assert_array_equal(model.decode(model.encode(x)), numbers(model(x)))


class Encoder(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.convolution = layers.Conv2D(D, 2, 2)

    def call(self, x, training=False):
        return self.convolution(x)


class Decoder(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.convolution = layers.Conv2DTranspose(1, 2, 2)

    def call(self, x, training=False):
        return self.convolution(x)


@pytest.mark.parametrize("begin", ["adapt", "fit", "call"])
def test_parts_may_be_subclassed(begin, tmp_path):
    x = signals(GREY)
    model = VQVAE(Encoder(), Decoder(), QUANTIZERS["ema"]())
    model.compile(keras.optimizers.Adam(0.01), run_eagerly=begin != "fit")
    model.adapt(x) if begin == "adapt" else model(x) if begin == "call" else None
    losses = model.fit(x, epochs=4, verbose=0).history["mse"]
    assert losses[-1] < losses[0] and model.code_shape == (4, 4) and model.signal_shape == GREY
    model.save(tmp_path / "model.keras")
    parts = {"Encoder": Encoder, "Decoder": Decoder}
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects=parts)
    np.testing.assert_array_equal(again.encode(x), model.encode(x))
    np.testing.assert_array_equal(again.decode(model.encode(x)), model.decode(model.encode(x)))


def speaking(length=16, speakers=3):
    """An encoder, and a decoder that is told who speaks."""
    encoder = keras.Sequential([keras.Input((length, 1)), layers.Conv1D(D, 4, 4)])
    vectors, who = keras.Input((length // 4, D), name="embeddings"), keras.Input((), dtype="int32", name="speaker")
    told = layers.Reshape((1, D))(layers.Embedding(speakers, D)(who))
    decoder = keras.Model({"embeddings": vectors, "speaker": who}, layers.Conv1DTranspose(1, 4, 4)(layers.Add()([vectors, told])))
    return VQVAE(encoder, decoder, QUANTIZERS["ema"]())


def test_a_condition_reaches_the_decoder(tmp_path):
    who = np.arange(32) % 3
    x = np.ones((32, 16, 1), "float32") * who[:, None, None]  # all there is to know is who speaks
    model = speaking()
    model.adapt({"signal": x, "speaker": who})
    model.compile(keras.optimizers.Adam(0.05))
    given = {"signal": x, "speaker": who}
    losses = model.fit(given, epochs=25, batch_size=8, verbose=0, validation_data=(given,)).history
    assert losses["val_mse"][-1] < 0.1 * losses["mse"][0]
    codes = model.encode(given)
    np.testing.assert_array_equal(codes, model.encode(x))
    np.testing.assert_allclose(model.decode(codes, speaker=who), model.predict(given, verbose=0), atol=1e-5)
    other = model.decode(codes, speaker=(who + 1) % 3)
    assert np.abs(other - model.decode(codes, speaker=who)).max() > 0.05
    for same_for_all in (2, [2] * len(codes)):
        np.testing.assert_array_equal(model.decode(codes, speaker=same_for_all), model.decode(codes, speaker=np.full(len(codes), 2)))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.decode(codes, speaker=who), model.decode(codes, speaker=who))
    with pytest.raises(Exception, match="speaker|embeddings|structure|input"):
        model.decode(codes)


# compile


def test_without_a_loss_it_is_the_error_over_the_variance_and_the_quantizers(still):
    x = signals(GREY, seed=1)
    report = still.evaluate(x, verbose=0, return_dict=True)
    error = clipped_errors(still, x).mean()
    gap = np.mean((numbers(still.encoder(x)) - numbers(still.quantizer.decode(still.encode(x)))) ** 2)
    np.testing.assert_allclose(report["mse"], error, rtol=1e-4)
    np.testing.assert_allclose(report["quantizer_loss"], 0.25 * gap, rtol=1e-4)
    np.testing.assert_allclose(report["loss"], error / np.var(signals(GREY)) + 0.25 * gap, rtol=1e-4)
    codes = still.encode(x)
    share = np.bincount(codes.ravel(), minlength=K) / codes.size
    assert report["usage"] == np.sum(share > 0)
    np.testing.assert_allclose(report["perplexity"], np.exp(-np.sum(share[share > 0] * np.log(share[share > 0]))), rtol=1e-4)


def test_before_adapt_the_variance_is_that_of_the_batch():
    model, x = model_for(GREY), signals(GREY)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    report = model.evaluate(x, batch_size=32, verbose=0, return_dict=True)
    np.testing.assert_allclose(report["loss"] - report["quantizer_loss"], report["mse"] / np.var(x), rtol=1e-4)


def test_losses_of_the_networks_count_and_are_not_the_quantizers():
    encoder, decoder = build_networks(GREY, D, filters=8, residual_blocks=0, halvings=1)
    encoder = keras.Sequential([keras.Input(GREY), encoder, layers.ActivityRegularization(l2=0.1)])
    model, x = VQVAE(encoder, decoder, QUANTIZERS["ema"]()), signals(GREY)
    model.adapt(x)
    model.compile(run_eagerly=True)
    report = model.evaluate(x, verbose=0, return_dict=True)
    gap = np.mean((numbers(encoder(x)) - numbers(model.quantizer.decode(model.encode(x)))) ** 2)
    np.testing.assert_allclose(report["quantizer_loss"], 0.25 * gap, rtol=1e-4)
    assert report["loss"] > report["mse"] / float(model.variance) + report["quantizer_loss"] + 1e-3


def per_example(y, y_pred):
    return ops.mean(ops.abs(y - y_pred), axis=(1, 2, 3))


def per_signal(y, y_pred):
    return ops.mean(ops.square(y - y_pred), axis=(1, 2))


@pytest.mark.parametrize("loss", ["mae", keras.losses.MeanAbsoluteError(), per_example], ids=["name", "object", "one value an example"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_that_is_compiled_is_the_loss(loss, weighted):
    model, x = compiled(loss=loss), signals(GREY, seed=1)
    weights = np.linspace(0, 2, 32).astype("float32") if weighted else None
    report = model.evaluate(x, x, sample_weight=weights, batch_size=32, verbose=0, return_dict=True)
    each = np.abs(np.clip(drawn(model, x), 0, 1) - x).mean((1, 2, 3))
    expected = np.mean(each * (1 if weights is None else weights))
    np.testing.assert_allclose(report["loss"] - report["quantizer_loss"], expected, rtol=1e-4)


def test_metrics_with_and_without_weights(still):
    model, x = compiled(metrics=["mae"], weighted_metrics=[keras.metrics.MeanAbsoluteError("heavy")]), signals(GREY, seed=1)
    weights = np.arange(32) % 2
    report = model.evaluate(x, x, sample_weight=weights, verbose=0, return_dict=True)
    error = np.abs(np.clip(drawn(model, x), 0, 1) - x).mean((1, 2, 3))
    name = "mae" if "mae" in report else "mean_absolute_error"
    np.testing.assert_allclose(report[name], error.mean(), rtol=1e-4)
    np.testing.assert_allclose(report["heavy"], error[1::2].mean(), rtol=1e-4)
    assert report[name] == model.evaluate(x, x, sample_weight=weights, verbose=0, return_dict=True)[name]


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 2}, {}], ids=str)
def test_compiled_in_any_way_it_learns_the_same(options):
    if TORCH and options:
        pytest.skip("PyTorch's compiler needs one of C++, and Keras takes one step at a time there")
    x = signals(GREY)
    expected, found = fitted(x)[0], fitted(x, model=compiled(eager=False, **options))[0]
    same(found, expected, rtol=1e-3, atol=1e-4)


# Weights of examples


WEIGHTS = {"(n,)": lambda w: w, "(n, 1)": lambda w: w[:, None], "(n, h, w)": lambda w: np.broadcast_to(w[:, None, None], (32, 8, 8)),
           "(n, h, w, 1)": lambda w: np.broadcast_to(w[:, None, None, None], (32, 8, 8, 1))}


@pytest.mark.parametrize("shape", WEIGHTS)
def test_weights_of_every_shape_weigh_the_reconstruction(still, shape):
    """Given with a target, as in `fit(x, x, sample_weight=w)`: without one Keras drops them before any model can see them."""
    x, weights = signals(GREY, seed=1), np.random.default_rng(0).uniform(size=32).astype("float32")
    report = still.evaluate(x, x, sample_weight=WEIGHTS[shape](weights), batch_size=32, verbose=0, return_dict=True)
    error = clipped_errors(still, x).mean((1, 2))
    np.testing.assert_allclose(report["mse"], np.average(error, weights=weights), rtol=1e-4)
    np.testing.assert_allclose(report["loss"] - report["quantizer_loss"], np.mean(error * weights) / np.var(signals(GREY)), rtol=1e-4)


@pytest.mark.parametrize("weight", [0, 1], ids=["zero", "the half"])
def test_what_weighs_nothing_teaches_the_decoder_nothing(weight):
    """With weights 0 the decoder rests; with 1 and 0 in turn it learns, at half the rate, from the first of each two alone."""
    x = signals(GREY)
    decoder = state(compiled().decoder)
    if weight == 0:
        model = compiled()
        fitted(x, x, model=model, sample_weight=np.zeros(32))
        same(state(model.decoder), decoder)
        return
    spoiled, found = x.copy(), []
    spoiled[1::2] = 1 - spoiled[1::2]
    for y in (x, spoiled):
        model = compiled(rate=0.1)
        fitted(x, y, model=model, sample_weight=np.tile([1.0, 0.0], 16), batch_size=32)
        found.append(state(model.decoder))
    same(*found)
    assert moved(found[0], decoder)


def test_validation_split_and_validation_with_weights():
    x, weights = signals(GREY), np.linspace(0, 1, 32).astype("float32")
    model = compiled(rate=0.0)
    history = fitted(x, model=model, validation_split=0.25)[1]
    np.testing.assert_allclose(history["val_mse"][0], clipped_errors(model, x[24:]).mean(), rtol=1e-4)
    error = clipped_errors(model, x).mean((1, 2))
    history = fitted(x, model=model, validation_data=(x, x, weights))[1]
    np.testing.assert_allclose(history["val_mse"][0], np.average(error, weights=weights), rtol=1e-4)
    for data in (x, (x,), (x, x)):
        history = fitted(x, model=model, validation_data=data)[1]
        np.testing.assert_allclose(history["val_mse"][0], error.mean(), rtol=1e-4)


@pytest.mark.parametrize("data", ["x", "(x, x)", "(x, labels)"])
def test_class_weights_train_nothing(data):
    """Signals have no classes. The first two errors are Keras's own, and come before any model is asked."""
    x, model = signals(GREY), new()  # of its own: see `JAX`
    model.run_eagerly = False  # so that labels are refused while the graph is made, and no number has moved
    data, before = {"x": (x,), "(x, x)": (x, x), "(x, labels)": (x, np.arange(32) % 2)}[data], state(model)
    with pytest.raises((IndexError, AttributeError, TypeError, ValueError)):
        model.fit(*data, class_weight={0: 1.0, 1: 2.0}, verbose=0)
    if not (JAX or TORCH):
        same(state(model), before)


# Data in every form


class Pictures(keras.utils.PyDataset):
    def __init__(self, x, form=lambda x: x, endless=False):
        super().__init__()
        self.x, self.form, self.endless = x, form, endless

    @property
    def num_batches(self):
        return None if self.endless else len(self.x) // 16

    def __getitem__(self, index):
        return self.form(self.x[index % 2 * 16:][:16])


def slices(data):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(data).batch(16)


FORMS = {
    "x, x": lambda x: ((x, x), {}),
    "dict": lambda x: (({"signal": x},), {}),
    "dict, x": lambda x: (({"signal": x}, x), {}),
    "dict, dict": lambda x: (({"signal": x}, {"signal": x}), {}),
    "tf.data x": lambda x: ((slices(x),), {}),
    "tf.data (x, x)": lambda x: ((slices((x, x)),), {}),
    "tf.data dict": lambda x: ((slices({"signal": x}),), {}),
    "tf.data (x, x, weights)": lambda x: ((slices((x, x, np.ones(32, "float32"))),), {}),
    "PyDataset": lambda x: ((Pictures(x, lambda x: (x, x)),), {}),
    "PyDataset of x": lambda x: ((Pictures(x, lambda x: (x,)),), {}),
    "endless PyDataset": lambda x: ((Pictures(x, lambda x: (x, x), endless=True),), {"steps_per_epoch": 2}),
    "generator": lambda x: ((((part, part) for part in (x[:16], x[16:])),), {}),
    "generator of x": lambda x: ((((part,) for part in (x[:16], x[16:])),), {}),
    "one callback": lambda x: ((x,), {"callbacks": keras.callbacks.History()}),
    "a list of callbacks": lambda x: ((x,), {"callbacks": [keras.callbacks.History()]}),
    "no channel axis": lambda x: ((x[..., 0],), {}),
    "no channel axis, x": lambda x: ((x[..., 0], x[..., 0]), {}),
    "weights of one": lambda x: ((x, x), {"sample_weight": np.ones(32)}),
    "float64": lambda x: ((x.astype("float64"),), {}),
}


@pytest.fixture(scope="module")
def from_array():
    return fitted(signals(GREY))


@pytest.mark.parametrize("form", FORMS)
def test_data_in_every_form_teach_the_same(form, from_array):
    """As a plain array: nothing is lost, dropped, or taken for something else."""
    data, options = FORMS[form](signals(GREY))
    if "steps_per_epoch" in options or not isinstance(data[0], (np.ndarray, dict)):
        options = {"batch_size": None} | options
    found, history = fitted(*data, **options)
    same(found, from_array[0], **NEARLY)
    for name, values in from_array[1].items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)


def test_train_on_batch_teaches_the_same(from_array):
    model, x = compiled(), signals(GREY)
    for part in (x[:16], x[16:]):
        report = model.train_on_batch(part, return_dict=True)
    same(state(model), from_array[0], **NEARLY)
    assert set(model.test_on_batch(x, return_dict=True)) == set(report) == set(from_array[1])


@needs_tensorflow
def test_a_loop_of_ones_own_teaches_the_same(from_array):
    import tensorflow as tf

    model, x = compiled(), signals(GREY)
    for part in (x[:16], x[16:]):
        with tf.GradientTape() as tape:
            drawn = model(part, training=True)
            loss = model.compute_loss(x=part, y=part, y_pred=drawn, training=True)
        slopes = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(slopes, model.trainable_variables))
    same(state(model), from_array[0], **NEARLY)


@pytest.mark.parametrize("kind", ["uint8", "int32"])
def test_integer_signals_are_numbers(kind):
    whole = np.round(9 * signals(GREY)).astype(kind)
    found = []
    for x in (whole, whole.astype("float32")):
        keras.utils.set_random_seed(0)
        model = model_for(GREY)
        model.adapt(x)
        model.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
        found.append((fitted(x, model=model)[0], model.encode(x)))
    same(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[0][1], found[1][1])


@needs_tensorflow
def test_encode_inside_a_dataset(still):
    x = signals(GREY)
    found = np.concatenate(list(slices(x).map(still.encode).as_numpy_iterator()))
    np.testing.assert_array_equal(found, still.encode(x))


MIRRORED = """
import sys
sys.path[:0] = sys.argv[1:3]
import numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from parts import SIGNALS, model_for, signals, state, same
def train():
    keras.utils.set_random_seed(0)
    model = model_for(SIGNALS["grey"])
    model.adapt(signals(SIGNALS["grey"]))
    model.compile(keras.optimizers.SGD(0.01))
    x = signals(SIGNALS["grey"])
    h = model.fit(x, x, sample_weight=np.ones(32), batch_size=16, epochs=2, shuffle=False, verbose=0).history
    return state(model), h
alone = train()
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    both = train()
same(both[0], alone[0], rtol=1e-3, atol=1e-4)
for name in ("mse", "loss"):  # where a vector lies between two codes, rounding decides
    np.testing.assert_allclose(both[1][name], alone[1][name], rtol=5e-3)
print("fine")
"""


@needs_tensorflow
def test_two_replicas_learn_what_one_does():
    command = [sys.executable, "-c", MIRRORED, str(ROOT), str(ROOT / "tests" / "contract")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert ran.stdout.strip().endswith("fine"), ran.stderr[-3000:]


# What cannot be meant


@pytest.mark.parametrize("target", ["labels", "(n, 1) labels", "one-hot labels", "another size", "one picture"])
def test_targets_that_are_no_signals_are_refused(target):
    x = signals(GREY)
    y = {"labels": np.arange(32), "(n, 1) labels": np.arange(32)[:, None], "one-hot labels": np.eye(32), "another size": x[:, :4],
         "one picture": np.broadcast_to(x[:, :1, :1], (32, 1, 1, 1))}[target]
    for use, options in (("fit", {"verbose": 0}), ("evaluate", {"verbose": 0}), ("train_on_batch", {})):
        model = new(eager=target != "labels")  # of its own: see `JAX`
        before = state(model)
        with pytest.raises(ValueError, match="target must have the shape of the output.* Received: .*leave them out"):
            getattr(model, use)(x, y, **options)
        if target == "labels" and not (JAX or TORCH):  # compiled, it is refused before the codebook has seen a batch
            same(state(model), before)


BAD = {"from -0.5 to 0.5": lambda x: x - 0.5, "from 0 to 255": lambda x: 255 * x}


@pytest.mark.parametrize("kind", BAD)
def test_signals_out_of_range_are_refused(still, kind):
    x = BAD[kind](signals(GREY))
    for use in (still.adapt, still.encode):
        with pytest.raises(ValueError, match="`x` must be numbers from 0 to 1. Received: .* `"):
            use(x)


@pytest.mark.parametrize("kind", BAD)
def test_in_fit_signals_out_of_range_cannot_pass_unseen(kind):
    """The first reported loss is no number, `StopAtNaN` says what that may mean, and all weights stay finite."""
    from vqvae_tutorial.callbacks import StopAtNaN

    model, x = compiled(rate=1e-7), BAD[kind](signals(GREY))
    assert np.isnan(fitted(x, model=model)[1]["loss"]).all() and np.isnan(model.evaluate(x, verbose=0, return_dict=True)["loss"])
    assert all(np.isfinite(value).all() for name, value in state(model).items())
    with pytest.raises(ValueError, match="range"):
        model.fit(x, verbose=0, callbacks=StopAtNaN())
    assert np.isfinite(fitted(signals(GREY), model=model)[1]["loss"]).all()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_with_the_example_that_holds_them(still, number):
    x = signals(GREY)
    x[5, 2, 2] = number
    for use in (still.adapt, still.encode):
        with pytest.raises(ValueError, match=r"finite. Received: .* `x\[5\]`"):
            use(x)


MISSHAPEN = [np.zeros((4, 9, 8, 1)), np.zeros((4, 8, 8, 3)), np.zeros((8,)), np.array(["a"] * 4)]


@pytest.mark.parametrize("x", MISSHAPEN, ids=lambda x: str(x.shape))
def test_signals_of_another_shape_are_refused(still, x):
    for use in (still.adapt, still.encode):
        with pytest.raises(ValueError, match=r"`x` must be numbers of shape \(n, 8, 8, 1\). Received: "):
            use(x)


def test_no_signals():
    model = compiled()
    assert model.encode(np.zeros((0, *GREY))).shape == (0, 4, 4)
    assert model.decode(np.zeros((0, 4, 4), "int32")).shape == (0, *GREY)
    for none in (np.zeros((0, *GREY)), []):
        with pytest.raises(ValueError, match="at least one"):
            model.adapt(none)


def test_adapt_on_streams():
    """A generator would be used up; an endless dataset is read no further than needed; both start as an array does."""
    model, x = compiled(), signals(GREY)
    with pytest.raises(ValueError, match="generator uses it up"):
        model.adapt(part for part in (x,))
    endless = Pictures(x, endless=True)
    model.adapt(endless)
    np.testing.assert_allclose(float(model.variance), np.var(x), rtol=1e-4)
    if TENSORFLOW:
        model.adapt(slices(x).repeat())
        np.testing.assert_allclose(float(model.variance), np.var(x), rtol=1e-4)
        model.adapt(slices((x, x)))
        np.testing.assert_allclose(float(model.variance), np.var(x), rtol=1e-4)


def test_adapt_spares_a_frozen_or_given_codebook_and_one_in_training(still):
    x, given = signals(GREY), vectors(K)
    model = model_for(GREY)
    model.quantizer.set_codebook(given)
    model.quantizer.trainable = False
    model.adapt(x)
    np.testing.assert_allclose(float(model.variance), np.var(x), rtol=1e-5)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    fitted(x, model=model)
    np.testing.assert_array_equal(numbers(model.quantizer.codebook), given)
    model = VQVAE(*build_networks(GREY, D, 8, 1, 1), type(still.quantizer)(K, embeddings_initializer=given))
    model.adapt(x)
    np.testing.assert_array_equal(numbers(model.quantizer.codebook), given)
    model = new()
    before = model.encode(x)
    model.optimizer.learning_rate = 0.0
    model.quantizer.trainable = False
    model.fit(x, verbose=0)  # `fit` never starts anew
    np.testing.assert_array_equal(model.encode(x), before)


def test_adapt_sees_all_of_an_array(still):
    x = np.concatenate([signals(GREY, 2500), np.full((100, *GREY), 0.5, "float32")])
    still_variance = float(still.variance)
    still.adapt(x)
    np.testing.assert_allclose(float(still.variance), np.var(x[::2]), rtol=1e-5)
    still.adapt(signals(GREY))
    np.testing.assert_allclose(float(still.variance), still_variance, rtol=1e-6)


@pytest.mark.parametrize("codes, problem", [(np.full((1, 4, 4), K), "from 0 to 7"), (np.full((1, 4, 4), -1), "from 0 to 7"),
                                            (np.zeros((1, 4, 4)), "from 0"), (np.zeros((4, 4), int), "shape"),
                                            (np.zeros((1, 3, 4), int), "shape")], ids=["K", "-1", "floats", "one map", "a row less"])
def test_codes_that_do_not_fit_are_refused(still, codes, problem):
    with pytest.raises(ValueError, match=f"`codes` must be integers.*{problem}.* Received: "):
        still.decode(codes)


@pytest.mark.parametrize("given", [[], [1], [2, 1], [0, 1, 2], "abc", [np.nan, 1]], ids=str)
def test_ranges_that_are_none_are_refused(given):
    with pytest.raises(ValueError, match="`value_range` must be .* Received: "):
        model_for(GREY, value_range=given)


@pytest.mark.parametrize("shape", [(10, 8, 1), (8,), (2, 8, 8, 8, 1)], ids=str)
def test_shapes_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(ValueError, match="`shape` must be .* Received: "):
        build_networks(shape, halvings=2)


# Masks


@pytest.mark.parametrize("loss", [None, "mse", per_signal], ids=["own", "mse", "one value an example"])
def test_padding_teaches_and_counts_nothing(loss):
    """Against the same signals unpadded; the padding holds NaN where it is compared, so that a single look would be seen."""
    x, found = vectors(32, 8)[..., :2], []
    padded = np.concatenate([x, np.zeros((32, 4, 2), "float32")], axis=1)
    target = np.concatenate([x, np.full((32, 4, 2), np.nan, "float32")], axis=1)
    mask = np.broadcast_to(np.arange(12) < 8, (32, 12))
    for length, inputs, y in ((12, {"signal": padded, "mask": mask}, target), (8, x, x)):
        keras.utils.set_random_seed(0)
        model = patch_model(length, value_range=(-9, 9))
        model.quantizer.adapt(numbers(model.encoder(x)) if length == 8 else numbers(model.encoder(padded))[:, :4])
        model.variance.assign(2.0)
        model.compile(keras.optimizers.SGD(0.01), loss=loss, run_eagerly=True)
        weights = np.linspace(0.5, 1.5, 32).astype("float32")
        history = fitted(inputs, y, model=model, epochs=2, sample_weight=weights)[1]
        found.append((history, state(model.quantizer), model.encoder.get_weights() + model.decoder.get_weights()))
    same(found[0][1], found[1][1], **NEARLY)
    for one, other in zip(found[0][2], found[1][2], strict=True):
        np.testing.assert_allclose(one, other, **NEARLY)
    for name, column in found[1][0].items():
        np.testing.assert_allclose(found[0][0][name], column, rtol=1e-4, err_msg=name)


def test_perplexity_counts_each_real_place_alike():
    """Signals of many lengths, in batches of any size: that of all codes of real places together."""
    x, lengths = vectors(32, 12)[..., :2], 2 * (1 + np.arange(32) % 6)
    mask = np.arange(12) < lengths[:, None]
    model = patch_model()
    model.adapt(x)
    model.compile(run_eagerly=True)
    codes = model.encode(x)[mask[:, ::2]]
    share = np.bincount(codes, minlength=K) / len(codes)
    share = share[share > 0]
    for size in (32, 7):
        report = model.evaluate({"signal": x, "mask": mask}, batch_size=size, verbose=0, return_dict=True)
        np.testing.assert_allclose(report["perplexity"], np.exp(-np.sum(share * np.log(share))), rtol=1e-4)
        assert report["usage"] == len(share)
        error = np.mean((drawn(model, x) - x) ** 2, axis=-1)[mask].mean()
        np.testing.assert_allclose(report["mse"], error, rtol=1e-4)


def test_a_mask_ends_at_the_quantizer():
    """Keras warns of each layer that destroys a mask; a decoder's layers are not given one."""
    x = vectors(32, 12)[..., :2]
    model = patch_model()
    model.compile()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*mask.*")
        model.fit({"signal": x, "mask": np.arange(12) < np.full((32, 1), 8)}, verbose=0)


# Policies, settings, seeds, files, exports


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_under_every_policy_from_training_to_codes(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    x, model = signals(GREY), model_for(GREY, value_range=(0, 1))
    model.adapt(x)
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
    losses = fitted(x, model=model, epochs=3)[1]["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    codes, picture = model.encode(x), model.decode(model.encode(x))
    assert picture.dtype == "float32" and 0 <= picture.min() and picture.max() <= 1
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.dtype_policy.name == again.encoder.layers[1].dtype_policy.name == policy
    np.testing.assert_array_equal(again.encode(x), codes)
    np.testing.assert_array_equal(again.decode(codes), picture)


def test_channels_first_is_a_setting_for_others():
    x, right = signals(GREY), compiled()
    keras.config.set_image_data_format("channels_first")
    model = new()
    np.testing.assert_array_equal(model.encode(x), right.encode(x))
    same(fitted(x, model=model)[0], fitted(x, model=right)[0], **NEARLY)


def test_keras_seed_decides_all():
    def trained(number):
        keras.utils.set_random_seed(number)
        make = type(QUANTIZERS["ema"]())
        model = VQVAE(*build_networks(GREY, D, 8, 1, 1), make(K, revival_threshold=0.9))
        model.adapt(signals(GREY))
        model.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
        model.fit(signals(GREY), batch_size=16, verbose=0)
        return state(model)

    same(trained(1), trained(1))
    assert moved(trained(1), trained(2))


@needs_tensorflow
def test_it_can_be_exported_whole_and_in_parts(still, tmp_path):
    import tensorflow as tf

    x = signals(GREY)
    still.export(str(tmp_path / "whole"), verbose=False)
    whole = tf.saved_model.load(str(tmp_path / "whole"))  # kept, since its variables go with it
    np.testing.assert_allclose(numbers(whole.serve(x)), numbers(still(x)), atol=1e-5)
    archive = keras.export.ExportArchive()
    archive.track(still)
    archive.add_endpoint("encode", still.encode, [tf.TensorSpec((None, *GREY))])
    archive.add_endpoint("decode", still.decode, [tf.TensorSpec((None, 4, 4), "int32")])
    archive.write_out(str(tmp_path / "parts"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "parts"))
    codes = numbers(loaded.encode(x))
    np.testing.assert_array_equal(codes, still.encode(x))
    np.testing.assert_allclose(numbers(loaded.decode(codes)), still.decode(codes), atol=1e-5)
