"""What chapter 5 cannot show: weights and masks, odd grids, dtypes, policies, files, and input that does not fit."""
import itertools

import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial import VQVAE, PixelCNN, PositionPrior, Prior, TransformerPrior, VectorQuantizerEMA, build_networks
from vqvae_tutorial.priors import Sampler, check_pair, draw_labels, keeping_noise, place_bits

values = ops.convert_to_numpy
K = 5


@keras.saving.register_keras_serializable("test_priors")
class Own(Prior):
    """What a user writes: `call` and nothing else. A code depends on the place, the code before it, and the label."""

    def __init__(self, num_codes, shape, num_classes=None, **kwargs):
        super().__init__(num_codes, shape, num_classes, **kwargs)
        self.table = self.add_weight(name="table", shape=(num_codes + 1, num_codes))
        self.place = self.add_weight(name="place", shape=(self.places, num_codes))
        self.of_label = self.add_weight(name="of_label", shape=(num_classes or 1, num_codes))

    def call(self, inputs):
        codes, label, flaw = self.read(inputs)
        flat = ops.reshape(codes, (-1, self.places))
        before = ops.pad(flat[:, :-1], [(0, 0), (1, 0)], constant_values=self.num_codes)
        label = ops.zeros_like(flat[:, 0]) if label is None else label
        logits = ops.take(self.table, before, axis=0) + self.place + ops.take(self.of_label, label, axis=0)[:, None]
        return ops.reshape(logits, (-1, *self.shape, self.num_codes)) + flaw


def small_pixelcnn(num_codes, shape, classes=None, **options):
    return PixelCNN(num_codes, shape, classes, **({"filters": 4, "num_layers": 2, "dropout": 0.0} | options))


MAKE = {"own": Own, "position": PositionPrior, "pixelcnn": small_pixelcnn}
each = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


@pytest.fixture(autouse=True)
def clean():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def shaken(make, shape=(2, 3), classes=None, num_codes=K, seed=0):
    prior, random = make(num_codes, shape, classes), np.random.default_rng(seed)
    prior.set_weights([random.normal(0, 0.8, w.shape).astype(w.dtype) for w in prior.get_weights()])
    return prior


def draw(shape=(2, 3), count=24, num_codes=K, seed=0):
    return np.random.default_rng(seed).integers(num_codes, size=(count, *shape)).astype("int32")


LABELS = (np.arange(24) % 3).astype("int32")


def compiled(prior, **options):
    prior.compile(keras.optimizers.SGD(0.1), run_eagerly=True, **options)  # much faster to test
    return prior


# Probabilities and draws


def test_bits_of_places():
    with np.errstate(divide="ignore"):
        logits = np.log([[0.5, 0.25, 0.25, 0.0], [0.0, 0.0, 1.0, 0.0]])
    np.testing.assert_allclose(place_bits(logits + 1000, [1, 2]), [2, 0], atol=1e-9)
    assert np.isinf(place_bits(logits, [3, 2])[0])
    assert place_bits(np.zeros((4, 2, 3, 8), "float16"), np.zeros((4, 2, 3), "int8")).tolist() == np.full((4, 2, 3), 3.0).tolist()


@each
@pytest.mark.parametrize("shape", [(5,), (3, 1)], ids=str)
@pytest.mark.parametrize("classes", [None, 3])
def test_the_sampler_sees_the_logits_of_the_whole_network(make, shape, classes):
    prior, label = shaken(make, shape, classes), LABELS[:6] if classes else None
    noise = np.random.default_rng(1).gumbel(size=(6, *shape, K)).astype("float32")
    given = {"noise": noise} | ({"label": label} if classes else {})
    codes, logits = Sampler(prior, keep_logits=True).predict_on_batch(given)
    np.testing.assert_allclose(logits, values(prior({"codes": codes, "label": label} if classes else codes)), atol=1e-4)
    np.testing.assert_array_equal(codes, np.argmax(logits + noise, axis=-1))
    np.testing.assert_array_equal(codes, prior.sample_with_noise(noise, label))


@each
@pytest.mark.parametrize("temperature", [0.5, 2])
def test_temperature_is_sequential(make, temperature):
    """The frequencies of what is drawn on a 2×2 map are those of softmax(logits / T), place after place."""
    prior = shaken(make, (2, 2), num_codes=2)
    every = np.array(list(itertools.product((0, 1), repeat=4)), "int32").reshape(-1, 2, 2)
    wanted = np.prod(2.0 ** -place_bits(values(prior(every)) / temperature, every), axis=(1, 2))
    drawn = prior.sample(20_000, temperature=temperature, seed=0, batch_size=5000).reshape(-1, 4) @ [8, 4, 2, 1]
    found = np.bincount(drawn, minlength=16) / len(drawn)
    assert np.abs(found - wanted).max() < 5 * np.sqrt(0.25 / len(drawn))
    as_a_whole = 2.0 ** (-prior.bits(every) / temperature)
    assert make is PositionPrior or np.abs(as_a_whole / as_a_whole.sum() - wanted).max() > 0.001


def test_noise_that_keeps():
    kept = np.array([[[2, -1], [-1, 0]]])
    noise = keeping_noise(kept, 3, 0.5, np.random.default_rng(0))
    plain = np.random.default_rng(0).gumbel(size=(1, 2, 2, 3)).astype("float32")
    assert noise[0, 0, 0].tolist() == [0, 0, 1e9] and noise[0, 1, 1].tolist() == [1e9, 0, 0]
    np.testing.assert_allclose(noise[kept < 0], plain[kept < 0] / 2)


def test_each_map_has_a_beginning_of_its_own():
    prior = PositionPrior(K, (4,), 2)
    codes, label = np.where(np.arange(24)[:, None] % 2, 4, 1) + np.zeros((24, 4), int), np.arange(24) % 2
    prior.adapt(codes, label)
    kept = np.array([[1, 1, -1, -1], [4, 4, 4, 4], [-1, 4, 4, 4]] * 200)
    drawn = draw_labels(prior, kept, np.random.default_rng(0)).reshape(200, 3)
    assert (drawn[:, 0] == 0).mean() > 0.95 and (drawn[:, 1] == 1).all()
    assert 0.3 < drawn[:, 2].mean() < 0.7  # what stands after a gap does not count


# Loss, weights, masks


@each
def test_a_training_that_diverged_says_so(make):
    prior = compiled(shaken(make))
    prior.set_weights([np.full_like(w, np.nan) for w in prior.get_weights()])
    assert np.isnan(prior.evaluate(draw(), verbose=0, return_dict=True)["loss"])
    with pytest.raises(ValueError, match="`prior` must be of weights that are numbers. Received: NaN or ∞ among them. Its training"):
        prior.sample(2)


@pytest.mark.parametrize("codes", [[-1, 0], [0, K]])
def test_codes_that_are_none_cost_nothing_because_they_are_refused(codes):
    with pytest.raises(ValueError, match=f"`codes` must be integers from 0 to {K - 1}"):
        place_bits(np.zeros((2, K)), codes)


# Dtypes, policies, files


# What does not fit


def test_a_pair_must_fit():
    class Model:
        quantizer, code_shape = PositionPrior(K, (2, 3)), (2, 3)

    check_pair(Model, PositionPrior(K, (2, 3)))
    for prior in (PositionPrior(K + 1, (2, 3)), PositionPrior(K, (3, 2))):
        with pytest.raises(ValueError, match="`prior` must be made for the VQ-VAE's .*Received: .*Train"):
            check_pair(Model, prior)


@pytest.mark.parametrize("floatx", ["bfloat16", "float64"])
def test_keras_may_be_set_to_other_numbers(floatx):
    """`keras.config.set_floatx` also decides what whole numbers are where no dtype is given."""
    if floatx == "bfloat16" and keras.backend.backend() == "jax":
        pytest.skip("a PixelCNN's step has indices that are no whole numbers there (see drafts)")
    before = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        for prior in (small_pixelcnn(8, (3, 4), 2), TransformerPrior(8, (3, 4), 2, width=8, num_layers=1, num_heads=2)):
            codes = prior.sample(5, label=1, seed=0, top_k=3)
            assert codes.shape == (5, 3, 4) and prior.bits(codes, 1).dtype == "float32"
        model = VQVAE(*build_networks((8, 4), 4, 8, 0), VectorQuantizerEMA(8, seed=0))
        signals, mask = np.random.default_rng(0).normal(size=(6, 8, 4)), np.arange(8) < np.array([[4], [8], [8], [2], [0], [8]])
        model.compile("adam")
        model.fit({"signal": signals, "mask": mask}, verbose=0)
        assert all(np.isfinite(values(ops.cast(weight, "float32"))).all() for weight in model.variables)
        assert model.encode(signals).shape == (6, 2)
    finally:
        keras.config.set_floatx(before)
