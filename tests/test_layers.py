"""The quantizer layer where a chapter cannot look: compiled training, other policies and backends, saved configurations."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial.layers import CodebookPerplexity, CodebookUsage, StopRevival, VectorQuantizer
from vqvae_tutorial.quantization import code_frequencies, nearest_code

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def values(variable):
    return ops.convert_to_numpy(variable).copy()


def state(layer):
    return [values(variable) for variable in layer.variables]


def alone(quantizer):
    inputs = keras.Input((quantizer.embedding_dim,))
    return keras.Model(inputs, quantizer(inputs))


def nearest(vectors, codebook):
    return np.argmin(np.sum((vectors[:, None] - codebook) ** 2, axis=-1), axis=-1)


@pytest.mark.parametrize("jit", [False, True])
def test_the_ema_rule_in_fit_equals_numpy(random, jit):
    vectors = random.normal(size=(7, 16, 3)).astype("float32")
    quantizer = VectorQuantizer(5, 3, decay=0.9, revival_threshold=0, seed=0)
    model = alone(quantizer)
    quantizer.adapt(vectors[0])
    codebook, frequency, total = values(quantizer.codebook).astype("float64"), np.zeros(5), np.zeros((5, 3))
    for batch in vectors:
        chosen = np.eye(5)[nearest(batch, codebook)]
        frequency = 0.9 * frequency + 0.1 * 5 * chosen.mean(axis=0)  # from zero, and debiased below
        total = 0.9 * total + 0.1 * 5 * chosen.T @ batch / len(batch)
        codebook = np.where(frequency[:, None] > 0, total / np.maximum(frequency, 1e-12)[:, None], codebook)
    frequency, total = frequency / (1 - 0.9**7), total / (1 - 0.9**7)
    model.compile("sgd", jit_compile=jit)
    model.fit(np.concatenate(vectors), batch_size=16, shuffle=False, verbose=0)
    np.testing.assert_allclose(values(quantizer.ema_frequency), frequency, rtol=1e-5)
    np.testing.assert_allclose(values(quantizer.ema_sum), total, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values(quantizer.codebook), codebook, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_the_gradient_rule_in_fit_equals_numpy(random, jit):
    vectors = random.normal(size=(7, 16, 3)).astype("float32")
    quantizer = VectorQuantizer(5, 3, update="gradient", seed=0)
    model = alone(quantizer)
    quantizer.adapt(vectors[0])
    codebook = values(quantizer.codebook).astype("float64")
    for batch in vectors:
        codes = nearest(batch, codebook)
        slope = np.zeros_like(codebook)
        np.add.at(slope, codes, 2 * (codebook[codes] - batch) / batch.size)
        codebook = codebook - 0.5 * slope
    model.compile(keras.optimizers.SGD(0.5), jit_compile=jit)
    model.fit(np.concatenate(vectors), batch_size=16, shuffle=False, verbose=0)
    np.testing.assert_allclose(values(quantizer.codebook), codebook, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_revival_in_a_compiled_fit_brings_every_code_to_life(random, jit):
    quantizer = VectorQuantizer(8, 2, decay=0.8, embeddings_initializer=lambda shape, dtype: 100 + np.zeros(shape, dtype), seed=0)
    model = alone(quantizer)
    model.compile("sgd", jit_compile=jit)
    points = random.normal(size=(512, 2)).astype("float32")
    model.fit(points, batch_size=64, epochs=10, verbose=0)
    assert len(np.unique(values(quantizer.encode(points)))) == 8
    assert np.abs(values(quantizer.codebook)).max() < 5


class Subclassed(keras.Model):
    """Is built by `fit` itself, symbolically, where an `assign` in `build` would be lost."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def call(self, inputs, training=False):
        return self.quantizer(inputs, training=training)


def test_a_model_built_by_fit_starts_its_sums_at_the_codebook(random):
    batch = random.normal(size=(32, 4)).astype("float32")
    options = {"revival_threshold": 0, "seed": 0}
    model, eager = Subclassed(VectorQuantizer(7, 4, **options)), VectorQuantizer(7, 4, **options)
    model.compile("sgd")
    model.fit(batch, batch_size=32, verbose=0)
    eager(batch, training=True)
    for one, other in zip((eager.codebook, eager.ema_sum), (model.quantizer.codebook, model.quantizer.ema_sum)):
        np.testing.assert_allclose(values(one), values(other), rtol=1e-5, atol=1e-7)


def test_sums_do_not_share_memory_with_the_codebook():
    quantizer = VectorQuantizer(3, 2, seed=0)
    quantizer.build((None, 2))
    before = values(quantizer.ema_sum)
    quantizer.codebook.assign(values(quantizer.codebook) + 1)
    np.testing.assert_array_equal(values(quantizer.ema_sum), before)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_frozen_layer_does_not_move(random, update):
    quantizer = VectorQuantizer(5, 3, update=update, revival_threshold=0.9, seed=0)
    model = alone(quantizer)
    vectors = random.normal(size=(64, 3)).astype("float32")
    quantizer.trainable = False
    model.compile("sgd")
    before = values(quantizer.codebook)
    model.fit(vectors, verbose=0, epochs=2)
    np.testing.assert_array_equal(values(quantizer.codebook), before)
    quantizer.trainable = True
    model.compile("sgd")
    model.fit(vectors, verbose=0)
    assert not np.array_equal(values(quantizer.codebook), before)


def test_inference_moves_nothing_but_the_frequencies(random):
    quantizer = VectorQuantizer(5, 3, revival_threshold=0.9, seed=0)
    quantizer.build((None, 3))
    before = {variable.name: values(variable) for variable in quantizer.variables}
    quantizer(random.normal(size=(64, 3)).astype("float32"))
    moved = [variable.name for variable in quantizer.variables if not np.array_equal(values(variable), before[variable.name])]
    assert moved == ["batch_frequencies"]


@pytest.mark.parametrize("options", [
    {},
    {"update": "gradient", "commitment_cost": 0.5},
    {"decay": 0.8, "revival_threshold": 0.0, "seed": 3},
    {"embeddings_initializer": "uniform", "name": "codes", "trainable": False},
    {"embeddings_initializer": keras.initializers.RandomNormal(stddev=2.0, seed=1), "dtype": "mixed_bfloat16"},
])
def test_config_round_trip(options):
    config = VectorQuantizer(6, 3, **options).get_config()
    again = VectorQuantizer.from_config(config)
    assert again.get_config() == config
    again.build((None, 3))
    assert again.codebook.shape == (6, 3)
    assert config["decay"] == options.get("decay", 0.99) and again.trainable is options.get("trainable", True)


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_saved_and_loaded_training_goes_on_bit_for_bit(random, tmp_path, update, suffix):
    model = alone(VectorQuantizer(9, 3, update=update, decay=0.7, revival_threshold=0.8, seed=5))
    model.compile("sgd")
    vectors = random.normal(size=(128, 3)).astype("float32")
    model.fit(vectors, epochs=2, shuffle=False, verbose=0)
    path = tmp_path / f"model{suffix}"
    if suffix == ".keras":
        model.save(path)
        loaded = keras.models.load_model(path)
    else:
        model.save_weights(path)
        loaded = keras.models.clone_model(model)
        loaded.compile("sgd")
        assert not np.array_equal(state(loaded)[0], state(model)[0])
        loaded.load_weights(path)
    for one, other in zip(state(model), state(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    for either in (model, loaded):
        either.fit(vectors, shuffle=False, verbose=0)
    for one, other in zip(state(model), state(loaded), strict=True):
        np.testing.assert_array_equal(one, other)


def test_loading_keeps_the_kmeans_start_and_what_training_made_of_it(random, tmp_path):
    quantizer = VectorQuantizer(4, 2, seed=0)
    model = alone(quantizer)
    assert float(quantizer.adapted) == 0
    quantizer.adapt(random.normal(size=(50, 2)))
    model(random.normal(size=(50, 2)).astype("float32"), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").layers[-1]
    assert float(loaded.adapted) == 1
    np.testing.assert_array_equal(values(loaded.codebook), values(quantizer.codebook))
    np.testing.assert_array_equal(values(loaded.ema_frequency), values(quantizer.ema_frequency))


def test_the_same_seed_gives_the_same_training(random):
    vectors = random.normal(size=(10, 32, 3)).astype("float32")

    def trained(seed):
        quantizer = VectorQuantizer(9, 3, decay=0.5, revival_threshold=0.9, seed=seed)
        for batch in vectors:
            quantizer(batch, training=True)
        return values(quantizer.codebook)

    np.testing.assert_array_equal(trained(4), trained(4))
    assert not np.array_equal(trained(4), trained(5))


def test_metrics_over_uneven_batches_equal_the_metric_on_everything(random):
    codes = np.minimum(random.geometric(0.1, size=1_000) - 1, 19)
    for metric in (CodebookUsage(32), CodebookPerplexity(32)):
        for batch in np.split(codes, [1, 4, 100, 103, 700]):
            metric.update_state(code_frequencies(batch, 32), sample_weight=len(batch))
        batches = float(metric.result())
        metric.reset_state()
        assert float(metric.result()) == (0 if type(metric) is CodebookUsage else 1)
        metric.update_state(code_frequencies(codes, 32), sample_weight=len(codes))
        np.testing.assert_allclose(batches, float(metric.result()), rtol=1e-5)
        share = np.bincount(codes, minlength=32)[np.unique(codes)] / len(codes)
        expected = len(share) if type(metric) is CodebookUsage else np.exp(-np.sum(share * np.log(share)))
        np.testing.assert_allclose(batches, expected, rtol=1e-5)
        again = type(metric).from_config(metric.get_config())
        assert (again.num_embeddings, again.name) == (32, metric.name)


@pytest.mark.parametrize("epochs, after, early", [(10, 0.8, 8), (5, 0.5, 3), (3, 0.0, 0), (3, 1.0, 3), (1, 0.8, 1)])
def test_codes_are_revived_only_in_early_epochs(random, epochs, after, early):
    quantizer = VectorQuantizer(8, 2, decay=0.5, revival_threshold=0.9, seed=0)
    model, thresholds = alone(quantizer), []
    model.compile("sgd")
    model.fit(random.normal(size=(64, 2)).astype("float32"), epochs=epochs, verbose=0, callbacks=[
        StopRevival(quantizer, after),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: thresholds.append(float(quantizer.revival))),
    ])
    np.testing.assert_allclose(thresholds, [0.9] * early + [0.0] * (epochs - early), rtol=1e-6)


def test_without_revival_an_unused_code_rests_where_it_is():
    quantizer = VectorQuantizer(2, 2, decay=0.5, revival_threshold=0, seed=0)
    quantizer.adapt([[0.0, 0.0], [7.0, -3.0]])
    for _ in range(300):  # far beyond the point where its frequency is zero in float32
        quantizer(np.array([[0.1, 0.1], [-0.1, 0.0]], "float32"), training=True)
    np.testing.assert_allclose(np.max(values(quantizer.codebook)), 7.0, rtol=1e-4)
    np.testing.assert_allclose(np.min(values(quantizer.codebook)), -3.0, rtol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])  # at 0.99, in float32, the first debiased weight is 1.000001
def test_a_threshold_of_zero_never_revives_not_even_at_the_first_step(random, decay):
    start = np.concatenate([random.normal(size=(4, 2)), np.full((4, 2), 50)]).astype("float32")
    quantizer = VectorQuantizer(8, 2, decay=decay, revival_threshold=0, embeddings_initializer=lambda shape, dtype: start)
    quantizer(random.normal(size=(64, 2)).astype("float32"), training=True)
    np.testing.assert_array_equal(values(quantizer.codebook)[4:], start[4:])


def test_stop_revival_leaves_the_gradient_rule_alone(random):
    quantizer = VectorQuantizer(4, 2, update="gradient")
    model = alone(quantizer)
    model.compile("sgd")
    model.fit(random.normal(size=(8, 2)).astype("float32"), verbose=0, callbacks=[StopRevival(quantizer)])
    assert not hasattr(quantizer, "revival")


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("shape", [(1, 3), (2, 3), (1, 1, 1, 3)])
def test_a_batch_smaller_than_the_codebook(random, update, shape):
    quantizer = VectorQuantizer(64, 3, update=update, decay=0.5, revival_threshold=0.2, seed=0)
    for _ in range(5):
        output = quantizer(random.normal(size=shape).astype("float32"), training=True)
    assert output.shape == shape and np.isfinite(values(quantizer.codebook)).all()
    np.testing.assert_allclose(values(quantizer.batch_frequencies).sum(), 1, rtol=1e-6)


def test_kmeans_start_with_fewer_vectors_than_codes():
    quantizer = VectorQuantizer(8, 2, seed=0)
    with pytest.warns(UserWarning, match="distinct"):
        quantizer.adapt([[0.0, 1.0], [2.0, 3.0]])
    assert len(np.unique(values(quantizer.codebook), axis=0)) == 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_the_codebook_is_float32_under_every_policy(random, policy, update):
    keras.config.set_dtype_policy(policy)
    vectors = random.normal(size=(500, 8)).astype("float32")
    quantizer = VectorQuantizer(32, 8, update=update, seed=0)
    quantizer.adapt(vectors)
    output = quantizer(vectors, training=True)
    assert keras.backend.standardize_dtype(output.dtype) == policy.removeprefix("mixed_")
    assert {variable.dtype for variable in quantizer.weights} == {"float32"}
    assert {keras.backend.standardize_dtype(loss.dtype) for loss in quantizer.losses} == {"float32"}
    np.testing.assert_array_equal(values(quantizer.encode(vectors)), values(nearest_code(vectors, values(quantizer.codebook))))


@pytest.mark.parametrize("jit", [False, True])
def test_a_model_of_mixed_precision_trains(random, jit):
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((6,))
    quantizer = VectorQuantizer(8, 4, seed=0)
    encoder = keras.layers.Dense(4)
    model = keras.Model(inputs, keras.layers.Dense(6, dtype="float32")(quantizer(encoder(inputs))))
    vectors = random.normal(size=(256, 6)).astype("float32")
    model.compile(keras.optimizers.Adam(0.01), loss="mse", jit_compile=jit)
    kernel = values(encoder.kernel)
    losses = model.fit(vectors, vectors, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and not np.array_equal(values(encoder.kernel), kernel)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dead", [False, True])
def test_a_number_that_is_not_finite_does_not_poison_the_codebook(random, bad, dead):
    quantizer = VectorQuantizer(5, 3, decay=0.5, revival_threshold=0.9 if dead else 0, seed=0)
    vectors = random.normal(size=(64, 3)).astype("float32")
    quantizer.adapt(vectors)
    vectors[3, 1] = bad
    for _ in range(5):
        quantizer(vectors, training=True)
    for weight in (quantizer.codebook, quantizer.ema_frequency, quantizer.ema_sum):
        assert np.isfinite(values(weight)).all()
    vectors[3, 1] = 0
    before = values(quantizer.codebook)
    quantizer(vectors, training=True)
    assert not np.array_equal(values(quantizer.codebook), before)


@pytest.mark.parametrize("arguments, message", [
    ({"num_embeddings": 0}, "num_embeddings .* received 0"),
    ({"num_embeddings": 2.5}, "num_embeddings .* received 2.5"),
    ({"embedding_dim": -1}, "embedding_dim .* received -1"),
    ({"update": "mean"}, '"ema" or "gradient"; received \'mean\''),
    ({"decay": 1.0}, "decay .* received 1.0"),
    ({"decay": -0.1}, "decay .* received -0.1"),
    ({"decay": float("nan")}, "decay .* received nan"),
    ({"revival_threshold": 1}, "revival_threshold .* received 1"),
    ({"commitment_cost": -0.25}, "commitment_cost .* received -0.25"),
    ({"commitment_cost": float("nan")}, "commitment_cost .* received nan"),
    ({"embeddings_initializer": "no such start"}, "no such start"),
])
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**{"num_embeddings": 4, "embedding_dim": 2} | arguments)


@pytest.mark.parametrize("shape", [(8, 3), (4, 8), (2, 2, 1)])
@pytest.mark.parametrize("built", [False, True])
def test_wrong_last_axis(shape, built):
    quantizer = VectorQuantizer(4, 2)
    if built:
        quantizer.build((None, 2))
    before = built and values(quantizer.codebook)
    for use in (quantizer, quantizer.adapt):
        with pytest.raises(ValueError, match="shape"):
            use(np.ones(shape, "float32"))
    assert not built or np.array_equal(values(quantizer.codebook), before)


def test_adapt_refuses_vectors_that_are_not_finite():
    quantizer = VectorQuantizer(2, 2, seed=0)
    with pytest.raises(ValueError, match="finite"):
        quantizer.adapt([[0.0, 1.0], [np.nan, 1.0], [2.0, 2.0]])
    assert float(quantizer.adapted) == 0


OTHER_BACKEND = """
import tempfile
import keras, numpy as np
from vqvae_tutorial.layers import StopRevival, VectorQuantizer
random = np.random.default_rng(0)
points = random.normal(size=(8, 16, 3)).astype("float32")
quantizer = VectorQuantizer(5, 3, decay=0.9, revival_threshold=0, seed=0)
inputs = keras.Input((3,))
model = keras.Model(inputs, quantizer(inputs))
quantizer.adapt(points[0])
frequency, total = np.zeros(5), np.zeros((5, 3))
codebook = np.array(keras.ops.convert_to_numpy(quantizer.codebook), "float64")
for batch in points:
    chosen = np.eye(5)[np.argmin(np.sum((batch[:, None] - codebook) ** 2, axis=-1), axis=-1)]
    frequency = 0.9 * frequency + 0.1 * 5 * chosen.mean(axis=0)
    total = 0.9 * total + 0.1 * 5 * chosen.T @ batch / 16
    codebook = np.where(frequency[:, None] > 0, total / np.maximum(frequency, 1e-12)[:, None], codebook)
model.compile("sgd")
model.fit(points.reshape(-1, 3), batch_size=16, shuffle=False, verbose=0)
np.testing.assert_allclose(keras.ops.convert_to_numpy(quantizer.codebook), codebook, rtol=1e-4, atol=1e-5)
for update in ("ema", "gradient"):
    quantizer = VectorQuantizer(9, 3, update=update, decay=0.9, revival_threshold=0.1, seed=0)
    outputs = keras.layers.Dense(3)(quantizer(keras.layers.Dense(3)(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    flat = points.reshape(-1, 3)
    before = keras.ops.convert_to_numpy(quantizer.codebook).copy()
    losses = model.fit(flat, flat, epochs=10, verbose=0, callbacks=[StopRevival(quantizer)]).history["loss"]
    assert losses[-1] < losses[0] and not np.array_equal(keras.ops.convert_to_numpy(quantizer.codebook), before)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder + "/m.keras")
        loaded = keras.models.load_model(folder + "/m.keras")
    for one, other in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))
print("fine on", keras.backend.backend())
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    run = subprocess.run([sys.executable, "-c", OTHER_BACKEND], env=environment, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == f"fine on {backend}", run.stderr[-3000:]
