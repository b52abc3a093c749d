"""Many codes a place: what a chapter cannot show. References are by hand, in NumPy; what holds for every quantizer is in `contract/`."""
import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial import VQVAE, PixelCNN, PositionPrior, VectorQuantizer, VectorQuantizerEMA, build_networks
from vqvae_tutorial.coding import compress, decompress
from vqvae_tutorial.composite import ProductQuantizer, ResidualQuantizer, levels_reached
from vqvae_tutorial.priors import check_pair
from vqvae_tutorial.quantizers import CodebookPerplexity, CodebookUsage
from vqvae_tutorial.zoo import FSQ, CosineQuantizer

K, D, DEPTH = 8, 4, 3
TENSORFLOW = keras.backend.backend() == "tensorflow"


def numbers(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, D)).astype("float32")


def nearest(x, book):
    return np.argmin(np.square(x[..., None, :] - book).sum(axis=-1), axis=-1)


def by_levels(x, books):
    """Codes and sums of residual quantization, and what each level sees."""
    codes, seen, total = [], [], np.zeros_like(x)
    for book in books:
        seen.append(x - total)
        codes.append(nearest(seen[-1], book))
        total = total + book[codes[-1]]
    return np.stack(codes, axis=-1), total, seen


def levels(kind=VectorQuantizer, **options):
    books = [vectors(K, seed=10 + level) / 2**level for level in range(DEPTH)]
    made = [kind(K, embeddings_initializer=book, **options) for book in books]
    return made, books


def residual(kind=VectorQuantizer, dropout=0.0, seed=0, **options):
    made, books = levels(kind, **options)
    quantizer = ResidualQuantizer(made, dropout=dropout, seed=seed)
    quantizer.build((None, D))
    return quantizer, books


def drawn_depths(quantizer, x):
    """The depth that each example of a batch has got in training, from what came out."""
    codes = quantizer.encode(x)
    choices = [numbers(quantizer.decode(codes[..., :depth])) for depth in range(1, DEPTH + 1)]
    out = numbers(quantizer(x, training=True))
    fits = [np.all(np.abs(out - choice) < 1e-6, axis=tuple(range(1, out.ndim))) for choice in choices]
    assert np.all(np.sum(fits, axis=0) == 1), "each example has one depth, the same at all of its places"
    return 1 + np.argmax(fits, axis=0)


# By hand


@pytest.mark.parametrize("shape", [(20,), (5, 3), (2, 3, 2)], ids=str)
def test_residual_codes_are_those_of_numpy(shape):
    quantizer, books = residual()
    x = vectors(*shape)
    codes, total, _ = by_levels(x, books)
    np.testing.assert_array_equal(numbers(quantizer.encode(x)), codes)
    np.testing.assert_allclose(numbers(quantizer(x)), total, atol=1e-6)
    for depth in range(1, DEPTH + 1):
        expected = sum(book[codes[..., level]] for level, book in enumerate(books[:depth]))
        np.testing.assert_allclose(numbers(quantizer.decode(codes[..., :depth])), expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_product_codes_are_those_of_numpy(count):
    books = [np.random.default_rng(piece).normal(size=(K, D // count)).astype("float32") for piece in range(count)]
    quantizer = ProductQuantizer([VectorQuantizer(K, embeddings_initializer=book) for book in books])
    x = vectors(5, 3)
    pieces = np.split(x, count, axis=-1)
    codes = np.stack([nearest(piece, book) for piece, book in zip(pieces, books)], axis=-1)
    np.testing.assert_array_equal(numbers(quantizer.encode(x)), codes)
    expected = np.concatenate([book[codes[..., piece]] for piece, book in enumerate(books)], axis=-1)
    np.testing.assert_array_equal(numbers(quantizer(x)), expected)


def test_each_level_learns_from_what_those_before_it_left_over():
    """An EMA step of each level is that of a layer of its own on the rest that NumPy works out."""
    quantizer, books = residual(VectorQuantizerEMA, revival_threshold=0.0)
    x = vectors(50)
    _, _, seen = by_levels(x, books)
    quantizer(x, training=True)
    for level, book, rest in zip(quantizer.quantizers, books, seen):
        alone = VectorQuantizerEMA(K, embeddings_initializer=book, revival_threshold=0.0)
        alone(rest, training=True)
        np.testing.assert_allclose(numbers(level.codebook), numbers(alone.codebook), rtol=1e-4, atol=1e-5)


def test_each_level_starts_from_what_those_before_it_left_over():
    quantizer, x = ResidualQuantizer([VectorQuantizer(K, seed=level) for level in range(DEPTH)]), vectors(300)
    quantizer.adapt(x)
    rest = x
    for number, level in enumerate(quantizer.quantizers):
        alone = VectorQuantizer(K, seed=number)
        alone.adapt(rest)
        np.testing.assert_allclose(numbers(level.codebook), numbers(alone.codebook), atol=1e-5)
        rest = rest - numbers(alone.decode(alone.encode(rest)))


def test_levels_that_are_given_are_kept_where_others_start_from_data():
    given = vectors(K, seed=5)
    quantizer = ResidualQuantizer([VectorQuantizer(K, embeddings_initializer=given), VectorQuantizer(K, seed=0)])
    quantizer.adapt(vectors(300))
    np.testing.assert_array_equal(numbers(quantizer.quantizers[0].codebook), given)
    frozen = VectorQuantizer(K, seed=0)
    frozen.trainable = False
    ResidualQuantizer([frozen, VectorQuantizer(K, seed=1)]).adapt(vectors(300))  # says nothing, and starts the second


def test_losses_are_one_commitment_a_level_and_move_only_their_own_rows():
    quantizer, books = residual()
    x = vectors(30)
    codes, _, seen = by_levels(x, books)
    quantizer(x)
    errors = [np.mean((rest - book[codes[:, level]]) ** 2) for level, (rest, book) in enumerate(zip(seen, books))]
    found = [float(loss) for loss in quantizer.losses]
    np.testing.assert_allclose(sorted(found), sorted([0.25 * error for error in errors] + errors), rtol=1e-4)


@pytest.mark.skipif(not TENSORFLOW, reason="a tape")
def test_the_gradient_passes_once_and_every_commitment_reaches_the_encoder():
    import tensorflow as tf

    quantizer, books = residual()
    x = tf.Variable(vectors(10))
    with tf.GradientTape(persistent=True) as tape:
        out = quantizer(x)
        losses = list(quantizer.losses)
    np.testing.assert_array_equal(numbers(tape.gradient(out, x)), np.ones((10, D)))
    codes, _, seen = by_levels(numbers(x), books)
    for level in range(DEPTH):
        expected = 0.25 * 2 * (seen[level] - books[level][codes[:, level]]) / x.shape.num_elements()
        np.testing.assert_allclose(numbers(tape.gradient(losses[2 * level], x)), expected, rtol=1e-3, atol=1e-6)


# Dropout


def test_depths_are_drawn_for_examples_in_training_only():
    quantizer, _ = residual(dropout=0.5)
    x = vectors(4000, 2)
    depths = drawn_depths(quantizer, x)
    share = np.bincount(depths, minlength=DEPTH + 1)[1:] / len(depths)
    np.testing.assert_allclose(share, [1 / 6, 1 / 6, 4 / 6], atol=0.03)
    assert np.any(drawn_depths(quantizer, x) != depths), "drawn anew for each batch"
    np.testing.assert_array_equal(numbers(quantizer(x)), numbers(quantizer.decode(quantizer.encode(x))))
    assert np.any(drawn_depths(residual(dropout=0.5, seed=1)[0], x) != depths)
    np.testing.assert_array_equal(drawn_depths(residual(dropout=0.5)[0], x), depths)


def test_training_may_be_none_as_keras_calls_layers_within_layers():
    quantizer = ResidualQuantizer([VectorQuantizerEMA(4, seed=0) for _ in range(2)], dropout=0.5, seed=0)
    vectors = np.eye(4, 3, dtype="float32")
    np.testing.assert_array_equal(quantizer(vectors, training=None), quantizer(vectors, training=False))


def test_a_share_of_one_draws_all_depths_alike_and_none_draws_none():
    x = vectors(3000)
    share = np.bincount(drawn_depths(residual(dropout=1.0)[0], x))[1:] / len(x)
    np.testing.assert_allclose(share, 1 / DEPTH, atol=0.03)
    assert np.all(drawn_depths(residual()[0], x) == DEPTH)


def test_a_level_sees_nothing_of_examples_that_do_not_reach_it():
    quantizer, books = residual(VectorQuantizerEMA, dropout=1.0, revival_threshold=0.0)
    x = vectors(64, 3)
    masks = levels_reached(x, DEPTH, 1.0, keras.random.SeedGenerator(0))
    reached = np.concatenate([np.reshape(numbers(mask), (64, 1)) for mask in masks], axis=-1) > 0
    assert 0 < reached[:, -1].sum() < 64
    codes, _, seen = by_levels(x, books)
    quantizer(x, training=True)
    for number, level in enumerate(quantizer.quantizers):
        real = reached[:, number]
        alone = VectorQuantizerEMA(K, embeddings_initializer=books[number], revival_threshold=0.0)
        alone(seen[number][real], training=True)
        np.testing.assert_allclose(numbers(level.codebook), numbers(alone.codebook), rtol=1e-4, atol=1e-5)
        share = np.bincount(codes[real][..., number].ravel(), minlength=K) / codes[real][..., number].size
        np.testing.assert_allclose(numbers(quantizer.frequencies)[number], share, rtol=1e-5)


def test_padding_stays_padding_at_every_depth():
    quantizer, _ = residual(VectorQuantizerEMA, dropout=1.0)
    x = vectors(6, 5)
    mask = np.arange(5) < np.array([5, 1, 3, 2, 4, 5])[:, None]
    before = [numbers(level.codebook) for level in quantizer.quantizers]
    for _ in range(3):
        out = quantizer(np.where(mask[..., None], x, np.float32(np.nan)), mask=mask, training=True)
    assert np.isfinite(numbers(out)[mask]).all()
    for level, codebook in zip(quantizer.quantizers, before):
        assert np.isfinite(numbers(level.codebook)).all() and not np.array_equal(numbers(level.codebook), codebook)


@pytest.mark.parametrize("jit", [False, True])
def test_dropout_trains_goes_on_after_a_file_and_never_lets_nan_in(jit, tmp_path):
    quantizer, _ = residual(VectorQuantizerEMA, dropout=0.5, revival_threshold=0.0)
    inputs = keras.Input((D,))
    model = keras.Model(inputs, quantizer(inputs))
    x = vectors(64)
    model.compile("sgd", jit_compile=jit)
    losses = model.fit(x, epochs=5, batch_size=32, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.compile("sgd", jit_compile=jit)
    for either in (model, loaded):
        either.fit(x, batch_size=32, shuffle=False, verbose=0)
    for one, other in zip(model.weights, loaded.weights, strict=True):  # among them the seed: the same depths are drawn
        np.testing.assert_allclose(numbers(one), numbers(other), rtol=1e-5, atol=1e-6)
    x[3, 1] = np.nan
    model.fit(x, batch_size=32, verbose=0)
    assert all(np.isfinite(numbers(weight)).all() for weight in model.weights)


def test_frozen_nothing_is_dropped():
    quantizer, _ = residual(dropout=1.0)
    quantizer.trainable = False
    x = vectors(50)
    np.testing.assert_array_equal(numbers(quantizer(x, training=True)), numbers(quantizer.decode(quantizer.encode(x))))


# In a VQ-VAE, and under a prior


def model_of(quantizer):
    model = VQVAE(*build_networks((8, 8, 1), D, filters=8, residual_blocks=1, halvings=1), quantizer, value_range=(0, 1))
    x = np.random.default_rng(0).uniform(size=(32, 8, 8, 1)).astype("float32")
    model.adapt(x)
    model.compile("adam", run_eagerly=True)
    return model, x, model.fit(x, batch_size=16, verbose=0).history


MAKERS = {"residual": lambda: ResidualQuantizer([VectorQuantizerEMA(K, seed=level) for level in range(DEPTH)], dropout=0.5, seed=0),
          "product": lambda: ProductQuantizer([VectorQuantizerEMA(K, seed=piece) for piece in range(2)])}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_vqvae_knows_the_last_axis_of_its_codes(make, tmp_path):
    model, x, history = model_of(make())
    count = len(model.quantizer.quantizers)
    assert model.code_shape == (4, 4, count) and {"usage", "perplexity"} <= set(history)
    codes = model.encode(x)
    assert codes.shape == (32, 4, 4, count) and model.encode(x[:0]).shape == (0, 4, 4, count)
    assert model.decode(codes[:0]).shape == (0, 8, 8, 1)
    np.testing.assert_allclose(model.decode(codes), model.predict(x, verbose=0), atol=1e-5)
    share = np.stack([np.bincount(codes[..., column].ravel(), minlength=K) / codes[..., column].size for column in range(count)])
    report = model.evaluate(x, batch_size=8, verbose=0, return_dict=True)
    assert report["usage"] == np.mean((share > 0).sum(axis=-1))
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-9)), axis=-1)
    np.testing.assert_allclose(report["perplexity"], np.mean(np.exp(entropy)), rtol=1e-4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.code_shape == model.code_shape
    np.testing.assert_array_equal(again.encode(x), codes)
    np.testing.assert_array_equal(again.decode(codes), model.decode(codes))


def test_a_vqvae_decodes_fewer_levels_and_refuses_what_is_no_map():
    model, x, _ = model_of(MAKERS["residual"]())
    codes = model.encode(x)
    for depth in range(1, DEPTH + 1):
        expected = model.draw(model.quantizer.decode(codes[..., :depth]), {})
        np.testing.assert_allclose(model.decode(codes[..., :depth]), numbers(expected), atol=1e-5)
    with pytest.raises(ValueError, match=r"`codes` must be integers from 0 to 7 of shape \(n, 4, 4, any\). Received: "):
        model.decode(codes[..., 0])
    for wrong in (codes[..., :0], np.concatenate([codes, codes], axis=-1)):
        with pytest.raises(ValueError, match=r"`codes` must be of shape \(..., 3\), or down to \(..., 1\). Received: shape "):
            model.decode(wrong)


def test_priors_and_files_of_codes_take_the_last_axis():
    model, x, _ = model_of(MAKERS["residual"]())
    codes, prior = model.encode(x), PositionPrior(K, model.code_shape)
    check_pair(model, prior)
    prior.adapt(codes)
    assert prior.bits(codes).shape == (32,) and np.all(prior.bits(codes) < 4 * 4 * DEPTH * 3)
    drawn = prior.sample(3, seed=0)
    assert drawn.shape == (3, 4, 4, DEPTH) and model.decode(drawn).shape == (3, 8, 8, 1)
    again, _ = decompress(prior, compress(prior, codes))
    np.testing.assert_array_equal(again, codes)


def test_a_prior_of_rows_and_columns_takes_the_codes_of_a_place_side_by_side():
    """And then each code sees the coarser ones of its own place, and not the finer ones."""
    keras.utils.set_random_seed(0)
    model, x, _ = model_of(MAKERS["residual"]())
    flat = model.encode(x).reshape(32, 4, 4 * DEPTH)
    prior = PixelCNN(K, (4, 4 * DEPTH), filters=8, num_layers=2, dropout=0.0)
    drawn = prior.sample(2, seed=0)
    assert model.decode(drawn.reshape(2, 4, 4, DEPTH)).shape == (2, 8, 8, 1)
    before = numbers(prior(flat[:1]))
    for level in range(DEPTH):
        changed = flat[:1].copy()
        changed[0, 2, DEPTH + level] = (changed[0, 2, DEPTH + level] + 1) % K
        moved = np.any(numbers(prior(changed)) != before, axis=-1)[0, 2, DEPTH:2 * DEPTH]
        np.testing.assert_array_equal(moved, np.arange(DEPTH) > level)


@pytest.mark.skipif(not TENSORFLOW, reason="a SavedModel")
def test_it_can_be_exported_for_any_batch_and_depth(tmp_path):
    import tensorflow as tf

    model, x, _ = model_of(MAKERS["residual"]())
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("encode", model.encode, [tf.TensorSpec((None, 8, 8, 1))])
    for depth in (1, DEPTH):
        archive.add_endpoint(f"decode_{depth}", model.decode, [tf.TensorSpec((None, 4, 4, depth), "int32")])
    archive.write_out(str(tmp_path / "parts"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "parts"))
    codes = numbers(loaded.encode(x[:5]))
    np.testing.assert_array_equal(codes, model.encode(x[:5]))
    for depth in (1, DEPTH):
        drawn = numbers(getattr(loaded, f"decode_{depth}")(codes[..., :depth]))
        np.testing.assert_allclose(drawn, model.decode(codes[..., :depth]), atol=1e-5)


def test_metrics_of_several_codebooks_are_their_mean():
    frequencies = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0]], "float32")
    for metric, right in ((CodebookUsage((2, 4)), 1.5), (CodebookPerplexity((2, 4)), 1.5)):
        metric.update_state(frequencies)
        np.testing.assert_allclose(float(metric.result()), right, rtol=1e-6)


# What cannot be meant


class Mine(VectorQuantizer):
    pass


def several():
    return [VectorQuantizer(K) for _ in range(2)]


TWICE = VectorQuantizer(K)
MEANT = {"a number": 4, "none": [], "a layer": VectorQuantizer(K), "another K": [VectorQuantizer(4), VectorQuantizer(8)],
         "one twice": [TWICE, TWICE], "no quantizers": [keras.layers.Dense(3)], "nested": [ProductQuantizer(several())]}


@pytest.mark.parametrize("given", MEANT.values(), ids=MEANT)
@pytest.mark.parametrize("kind", [ResidualQuantizer, ProductQuantizer])
def test_lists_that_are_none_are_refused(kind, given):
    with pytest.raises(ValueError, match="`quantizers` must be .* Received: .*Give"):
        kind(given)


@pytest.mark.parametrize("level", [FSQ((2, 4)), CosineQuantizer(K)], ids=["FSQ", "cosine"])
def test_levels_that_change_vectors_first_are_refused(level):
    with pytest.raises(ValueError, match="quantize the vectors themselves.* Received: (FSQ|CosineQuantizer)"):
        ResidualQuantizer([VectorQuantizer(K), level])


@pytest.mark.parametrize("share", [-0.1, 1.1, np.nan])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match="`dropout` must be a share from 0 to 1. Received: "):
        ResidualQuantizer(several(), dropout=share)


def test_vectors_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="`vectors` must be of a size that is a multiple of 2. Received: D = 5"):
        ProductQuantizer(several()).build((None, 5))


def test_codes_of_a_product_are_all_needed():
    quantizer = ProductQuantizer(several())
    quantizer.build((None, D))
    for wrong in (np.zeros((3, 1), int), np.zeros((3, 3), int), 0):
        with pytest.raises(ValueError, match=r"`codes` must be of shape \(..., 2\). Received: shape "):
            quantizer.decode(wrong)


def test_every_argument_survives_its_config_and_a_subclass_among_the_levels():
    keras.saving.register_keras_serializable("tests")(Mine)
    quantizer = ResidualQuantizer([Mine(K, commitment_cost=0.4), VectorQuantizerEMA(K, decay=0.8)], dropout=0.3, seed=7,
                                  gradient="rotation", name="mine", dtype="mixed_bfloat16")
    again = ResidualQuantizer.from_config(quantizer.get_config())
    assert [type(level) for level in again.quantizers] == [Mine, VectorQuantizerEMA]
    assert again.quantizers[0].commitment_cost == 0.4 and again.quantizers[1].decay == 0.8
    assert (again.dropout, again.seed, again.gradient, again.name, again.num_codes) == (0.3, 7, "rotation", "mine", K)
    assert again.dtype_policy.name == "mixed_bfloat16" and all(level.compute_dtype == "float32" for level in again.quantizers)
