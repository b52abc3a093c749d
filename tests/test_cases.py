"""Programs that users write, which went wrong in the first edition: each now works, or is refused with what was given, expected, and to do.

The whole kind of each stands in tests/contract; here is the program itself, with digits.
"""
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops
from project import ROOT

from vqvae_tutorial import VQVAE, PixelCNN, VectorQuantizer, VectorQuantizerEMA, build_networks, load_pretrained
from vqvae_tutorial.data import SAMPLE, load_mnist

TENSORFLOW = keras.backend.backend() == "tensorflow"
needs_tensorflow = pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow's own")


@pytest.fixture(autouse=True)
def clean():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@pytest.fixture(scope="module")
def digits():
    return load_mnist(SAMPLE).train


@pytest.fixture(scope="module")
def pretrained():
    return load_pretrained()


def small(adapted=None, **options):
    keras.utils.set_random_seed(0)
    networks = build_networks((28, 28, 1), embedding_dim=4, filters=8, residual_blocks=0)
    model = VQVAE(*networks, VectorQuantizerEMA(16, seed=0), value_range=(0, 1))
    if adapted is not None:
        model.adapt(adapted)
    model.compile("adam", **({"run_eagerly": True} | options))
    return model


def prior(classes=None, **options):
    keras.utils.set_random_seed(0)
    made = PixelCNN(16, (7, 7), classes, filters=8, num_layers=2)
    made.compile("adam", **options)
    return made


def values(tensor):
    return np.array(ops.convert_to_numpy(tensor))


@needs_tensorflow
def test_01_labels_are_no_target_pictures(digits):
    """As tfds and `image_dataset_from_directory` give them."""
    import tensorflow as tf

    model, x, y = small(), digits.images[:64], digits.labels[:64]
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    for use in (lambda: model.fit(dataset, verbose=0), lambda: model.fit(x, y, verbose=0), lambda: model.evaluate(x, y, verbose=0)):
        with pytest.raises(ValueError, match=r"target must have the shape of the output, .*28, 28, 1.* Received: .*leave them out"):
            use()
    losses = model.fit(dataset.map(lambda x, y: x), verbose=0).history["mse"]  # what the error says to do
    assert losses[0] < 1


@pytest.mark.parametrize("batch", [1, 28])
def test_01_a_missing_channel_axis_is_not_spread(digits, batch):
    x = digits.images[:28]
    found = [small(x).fit(given, batch_size=batch, shuffle=False, verbose=0).history["mse"] for given in (x, x[..., 0])]
    np.testing.assert_allclose(*found, rtol=1e-5)


LOAD = """
import sys, numpy as np, keras, vqvae_tutorial
folder = sys.argv[1]
for name in ("m", "p", "mixed"):
    loaded = keras.saving.load_model(f"{folder}/{name}.keras")
    x, expected = (np.load(f"{folder}/{name}.{kind}.npy") for kind in ("x", "expected"))
    found = loaded.bits(x) if name == "p" else loaded.encode(x)
    assert np.array_equal(found, expected), name
assert loaded.dtype_policy.name == loaded.encoder.layers[1].dtype_policy.name == "mixed_bfloat16"
assert np.array_equal(loaded.decode(expected), np.load(f"{folder}/mixed.pictures.npy"))
print("fine")
"""


def test_02_and_14_another_process_loads_what_was_saved(digits, tmp_path):
    """With nothing but `import vqvae_tutorial`; a mixed policy comes back, in all parts, and gives the same to the bit."""
    x = digits.images[:32]
    saved = {"m": small(x), "p": prior()}
    keras.config.set_dtype_policy("mixed_bfloat16")
    saved["mixed"] = small(x)
    saved["mixed"].fit(x, verbose=0)
    np.save(tmp_path / "mixed.pictures.npy", saved["mixed"].decode(saved["mixed"].encode(x)))
    codes = saved["m"].encode(x)
    for name, model in saved.items():
        model.save(tmp_path / f"{name}.keras")
        given = codes if name == "p" else x
        np.save(tmp_path / f"{name}.x.npy", given)
        np.save(tmp_path / f"{name}.expected.npy", model.bits(codes) if name == "p" else model.encode(x))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    ran = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=600)
    assert ran.stdout.strip().endswith("fine"), ran.stderr[-3000:]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_03_what_trains_under_a_policy_can_sample_under_it(policy, pretrained):
    keras.config.set_dtype_policy(policy)
    made = PixelCNN(16, (4, 4), filters=8, num_layers=2)
    made.compile("adam", run_eagerly=True)
    made.fit(np.zeros((32, 4, 4), "int32"), verbose=0)
    assert made.sample(2).shape == (2, 4, 4)
    for loaded in (pretrained[1], load_pretrained()[1]):  # loaded before the policy was set, and under it
        assert loaded.sample(1, label=3, seed=0).shape == (1, 7, 7)


@pytest.mark.parametrize("change, advice", [(lambda x: x - 0.5, r"x \+ 0.5"), (lambda x: 255 * x, r"Divide by 255: `x / 255`")])
def test_04_the_range_is_checked_before_training(digits, change, advice):
    x = change(digits.images[:64])
    with pytest.raises(ValueError, match=f"`x` must be numbers from 0 to 1. Received: float32 from .*{advice}"):
        small().adapt(x)
    assert np.isnan(small().fit(x, verbose=0).history["loss"]).all()  # and without `adapt` it cannot pass unseen
    unlimited = VQVAE(*build_networks((28, 28, 1), 4, 8, 0), VectorQuantizerEMA(16))
    unlimited.adapt(x)
    np.testing.assert_allclose(unlimited.predict(x[:2], verbose=0), values(unlimited(x[:2])), rtol=1e-4, atol=1e-5)


def test_05_sample_weights_count(digits):
    """With a target, that is: Keras itself drops the weights of `fit(x, sample_weight=w)`, in any model; `help(VQVAE)` says so."""
    c, y = np.repeat([[[0]], [[1]]], 8, axis=0) * np.ones((16, 7, 7), "int32"), np.zeros(16, "int32")
    made, nothing = prior(1, run_eagerly=True), np.zeros(16)
    before = made.get_weights()
    made.fit({"codes": c, "label": y}, c, sample_weight=nothing, verbose=0)
    assert all(np.array_equal(old, new) for old, new in zip(before, made.get_weights(), strict=True))
    assert made.evaluate({"codes": c, "label": y}, c, sample_weight=nothing, verbose=0, return_dict=True)["loss"] == 0
    x = digits.images[:32]
    model = small(x)
    before = model.decoder.get_weights()
    model.fit(x, x, sample_weight=np.zeros(32), verbose=0)
    assert all(np.array_equal(old, new) for old, new in zip(before, model.decoder.get_weights(), strict=True))


def test_07_a_model_of_codes_follows_training():
    x = np.random.default_rng(0).random((64, 16, 16, 3)).astype("float32")
    inputs, quantizer = keras.Input((16, 16, 3)), VectorQuantizer(16, seed=0)
    h = layers.Conv2D(8, 4, 4)(inputs)
    model = keras.Model(inputs, layers.Conv2DTranspose(3, 4, 4)(quantizer(h)))
    coder = keras.Model(inputs, quantizer.encode(h))
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(x, x, epochs=3, verbose=0)
    right = values(quantizer.encode(keras.Model(inputs, h).predict(x, verbose=0)))
    np.testing.assert_array_equal(coder.predict(x, verbose=0), right)
    assert [weight.path for weight in coder.weights if "codebook" in weight.path]


def test_08_a_codebook_that_is_frozen_given_or_trained_is_never_replaced(digits):
    x, given = digits.images[:128], np.random.default_rng(1).normal(size=(16, 4)).astype("float32")
    model = small()
    model.quantizer.set_codebook(given)
    model.quantizer.trainable = False
    model.adapt(x), model.compile("adam", run_eagerly=True), model.fit(x, verbose=0)
    np.testing.assert_array_equal(values(model.quantizer.codebook), given)
    model = small(x)
    for start in range(0, 128, 32):
        model.train_on_batch(x[start:][:32])  # a loop of one's own
    model.quantizer.trainable = False
    model.optimizer.learning_rate = 0.0
    codes = model.encode(x)
    model.fit(x, verbose=0)  # then fit
    np.testing.assert_array_equal(model.encode(x), codes)


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_09_the_kmeans_start_is_not_thrown_away(digits, pretrained, batch):
    z = pretrained[0].encoder.predict(digits.images[:512], verbose=0)
    quantizer = VectorQuantizerEMA(256, seed=0)
    quantizer.adapt(z)

    def error():
        return float(np.mean(np.sum((z - values(quantizer.decode(quantizer.encode(z)))) ** 2, -1)))

    curve = [error()]
    for step in range(10):
        quantizer(z[step * batch:][:batch], training=True)
        curve.append(error())
    assert max(curve) < 1.15 * curve[0], curve


@pytest.mark.parametrize("n", [64, 256])
def test_11_a_generator_loses_nothing(digits, n):
    x, seen = digits.images[:n], []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    small().fit(((x[i:i + 64], x[i:i + 64]) for i in range(0, n, 64)), verbose=0, callbacks=[count])
    assert len(seen) == n // 64


@needs_tensorflow
@pytest.mark.parametrize("first", ["nothing", "called", "encoded"])
def test_15_it_can_be_exported_whatever_was_done_before(digits, first, tmp_path):
    import tensorflow as tf

    x = digits.images[:3]
    model = small(x)
    model(x) if first == "called" else model.decode(model.encode(x)) if first == "encoded" else None
    if first != "called":  # Keras says what is missing
        with pytest.raises(ValueError, match="must be called at least once before export"):
            model.export(str(tmp_path / "early"), verbose=False)
        model(x)
    model.export(str(tmp_path / "model"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))  # kept, since its variables go with it
    np.testing.assert_allclose(values(loaded.serve(x)), values(model(x)), atol=1e-5)


class Encoder(keras.Model):
    def __init__(self):
        super().__init__()
        self.convolution = layers.Conv2D(4, 4, 4)

    def call(self, x):
        return self.convolution(x)


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return (np.random.default_rng(index).random((8, 28, 28, 1)).astype("float32"),)


X, C = np.random.default_rng(0).random((16, 28, 28, 1)).astype("float32"), np.zeros((16, 7, 7), "int32")
Y = C[:, 0, 0]


def of_sound():
    encoder = keras.Sequential([keras.Input((400, 1)), layers.Conv1D(16, 8, 8)])
    decoder = keras.Sequential([keras.Input((50, 16)), layers.Conv1DTranspose(1, 8, 8)])
    return VQVAE(encoder, decoder, VectorQuantizerEMA(32)).encode(np.zeros((1, 400, 1)))


ACCEPTED = {
    "compile(metrics=['mae']); fit(x)": lambda: small(metrics=["mae"]).fit(X, verbose=0),
    "endless PyDataset": lambda: small().fit(Endless(), steps_per_epoch=2, verbose=0),
    "fit((n, 28, 28))": lambda: small().fit(X[..., 0], verbose=0),
    "a subclassed encoder": lambda: VQVAE(Encoder(), build_networks((28, 28, 1), 4, 8, 0)[1], VectorQuantizerEMA(16)).encode(X),
    "a VQ-VAE of sound": of_sound,
    "PixelCNN(shape=(50,))": lambda: PixelCNN(16, (50,), filters=4, num_layers=1).sample(),
    "PixelCNN(shape=7)": lambda: PixelCNN(16, 7, filters=4, num_layers=1).sample(),
    "PixelCNN(codes.max() + 1)": lambda: PixelCNN((C + 15).max() + 1, (7, 7), filters=4, num_layers=1),
    "PixelCNN(filters=64.0)": lambda: PixelCNN(16, (7, 7), filters=4.0, num_layers=1),
    "VectorQuantizerEMA(64.0)": lambda: VectorQuantizerEMA(64.0),
    "embeddings_initializer=array": lambda: VectorQuantizer(8, embeddings_initializer=np.zeros((8, 4))),
    "prior validation with weights": lambda: prior(3, run_eagerly=True).fit(
        {"codes": C, "label": Y}, validation_data=({"codes": C, "label": Y}, None, np.ones(16)), verbose=0),
}
REFUSED = {
    "PixelCNN class_weight": (lambda: prior(3).fit({"codes": C, "label": Y}, class_weight={0: 1.0}, verbose=0), "."),
    "labels beside codes": (lambda: prior().fit(C, Y, verbose=0), 'own targets.*Received: .*"label": labels'),
    "fit(dict without a signal)": (lambda: small().fit({"image": X}, verbose=0), 'dict that holds it under "signal".* Received: .*image'),
    "VectorQuantizer.adapt(strings)": (lambda: VectorQuantizer(8).adapt(np.array([["a"]])), "."),
    "a nested list of codes": (lambda: prior().fit(C.tolist(), verbose=0), "."),
    "predict([c])": (lambda: prior(3).predict([C], verbose=0), "must be"),
    "another decoder": (lambda: VQVAE(build_networks((28, 28, 1), 4, 8, 0)[0], build_networks((28, 28, 1), 5, 8, 0)[1],
                                      VectorQuantizerEMA(16)), "`decoder` must take .* Received: "),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_16_calls_that_mean_one_thing_work(name):
    ACCEPTED[name]()


@pytest.mark.parametrize("name", REFUSED)
def test_16_calls_that_mean_nothing_say_so(name):
    call, words = REFUSED[name]
    with pytest.raises((AttributeError, IndexError, TypeError, ValueError), match=f"(?s){words}"):
        call()


@needs_tensorflow
def test_16_datasets(digits):
    import tensorflow as tf

    of_dataset = tf.data.Dataset.from_tensor_slices(X).batch(8).map(small().encode)
    np.testing.assert_array_equal(np.concatenate(list(of_dataset.as_numpy_iterator())), small().encode(X))
    model = small()
    model.fit(tf.data.Dataset.from_tensor_slices({"signal": X}).batch(8), verbose=0)
    model.fit(tf.data.Dataset.from_tensor_slices({"image": X, "label": Y}).batch(8).map(lambda both: both["image"]), verbose=0)


def test_16_channels_first(digits, pretrained):
    expected = pretrained[0].encode(digits.images[:4]), pretrained[1].bits(C[:4], 3)
    keras.config.set_image_data_format("channels_first")
    model, made = load_pretrained()
    np.testing.assert_array_equal(model.encode(digits.images[:4]), expected[0])
    np.testing.assert_allclose(made.bits(C[:4], 3), expected[1], rtol=1e-5)
    assert small().encode(X).shape == (16, 7, 7)


@needs_tensorflow
def test_19_minus_one_is_not_the_last_code():
    import tensorflow as tf

    quantizer = VectorQuantizer(8)
    quantizer.build((None, 4))
    assert np.isnan(values(tf.function(lambda codes: quantizer.decode(codes))(tf.constant([-1])))).all()
    with pytest.raises(ValueError, match="`codes` must be integers from 0 to 7. Received: .*-1"):
        quantizer.decode([-1])


def test_20_padding_is_not_what_the_codebook_sees():
    x = np.random.default_rng(0).normal(size=(32, 20, 4)).astype("float32")
    x[:, 5:] = 0  # 15 of 20 steps are padding
    found = []
    for steps in (20, 5):
        inputs, start = keras.Input((steps, 4)), keras.initializers.RandomNormal(seed=0)
        quantizer = VectorQuantizer(8, seed=0, embeddings_initializer=start)
        model = keras.Model(inputs, quantizer(layers.Masking()(inputs)))
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        model.fit(x[:, :steps], epochs=2, verbose=0, shuffle=False)
        found.append((values(quantizer.frequencies), values(quantizer.codebook)))
    for padded, plain in zip(*found):
        np.testing.assert_allclose(padded, plain, rtol=1e-4, atol=1e-6)


@needs_tensorflow
@pytest.mark.parametrize("way", ["export", "archive"])
def test_21_a_prior_with_classes_can_be_exported(way, tmp_path):
    import tensorflow as tf

    made, codes, label = prior(3), C[:2], Y[:2]
    expected = values(made({"codes": codes, "label": label}))
    if way == "export":
        made.export(str(tmp_path / "prior"), verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "prior"))
        found = loaded.serve({"codes": codes, "label": label})
    else:
        archive = keras.export.ExportArchive()
        archive.track(made)
        archive.add_endpoint("logits", lambda c, y: made({"codes": c, "label": y}),
                             input_signature=[tf.TensorSpec((None, 7, 7), "int32"), tf.TensorSpec((None,), "int32")])
        archive.write_out(str(tmp_path / "prior"), verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "prior"))
        found = loaded.logits(codes, label)
    np.testing.assert_allclose(values(found), expected, atol=1e-5)
