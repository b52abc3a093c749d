"""Every quantizer × what Keras's users may do with a layer. `pytest tests/contract --collect-only -q` prints the list."""
import keras
import numpy as np
import pytest
from keras import layers, ops
from parts import (
    BACKWARDS,
    BEFORE,
    LEARNING,
    PENALTY,
    POLICIES,
    QUANTIZERS,
    TENSORFLOW,
    WITH_CODEBOOK,
    D,
    K,
    all_codes,
    moved,
    numbers,
    of,
    parts_of,
    remembered,
    same,
    several,
    shares,
    slopes,
    started,
    state,
    vectors,
)

from vqvae_tutorial.composite import ResidualQuantizer
from vqvae_tutorial.quantizers import CodebookQuantizer, Quantizer
from vqvae_tutorial.zoo import FSQ

pytestmark = pytest.mark.combinations
each = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)
each_with_a_codebook = pytest.mark.parametrize("make", WITH_CODEBOOK.values(), ids=WITH_CODEBOOK)
each_that_learns = pytest.mark.parametrize("make", LEARNING.values(), ids=LEARNING)


@pytest.fixture(autouse=True)
def clean():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def identity(**options):
    return layers.Dense(D, use_bias=False, kernel_initializer=keras.initializers.Identity(), **options)


def adds_no_loss(part):
    return isinstance(part, Quantizer) and all(type(each).learn is Quantizer.learn for each in parts_of(part))


def with_a_loss(parts):
    """Keras trains nothing that has no loss; where a quantizer adds none, a layer that adds 0 comes last."""
    return [*parts, layers.ActivityRegularization(dtype="float32")] if any(map(adds_no_loss, parts)) else list(parts)


class Subclassed(keras.Model):
    def __init__(self, *parts):
        super().__init__()
        self.parts = with_a_loss(parts)

    def call(self, inputs, training=False):  # without `training` Keras would tell none of the parts
        for part in self.parts:
            inputs = part(inputs, training=training) if hasattr(part, "num_codes") else part(inputs)
        return inputs


def functional(*parts):
    inputs = x = keras.Input((D,))
    for part in with_a_loss(parts):
        x = part(x)
    return keras.Model(inputs, x)


KINDS = {"functional": functional, "sequential": lambda *parts: keras.Sequential(with_a_loss(parts)), "subclassed": Subclassed}


# What goes in and comes out


@each
@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 3, 2), (2, 1, 3, 2)], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_call_is_decode_of_encode_to_the_last_bit(make, shape, training):
    quantizer, x = started(make), vectors(*shape)
    codes = quantizer.encode(x)
    expected = numbers(quantizer.decode(codes))
    assert keras.backend.standardize_dtype(codes.dtype) == "int32" and tuple(codes.shape) == (*shape, *several(quantizer))
    K = quantizer.num_codes
    assert 0 <= numbers(codes).min() and numbers(codes).max() < K
    np.testing.assert_array_equal(numbers(quantizer(x, training=training)), expected)
    np.testing.assert_allclose(numbers(quantizer.frequencies), shares(codes, quantizer), rtol=1e-6)


@each
def test_codes_of_vectors_that_stand_in_the_codebook_are_theirs(make):
    quantizer = started(make)
    if any(isinstance(each, FSQ) for each in parts_of(quantizer)):
        pytest.skip("its vectors lie behind the tanh that bounds what is encoded")
    if isinstance(quantizer, ResidualQuantizer):
        pytest.skip("it is greedy: a sum of rows may lie nearer to another first row")
    codes = numbers(quantizer.encode(vectors(50)))
    np.testing.assert_array_equal(numbers(quantizer.encode(quantizer.decode(codes))), codes)


@each
@pytest.mark.parametrize("kind", ["float64", "int32", "list"])
def test_vectors_of_any_dtype(make, kind):
    quantizer, x = started(make), np.round(3 * vectors(7))
    given = x.tolist() if kind == "list" else x.astype(kind)
    np.testing.assert_array_equal(numbers(quantizer.encode(given)), numbers(quantizer.encode(x)))


@each
@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "uint16"])
def test_codes_of_any_integer_dtype(make, kind):
    quantizer = started(make)
    codes = all_codes(quantizer, np.arange(quantizer.num_codes).reshape(2, -1))
    np.testing.assert_array_equal(numbers(quantizer.decode(codes.astype(kind))), numbers(quantizer.decode(codes)))


@each
@pytest.mark.parametrize("codes", [[-1], ["K"], [0.0], [[0], [1, 2]]], ids=str)
def test_codes_that_are_none_are_refused(make, codes):
    quantizer = started(make)
    K = quantizer.num_codes
    with pytest.raises(ValueError, match=f"`codes` must be integers from 0 to {K - 1}.* Received: .*"):
        quantizer.decode([K] if codes == ["K"] else codes)


@each
@pytest.mark.skipif(not TENSORFLOW, reason="a tf.function")
@pytest.mark.parametrize("jit", [False, True])
def test_in_a_graph_codes_that_are_none_give_nan_and_not_a_vector(make, jit):
    import tensorflow as tf

    quantizer = started(make)
    drawn = numbers(tf.function(quantizer.decode, jit_compile=jit)(tf.constant(all_codes(quantizer, [-1, 0, quantizer.num_codes]))))
    assert np.isnan(drawn[[0, 2]]).all()
    np.testing.assert_allclose(drawn[1], numbers(quantizer.decode(all_codes(quantizer, [0])))[0], rtol=1e-6 * jit)


@each
def test_an_empty_batch_is_refused_by_call_and_has_no_codes(make):
    quantizer = started(make)
    before = state(quantizer)
    with pytest.raises(ValueError, match="at least one"):
        quantizer(np.zeros((0, D), "float32"), training=True)
    same(state(quantizer), before)
    assert tuple(quantizer.encode(np.zeros((0, 3, D), "float32")).shape) == (0, 3, *several(quantizer))


@each
@pytest.mark.parametrize("use", ["call", "encode", "adapt"])
def test_vectors_of_another_size_are_refused(make, use):
    quantizer = started(make)
    if use == "adapt" and not quantizer.starts_from_data:
        pytest.skip("has no start from data")
    with pytest.raises(ValueError, match=f"D = {D}. Received: .*7"):
        getattr(quantizer, "__call__" if use == "call" else use)(np.zeros((5, 7), "float32"))


@each
def test_an_input_without_a_known_size_is_refused(make):
    with pytest.raises(ValueError, match="known size, D. Received: .*None"):
        make().build((None, None))


# Gradients and losses


def commitments(quantizer, x):
    """For each quantizer that it is made of: β, whether its rows learn by gradient, its error at the place in a whole vector that it
    quantizes, and how many numbers its losses are a mean over."""
    codes, columns, found, start = numbers(quantizer.encode(x)), several(quantizer), [], 0
    for number, each in enumerate(parts_of(quantizer)):
        place = (..., slice(start, start + each.embedding_dim))
        gap = np.zeros_like(x)
        gap[place] = x[place] - numbers(each.decode(codes[..., number] if columns else codes))
        found.append((getattr(each, "commitment_cost", 0.0), getattr(each, "learns_by_gradient", False), gap, x[place].size))
        if each.embedding_dim == D:
            x = gap
        else:
            start += each.embedding_dim
    return found


@each
def test_the_encoder_gets_the_decoders_gradient_and_that_of_the_commitment(make):
    """One step of SGD at rate 1 on a kernel that is the identity shows the gradient, to be held against its formula."""
    quantizer, x, y = started(make), vectors(6, seed=1), vectors(6, seed=2)
    quantized = numbers(quantizer.decode(quantizer.encode(x)))
    before, costs = state(quantizer), commitments(quantizer, of(BEFORE, make, np.array)(x))
    model = functional(identity(name="encoder"), quantizer)
    model.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=True)
    loss = model.train_on_batch(x, y)
    project, penalty = of(BEFORE, make, np.array), of(PENALTY, make, lambda x: 0.0)
    x, given = project(x), x
    slope = of(BACKWARDS, make, lambda x, q, slope: slope)(x, quantized, 2 * (quantized - y) / x.size)
    slope = slope + sum(cost * 2 * gap / size for cost, _, gap, size in costs)
    slope = np.einsum("nd,ndij->ij", slope, slopes(project, given)) + slopes(penalty, given)
    np.testing.assert_allclose(numbers(model.get_layer("encoder").kernel), np.eye(D) - given.T @ slope, rtol=1e-4, atol=1e-5)
    parts = np.mean((quantized - y) ** 2) + penalty(given)
    parts += sum((cost + by_gradient) * np.sum(gap**2) / size for cost, by_gradient, gap, size in costs)
    if type(quantizer) is type(QUANTIZERS["gradient"]()):  # and the codebook gets none of the decoder's gradient
        codebook = next(value for name, value in before.items() if name.startswith("codebook")).copy()
        np.add.at(codebook, numbers(quantizer.encode(x)), 0.0)
        codes = np.argmin(((x[:, None] - codebook) ** 2).sum(-1), axis=-1)
        expected = codebook.copy()
        np.add.at(expected, codes, -2 * (codebook[codes] - x) / x.size)
        np.testing.assert_allclose(numbers(quantizer.codebook), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(float(np.ravel(loss)[0]), parts, rtol=1e-4)


@each_with_a_codebook
def test_losses_are_those_of_the_paper(make):
    quantizer, x = started(make), vectors(5, 3)
    error = np.mean((of(BEFORE, make, np.array)(x) - numbers(quantizer.decode(quantizer.encode(x)))) ** 2)
    quantizer(x)
    expected = [quantizer.commitment_cost * error] + [error] * quantizer.learns_by_gradient
    np.testing.assert_allclose([float(loss) for loss in quantizer.losses], expected, rtol=1e-5)


# In somebody's own model


@each
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_in_a_model_of_each_kind(make, kind):
    """And in each of them as in a loop of one's own: the same numbers to rounding."""
    x, quantizer, by_hand = vectors(64, seed=1), started(make), started(make)
    model = KINDS[kind](identity(trainable=False), quantizer)
    model.compile(keras.optimizers.SGD(0.5), run_eagerly=kind != "functional")
    losses = model.fit(x, batch_size=32, epochs=3, shuffle=False, verbose=0).history["loss"]
    if not quantizer.starts_from_data:
        return
    assert losses[-1] < losses[0]
    if not by_hand.trainable_variables:
        for _ in range(3):
            by_hand(x[:32], training=True), by_hand(x[32:], training=True)
        same(state(quantizer), state(by_hand), rtol=1e-4, atol=1e-5)


@each_that_learns
def test_it_trains_compiled_by_xla_as_without(make):
    x, found = vectors(64, seed=1), []
    for jit in (False, True):
        quantizer = started(make)
        model = functional(quantizer)
        model.compile(keras.optimizers.SGD(0.5), jit_compile=jit)
        model.fit(x, batch_size=16, epochs=2, shuffle=False, verbose=0)
        found.append({name: value for name, value in state(quantizer).items() if "seed" not in name})
    same(*found, rtol=1e-3, atol=1e-4)


@each
@pytest.mark.xfail(keras.backend.backend() == "jax", strict=True,
                   reason="Keras calls a model without its own __call__ there, so that a shared layer forgets its losses at each call")
def test_used_twice_it_learns_from_both(make):
    x, quantizer, by_hand = vectors(16, seed=1), started(make), started(make)
    if adds_no_loss(quantizer):
        pytest.skip("learns nothing")
    inputs = keras.Input((D,))
    model = keras.Model(inputs, quantizer(layers.Rescaling(0.5)(quantizer(inputs))))
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    loss = model.train_on_batch(x)
    expected = 0.0
    for factor in (1.0, 0.5):
        x = numbers(by_hand(factor * x, training=True))
        expected += sum(float(each) for each in by_hand.losses)
    np.testing.assert_allclose(float(np.ravel(loss)[0]), expected, rtol=1e-5, atol=1e-7)
    same(state(quantizer), state(by_hand), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(numbers(quantizer.frequencies), numbers(by_hand.frequencies))


@each
def test_models_of_codes_and_of_vectors_follow_training_and_files(make, tmp_path):
    x, quantizer = vectors(64, seed=1), started(make)
    inputs = keras.Input((D,))
    encoder = keras.Model(inputs, layers.Dense(D)(inputs))
    coder = keras.Model(inputs, quantizer.encode(encoder(inputs)))  # made before training
    codes = keras.Input(several(quantizer), dtype="int32")
    drawer = keras.Model(codes, quantizer.decode(codes))
    model = keras.Model(inputs, quantizer(encoder(inputs)))
    early = numbers(coder(x))
    model.compile(keras.optimizers.Adam(0.1), "mse", run_eagerly=True)
    model.fit(x, x, epochs=2, batch_size=64, verbose=0)
    found, right = numbers(coder(x)), numbers(quantizer.encode(encoder(x)))
    assert not np.array_equal(found, early)
    np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(coder.predict(x, verbose=0), right)
    every = all_codes(quantizer)
    np.testing.assert_array_equal(numbers(drawer(every)), numbers(quantizer.decode(every)))
    for name, one, given in (("coder", coder, x), ("drawer", drawer, every)):
        one.save(tmp_path / f"{name}.keras")
        again = keras.saving.load_model(tmp_path / f"{name}.keras")
        np.testing.assert_array_equal(numbers(again(given)), numbers(one(given)))


@each
@pytest.mark.skipif(not TENSORFLOW, reason="tf.data's graphs are TensorFlow's")
def test_encode_inside_a_dataset(make):
    import tensorflow as tf

    quantizer, x = started(make), vectors(10, 3)
    found = list(tf.data.Dataset.from_tensor_slices(x).batch(4).map(quantizer.encode).as_numpy_iterator())
    np.testing.assert_array_equal(np.concatenate(found), numbers(quantizer.encode(x)))


# Frozen, given, started


@each
def test_frozen_it_keeps_all_it_has_and_still_holds_the_encoder(make):
    x, quantizer = vectors(64, seed=1), started(make)
    quantizer.trainable = False
    before = state(quantizer)
    encoder = identity(name="encoder")
    model = functional(encoder, quantizer)
    model.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    loss = model.fit(x, epochs=2, verbose=0).history["loss"][0] if quantizer.losses else None
    same(state(quantizer), before)
    if loss is not None:
        assert loss > 0 and not np.array_equal(numbers(encoder.kernel), np.eye(D))
    if quantizer.starts_from_data:
        with pytest.raises(ValueError, match="trainable where `adapt` is called. Received: a frozen one"):
            quantizer.adapt(x)
        same(state(quantizer), before)
    quantizer.trainable = True
    model.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    if quantizer.starts_from_data:
        model.fit(x, verbose=0)
        assert moved(state(quantizer), before)


@each_that_learns
def test_made_frozen_it_stays_frozen_through_its_config(make):
    quantizer = make(trainable=False)
    again = type(quantizer).from_config(quantizer.get_config())
    assert again.trainable is False
    again.build((None, D))
    assert again.trainable_variables == []


@each_with_a_codebook
def test_a_codebook_that_is_given_is_the_codebook(make):
    given = vectors(K, seed=5)
    config = make().get_config()
    quantizer = type(make())(**(config | {"embeddings_initializer": given}))
    assert not quantizer.starts_from_data
    quantizer.build((None, D))
    np.testing.assert_array_equal(numbers(quantizer.codebook), given)
    np.testing.assert_allclose(numbers(quantizer.decode(np.arange(K))), of(BEFORE, make, np.array)(given), rtol=1e-6)
    again = type(quantizer).from_config(quantizer.get_config())
    again.build((None, D))
    np.testing.assert_array_equal(numbers(again.decode(np.arange(K))), numbers(quantizer.decode(np.arange(K))))
    if hasattr(quantizer, "ema_sum"):
        np.testing.assert_array_equal(numbers(quantizer.ema_sum), given)


@each_with_a_codebook
def test_a_codebook_of_another_shape_is_refused(make):
    quantizer = type(make())(**(make().get_config() | {"embeddings_initializer": vectors(K + 1)}))
    with pytest.raises(ValueError, match="(?s)shape"):
        quantizer.build((None, D))


@each_that_learns
@pytest.mark.parametrize("batch", [1, 4])
def test_the_start_from_data_counts_as_history(make, batch):
    """Where each step sees a little, the k-means start is not thrown away (a first step at full weight trebled the error)."""
    x, quantizer = vectors(4000), make(name="q")
    quantizer.adapt(x)

    def error():
        return float(np.mean((x - numbers(quantizer.decode(quantizer.encode(x)))) ** 2))

    begun = error()
    for step in range(20):
        quantizer(x[step * batch:][:batch], training=True)
    assert error() < 1.1 * begun


@each_with_a_codebook
def test_adapt_sees_all_and_not_only_the_first(make):
    x = np.concatenate([vectors(300), 50 + vectors(300)])
    quantizer = make()
    quantizer.adapt(x)
    near = numbers(quantizer.decode(all_codes(quantizer))).mean(axis=-1)
    assert 0 < np.sum(near > near.max() / 2) < K


@each_that_learns
def test_adapt_on_very_many_vectors_looks_at_a_bounded_sample(make, monkeypatch):
    from vqvae_tutorial import quantization

    seen = []
    monkeypatch.setattr(quantization, "_lloyd", lambda x, start, *others: seen.append(len(x)) or start)
    make().adapt(vectors(200_000))
    assert seen == [32_768] * sum(isinstance(each, CodebookQuantizer) for each in parts_of(make()))


# Masks


def padded(lengths=(3, 5, 1, 4), seed=1, filler=np.nan):
    x = vectors(len(lengths), 6, seed=seed)
    mask = np.arange(6) < np.array(lengths)[:, None]
    return np.where(mask[..., None], x, np.float32(filler)), mask, x[mask]


@each
def test_what_is_masked_moves_and_counts_nothing(make):
    """Against the same vectors without padding; the padding holds NaN, so that a single look at it would be seen."""
    with_mask, without = started(make), started(make)
    for seed in range(5):
        x, mask, real = padded(seed=seed)
        out = with_mask(x, mask=mask, training=True)
        expected = without(real, training=True)
        np.testing.assert_allclose(numbers(out)[mask], numbers(expected), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose([float(loss) for loss in with_mask.losses], [float(loss) for loss in without.losses], rtol=1e-5)
        np.testing.assert_allclose(numbers(with_mask.frequencies), numbers(without.frequencies), rtol=1e-6)
    same(state(with_mask), state(without), rtol=1e-4, atol=1e-5)


@each
def test_a_mask_by_kerass_masking_layer_is_honoured_and_passed_on(make):
    quantizer, by_hand = started(make), started(make)
    x, mask, real = padded(filler=0)
    inputs = keras.Input((6, D))
    out = quantizer(layers.Masking()(inputs))
    mean = layers.GlobalAveragePooling1D()(out)  # over real places only, where the mask arrives
    model = keras.Model(inputs, layers.ActivityRegularization()(mean))  # Keras wants a loss, if only of 0
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    model.train_on_batch(x)
    by_hand(real, training=True)
    same(state(quantizer), state(by_hand), rtol=1e-5, atol=1e-6)
    expected = [numbers(quantizer.decode(quantizer.encode(one[real]))).mean(axis=0) for one, real in zip(x, mask)]
    np.testing.assert_allclose(numbers(model(x)), expected, rtol=1e-4, atol=1e-5)


@each
def test_where_all_is_masked_nothing_breaks(make):
    quantizer = started(make)
    codebooks = [each for each in parts_of(quantizer) if hasattr(each, "codebook")]
    before = [numbers(each.codebook) for each in codebooks]
    quantizer(vectors(2, 6), mask=np.zeros((2, 6), bool), training=True)
    assert all(np.isfinite(value).all() for value in state(quantizer).values())
    assert sum(float(loss) for loss in quantizer.losses) == 0
    for each, codebook in zip(codebooks, before):
        np.testing.assert_allclose(numbers(each.codebook), codebook, rtol=1e-5)


# Policies, files, seeds


@each
@pytest.mark.parametrize("policy, how", [(policy, how) for policy in POLICIES[1:] for how in ("everywhere", "by dtype=")])
def test_under_every_policy_it_trains_and_comes_back_the_same(make, policy, how, tmp_path):
    if how == "everywhere":
        keras.config.set_dtype_policy(policy)
    options = {} if how == "everywhere" else {"dtype": policy}
    x, quantizer = vectors(32, seed=1), started(make, **options)
    model = functional(layers.Dense(D, **options), quantizer, layers.Dense(D, dtype="float32"))
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    losses = model.fit(x, x, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    compute = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(quantizer(x).dtype) == compute
    assert all(value.dtype == "float32" for name, value in state(quantizer).items() if "seed" not in name)
    np.testing.assert_array_equal(numbers(quantizer.encode(x)), numbers(started_like(quantizer).encode(x)))
    model.save(tmp_path / "model.keras")
    expected = numbers(model(x))
    keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[2].dtype_policy.name == policy
    np.testing.assert_array_equal(numbers(loaded(x)), expected)
    same(state(loaded.layers[2]), state(quantizer))


def started_like(quantizer):
    """The same quantizer under float32: its codes must not depend on a policy."""
    again = type(quantizer).from_config(quantizer.get_config() | {"dtype": "float32"})
    again.build((None, D))
    again.set_weights(quantizer.get_weights())
    return again


@each
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_files_keep_all_and_training_goes_on_the_same(make, suffix, tmp_path):
    x, model = vectors(64, seed=1), functional(started(make))
    model.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
    model.fit(x, batch_size=16, shuffle=False, verbose=0)
    path = tmp_path / f"model{suffix}"
    if suffix == ".keras":
        model.save(path)
        loaded = keras.saving.load_model(path)
        loaded.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
    else:
        model.save_weights(path)
        loaded = keras.models.clone_model(model)
        loaded.compile(keras.optimizers.SGD(0.5), run_eagerly=True)
        loaded.load_weights(path)
    same(state(loaded.layers[1]), state(model.layers[1]))
    for either in (model, loaded):
        either.fit(x, batch_size=16, shuffle=False, verbose=0)
    same(state(loaded.layers[1]), state(model.layers[1]))


OF_ITS_OWN = {"commitment_cost": 0.4, "decay": 0.7, "revival_threshold": 0.3, "rate_weight": 0.6, "seed": 11, "name": "mine",
              "trainable": False, "dtype": "mixed_bfloat16", "embeddings_initializer": "ones", "gradient": "rotation", "entropy_cost": 0.2,
              "temperature": 0.7, "sphere": True}


@each
def test_every_argument_survives_its_config(make):
    """Compared on what the layer holds, not on configurations, which could both forget it."""
    kind = type(make())
    config = make().get_config()
    options = {name: value for name, value in OF_ITS_OWN.items() if name in config}
    quantizer = kind(**(config | options))
    again = kind.from_config(quantizer.get_config())
    for name in options.keys() - {"dtype", "embeddings_initializer"}:
        assert getattr(again, name) == options[name] == getattr(quantizer, name), name
    assert again.dtype_policy.name == "mixed_bfloat16" and again.num_codes == make().num_codes
    again.build((None, D))
    if "embeddings_initializer" in options:
        np.testing.assert_allclose(numbers(again.decode([0])), of(BEFORE, make, np.array)(np.ones((1, D))), rtol=1e-6)
        assert again.starts_from_data is False and make().starts_from_data is True
        assert kind.from_config(make().get_config()).starts_from_data is True


@each
def test_keras_seed_decides_where_no_seed_is_given(make):
    kind, x = type(make()), vectors(400, seed=3)
    config = make().get_config()
    if "seed" not in config:
        pytest.skip("draws nothing")

    def trained(number):
        keras.utils.set_random_seed(number)
        quantizer = kind(**(config | {"seed": None} | {name: 0.9 for name in ("revival_threshold", "dropout") if name in config}))
        quantizer.adapt(x)
        for part in np.split(x, 8):
            drawn = quantizer(part, training=True)
        return state(quantizer) | {"drawn": numbers(drawn)}

    same(trained(1), trained(1))
    assert moved(trained(1), trained(2))


@each
def test_inference_moves_nothing(make):
    quantizer = started(make)
    before = state(quantizer)
    model = functional(quantizer)
    model.compile(run_eagerly=True)
    model.predict(vectors(20), verbose=0), model.evaluate(vectors(20), verbose=0), quantizer(vectors(20)), quantizer.encode(vectors(20))
    same(state(quantizer), before)


@remembered
def compiled(make):
    model = functional(started(make))
    model.compile(keras.optimizers.SGD(0.1))
    return model


@each
@pytest.mark.parametrize("number", [np.nan, np.inf, 3e38], ids=str)
def test_a_number_that_is_none_never_reaches_the_state(make, number):
    model, x = compiled(make), vectors(16)
    quantizer, x[3, 1] = model.layers[1], number
    for _ in range(2):
        model.train_on_batch(x)
    assert all(np.isfinite(value).all() for value in state(quantizer).values())
    assert ops.shape(quantizer.encode(x)) == (16, *several(quantizer))


# What single rules rest on


REVIVING = {name: make for name, make in QUANTIZERS.items() if hasattr(make(), "revival_threshold")}
each_that_revives = pytest.mark.parametrize("make", REVIVING.values(), ids=REVIVING)


def of_kind(make, **options):
    return type(make())(**(make().get_config() | options))


@each_that_revives
@pytest.mark.parametrize("masked", [False, True])
def test_a_dead_code_starts_anew_at_a_vector_that_is_badly_quantized(make, masked):
    """All vectors but one lie on an embedding, so that one is what is drawn, and count and sum start with it."""
    start = np.concatenate([np.zeros((1, D)), np.full((K - 1, D), 1e3)]).astype("float32")
    quantizer = of_kind(make, embeddings_initializer=start, revival_threshold=0.5)
    x, mask = np.zeros((1, 9, D), "float32"), None
    x[0, 4] = [3, 0, 0, 0]
    if masked:  # the worst of all is padding
        x[0, 6], mask = 100, np.arange(9)[None] != 6
    quantizer(x, mask=mask, training=True)
    codebook = numbers(quantizer.codebook)
    np.testing.assert_allclose(codebook[1:], np.broadcast_to(x[0, 4], (K - 1, D)), atol=1e-6)
    np.testing.assert_allclose(numbers(quantizer.ema_frequency)[1:], 1, rtol=1e-6)
    np.testing.assert_allclose(numbers(quantizer.ema_sum)[1:], codebook[1:], rtol=1e-6)
    np.testing.assert_allclose(codebook[0], x[0, 4] / (8 if masked else 9), rtol=1e-4)


@each_that_revives
@pytest.mark.parametrize("threshold, revived", [(0.5, False), (0.9, True)])
def test_a_code_is_dead_below_its_share_and_not_above(make, threshold, revived):
    """Two codes are used at 0.8 of a fair share in a first step, the others at more."""
    start = 10 * np.arange(K)[:, None] * np.ones((K, D), "float32")
    quantizer = of_kind(make, embeddings_initializer=start.astype("float32"), revival_threshold=threshold)
    counts = np.array([4, 4, 5, 5, 5, 5, 6, 6])
    x = np.repeat(start, counts, axis=0).astype("float32")
    x[0] += 1.0  # the only one with an error
    quantizer(x, training=True)
    frequency = numbers(quantizer.ema_frequency)
    np.testing.assert_allclose(frequency, np.where(revived & (counts == 4), 1, counts / 5), rtol=1e-5)


@each_that_revives
def test_revival_draws_the_worse_quantized_more_often(make):
    """By squared error, as k-means++: 1 to 9 where the distances are 1 to 3."""
    from vqvae_tutorial.quantizers import badly_quantized

    x, zero = np.zeros((4, D), "float32"), np.zeros((4, D), "float32")
    x[1, 0], x[3, 0] = 1, 3
    drawn = numbers(badly_quantized(x, zero, 4000, keras.random.SeedGenerator(0)))[:, 0]
    assert set(np.unique(drawn)) == {1, 3}
    np.testing.assert_allclose(np.mean(drawn == 3), 0.9, atol=0.02)
    drawn = numbers(badly_quantized(x, zero, 50, keras.random.SeedGenerator(0), np.array([1, 1, 1, 0], "float32")))
    assert set(np.unique(drawn[:, 0])) == {1}


@each_that_revives
def test_the_running_means_are_those_of_numpy(make):
    """Over shares, from the start as history, debiased; a step at a time."""
    quantizer, x = of_kind(make, decay=0.8, revival_threshold=0.0), vectors(6, 40, seed=2)
    quantizer.adapt(x)
    codebook = np.float64(numbers(quantizer.codebook))
    frequency, total, steps = np.ones(K), codebook.copy(), 1 / (1 - 0.8)
    for batch in x:
        codes = np.eye(K)[numbers(quantizer.encode(batch))]
        steps += 1
        weight = 0.2 / (1 - 0.8**steps)
        frequency = (1 - weight) * frequency + weight * K * codes.mean(axis=0)
        total = (1 - weight) * total + weight * K * codes.T @ batch / len(batch)
        quantizer(batch, training=True)
        np.testing.assert_allclose(numbers(quantizer.ema_frequency), frequency, rtol=1e-4)
        np.testing.assert_allclose(numbers(quantizer.codebook), total / frequency[:, None], rtol=1e-3, atol=1e-5)


def test_bits_are_charged_at_their_price():
    """Against argmin of squared distance + λ · mean squared distance · bits, all by NumPy."""
    quantizer = of_kind(QUANTIZERS["entropy"], rate_weight=0.5, decay=0.7)
    x = vectors(5, 60, seed=3)
    quantizer.adapt(x)
    distance = 0.0
    for batch in x:
        codebook, share = np.float64(numbers(quantizer.codebook)), np.maximum(numbers(quantizer.ema_frequency), 1e-3)
        gaps = ((batch[:, None] - codebook) ** 2).sum(-1)
        cost = gaps + 0.5 * distance * -np.log2(share / share.sum())
        codes = numbers(quantizer.encode(batch))
        np.testing.assert_allclose(cost[np.arange(60), codes], cost.min(axis=-1), rtol=1e-4, atol=1e-4)
        quantizer(batch, training=True)
        distance = 0.7 * distance + 0.3 * gaps[np.arange(60), codes].mean()
        np.testing.assert_allclose(float(quantizer.mean_distance.value), distance, rtol=1e-4)
    assert np.any(codes != gaps.argmin(-1))  # the price decided something


def test_usage_and_perplexity_weigh_batches_by_their_size():
    from vqvae_tutorial.quantizers import CodebookPerplexity, CodebookUsage

    codes = np.minimum(np.random.default_rng(0).geometric(0.1, size=500) - 1, 19)
    share = np.bincount(codes, minlength=32) / len(codes)
    share = share[share > 0]
    for metric, right in ((CodebookUsage(32), len(share)), (CodebookPerplexity(32), np.exp(-np.sum(share * np.log(share))))):
        for batch in np.split(codes, [1, 4, 100, 103]):
            metric.update_state(np.bincount(batch, minlength=32) / len(batch), sample_weight=len(batch))
        np.testing.assert_allclose(float(metric.result()), right, rtol=1e-5)
        metric.reset_state()
        metric.update_state(np.eye(32)[3])
        assert float(metric.result()) == 1
