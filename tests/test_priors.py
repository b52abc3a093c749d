"""What chapter 5 cannot show: weights and masks, odd grids, dtypes, policies, files, and input that does not fit."""
import itertools
import tracemalloc

import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial import PixelCNN, PositionPrior, Prior
from vqvae_tutorial.priors import Sampler, check_pair, draw_labels, keeping_noise, place_bits

values = ops.convert_to_numpy
TENSORFLOW = keras.backend.backend() == "tensorflow"
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


def nats(prior, codes, label=None):
    """The cross-entropy of each place, by NumPy."""
    inputs = codes if label is None else {"codes": codes, "label": label}
    logits = np.float64(values(prior(inputs)))
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(logits, codes[..., None], -1)[..., 0]


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
@pytest.mark.parametrize("shape", [3, (1, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("classes", [None, 2])
def test_probabilities_add_up_to_one_on_every_grid(make, shape, classes):
    prior = shaken(make, shape, classes, num_codes=2)
    every = np.array(list(itertools.product((0, 1), repeat=prior.places)), "int32").reshape(-1, *prior.shape)
    for label in (None, 1) if classes else (None,):
        assert np.sum(2.0 ** -np.float64(prior.bits(every, label, batch_size=5))) == pytest.approx(1, abs=1e-5)


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


@each
def test_a_start_stays_at_any_place(make):
    prior = shaken(make)
    start = np.full((2, 3), -1)
    start[0, 2], start[1, 1] = 4, 0
    drawn = prior.sample(2000, start=start, seed=0)
    assert (drawn[:, 0, 2] == 4).all() and (drawn[:, 1, 1] == 0).all()
    free = np.bincount(prior.sample(2000, seed=1)[:, 0, 0], minlength=K) / 2000
    np.testing.assert_allclose(np.bincount(drawn[:, 0, 0], minlength=K) / 2000, free, atol=0.06)  # knows nothing of what follows
    own = draw(count=4)
    for kind in ("uint8", "int8", "int64"):
        np.testing.assert_array_equal(prior.sample(4, start=own.astype(kind), temperature=5.0), own)


def test_each_map_has_a_beginning_of_its_own():
    prior = PositionPrior(K, (4,), 2)
    codes, label = np.where(np.arange(24)[:, None] % 2, 4, 1) + np.zeros((24, 4), int), np.arange(24) % 2
    prior.adapt(codes, label)
    kept = np.array([[1, 1, -1, -1], [4, 4, 4, 4], [-1, 4, 4, 4]] * 200)
    drawn = draw_labels(prior, kept, np.random.default_rng(0)).reshape(200, 3)
    assert (drawn[:, 0] == 0).mean() > 0.95 and (drawn[:, 1] == 1).all()
    assert 0.3 < drawn[:, 2].mean() < 0.7  # what stands after a gap does not count


@each
def test_seeds(make):
    prior = shaken(make, classes=3)
    np.testing.assert_array_equal(prior.sample(9, seed=4), prior.sample(9, seed=4, batch_size=2))
    drawn = []
    for seed in (7, 7, 8):
        keras.utils.set_random_seed(seed)
        drawn.append(prior.sample(9))
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


def test_memory_of_sampling_is_what_the_docstring_states():
    prior = PositionPrior(512, (8, 8))
    assert "12 bytes × batch_size · places · K" in Prior.sample.__doc__
    prior.sample(8, batch_size=8)
    tracemalloc.start()
    prior.sample(80, batch_size=8, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12.6 * 8 * 64 * 512


def test_the_table_is_counted():
    codes, label = draw(count=200), np.arange(200) % 3
    prior = PositionPrior(K, (2, 3), 3)
    with pytest.raises(ValueError, match="num_classes=3 must be given"):
        prior.adapt(codes)
    prior.adapt(codes, label)
    share = np.exp(values(prior({"codes": codes[:1], "label": label[1:2]})))[0, 1, 2]
    counted = np.bincount(codes[label == 1][:, 1, 2], minlength=K) + 0.5
    np.testing.assert_allclose(share, counted / counted.sum(), rtol=1e-5)
    fitted = PositionPrior(K, (2, 3), 3)
    fitted.compile(keras.optimizers.Adam(0.1), run_eagerly=True)
    fitted.fit({"codes": codes, "label": label}, epochs=60, batch_size=200, verbose=0)
    assert fitted.bits(codes, label).mean() == pytest.approx(prior.bits(codes, label).mean(), abs=0.05)


# Loss, weights, masks


@each
@pytest.mark.parametrize("spread", [lambda w: w, lambda w: w[:, None, None] * np.ones((1, 2, 3))], ids=["maps", "places"])
def test_weights_weigh(make, spread):
    prior, codes = compiled(shaken(make, classes=3)), draw()
    weights = np.random.default_rng(0).uniform(size=24)
    report = prior.evaluate({"codes": codes, "label": LABELS}, codes, sample_weight=spread(weights), batch_size=24, verbose=0,
                            return_dict=True)
    each_map = nats(prior, codes, LABELS).mean((1, 2))
    assert report["loss"] == pytest.approx(np.mean(each_map * weights), rel=1e-4)
    assert report["bits"] == pytest.approx(6 / np.log(2) * np.average(each_map, weights=weights), rel=1e-4)


def report(prior, codes, mask=None):
    given = codes if mask is None else {"codes": codes, "mask": mask}
    return compiled(prior).evaluate(given, batch_size=24, verbose=0, return_dict=True)


@each
def test_padding_counts_nothing(make):
    codes, mask = draw((5,)), np.arange(24)[:, None] % 4 + 1 > np.arange(5)
    prior = shaken(make, (5,))
    cost, found = nats(prior, codes), report(prior, codes, mask)
    assert found["loss"] == pytest.approx(cost[mask].mean(), rel=1e-4)
    assert found["bits"] == pytest.approx(np.sum(cost * mask) / 24 / np.log(2), rel=1e-4)
    assert report(prior, np.where(mask, codes, 0), mask) == pytest.approx(found, rel=1e-4)  # whatever the padding is
    np.testing.assert_allclose(prior.bits(codes, mask=mask), np.sum(cost * mask, axis=1) / np.log(2), rtol=1e-4)
    mask[12:] = False  # maps of which nothing is real
    assert report(prior, codes, mask) == pytest.approx(report(prior, codes[:12], mask[:12]), rel=1e-4)


@pytest.mark.parametrize("make", [Own, PositionPrior])
def test_padded_maps_are_as_unpadded_ones(make):
    codes, mask = draw((5,)), np.broadcast_to(np.arange(5) < 3, (24, 5))
    long, short = shaken(make, (5,)), shaken(make, (3,))
    short.set_weights([w[tuple(map(slice, v.shape))] for w, v in zip(long.get_weights(), short.get_weights(), strict=True)])
    assert report(long, codes, mask) == pytest.approx(report(short, codes[:, :3].copy()), rel=1e-4)


@each
def test_a_loss_of_ones_own(make):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    prior, codes = compiled(shaken(make), loss=lambda y, logits: 3 * loss(y, logits), metrics=["sparse_categorical_accuracy"]), draw()
    report = prior.evaluate(codes, verbose=0, return_dict=True)
    assert report["loss"] == pytest.approx(3 * nats(prior, codes).mean(), rel=1e-4)
    assert report["sparse_categorical_accuracy"] == pytest.approx(np.mean(values(prior(codes)).argmax(-1) == codes), rel=1e-4)


@each
def test_data_in_every_form(make):
    codes, inputs = draw(), {"codes": draw(), "label": LABELS}
    expected = compiled(shaken(make, classes=3)).fit(inputs, batch_size=8, shuffle=False, verbose=0).history

    def batches():
        for first in range(0, 24, 8):
            yield ({name: array[first : first + 8] for name, array in inputs.items()},)

    forms = {"generator": lambda: (batches(),), "with targets": lambda: (inputs, codes)}
    if TENSORFLOW:
        import tensorflow as tf

        forms["tf.data"] = lambda: (tf.data.Dataset.from_tensor_slices(inputs).batch(8),)
    for name, form in forms.items():
        sizes = {"batch_size": 8, "shuffle": False} if name == "with targets" else {}
        found = compiled(shaken(make, classes=3)).fit(*form(), verbose=0, **sizes).history
        assert found["bits"] == pytest.approx(expected["bits"], rel=1e-4), name


@each
def test_labels_as_targets_are_refused(make):
    for shape, label in (((2, 3), LABELS), ((5,), LABELS[:, None])):
        with pytest.raises(ValueError, match='own targets.*Received: shape.*"label": labels'):
            compiled(shaken(make, shape)).fit(draw(shape), label, verbose=0)
    with pytest.raises(ValueError, match='num_classes=3 must be given .*"label".* Received: codes'):
        compiled(shaken(make, classes=3)).fit(draw(), LABELS, verbose=0)


@each
def test_class_weights_are_refused(make):
    for given in ((draw(),), (draw(), draw())):  # what Keras says differs between versions, but it never trains
        with pytest.raises((ValueError, TypeError, IndexError, AttributeError)):
            compiled(shaken(make)).fit(*given, class_weight={0: 2.0}, verbose=0)


@each
@pytest.mark.parametrize("what, bad", [("codes", -1), ("codes", 77), ("label", 3)])
def test_out_of_range_in_a_graph(make, what, bad):
    prior, inputs = shaken(make, classes=3), {"codes": draw(), "label": LABELS.copy()}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if bad == 77 else None
    prior.compile(keras.optimizers.Adam(0.1), loss=loss, run_eagerly=False, jit_compile=False)
    inputs[what][3] = bad
    before = prior.get_weights()
    if not TENSORFLOW and keras.backend.backend() == "torch":  # nothing is compiled there
        with pytest.raises(ValueError, match=f"`{what}` must be"):
            prior.fit(inputs, batch_size=24, verbose=0)
        return
    assert np.isnan(prior.fit(inputs, batch_size=24, verbose=0).history["loss"]).all()
    for old, new in zip(before, prior.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    with pytest.raises(ValueError, match=f"`{what}` must be integers from 0 to"):
        prior.bits(**inputs)


@each
def test_a_training_that_diverged_says_so(make):
    prior = compiled(shaken(make))
    prior.set_weights([np.full_like(w, np.nan) for w in prior.get_weights()])
    assert np.isnan(prior.evaluate(draw(), verbose=0, return_dict=True)["loss"])


# Dtypes, policies, files


@each
@pytest.mark.parametrize("kind", ["uint8", "int16", "int64", "uint32", list])
def test_codes_of_any_integer_dtype(make, kind):
    prior, codes = shaken(make, classes=3), draw()
    other, label = (codes.tolist(), LABELS.tolist()) if kind is list else (codes.astype(kind), LABELS.astype(kind))
    np.testing.assert_array_equal(prior.bits(other, label), prior.bits(codes, LABELS))
    if kind is not list:
        found = compiled(prior).evaluate({"codes": other, "label": label}, verbose=0, return_dict=True)
        assert found["bits"] == pytest.approx(prior.bits(codes, LABELS).mean(), rel=1e-4)


@each
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_policies(make, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    prior = compiled(shaken(make, classes=3))
    bits = prior.fit({"codes": draw(), "label": LABELS}, epochs=3, verbose=0).history["bits"]
    assert np.isfinite(bits).all() and bits[-1] < bits[0]
    drawn = prior.sample(5, label=1, seed=0)
    prior.save(tmp_path / "prior.keras")
    keras.config.set_dtype_policy("float32")
    again = keras.saving.load_model(tmp_path / "prior.keras")
    np.testing.assert_array_equal(again.sample(5, label=1, seed=0), drawn)
    assert again.dtype_policy.name == policy


@each
@pytest.mark.parametrize("classes", [None, 3])
def test_files(make, classes, tmp_path):
    prior = compiled(shaken(make, classes=classes))
    codes, label = draw(), LABELS if classes else None
    prior.fit({"codes": codes, "label": LABELS} if classes else codes, verbose=0)
    prior.sample(2, seed=0)  # the sampler must not find its way into the file
    prior.save(tmp_path / "prior.keras")
    prior.save_weights(tmp_path / "prior.weights.h5")
    again = keras.saving.load_model(tmp_path / "prior.keras")
    filled = type(prior).from_config(prior.get_config())
    filled.load_weights(tmp_path / "prior.weights.h5")
    for one in (again, filled):
        np.testing.assert_allclose(one.bits(codes, label), prior.bits(codes, label), rtol=1e-5)
        np.testing.assert_array_equal(one.sample(4, seed=2), prior.sample(4, seed=2))
        assert one.get_config() == prior.get_config() and len(one.weights) == len(prior.weights)


@pytest.mark.parametrize("kind, options", [
    (PositionPrior, {"num_codes": 7, "shape": (3,), "num_classes": 2, "name": "mine", "dtype": "mixed_bfloat16", "trainable": False}),
    (PixelCNN, {"num_codes": 7, "shape": (3, 4), "num_classes": 2, "filters": 6, "num_layers": 3,
                "kernel_size": 5, "dropout": 0.3, "code_dropout": 0.2, "seed": 9,
                "name": "mine", "dtype": "mixed_bfloat16", "trainable": False})])
def test_every_argument_survives(kind, options):
    config = kind.from_config(kind(**options).get_config()).get_config()
    for name in options.keys() - {"dtype"}:
        assert config[name] == options[name], name
    assert kind.from_config(config).dtype_policy.name == "mixed_bfloat16"


@each
@pytest.mark.skipif(not TENSORFLOW, reason="SavedModel")
@pytest.mark.parametrize("classes", [None, 3])
def test_export(make, classes, tmp_path):
    import tensorflow as tf

    prior, codes = shaken(make, classes=classes), draw(count=7)
    inputs = {"codes": codes, "label": LABELS[:7]} if classes else codes
    prior.export(str(tmp_path / "prior"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "prior"))
    np.testing.assert_allclose(values(served.serve(inputs)), values(prior(inputs)), atol=1e-5)


@pytest.mark.skipif(not TENSORFLOW, reason="SavedModel")
def test_export_of_one_step(tmp_path):
    import tensorflow as tf

    prior, codes = shaken(small_pixelcnn), draw(count=1)
    flat = keras.tree.flatten(cache := prior.start(1))

    def step(codes, index, *parts):
        logits, after = prior.call_with_cache(codes, keras.tree.pack_sequence_as(cache, list(parts)), index)
        return [logits, *keras.tree.flatten(after)]

    archive = keras.export.ExportArchive()
    archive.track(prior)
    archive.add_endpoint("step", step, [tf.TensorSpec((1, 6), "int32"), tf.TensorSpec((), "int32"),
                                        *(tf.TensorSpec(x.shape, x.dtype) for x in flat)])
    archive.write_out(str(tmp_path / "step"), verbose=False)
    loaded, found = tf.saved_model.load(str(tmp_path / "step")), []
    for index in range(6):
        logits, *flat = loaded.step(codes.reshape(1, 6), np.int32(index), *flat)
        found.append(values(logits))
    np.testing.assert_allclose(np.concatenate(found), values(prior(codes)).reshape(6, K), atol=1e-5)


# What does not fit


@pytest.mark.parametrize("options", [
    {"count": 0}, {"count": 1.5}, {"temperature": 0}, {"temperature": np.nan}, {"temperature": np.inf}, {"temperature": "hot"},
    {"label": 3}, {"label": [0, 1, 2]}, {"label": 1.0}, {"start": np.zeros((3, 3), int)}, {"start": np.full((2, 3), K)},
    {"start": np.full((2, 3), -2)}, {"start": np.zeros((2, 3))}, {"start": [[1, 2], [3]]}], ids=str)
def test_bad_draws(options):
    with pytest.raises(ValueError, match=f"`{[*options][0]}.* must .*Received: "):
        shaken(PositionPrior, classes=3).sample(**({"count": 2} | options))


@each
@pytest.mark.parametrize("arguments", [(0, (2, 3)), (4, (0, 3)), (4, (2.5, 3)), (4, ()), (4, (2, 3), 0), ("many", (2, 3))], ids=str)
def test_bad_sizes(make, arguments):
    with pytest.raises(ValueError, match="must be .*Received: "):
        make(*arguments)


def test_a_pair_must_fit():
    class Model:
        quantizer, code_shape = PositionPrior(K, (2, 3)), (2, 3)

    check_pair(Model, PositionPrior(K, (2, 3)))
    for prior in (PositionPrior(K + 1, (2, 3)), PositionPrior(K, (3, 2))):
        with pytest.raises(ValueError, match="`prior` must be made for the VQ-VAE's .*Received: .*Train"):
            check_pair(Model, prior)
