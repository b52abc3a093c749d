"""Vector quantization against NumPy, SciPy and scikit-learn, and at its edges."""
import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial import quantization
from vqvae_tutorial.quantization import (
    code_frequencies,
    distortion,
    entropy,
    kmeans,
    look_up,
    nearest_code,
    perplexity,
    squared_distances,
    usage,
)

SHAPES = [(), (5,), (5, 3), (4, 7, 7)]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def cube(vectors, codebook):
    differences = vectors[..., None, :].astype("float64") - codebook.astype("float64")
    return np.square(differences).sum(axis=-1)


def compiled(function):
    """Runs a function of tensors inside a Keras model's graph, with a batch size nobody knows beforehand."""

    class Inside(keras.layers.Layer):
        def call(self, values):
            return function(values)

        def compute_output_spec(self, values):
            return keras.KerasTensor((None,), "float32")

    def run(values, **options):
        model = keras.Sequential([keras.Input(values.shape[1:]), Inside()])
        model.compile(**options)
        return model.predict(values, batch_size=len(values) - 1, verbose=0)

    return run


# Nearest code


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("depth, num_codes", [(1, 1), (1, 9), (2, 4), (16, 128)])
def test_distances_and_codes_on_any_rank(shape, depth, num_codes):
    vectors, codebook = normal(*shape, depth), normal(num_codes, depth, seed=1)
    distances, codes = squared_distances(vectors, codebook), nearest_code(vectors, codebook)
    assert tuple(distances.shape) == (*shape, num_codes)
    assert keras.backend.standardize_dtype(distances.dtype) == "float32"
    assert keras.backend.standardize_dtype(codes.dtype) == "int32"
    np.testing.assert_allclose(distances, cube(vectors, codebook), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(codes, cube(vectors, codebook).argmin(axis=-1))


def test_scipy_agrees_on_codes_and_distortion():
    vq = pytest.importorskip("scipy.cluster.vq").vq
    vectors, codebook = normal(3_000, 16), normal(200, 16, seed=1)
    codes, distances = vq(vectors, codebook)
    np.testing.assert_array_equal(nearest_code(vectors, codebook), codes)
    np.testing.assert_allclose(distortion(vectors, codebook), np.square(distances).mean(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "int32", "uint8"])
def test_distances_are_float32_for_every_input(kind):
    # 300 and 301 are one number in bfloat16; squared, they overflow float16 and uint8.
    vectors = ops.cast(np.array([[0.0, 9.0], [200.0, 9.0]]), kind)
    codebook = np.array([[0, 301], [300, 0], [301, 0]], "float32")
    distances = squared_distances(vectors, codebook)
    assert keras.backend.standardize_dtype(distances.dtype) == "float32"
    np.testing.assert_allclose(distances, cube(ops.convert_to_numpy(vectors).astype("float64"), codebook))
    np.testing.assert_array_equal(nearest_code(vectors, codebook), cube(np.array([[0, 9], [200, 9.0]]), codebook).argmin(-1))


def test_rounding_never_makes_a_distance_negative():
    vectors = normal(500, 16) + 100
    distances = ops.convert_to_numpy(squared_distances(vectors, vectors))
    assert distances.min() == 0.0


def test_the_first_of_equal_codes_wins():
    codebook = np.repeat(normal(5, 8), 6, axis=0)
    codes = ops.convert_to_numpy(nearest_code(normal(400, 8, seed=1), codebook))
    assert set(codes) == {0, 6, 12, 18, 24}
    assert int(nearest_code([0.0], [[-1.0], [1.0], [1.0]])) == 0


@pytest.mark.parametrize("most", [1, 40, 64, 10**9])
def test_slices_change_nothing(monkeypatch, most):
    vectors, codebook = normal(3, 5, 7, 4), normal(13, 4, seed=1)
    monkeypatch.setattr(quantization, "_MOST_DISTANCES", most)
    monkeypatch.setattr(quantization, "_FEWEST_ROWS", 1)
    np.testing.assert_array_equal(nearest_code(vectors, codebook), cube(vectors, codebook).argmin(axis=-1))


def test_never_more_distances_at_once_than_allowed(monkeypatch):
    seen = []
    scores = quantization._scores
    monkeypatch.setattr(quantization, "_MOST_DISTANCES", 1_000)
    monkeypatch.setattr(quantization, "_FEWEST_ROWS", 1)
    monkeypatch.setattr(quantization, "_scores", lambda *given: seen.append(scores(*given)) or seen[-1])
    nearest_code(normal(777, 4), normal(50, 4, seed=1))
    assert max(np.prod(array.shape) for array in seen) <= 1_000
    assert min(array.shape[0] for array in seen) > 10, "nor many fewer"


@pytest.mark.parametrize("jit", [False, True])
def test_inside_a_compiled_graph_with_unknown_batch_size(jit):
    vectors, codebook = normal(9, 7, 7, 4), normal(11, 4, seed=1)

    def everything(values):
        codes = nearest_code(values, codebook)
        spread = perplexity(code_frequencies(codes, 11)) + ops.cast(usage(code_frequencies(codes, 11)), "float32")
        quantized = look_up(codes, codebook)
        return ops.concatenate([quantized, ops.cast(codes, "float32")[..., None]], axis=-1) + 0 * spread

    result = compiled(everything)(vectors, jit_compile=jit)
    np.testing.assert_array_equal(result[..., -1], cube(vectors, codebook).argmin(axis=-1))
    np.testing.assert_array_equal(result[..., :-1], codebook[cube(vectors, codebook).argmin(axis=-1)])


def test_symbolic_inputs_keep_their_shape():
    codes = nearest_code(keras.Input((7, None, 4)), normal(11, 4))
    assert tuple(codes.shape) == (None, 7, None)


def test_an_empty_batch_has_no_codes():
    codes = nearest_code(np.zeros((0, 7, 4), "float32"), normal(3, 4))
    assert tuple(codes.shape) == (0, 7) and keras.backend.standardize_dtype(codes.dtype) == "int32"


@pytest.mark.parametrize(
    "vectors, codebook, problem",
    [
        (np.zeros((5, 3)), np.zeros((4, 2)), r"`vectors`.*\(\.\.\., 2\).*\(4, 2\).*Received: shape \(5, 3\)"),
        (np.float32(1), np.zeros((4, 2)), r"`vectors` must.*Received: shape \(\)"),
        (np.zeros((5, 2)), np.zeros(2), r"`codebook` must be of shape \(K, D\).*Received: shape \(2,\)"),
        (np.zeros((5, 2)), np.zeros((0, 2)), r"`codebook` must.*Received: shape \(0, 2\)"),
        (np.zeros((5, 0)), np.zeros((4, 0)), r"`codebook` must.*Received: shape \(4, 0\)"),
        (np.zeros((5, 2)), np.zeros((1, 4, 2)), r"`codebook` must.*Received: shape \(1, 4, 2\)"),
    ],
)
@pytest.mark.parametrize("function", [squared_distances, nearest_code, distortion])
def test_shapes_that_do_not_fit(function, vectors, codebook, problem):
    with pytest.raises(ValueError, match=problem):
        function(vectors, codebook)


def test_a_keras_variable_is_a_codebook():
    vectors, codebook = normal(20, 4), normal(11, 4, seed=1)
    variable = keras.Variable(codebook)
    np.testing.assert_array_equal(nearest_code(vectors, variable), nearest_code(vectors, codebook))
    np.testing.assert_array_equal(ops.convert_to_numpy(look_up([3, 10], variable)), codebook[[3, 10]])
    assert distortion(vectors, variable) == distortion(vectors, codebook)


# Looking up


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["int32", "int64", "uint8"])
def test_look_up_gathers_rows(shape, kind):
    codebook = normal(6, 3)
    codes = np.random.default_rng(0).integers(6, size=shape).astype(kind)
    np.testing.assert_array_equal(look_up(codes, codebook), codebook[codes])


def test_look_up_keeps_the_codebooks_dtype():
    assert keras.backend.standardize_dtype(look_up([0, 1], ops.cast(normal(2, 3), "bfloat16")).dtype) == "bfloat16"


@pytest.mark.parametrize("codes, problem", [([0, 6], "from 0 to 6"), ([[-1]], "from -1 to -1"), ([0.0, 1.0], "float64"),
                                            ([True], "bool")])
def test_codes_that_do_not_exist(codes, problem):
    for function in (lambda: look_up(codes, normal(6, 3)), lambda: code_frequencies(codes, 6)):
        with pytest.raises(ValueError, match=f"`codes` must be integers from 0 to 5. Received: .*{problem}"):
            function()


@pytest.mark.parametrize("jit", [False, True])
def test_inside_a_graph_a_code_that_does_not_exist_gives_nan(jit):
    if keras.backend.backend() == "torch" or keras.backend.backend() == "jax" and not jit:
        pytest.skip("values are known inside models here, so that the code is refused")
    codebook = normal(6, 3)
    codes = np.array([[0], [-1], [5], [6], [-6], [4], [1_000]], "int32")
    result = compiled(lambda values: look_up(ops.cast(values, "int32"), codebook))(codes.astype("float32"), jit_compile=jit)
    right = [0, 2, 5]
    np.testing.assert_array_equal(result[right], codebook[codes[right]])
    assert np.isnan(np.delete(result, right, axis=0)).all()


def test_a_wrong_code_in_a_graph_does_not_reach_the_codebooks_gradient():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("uses TensorFlow's tape")
    import tensorflow as tf

    codebook, codes = tf.Variable(normal(4, 3)), tf.constant([0, -1, 2, 2, 9])

    @tf.function
    def gradient(codes):
        with tf.GradientTape() as tape:
            rows = look_up(codes, codebook)
            total = tf.reduce_sum(tf.where(tf.math.is_nan(rows), 0.0, rows))
        return tf.convert_to_tensor(tape.gradient(total, codebook))

    np.testing.assert_array_equal(gradient(codes), np.array([1, 0, 2, 0])[:, None] * np.ones((4, 3)))


# Distortion and k-means


def test_distortion_sums_over_depth_and_averages_over_vectors():
    vectors, codebook = normal(6, 5, 16), normal(9, 16, seed=1)
    loss = distortion(vectors, codebook)
    assert isinstance(loss, float)
    np.testing.assert_allclose(loss, cube(vectors, codebook).min(axis=-1).mean(), rtol=1e-6)
    assert distortion(codebook, codebook) == 0.0
    with pytest.raises(ValueError, match=r"\(0, 16\)"):
        distortion(vectors[:0, 0], codebook)


@pytest.mark.parametrize("depth, num_codes", [(2, 5), (16, 24)])
def test_kmeans_is_scikit_learns_from_the_same_start(depth, num_codes):
    cluster = pytest.importorskip("sklearn.cluster")
    vectors = normal(600, depth)
    start = kmeans(vectors, num_codes, iterations=0, seed=3)
    for iterations in (1, 4, 200):
        ours = kmeans(vectors, num_codes, iterations=iterations, seed=3)
        theirs = cluster.KMeans(num_codes, init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")
        theirs.fit(vectors)
        np.testing.assert_allclose(ours, theirs.cluster_centers_, atol=1e-5)
        np.testing.assert_array_equal(nearest_code(vectors, ours), theirs.labels_)
        np.testing.assert_allclose(distortion(vectors, ours), theirs.inertia_ / len(vectors), rtol=1e-5)


def test_kmeans_is_as_good_as_scikit_learns():
    cluster = pytest.importorskip("sklearn.cluster")
    vectors = np.concatenate([normal(200, 4, seed=seed) + 4 * normal(4, seed=100 + seed) for seed in range(12)])
    ours = np.mean([distortion(vectors, kmeans(vectors, 24, seed=seed)) for seed in range(5)])
    theirs = np.mean([cluster.KMeans(24, n_init=1, max_iter=20, random_state=seed).fit(vectors).inertia_ for seed in range(5)])
    assert ours <= 1.1 * theirs / len(vectors)


@pytest.mark.parametrize("seed", range(4))
def test_distortion_never_rises(seed):
    vectors = np.round(normal(300, 3, seed=seed) * 2)  # many repeated vectors, so that cells become empty
    losses = [distortion(vectors, kmeans(vectors, 40, iterations=count, seed=seed)) for count in range(12)]
    assert all(after <= before * (1 + 1e-6) for before, after in zip(losses, losses[1:]))
    assert losses[-1] < losses[0]


def test_kmeans_starts_on_vectors_that_differ():
    vectors = normal(200, 8)
    start = kmeans(vectors, 50, iterations=0, seed=0)
    assert start.dtype == "float32" and start.shape == (50, 8)
    assert len(np.unique(start, axis=0)) == 50
    assert all((vectors == code).all(axis=-1).any() for code in start)


@pytest.mark.parametrize("power", [-90, 70])
def test_kmeans_of_tiny_and_of_huge_numbers_is_that_of_others(power):
    vectors = normal(200, 3)
    scaled = kmeans(np.ldexp(vectors.astype("float32"), power), 10, seed=0)
    np.testing.assert_array_equal(scaled, np.ldexp(kmeans(vectors, 10, seed=0), power))
    assert np.isfinite(scaled).all() and len(np.unique(scaled, axis=0)) == 10


def test_start_follows_the_squared_distance():
    vectors = np.array([[0.0], [1.0], [3.0]])
    pairs = [tuple(kmeans(vectors, 2, iterations=0, seed=seed).ravel()) for seed in range(3_000)]
    after_zero = [second for first, second in pairs if first == 0]
    assert len(after_zero) == pytest.approx(1_000, abs=120)
    assert np.mean(np.equal(after_zero, 3.0)) == pytest.approx(9 / 10, abs=0.04)


def test_a_seed_repeats_and_none_does_not():
    vectors = normal(300, 4)
    np.testing.assert_array_equal(kmeans(vectors, 20, seed=5), kmeans(vectors, 20, seed=5))
    assert not np.array_equal(kmeans(vectors, 20, seed=5), kmeans(vectors, 20, seed=6))
    assert not np.array_equal(kmeans(vectors, 20), kmeans(vectors, 20))


def test_kmeans_stops_when_nothing_changes(monkeypatch):
    rounds = []
    monkeypatch.setattr(quantization, "nearest_code", lambda *given: rounds.append(1) or nearest_code(*given))
    settled = kmeans(normal(200, 2), 5, iterations=10_000, seed=0)
    assert 2 < len(rounds) < 100
    np.testing.assert_array_equal(kmeans(normal(200, 2), 5, iterations=len(rounds) - 1, seed=0), settled)


def test_leading_axes_and_tensors_do_not_matter():
    vectors = normal(300, 4)
    expected = kmeans(vectors, 20, seed=5)
    np.testing.assert_array_equal(kmeans(vectors.reshape(3, 10, 10, 4), 20, seed=5), expected)
    np.testing.assert_array_equal(kmeans(ops.convert_to_tensor(vectors), 20, seed=5), expected)
    np.testing.assert_array_equal(kmeans(vectors.tolist(), 20, seed=5), expected)


def test_a_large_mean_does_not_blur_the_clusters():
    groups = np.repeat(np.arange(8.0), 50)[:, None] + 0.01 * normal(400, 1)
    codebook = np.sort(kmeans(groups + 4_000, 8, seed=0).ravel())
    np.testing.assert_allclose(codebook - 4_000, np.arange(8), atol=0.05)


@pytest.mark.parametrize("distinct, num_codes", [(3, 5), (1, 4), (5, 5)])
def test_fewer_distinct_vectors_than_codes(recwarn, distinct, num_codes):
    values = normal(distinct, 2)
    vectors = values[np.random.default_rng(0).permutation(np.arange(40) % distinct)]
    codebook = kmeans(vectors, num_codes, seed=0)
    assert codebook.shape == (num_codes, 2)
    assert distortion(vectors, codebook) < 1e-12
    assert len(np.unique(np.round(codebook, 4), axis=0)) == distinct
    said = [str(warning.message) for warning in recwarn if warning.category is UserWarning]
    assert [f"{num_codes} codes for {distinct} distinct" in text for text in said] == [True] * (distinct < num_codes)


def test_without_a_seed_keras_decides():
    vectors, found = normal(300, 4), []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        found += [kmeans(vectors, 20), kmeans(vectors, 20)]
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])
    assert not np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[4])


def test_kmeans_works_on_a_sample_of_the_size_it_says(monkeypatch):
    seen = []
    sample_of = quantization._sample_for_kmeans
    monkeypatch.setattr(quantization, "_sample_for_kmeans", lambda *given: seen.append(sample_of(*given)) or seen[-1])
    vectors = np.arange(140_000, dtype="float32")[:, None]
    for count, num_codes, size in ((32_768, 2, 32_768), (32_769, 2, 32_768), (40_000, 128, 32_768), (140_000, 130, 33_280),
                                   (140_000, 600, 131_072), (20_000, 600, 20_000)):
        kmeans(vectors[:count], num_codes, iterations=0, seed=0)
        sample = seen.pop().ravel()
        assert len(sample) == size and len(np.unique(sample)) == size and sample.max() < count
        if size < count:  # from everywhere, and not only from the beginning
            assert sample.mean() == pytest.approx(count / 2, rel=0.02) and sample.max() > 0.99 * count


def test_the_sample_is_drawn_by_the_seed_and_costs_next_to_nothing():
    vectors = normal(80_000, 2)
    found = [kmeans(vectors, 16, seed=seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    whole = quantization._lloyd(vectors, found[0], 20, lambda text: None)
    assert distortion(vectors, found[0]) <= 1.02 * distortion(vectors, whole)


def test_kmeans_shows_progress_on_stderr_after_a_while_and_not_before(capsys, monkeypatch):
    vectors = normal(400, 2)
    monkeypatch.setattr(quantization._Progress, "PATIENCE", 60.0)
    silent = kmeans(vectors, 30, seed=0)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(quantization._Progress, "PATIENCE", 0.0)
    monkeypatch.setattr(quantization._Progress, "PAUSE", 0.0)
    np.testing.assert_array_equal(kmeans(vectors, 30, iterations=3, seed=0), kmeans(vectors, 30, iterations=3, seed=0))
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 2 and err.endswith("\n")
    words = err.split("\n")[0].strip("\r").split("\r")
    assert words[0].strip() == "k-means: start, code 2 of 30" and words[-1].strip() == "k-means: iteration 3 of at most 3"
    assert silent.shape == (30, 2)


def test_the_memory_of_kmeans_start_does_not_grow_with_the_number_of_codes():
    import tracemalloc

    def peak(num_codes):
        tracemalloc.start()
        kmeans(vectors, num_codes, iterations=0, seed=0)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    vectors = normal(20_000, 8)
    assert peak(60) < 1.2 * peak(4)


def test_an_empty_code_goes_to_the_worst_vector():
    vectors = np.array([[0.0], [1.0], [10.0], [11.0], [30.0]], "float32")
    codebook = np.array([[0.0], [12.0], [500.0], [900.0]], "float32")
    codes = np.array([0, 0, 1, 1, 1])
    np.testing.assert_allclose(quantization._centres(vectors, codes, codebook), [[0.5], [17.0], [30.0], [10.0]])


def test_empty_codes_stay_where_nothing_is_represented_badly():
    vectors = np.array([[0.0], [1.0]], "float32")
    codebook = np.array([[0.0], [1.0], [7.0]], "float32")
    np.testing.assert_array_equal(quantization._centres(vectors, np.array([0, 1]), codebook), codebook)


@pytest.mark.parametrize(
    "vectors, options, problem",
    [
        (normal(9, 2), {"num_codes": 0}, "`num_codes` must be a whole number of at least 1. Received: 0"),
        (normal(9, 2), {"num_codes": 2.5}, "`num_codes` must be a whole number"),
        (normal(9, 2), {"num_codes": 2, "iterations": -1}, "`iterations` must be a whole number of at least 0"),
        (normal(9), {"num_codes": 2}, r"of shape \(\.\.\., D\).*Received: shape \(9,\)"),
        (np.zeros((0, 2)), {"num_codes": 2}, r"shape \(0, 2\)"),
        (np.zeros((3, 0)), {"num_codes": 2}, r"shape \(3, 0\)"),
        ([[1.0, 1.0], [0.0, np.nan]], {"num_codes": 2}, r"1 of 2 numbers are NaN or infinite in `vectors\[1\]`"),
        ([[np.inf, -np.inf], [np.inf, 1.0]], {"num_codes": 2}, r"2 of 2 numbers .* `vectors\[0\]`"),
        ([[1e200, 1.0]], {"num_codes": 1}, "finite in float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_kmeans_says_what_is_wrong(vectors, options, problem):
    with pytest.raises(ValueError, match=problem):
        kmeans(vectors, **options)


# Frequencies, entropy, perplexity, usage


@pytest.mark.parametrize("shape", SHAPES)
def test_frequencies_count(shape):
    codes = np.random.default_rng(0).integers(9, size=shape)
    frequencies = ops.convert_to_numpy(code_frequencies(codes, 11))
    assert frequencies.dtype == "float32"
    np.testing.assert_allclose(frequencies, np.bincount(codes.ravel(), minlength=11) / codes.size, rtol=1e-6)
    np.testing.assert_allclose(frequencies.sum(), 1.0, rtol=1e-6)


@pytest.mark.xfail(keras.backend.backend() == "torch", strict=True, reason="on PyTorch, Keras's segment_sum counts in float32")
def test_counts_stay_exact_beyond_float32():
    codes = np.zeros(2**24 + 3, "int32")
    codes[0] = 1
    share = ops.convert_to_numpy(code_frequencies(codes, 2))
    np.testing.assert_array_equal(share, np.array([2**24 + 2, 1], "float32") / np.float32(2**24 + 3))


def test_a_vector_outside_the_sample_is_checked_too():
    vectors = np.zeros((40_000, 1), "float32")
    for index in (0, 20_001, 39_999):
        vectors[index] = np.nan
        with pytest.raises(ValueError, match=rf"`vectors\[{index}\]`"):
            kmeans(vectors, 2, seed=0)
        vectors[index] = 0


@pytest.mark.parametrize("codes, num_codes, problem", [([], 4, "at least one code"), ([0], 0, "`num_codes` must"),
                                                       (np.zeros((0, 7), "int32"), 4, r"Received: shape \(0, 7\)")])
def test_frequencies_of_nothing(codes, num_codes, problem):
    with pytest.raises(ValueError, match=problem):
        code_frequencies(codes, num_codes)


@pytest.mark.parametrize("shape", [(5, 4, 3), (4, 3), (3,), (5, 1, 1), (1,), ()])
def test_weights_count(shape):
    random = np.random.default_rng(0)
    codes, weights = random.integers(7, size=(5, 4, 3)), random.random(shape)
    everywhere = np.broadcast_to(weights, codes.shape)
    expected = np.bincount(codes.ravel(), weights=everywhere.ravel(), minlength=9) / everywhere.sum()
    for given in (weights, ops.convert_to_tensor(weights.astype("float32")), weights.tolist()):
        found = ops.convert_to_numpy(code_frequencies(codes, 9, weights=given))
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_masked_place_does_not_count():
    codes = np.random.default_rng(0).integers(7, size=(6, 5))
    mask = np.arange(5) < np.array([[5], [4], [3], [2], [1], [0]])
    np.testing.assert_array_equal(code_frequencies(codes, 7, weights=mask), code_frequencies(codes[mask], 7))
    np.testing.assert_array_equal(code_frequencies(codes, 7, weights=np.ones(5)), code_frequencies(codes, 7))


def test_all_zero_weights_give_zeros():
    codes = np.array([[0, 1], [2, 2]])
    np.testing.assert_array_equal(code_frequencies(codes, 3, weights=np.zeros((2, 1))), np.zeros(3))
    np.testing.assert_array_equal(code_frequencies(codes, 3, weights=np.zeros((2, 2), bool)), np.zeros(3))


@pytest.mark.parametrize("jit", [False, True])
def test_weights_inside_a_graph(jit):
    def measure(values):
        codes = ops.cast(values[:, 0], "int32")
        shares = code_frequencies(codes, 4, weights=values[:, 1])
        return ops.broadcast_to(shares[None], (ops.shape(values)[0], 4))

    run = compiled(measure)
    pairs = np.array([[0, 1], [3, 0], [1, 0.5], [1, 0.5], [2, 9]], "float32")  # the last comes in a batch of its own
    np.testing.assert_allclose(run(pairs, jit_compile=jit)[0], [0.5, 0.5, 0, 0])
    np.testing.assert_array_equal(run(pairs * [1, 0], jit_compile=jit), np.zeros((5, 4)))


@pytest.mark.parametrize("jit", [False, True])
def test_inside_a_graph_codes_that_do_not_exist_are_not_counted(jit):
    if keras.backend.backend() == "torch" or keras.backend.backend() == "jax" and not jit:
        pytest.skip("values are known inside models here, so that the codes are refused")

    def measure(values):
        codes = ops.cast(values[:, 0], "int32")
        shares = [code_frequencies(codes, 4), code_frequencies(codes, 4, weights=values[:, 1])]
        return ops.broadcast_to(ops.concatenate(shares)[None], (ops.shape(values)[0], 8))

    pairs = np.array([[0, 1], [-1, 7], [3, 3], [4, 7], [-4, 7], [900, 7], [2, 9]], "float32")  # the last one alone
    np.testing.assert_allclose(compiled(measure)(pairs, jit_compile=jit)[0], [0.5, 0, 0, 0.5, 0.25, 0, 0, 0.75])


@pytest.mark.parametrize("weights, problem", [(np.ones(2), r"shape \(2,\)"), (np.ones((1, 4, 3)), r"shape \(1, 4, 3\)"),
                                              (np.ones((4, 1, 1)), "broadcasts"), ([1, -1, 1], "negative"), ([1, np.nan, 1], "finite")])
def test_weights_that_do_not_fit(weights, problem):
    with pytest.raises(ValueError, match=f"`weights` must.*{problem}"):
        code_frequencies(np.zeros((4, 3), "int32"), 2, weights=weights)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int64", "uint64"])
def test_codes_of_every_integer_dtype(kind):
    codes = np.array([[0, 100], [100, 3]], kind)
    np.testing.assert_array_equal(np.flatnonzero(code_frequencies(codes, 128)), [0, 3, 100])
    np.testing.assert_array_equal(look_up(codes, np.arange(256).reshape(128, 2)), [[[0, 1], [200, 201]], [[200, 201], [6, 7]]])


@pytest.mark.parametrize("num_codes", [1, 2, 6, 1024])
def test_scipy_agrees_on_entropy(num_codes):
    reference = pytest.importorskip("scipy.stats").entropy
    random = np.random.default_rng(num_codes)
    for counts in (np.ones(num_codes), random.random((3, num_codes)), random.multinomial(50, np.ones(num_codes) / num_codes)):
        expected = reference(counts, base=2, axis=-1)
        np.testing.assert_allclose(entropy(counts), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(perplexity(counts), 2**expected, rtol=1e-5)
        np.testing.assert_array_equal(usage(counts), np.count_nonzero(counts, axis=-1))


def test_before_anything_is_counted():
    assert (float(entropy(np.zeros(8))), float(perplexity(np.zeros(8))), int(usage(np.zeros(8)))) == (0.0, 1.0, 0)


@pytest.mark.parametrize("frequencies", [[0.5, -0.1], [np.nan, 1.0], [np.inf, 1.0]])
def test_frequencies_that_cannot_be(frequencies):
    for function in (entropy, perplexity):
        with pytest.raises(ValueError, match="`frequencies` must be finite and not negative"):
            function(frequencies)
