"""The quantizers where a chapter cannot look: compiled training, other policies and backends, files and configurations."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial import CosineQuantizer, EntropyConstrainedQuantizer, ResidualQuantizer, SimVQ
from vqvae_tutorial.quantizers import (
    CodebookQuantizer,
    Quantizer,
    RunningMeans,
    VectorQuantizer,
    VectorQuantizerEMA,
    badly_quantized,
    of_all_replicas,
    straight_through,
    sums_by_code,
    weighted_mean,
)

ROOT = Path(__file__).resolve().parent.parent
RULES = pytest.mark.parametrize("rule", [VectorQuantizerEMA, VectorQuantizer], ids=["ema", "gradient"])
@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def values(variable):
    return np.array(ops.convert_to_numpy(variable))


def state(layer):
    return [values(variable) for variable in layer.variables]


def alone(quantizer, size):
    inputs = keras.Input((size,))
    return keras.Model(inputs, quantizer(inputs))


def nearest(vectors, codebook):
    return np.argmin(np.sum((vectors[:, None] - codebook) ** 2, axis=-1), axis=-1)


@pytest.mark.parametrize("jit", [False, True])
def test_the_ema_rule_in_fit_equals_numpy(random, jit):
    vectors = random.normal(size=(7, 16, 3)).astype("float32")
    quantizer = VectorQuantizerEMA(5, decay=0.9, revival_threshold=0, seed=0)
    model = alone(quantizer, 3)
    quantizer.adapt(vectors[0])
    codebook = values(quantizer.codebook).astype("float64")
    quantizer.ema_steps.assign(0)  # as if the start were no history
    frequency, total = np.zeros(5), np.zeros((5, 3))
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
    quantizer = VectorQuantizer(5, seed=0)
    model = alone(quantizer, 3)
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
    quantizer = VectorQuantizerEMA(8, decay=0.8, embeddings_initializer=np.full((8, 2), 100.0), seed=0)
    model = alone(quantizer, 2)
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
    model, eager = Subclassed(VectorQuantizerEMA(7, **options)), VectorQuantizerEMA(7, **options)
    model.compile("sgd")
    model.fit(batch, batch_size=32, verbose=0)
    eager(batch, training=True)
    for one, other in zip((eager.codebook, eager.ema_sum), (model.quantizer.codebook, model.quantizer.ema_sum)):
        np.testing.assert_allclose(values(one), values(other), rtol=1e-5, atol=1e-7)


def test_sums_do_not_share_memory_with_the_codebook():
    quantizer = VectorQuantizerEMA(3, seed=0)
    quantizer.build((None, 2))
    before = values(quantizer.ema_sum)
    quantizer.codebook.assign(values(quantizer.codebook) + 1)
    np.testing.assert_array_equal(values(quantizer.ema_sum), before)


@RULES
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_saved_and_loaded_training_goes_on_bit_for_bit(random, tmp_path, rule, suffix):
    model = alone(rule(9, seed=5, **({"decay": 0.7, "revival_threshold": 0.8} if rule is VectorQuantizerEMA else {})), 3)
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
    quantizer = VectorQuantizerEMA(4, seed=0)
    model = alone(quantizer, 2)
    assert quantizer.starts_from_data
    quantizer.adapt(random.normal(size=(50, 2)))
    model(random.normal(size=(50, 2)).astype("float32"), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").layers[-1]
    np.testing.assert_allclose(float(loaded.ema_steps), 101, rtol=1e-5)  # what γ remembers, and one more
    np.testing.assert_array_equal(values(loaded.codebook), values(quantizer.codebook))
    np.testing.assert_array_equal(values(loaded.ema_frequency), values(quantizer.ema_frequency))


def test_the_same_seed_gives_the_same_training(random):
    vectors = random.normal(size=(10, 32, 3)).astype("float32")

    def trained(seed):
        quantizer = VectorQuantizerEMA(9, decay=0.5, revival_threshold=0.9, seed=seed)
        for batch in vectors:
            quantizer(batch, training=True)
        return values(quantizer.codebook)

    np.testing.assert_array_equal(trained(4), trained(4))
    assert not np.array_equal(trained(4), trained(5))


def test_without_revival_an_unused_code_rests_where_it_is():
    quantizer = VectorQuantizerEMA(2, decay=0.5, revival_threshold=0, seed=0)
    quantizer.adapt([[0.0, 0.0], [7.0, -3.0]])
    for _ in range(300):  # far beyond the point where its frequency is zero in float32
        quantizer(np.array([[0.1, 0.1], [-0.1, 0.0]], "float32"), training=True)
    np.testing.assert_allclose(np.max(values(quantizer.codebook)), 7.0, rtol=1e-4)
    np.testing.assert_allclose(np.min(values(quantizer.codebook)), -3.0, rtol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99])  # at 0.99, in float32, the first debiased weight is 1.000001
def test_a_threshold_of_zero_never_revives_not_even_at_the_first_step(random, decay):
    start = np.concatenate([random.normal(size=(4, 2)), np.full((4, 2), 50)]).astype("float32")
    quantizer = VectorQuantizerEMA(8, decay=decay, revival_threshold=0, embeddings_initializer=start)
    quantizer(random.normal(size=(64, 2)).astype("float32"), training=True)
    np.testing.assert_array_equal(values(quantizer.codebook)[4:], start[4:])


@RULES
@pytest.mark.parametrize("shape", [(1, 3), (2, 3), (1, 1, 1, 3)])
def test_a_batch_smaller_than_the_codebook(random, rule, shape):
    quantizer = rule(64, seed=0, **({"decay": 0.5, "revival_threshold": 0.2} if rule is VectorQuantizerEMA else {}))
    for _ in range(5):
        output = quantizer(random.normal(size=shape).astype("float32"), training=True)
    assert output.shape == shape and np.isfinite(values(quantizer.codebook)).all()
    np.testing.assert_allclose(values(quantizer.frequencies).sum(), 1, rtol=1e-6)


@RULES
def test_kmeans_start_with_fewer_vectors_than_codes(rule):
    quantizer = rule(8, seed=0)
    with pytest.warns(UserWarning, match="distinct"):
        quantizer.adapt([[0.0, 1.0], [2.0, 3.0]])
    assert len(np.unique(values(quantizer.codebook), axis=0)) == 2


@pytest.mark.parametrize("jit", [False, True])
def test_a_model_of_mixed_precision_trains(random, jit):
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((6,))
    quantizer = VectorQuantizerEMA(8, seed=0)
    encoder = keras.layers.Dense(4)
    model = keras.Model(inputs, keras.layers.Dense(6, dtype="float32")(quantizer(encoder(inputs))))
    vectors = random.normal(size=(256, 6)).astype("float32")
    model.compile(keras.optimizers.Adam(0.01), loss="mse", jit_compile=jit)
    kernel = values(encoder.kernel)
    losses = model.fit(vectors, vectors, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and not np.array_equal(values(encoder.kernel), kernel)


@pytest.mark.parametrize("arguments, message", [
    ({"num_codes": 0}, "`num_codes` must be .* Received: 0"),
    ({"num_codes": 2.5}, "`num_codes` must be .* Received: 2.5"),
    ({"decay": 1.0}, "`decay` must be .* Received: 1.0"),
    ({"decay": -0.1}, "`decay` must be .* Received: -0.1"),
    ({"decay": float("nan")}, "`decay` must be .* Received: nan"),
    ({"revival_threshold": 1}, "`revival_threshold` must be .* Received: 1"),
    ({"commitment_cost": -0.25}, "`commitment_cost` must be .* Received: -0.25"),
    ({"commitment_cost": float("nan")}, "`commitment_cost` must be .* Received: nan"),
    ({"embeddings_initializer": "no such start"}, "no such start"),
])
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizerEMA(**{"num_codes": 4} | arguments)


def test_adapt_refuses_vectors_that_are_not_finite():
    quantizer = VectorQuantizerEMA(2, seed=0)
    with pytest.raises(ValueError, match="finite"):
        quantizer.adapt([[0.0, 1.0], [np.nan, 1.0], [2.0, 2.0]])
    assert float(quantizer.ema_steps) == 0


# Gradients, seen by one step of gradient descent, so on every backend


def step(quantizer, start, slope, beta):
    """Moves an encoder whose four outputs are the rows of its kernel, by one step at rate 1; gives how far, and the codebook."""
    inputs = keras.Input((4,))
    encoder = keras.layers.Dense(2, use_bias=False)
    model = keras.Model(inputs, quantizer(encoder(inputs)))
    quantizer.commitment_cost = beta
    encoder.kernel.assign(start)
    model.compile(keras.optimizers.SGD(1.0), loss=lambda target, output: ops.sum(target * output, axis=-1))
    model.train_on_batch(np.eye(4, dtype="float32"), slope)
    return values(encoder.kernel) - start, values(quantizer.codebook)


CODEBOOK = np.array([[0.0, 0.0], [1.0, 1.0], [-2.0, 1.0]], "float32")
START = np.array([[0.25, 0.5], [1.5, 1.25], [-1.5, 0.75], [0.75, 1.0]], "float32")  # sums of powers of two: no rounding
SLOPE = np.array([[1.0, -2.0], [0.5, 4.0], [-8.0, 2.0], [0.0, 1.0]], "float32")


@RULES
def test_the_codebook_gets_nothing_from_the_reconstruction(rule):
    books = [step(rule(3, embeddings_initializer=CODEBOOK), START, slope, beta=0.25)[1] for slope in (0 * SLOPE, SLOPE)]
    np.testing.assert_array_equal(*books)
    assert not np.array_equal(books[0], CODEBOOK)  # it learns from the vectors, in both


@RULES
@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_the_commitment_loss_pulls_the_encoder_to_its_embeddings(rule, beta):
    moved, _ = step(rule(3, embeddings_initializer=CODEBOOK), START, 0 * SLOPE, beta)
    gap = START - CODEBOOK[nearest(START, CODEBOOK)]
    np.testing.assert_allclose(moved, -2 * beta * gap / gap.size, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.25])
def test_the_codebook_loss_does_not_pull_the_encoder(beta):
    by_gradient = step(VectorQuantizer(3, embeddings_initializer=CODEBOOK), START, 0 * SLOPE, beta)[0]
    by_means = step(VectorQuantizerEMA(3, embeddings_initializer=CODEBOOK), START, 0 * SLOPE, beta)[0]
    np.testing.assert_array_equal(by_gradient, by_means)


def test_straight_through_is_the_quantized_value_to_the_last_bit(random):
    a, b = random.normal(size=(2, 100_000)).astype("float32")
    np.testing.assert_array_equal(values(straight_through(a, b)), b)
    assert np.sum((a + (b - a)) != b) > 1000  # the usual form is not


# Masks: the same as the data unpadded


def test_keras_hands_a_mask_on_to_the_quantizer_and_beyond(random):
    x = random.normal(size=(2, 5, 2)).astype("float32")
    x[:, 3:] = 0
    inputs = keras.Input((5, 2))
    quantizer = VectorQuantizerEMA(3, embeddings_initializer=CODEBOOK)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(quantizer(keras.layers.Masking()(inputs))))
    output = values(model(x))
    rows = CODEBOOK[nearest(x[:, :3].reshape(-1, 2), CODEBOOK)].reshape(2, 3, 2)
    np.testing.assert_allclose(output, rows.mean(axis=1), rtol=1e-6)
    share = np.bincount(nearest(x[:, :3].reshape(-1, 2), CODEBOOK), minlength=3) / 6
    np.testing.assert_allclose(values(quantizer.frequencies), share, rtol=1e-6)


# The start


def test_what_the_start_counts_is_what_the_decay_remembers():
    for decay in (0.9, 0.99):
        quantizer = VectorQuantizerEMA(2, decay=decay)
        quantizer.adapt([[0.0], [1.0]])
        np.testing.assert_allclose(float(quantizer.ema_steps), 1 / (1 - decay), rtol=1e-6)


@RULES
def test_a_frozen_quantizer_refuses_adapt(random, rule):
    quantizer = rule(3, embeddings_initializer=CODEBOOK, trainable=False)
    quantizer.build((None, 2))
    with pytest.raises(ValueError, match="(?s)must be trainable.* Received: .*frozen.*Set `trainable = True`"):
        quantizer.adapt(random.normal(size=(20, 2)))
    np.testing.assert_array_equal(values(quantizer.codebook), CODEBOOK)


def test_a_frozen_quantizer_keeps_the_commitment_loss():
    quantizer = VectorQuantizerEMA(3, embeddings_initializer=CODEBOOK, trainable=False)
    quantizer(START, training=True)
    gap = START - CODEBOOK[nearest(START, CODEBOOK)]
    np.testing.assert_allclose(float(quantizer.losses[0]), 0.25 * np.mean(gap**2), rtol=1e-6)


@pytest.mark.parametrize("rule", [CodebookQuantizer, VectorQuantizer, VectorQuantizerEMA])
def test_a_codebook_given_as_an_array_is_the_codebook_also_from_a_file(rule, tmp_path):
    model = alone(rule(3, embeddings_initializer=CODEBOOK), 2)
    quantizer = model.layers[-1]
    assert not quantizer.starts_from_data
    np.testing.assert_array_equal(values(quantizer.codebook), CODEBOOK)
    again = rule.from_config(quantizer.get_config())
    again.build((None, 2))
    np.testing.assert_array_equal(values(again.codebook), CODEBOOK)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").layers[-1]
    np.testing.assert_array_equal(values(loaded.codebook), CODEBOOK)


def test_a_codebook_without_a_rule_never_moves(random):
    quantizer = CodebookQuantizer(3, embeddings_initializer=CODEBOOK)
    model = alone(quantizer, 2)
    output = model(START, training=True)
    np.testing.assert_array_equal(values(output), CODEBOOK[nearest(START, CODEBOOK)])
    np.testing.assert_array_equal(values(quantizer.codebook), CODEBOOK)
    assert model.losses == [] and quantizer.trainable_variables == []


# Codes as a model of their own


def test_a_model_that_gives_vectors_and_codes_keeps_one_quantizer_through_a_file(random, tmp_path):
    x = random.normal(size=(64, 2)).astype("float32")
    inputs, quantizer = keras.Input((2,)), VectorQuantizerEMA(5, decay=0.5, seed=0)
    model = keras.Model(inputs, [quantizer(inputs), quantizer.encode(inputs)])
    model.save(tmp_path / "both.keras")
    loaded = keras.models.load_model(tmp_path / "both.keras")
    for _ in range(3):
        for each in (model, loaded):
            each(x, training=True)
    for each in (model, loaded):  # had the file two quantizers, the codes would be those of one that never learned
        output, codes = each(x)
        again = [layer for layer in each.layers if isinstance(layer, VectorQuantizerEMA)][0]
        np.testing.assert_array_equal(values(again.decode(values(codes))), values(output))
    np.testing.assert_array_equal(values(model(x)[1]), values(loaded(x)[1]))


# Configurations


class Doubled(VectorQuantizerEMA):
    """As someone would write it: one more argument, kept under its name."""

    def __init__(self, num_codes, factor=2.0, **kwargs):
        super().__init__(num_codes, **kwargs)
        self.factor = factor

    def embed(self, codes):
        return self.factor * super().embed(codes)


def test_a_subclass_needs_no_configuration_of_its_own():
    again = Doubled.from_config(Doubled(6, factor=3.0, decay=0.5, embeddings_initializer="ones").get_config())
    assert (again.num_codes, again.factor, again.decay) == (6, 3.0, 0.5)
    again.build((None, 2))
    np.testing.assert_array_equal(values(again.decode([0])), [[3.0, 3.0]])


# The parts


class Thirds(Quantizer):
    """Another kind, without a codebook."""

    def nearest(self, vectors):
        return ops.cast(ops.clip(ops.round(3 * vectors[..., 0]), 0, self.num_codes - 1), "int32")

    def embed(self, codes):
        return ops.cast(codes, "float32")[..., None] / 3


def test_a_quantizer_of_ones_own_needs_two_methods(tmp_path):
    model = alone(Thirds(4), 1)
    output = model(np.array([[0.1], [0.4], [9.0]], "float32"), training=True)
    np.testing.assert_allclose(values(output)[:, 0], [0, 1 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(values(model.layers[-1].frequencies), [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)
    assert model.losses == []


def test_weighted_mean_counts_what_it_should():
    x = np.array([[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]], "float32")
    assert float(weighted_mean(x)) == np.mean(x)
    assert float(weighted_mean(x, np.array([1.0, 1.0, 0.0], "float32"))) == 2.5
    assert float(weighted_mean(x, np.array([1.0, 3.0, 0.0], "float32"))) == 3.0
    assert float(weighted_mean(x, np.zeros(3, "float32"))) == 0.0


def test_sums_by_code_equal_numpy(random):
    x, codes = random.normal(size=(4, 5, 3)).astype("float32"), random.integers(6, size=(4, 5))
    weights = random.integers(2, size=(4, 5)).astype("float32")
    chosen = np.eye(6)[codes.ravel()] * weights.reshape(-1, 1)
    expected = 6 * chosen.T @ x.reshape(-1, 3) / weights.sum()
    np.testing.assert_allclose(values(sums_by_code(x, codes, 6, weights)), expected, rtol=1e-5, atol=1e-6)
    everything = 6 * np.eye(6)[codes.ravel()].T @ x.reshape(-1, 3) / 20
    np.testing.assert_allclose(values(sums_by_code(x, codes, 6)), everything, rtol=1e-5, atol=1e-6)


def test_small_weights_weigh_like_large_ones(random):
    vectors, codes = random.normal(size=(6, 2)).astype("float32"), np.array([0, 1, 1, 0, 2, 2])
    weights = random.random(6).astype("float32")
    np.testing.assert_allclose(sums_by_code(vectors, codes, 3, weights / 100), sums_by_code(vectors, codes, 3, weights), rtol=1e-5)
    np.testing.assert_array_equal(sums_by_code(vectors, codes, 3, 0 * weights), np.zeros((3, 2)))


@pytest.mark.parametrize("kind", [VectorQuantizerEMA, EntropyConstrainedQuantizer])
@pytest.mark.parametrize("adapted", [True, False])
def test_a_batch_where_nothing_counts_moves_nothing(random, kind, adapted):
    quantizer, vectors = kind(5, revival_threshold=0.5, seed=0), random.normal(size=(40, 3)).astype("float32")
    quantizer.build(vectors.shape)
    if adapted:
        quantizer.adapt(vectors)
        quantizer(vectors, training=True)
    kept = {weight.path: np.array(weight) for weight in quantizer.weights if "frequencies" not in weight.path and "seed" not in weight.path}
    for _ in range(20):
        quantizer(vectors, mask=np.zeros(40, bool), training=True)
    for weight in quantizer.weights:
        if weight.path in kept:
            np.testing.assert_array_equal(np.array(weight), kept[weight.path], err_msg=weight.path)


def test_a_batch_where_nothing_counts_revives_nothing(random):
    quantizer, vectors = VectorQuantizerEMA(5, revival_threshold=0.5, seed=0), random.normal(size=(40, 3)).astype("float32")
    quantizer.adapt(vectors)
    codebook, frequency = values(quantizer.embeddings), np.array([0.25, 1, 1, 1, 1], "float32")  # the first is due
    quantizer.ema_frequency.assign(frequency)
    quantizer.ema_sum.assign(codebook * frequency[:, None])
    quantizer(vectors, mask=np.zeros(40, bool), training=True)
    np.testing.assert_array_equal(values(quantizer.embeddings), codebook)
    quantizer(vectors[values(quantizer.encode(vectors)) > 0], training=True)
    assert not np.array_equal(values(quantizer.embeddings)[0], codebook[0])


def test_a_level_that_no_example_reaches_keeps_its_codebook(random):
    levels = [VectorQuantizerEMA(8, seed=number) for number in range(4)]
    quantizer = ResidualQuantizer(levels, dropout=1.0, seed=0)
    vectors = random.normal(size=(300, 3)).astype("float32")
    quantizer.adapt(vectors)
    for each in vectors:
        quantizer(each[None], training=True)
    for level in levels:
        assert (np.abs(np.array(level.codebook)).max(axis=1) > 0).all()
        assert 0.7 < float(ops.mean(level.ema_frequency.value)) < 1.3


def test_badly_quantized_draws_in_proportion_to_the_squared_error():
    x = np.array([[0.0], [1.0], [3.0], [7.0]], "float32")
    q = x - np.sqrt([[0.0], [1.0], [3.0], [0.0]]).astype("float32")
    drawn = values(badly_quantized(x, q, 20_000, seed=1))
    np.testing.assert_allclose([np.mean(drawn == value) for value in x], [0, 0.25, 0.75, 0], atol=0.015)
    drawn = values(badly_quantized(x, q, 1_000, 1, weights=np.array([1.0, 1.0, 0.0, 1.0], "float32")))
    assert np.all(drawn == 1)


def test_running_means_set_all_three_or_none():
    layer = VectorQuantizerEMA(2, embeddings_initializer=CODEBOOK[:2])
    layer.build((None, 2))
    assert isinstance(layer.means, RunningMeans)
    layer.means.set(ops.array([2.0, 0.0]), ops.array([[2.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(values(layer.codebook), [[1, 2], [1, 1]])  # the second, nobody's, stays
    before = state(layer)
    layer.means.set(ops.array([1.0, 1.0]), ops.array([[np.nan, 4.0], [0.0, 0.0]]))
    for one, other in zip(before, state(layer), strict=True):
        np.testing.assert_array_equal(one, other)


def test_on_one_device_the_batch_is_whole():
    assert of_all_replicas(x := ops.ones((3, 2))) is x


OTHER_BACKEND = """
import tempfile
import keras, numpy as np
from vqvae_tutorial.callbacks import StopRevival
from vqvae_tutorial.quantizers import VectorQuantizer, VectorQuantizerEMA
random = np.random.default_rng(0)
points = random.normal(size=(8, 16, 3)).astype("float32")
quantizer = VectorQuantizerEMA(5, decay=0.9, revival_threshold=0, seed=0)
inputs = keras.Input((3,))
model = keras.Model(inputs, quantizer(inputs))
quantizer.adapt(points[0])
quantizer.ema_steps.assign(0.0)
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
for quantizer in (VectorQuantizerEMA(9, decay=0.9, seed=0), VectorQuantizer(9, seed=0)):
    outputs = keras.layers.Dense(3)(quantizer(keras.layers.Dense(3)(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    flat = points.reshape(-1, 3)
    before = keras.ops.convert_to_numpy(quantizer.codebook).copy()
    stop = [StopRevival(quantizer)] if hasattr(quantizer, "revival") else []
    losses = model.fit(flat, flat, epochs=10, verbose=0, callbacks=stop).history["loss"]
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


@pytest.mark.parametrize("rule", [VectorQuantizerEMA, VectorQuantizer, CosineQuantizer, SimVQ])
def test_a_codebook_can_be_given_before_any_vector(rule):
    quantizer, codebook = rule(3), np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 6.0]], "float32")
    with pytest.raises(ValueError, match="has no codebook yet.*set_codebook"):
        quantizer.decode(np.array([0, 2]))
    quantizer.set_codebook(codebook.tolist())
    expected = codebook / np.linalg.norm(codebook, axis=1, keepdims=True) if rule is CosineQuantizer else codebook
    np.testing.assert_allclose(values(quantizer.decode(np.array([2, 0]))), expected[[2, 0]], rtol=1e-6)
    for wrong in (codebook[:2], codebook[0], codebook[:, :1]):
        with pytest.raises(ValueError, match=r"`embeddings` must be of shape \(3, 2\). Received: shape"):
            quantizer.set_codebook(wrong)
    np.testing.assert_allclose(values(quantizer.embeddings), expected, rtol=1e-6)
