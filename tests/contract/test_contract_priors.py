"""Every prior × what its users do: any grid, bits that are bits, draws that follow them, Keras's customs. See `parts.py`."""
import functools
import itertools
import tracemalloc

import keras
import numpy as np
import pytest
from keras import ops
from parts import FLAT, GROUPED, JAX, POLICIES, PRIORS, TENSORFLOW, TORCH, moved, numbers, remembered, same, state

from vqvae_tutorial.priors import Sampler, draw_labels

pytestmark = pytest.mark.combinations
each = pytest.mark.parametrize("name", PRIORS)
each_in_reading_order = pytest.mark.parametrize("name", [name for name in PRIORS if name not in GROUPED])
needs_tensorflow = pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow's own")
GRIDS = [(5,), (2, 3), (2, 2, 2), (1, 4), (3, 1)]
LN2 = np.log(2)


@pytest.fixture(autouse=True)
def clean():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


def shaken(name, num_codes, shape, classes=None, **options):
    """A prior whose weights are all far from where they begin, so that no place and no label is like another."""
    prior = PRIORS[name](num_codes, shape, classes, **options)
    random = np.random.default_rng(0)
    prior.set_weights([random.normal(size=weight.shape, scale=0.7) for weight in prior.get_weights()])
    prior.compile(run_eagerly=True)  # so that `bits` compiles nothing, where that is not the property
    return prior


@remembered
def compiled(name, shape=(2, 3), classes=3, rate=0.05, eager=True, **options):
    prior = shaken(name, 4, shape, classes)
    prior.compile(keras.optimizers.SGD(rate), run_eagerly=eager, **options)
    return prior


def maps(shape=(2, 3), count=32, num_codes=4, seed=0):
    return np.random.default_rng(seed).integers(0, num_codes, size=(count, *shape)).astype("int32")


LABELS = (np.arange(32) % 3).astype("int32")


def given(codes, label=None, **more):
    return {"codes": codes} | ({} if label is None else {"label": label}) | more


def fitted(prior, *data, **options):
    history = prior.fit(*data, **({"batch_size": 16, "shuffle": False, "verbose": 0} | options)).history
    return state(prior), history


@functools.cache
def from_arrays(name):
    """The weights after a pass over maps and labels, and what `fit` reported."""
    return fitted(compiled(name), given(maps(), LABELS))


def nats(prior, codes, label=None):
    """The cross-entropy of each place, by NumPy."""
    logits = np.float64(numbers(prior(given(codes, label))))
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(logits, codes[..., None], -1)[..., 0]


def turns(prior):
    """When each place is drawn, in reading order of places."""
    return np.asarray(getattr(prior, "group", np.arange(prior.places)))


def suits(name, shape):
    if name in FLAT and len(shape) > 2:
        pytest.skip("of two dimensions at most")


# Probabilities


@each
@pytest.mark.parametrize("shape", GRIDS, ids=str)
@pytest.mark.parametrize("classes", [None, 2])
def test_the_probabilities_of_all_maps_sum_to_one(name, shape, classes):
    suits(name, shape)
    prior = shaken(name, 2, shape, classes)
    every = np.array(list(itertools.product([0, 1], repeat=prior.places)), "int32").reshape(-1, *shape)
    bits = {label: prior.bits(every, label) for label in ([None] if classes is None else [None, 0, 1])}
    for of_label in bits.values():
        np.testing.assert_allclose(np.sum(2.0 ** -np.float64(of_label)), 1, rtol=1e-4)
    if classes:  # without a label each class counts alike
        each_class = np.mean([2.0 ** -np.float64(bits[y]) for y in range(2)], axis=0)
        np.testing.assert_allclose(2.0 ** -np.float64(bits[None]), each_class, rtol=1e-4)
        assert np.abs(bits[0] - bits[1]).max() > 0.1
        np.testing.assert_array_equal(bits[1], prior.bits(every, np.ones(len(every), "int64")))
    label = 0 if classes else None
    np.testing.assert_allclose(prior.bits(every[-8:], label, batch_size=3), bits[label][-8:], rtol=1e-4)


@each
@pytest.mark.parametrize("shape", GRIDS, ids=str)
def test_no_place_sees_itself_or_what_comes_after(name, shape):
    suits(name, shape)
    prior, codes = shaken(name, 4, shape), maps(shape, 8)
    before, seen, turn = numbers(prior(codes)).reshape(8, prior.places, 4), [], turns(prior)
    assert turn.min() == 0 and len(np.unique(turn)) == turn.max() + 1
    for place in range(prior.places):
        other = codes.reshape(8, -1).copy()
        other[:, place] = (other[:, place] + 1) % 4
        after = numbers(prior(other.reshape(codes.shape))).reshape(8, prior.places, 4)
        not_later = turn <= turn[place]
        np.testing.assert_allclose(after[:, not_later], before[:, not_later], atol=1e-5)
        if not not_later.all():
            seen.append(np.abs(after - before).max() > 1e-3)
    assert name == "position" or np.mean(seen) > 0.5  # while most places are seen by some that come after


@each
@pytest.mark.parametrize("shape, classes", [((5,), None), ((2, 3), 3), ((2, 2, 2), None), ((1, 4), 3), ((3, 1), None)], ids=str)
def test_what_is_drawn_place_by_place_are_the_logits_of_the_whole(name, shape, classes):
    suits(name, shape)
    prior, label = shaken(name, 4, shape, classes), None if classes is None else LABELS[:8]
    noise = np.random.default_rng(1).gumbel(size=(8, *shape, 4)).astype("float32")
    inputs = {"noise": noise} | ({} if label is None else {"label": label})
    sampler = prior.sampler(keep_logits=True)
    assert isinstance(sampler, Sampler)
    codes, logits = sampler.predict_on_batch(inputs)
    np.testing.assert_allclose(logits, numbers(prior(given(codes, label))), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(codes, np.argmax(logits + noise, axis=-1))


@each
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_of_what_is_drawn_are_the_probabilities(name, temperature):
    """On a 2×2 map of two codes, against softmax(logits / T) place after place."""
    prior = shaken(name, 2, (2, 2))
    every = np.array(list(itertools.product([0, 1], repeat=4)), "int32").reshape(-1, 2, 2)
    logits = np.float64(numbers(prior(every))) / temperature
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.prod(np.take_along_axis(share, every[..., None], -1), axis=(1, 2, 3))
    count = 8000
    drawn = prior.sample(count, temperature=temperature, seed=3, batch_size=4000).reshape(count, 4) @ [8, 4, 2, 1]
    found = np.bincount(drawn, minlength=16) / count
    np.testing.assert_allclose(found, expected, atol=4.5 * np.sqrt(0.25 / count))
    assert np.abs(found - expected).sum() < 0.06


@each_in_reading_order
def test_what_stands_at_any_place_stays_and_the_rest_is_drawn_after_it(name):
    prior = shaken(name, 4, (2, 3))
    start = np.full((2, 3), -1)
    start[0, 1], start[1, 2] = 2, 3
    drawn = prior.sample(3000, start=start, seed=0)
    assert (drawn[:, 0, 1] == 2).all() and (drawn[:, 1, 2] == 3).all() and len(np.unique(drawn[:, 0, 0])) > 1
    share = np.exp(-nats(prior, drawn))[:, 0, 2]
    for code in range(4):  # the place after it follows its probabilities, given what stands before
        mine = drawn[:, 0, 2] == code
        if mine.sum() > 100:
            np.testing.assert_allclose(mine.mean(), share[mine].mean(), atol=0.06)
    each_its_own = maps(count=5)
    np.testing.assert_array_equal(prior.sample(5, start=each_its_own), each_its_own)
    np.testing.assert_array_equal(prior.sample(5, start=each_its_own.astype("int8"), temperature=9.0), each_its_own)


@each_in_reading_order
def test_classes_are_drawn_by_how_well_they_fit_the_start(name):
    prior = shaken(name, 4, (2, 2), 2)
    start = np.array([[1, -1], [-1, -1]])
    fit = 2.0 ** -np.array([np.log2(np.e) * nats(prior, np.array([[[1, 0], [0, 0]]]), np.array([y], "int32"))[0, 0, 0] for y in range(2)])
    random = np.random.default_rng(0)
    kept = np.broadcast_to(start, (4000, 2, 2))
    np.testing.assert_allclose(draw_labels(prior, kept, random).mean(), fit[1] / fit.sum(), atol=0.04)
    np.testing.assert_allclose(draw_labels(prior, np.full((4000, 2, 2), -1), random).mean(), 0.5, atol=0.04)


@each
def test_codes_are_drawn_from_the_most_probable_alone(name):
    """Against the logits of what was drawn: every code stands among those that may be; given codes stay, however improbable."""
    prior, label = shaken(name, 4, (2, 3), 3), LABELS[:20]
    for limits in ({"top_k": 1}, {"top_k": 2}, {"top_p": 0.6}, {"top_k": 2, "top_p": 0.9}):
        codes = prior.sample(20, label=label, seed=0, **limits)
        logits = np.float64(numbers(prior(given(codes, label))))
        chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        above = np.where(chances > np.take_along_axis(chances, codes[..., None], -1), chances, 0)
        assert ((above > 0).sum(-1) < limits.get("top_k", 4)).all() and (above.sum(-1) < limits.get("top_p", 1)).all(), limits
    greedy = prior.sample(20, label=label, seed=1, top_k=1)
    np.testing.assert_array_equal(greedy, prior.sample(20, label=label, seed=2, top_p=1e-6))
    np.testing.assert_array_equal(prior.sample(20, label=label, seed=3, top_k=4, top_p=1.0), prior.sample(20, label=label, seed=3))
    start = np.where(np.arange(6).reshape(2, 3) == 1, (greedy + 1) % 4, -1)
    assert (prior.sample(20, label=label, start=start, top_k=1)[:, 0, 1] == start[:, 0, 1]).all()


@each
@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "uint16", "list"])
def test_codes_of_any_integer_dtype(name, kind):
    prior, codes = shaken(name, 4, (2, 3)), maps(count=4)
    other = codes.tolist() if kind == "list" else codes.astype(kind)
    np.testing.assert_array_equal(prior.bits(other), prior.bits(codes))
    if kind != "list":
        np.testing.assert_array_equal(numbers(prior(other)), numbers(prior(codes)))


@each
def test_a_seed_repeats_and_none_is_keras(name):
    prior = shaken(name, 4, (2, 3), 3)
    np.testing.assert_array_equal(prior.sample(20, seed=4), prior.sample(20, seed=4))
    assert not np.array_equal(prior.sample(20, seed=4), prior.sample(20, seed=5))
    keras.utils.set_random_seed(7)
    one = prior.sample(20)
    assert not np.array_equal(one, prior.sample(20))
    keras.utils.set_random_seed(7)
    np.testing.assert_array_equal(one, prior.sample(20))


@each
def test_memory_of_sampling_is_what_it_says(name):
    """By its docstring: 12 bytes × batch_size · places · K, whatever the count."""
    prior = PRIORS[name](512, (8, 8))
    assert "12 bytes × batch_size · places · K" in type(prior).sample.__doc__
    prior.sample(16, batch_size=16)
    tracemalloc.start()
    prior.sample(160, batch_size=16, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (17 if JAX else 13 if TORCH else 12.6) * 16 * 64 * 512  # JAX copies what it is given


# fit, evaluate, compile


@each
@pytest.mark.parametrize("classes", [None, 3])
def test_loss_and_bits_are_those_of_numpy(name, classes):
    prior, codes, label = compiled(name, classes=classes), maps(), LABELS if classes else None
    report = prior.evaluate(given(codes, label) if classes else codes, batch_size=10, verbose=0, return_dict=True)
    expected = nats(prior, codes, label)
    np.testing.assert_allclose(report["loss"], expected.mean(), rtol=1e-4)
    np.testing.assert_allclose(report["bits"], expected.sum((1, 2)).mean() / LN2, rtol=1e-4)
    np.testing.assert_allclose(prior.bits(codes, label), expected.sum((1, 2)) / LN2, rtol=1e-4)


@each
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"steps_per_execution": 2}], ids=str)
def test_it_learns_the_same_compiled_in_any_way(name, options):
    if TORCH and options:
        pytest.skip("PyTorch's compiler needs one of C++, and Keras takes one step at a time there")
    found = fitted(compiled(name, eager=False, **options), given(maps(), LABELS))
    if name == "maskgit" and "jit_compile" in options:  # where XLA rolls other dice, and other codes are hidden
        assert np.isfinite(found[1]["loss"]).all() and all(np.isfinite(value).all() for value in found[0].values())
        return
    expected = from_arrays(name)
    same(found[0], expected[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[1]["bits"], expected[1]["bits"], rtol=1e-4)


@each
def test_it_learns_what_there_is_to_learn(name):
    keras.utils.set_random_seed(0)
    label = np.arange(64) % 2
    codes = np.broadcast_to(label[:, None], (64, 5)).astype("int32")
    prior = PRIORS[name](3, (5,), 2)
    rate, epochs = (0.02, 30) if name == "maskgit" else (0.1, 12)
    prior.compile(keras.optimizers.Adam(rate), run_eagerly=name != "maskgit")  # many steps are quicker compiled
    at_the_end = {"validation_data": (given(codes, label),), "validation_freq": epochs}
    bits = prior.fit(given(codes, label), epochs=epochs, batch_size=32, verbose=0, **at_the_end).history
    first = 3 if name == "maskgit" else 5  # in training it is not charged for the codes that it sees
    assert bits["val_bits"][-1] < 1 < first < bits["bits"][0]
    np.testing.assert_array_equal(prior.sample(6, label=np.arange(6) % 2, temperature=0.1), codes[:6])


WEIGHTS = {"(n,)": lambda w: w, "(n, 1)": lambda w: w[:, None], "(n, r, c)": lambda w: np.broadcast_to(w[:, None, None], (32, 2, 3))}


@each
@pytest.mark.parametrize("shape", WEIGHTS)
def test_weights_weigh_loss_and_bits(name, shape):
    prior, codes, weights = compiled(name), maps(), np.random.default_rng(0).uniform(size=32).astype("float32")
    report = prior.evaluate(given(codes, LABELS), codes, sample_weight=WEIGHTS[shape](weights), batch_size=32, verbose=0, return_dict=True)
    each_map = nats(prior, codes, LABELS).mean((1, 2))
    np.testing.assert_allclose(report["loss"], np.mean(each_map * weights), rtol=1e-4)
    np.testing.assert_allclose(report["bits"], 6 * np.average(each_map, weights=weights) / LN2, rtol=1e-4)


@each
def test_what_weighs_nothing_teaches_nothing(name):
    prior = compiled(name)
    before = state(prior)
    fitted(prior, given(maps(), LABELS), maps(), sample_weight=np.zeros(32))
    same(state(prior), before)
    other = maps()
    other[1::2] = (other[1::2] + 1) % 4
    found = [fitted(compiled(name), given(codes, LABELS), codes, sample_weight=np.tile([1.0, 0.0], 16))[0] for codes in (maps(), other)]
    same(*found, rtol=1e-5, atol=1e-6)
    assert moved(found[0], before)


@each
def test_weights_of_places_differ_within_a_map(name):
    prior, codes = compiled(name), maps()
    weights = np.random.default_rng(1).uniform(size=codes.shape).astype("float32")
    report = prior.evaluate(given(codes, LABELS), codes, sample_weight=weights, batch_size=32, verbose=0, return_dict=True)
    np.testing.assert_allclose(report["loss"], np.mean(nats(prior, codes, LABELS) * weights), rtol=1e-4)


@each
def test_another_loss_metrics_and_validation(name):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="mine")
    prior = compiled(name, rate=0.0, loss=lambda y, logits: 2 * loss(y, logits), metrics=["sparse_categorical_accuracy"],
                     weighted_metrics=[keras.metrics.SparseCategoricalAccuracy("heavy")])
    codes, weights = maps(), np.arange(32) % 2
    report = prior.evaluate(given(codes, LABELS), batch_size=32, verbose=0, return_dict=True)
    np.testing.assert_allclose(report["loss"], 2 * nats(prior, codes, LABELS).mean(), rtol=1e-4)
    right = numbers(prior(given(codes, LABELS))).argmax(-1) == codes
    np.testing.assert_allclose(report["sparse_categorical_accuracy"], right.mean(), rtol=1e-5)
    report = prior.evaluate(given(codes, LABELS), codes, sample_weight=weights, batch_size=32, verbose=0, return_dict=True)
    np.testing.assert_allclose(report["heavy"], right[1::2].mean(), rtol=1e-5)
    prior = compiled(name, rate=0.0)
    history = fitted(prior, given(codes, LABELS), validation_data=(given(codes, LABELS), codes, weights))[1]
    np.testing.assert_allclose(history["val_bits"][0], nats(prior, codes, LABELS).sum((1, 2))[1::2].mean() / LN2, rtol=1e-4)
    history = fitted(prior, given(codes, LABELS), validation_split=0.25)[1]
    np.testing.assert_allclose(history["val_bits"][0], nats(prior, codes, LABELS).sum((1, 2))[24:].mean() / LN2, rtol=1e-4)


class Maps(keras.utils.PyDataset):
    num_batches = 2

    def __getitem__(self, index):
        return (given(maps()[index * 16:][:16], LABELS[index * 16:][:16]),)


def slices(data):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(data).batch(16)


FORMS = {
    "dict, codes": lambda: ((given(maps(), LABELS), maps()), {}),
    "tf.data dict": lambda: ((slices(given(maps(), LABELS)),), {}),
    "tf.data (dict, codes)": lambda: ((slices((given(maps(), LABELS), maps())),), {}),
    "PyDataset": lambda: ((Maps(),), {}),
    "generator": lambda: ((((given(maps()[part], LABELS[part]),) for part in (slice(16), slice(16, 32))),), {}),
    "one callback": lambda: ((given(maps(), LABELS),), {"callbacks": keras.callbacks.History()}),
    "int64": lambda: ((given(maps().astype("int64"), LABELS.astype("int64")),), {}),
    "weights of one": lambda: ((given(maps(), LABELS), maps()), {"sample_weight": np.ones(32)}),
    "a mask of ones": lambda: ((given(maps(), LABELS, mask=np.ones((32, 2, 3), bool)),), {}),
}


@each
@pytest.mark.parametrize("form", FORMS)
def test_data_in_every_form_teach_the_same(name, form):
    expected = from_arrays(name)
    data, options = FORMS[form]()
    if not isinstance(data[0], dict):
        options = {"batch_size": None} | options
    found = fitted(compiled(name), *data, **options)
    same(found[0], expected[0], rtol=1e-4, atol=1e-6)
    for metric, values in expected[1].items():
        np.testing.assert_allclose(found[1][metric], values, rtol=1e-4, err_msg=metric)


@each
@needs_tensorflow
def test_a_loop_of_ones_own_and_train_on_batch_teach_the_same(name):
    import tensorflow as tf

    parts = [given(maps()[part], LABELS[part]) for part in (slice(16), slice(16, 32))]
    expected = from_arrays(name)[0]
    prior = compiled(name)
    for part in parts:
        with tf.GradientTape() as tape:
            loss = prior.compute_loss(x=part, y=None, y_pred=prior(part, training=True) if name != "position" else prior(part))
        slopes = tape.gradient(loss, prior.trainable_variables)
        prior.optimizer.apply_gradients(zip(slopes, prior.trainable_variables))
    same(state(prior), expected, rtol=1e-4, atol=1e-6)
    prior = compiled(name)
    for part in parts:
        prior.train_on_batch(part)
    same(state(prior), expected, rtol=1e-4, atol=1e-6)


@each
def test_padding_teaches_and_counts_nothing(name):
    """Rows of 5 places of which 3 are real, whatever stands in the others; and as rows of 3, where a prior knows no border."""
    codes, mask = maps((5,)), np.broadcast_to(np.arange(5) < 3, (32, 5))
    long, short = shaken(name, 4, (5,)), shaken(name, 4, (3,))
    short.set_weights([weight[tuple(slice(size) for size in target.shape)] for weight, target in
                       zip(long.get_weights(), short.get_weights(), strict=True)])
    other = shaken(name, 4, (5,))
    for prior in (long, short, other):
        prior.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    found = fitted(long, given(np.where(mask, codes, 3 - codes), mask=mask), epochs=2)[1]
    expected = [fitted(other, given(codes, mask=mask), epochs=2)[1]]
    same(state(long), state(other), rtol=1e-6)
    if name == "position":
        expected.append(fitted(short, np.ascontiguousarray(codes[:, :3]), epochs=2)[1])
    for metric in ("loss", "bits"):
        for history in expected:
            np.testing.assert_allclose(found[metric], history[metric], rtol=1e-4, err_msg=metric)


@each_in_reading_order
def test_bits_without_what_is_padded(name):
    codes, prior = maps((5,)), shaken(name, 4, (5,))
    mask = np.arange(5) < np.arange(32)[:, None] % 6
    np.testing.assert_allclose(prior.bits(codes, mask=mask), np.sum(nats(prior, codes) * mask, axis=1) / LN2, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(prior.bits(codes, mask=np.ones((32, 5))), prior.bits(codes))


# What cannot be meant


@each
def test_labels_as_targets_are_refused(name):
    for codes, label in ((maps(), LABELS), (maps(), LABELS[:, None]), (maps((5,)), LABELS[:, None])):
        for use in ("fit", "evaluate"):
            prior = compiled(name, codes.shape[1:], None)
            with pytest.raises(ValueError, match='own targets.* Received: .*"label": labels'):
                getattr(prior, use)(codes, label, verbose=0)


@each
def test_missing_and_needless_labels_are_refused(name):
    with pytest.raises(ValueError, match='num_classes=3 must be given .*"label": labels.* Received: codes'):
        compiled(name).fit(maps(), verbose=0)
    with pytest.raises(ValueError, match="num_classes=None must be given codes alone. Received: codes and label"):
        compiled(name, classes=None).fit(given(maps(), LABELS), verbose=0)
    with pytest.raises(ValueError, match="`label` is for priors with classes. Received: a label for one without"):
        compiled(name, classes=None).bits(maps(), 0)


@each
@pytest.mark.parametrize("bad", [4, -1], ids=["K", "-1"])
@pytest.mark.parametrize("what", ["codes", "label"])
def test_out_of_range_in_a_graph_is_no_number_and_moves_nothing(name, bad, what):
    prior, codes, label = compiled(name, eager=False), maps(), LABELS.copy()
    codes[3, 0, 0], label[3] = (bad, label[3]) if what == "codes" else (codes[3, 0, 0], bad)
    if TORCH:  # there is no graph: the values are known, and refused at once
        with pytest.raises(ValueError, match=f"`{what}` must be integers from 0 to"):
            fitted(prior, given(codes, label), batch_size=32)
    else:
        history = fitted(prior, given(codes, label), batch_size=32)[1]
        assert np.isnan(history["loss"]).all()
    assert all(np.isfinite(value).all() for value in state(prior).values())
    with pytest.raises(ValueError, match=f"`{what}` must be integers from 0 to"):
        prior.bits(codes, label)


@each
def test_class_weights_train_nothing(name):
    """A code map is no class. The first error is Keras's own, and comes before any model is asked."""
    for target in (), (maps(),), (LABELS,):
        prior = compiled(name)
        before = state(prior)
        with pytest.raises((AttributeError, IndexError, TypeError, ValueError)):
            prior.fit(given(maps(), LABELS), *target, class_weight={0: 1.0}, verbose=0)
        if not JAX:
            same(state(prior), before)


@each
@pytest.mark.parametrize("options, problem", [
    ({"count": 0}, "`count`"), ({"count": 1.5}, "`count`"), ({"temperature": 0}, "`temperature`"),
    ({"temperature": np.nan}, "`temperature`"),
    ({"temperature": "hot"}, "`temperature`"), ({"label": 3}, "`label`"), ({"label": [0, 1, 2]}, "`label`"),
    ({"top_k": 0}, "`top_k`"), ({"top_k": 5}, "`top_k`"), ({"top_k": 1.5}, "`top_k`"),
    ({"top_p": 0}, "`top_p`"), ({"top_p": 1.1}, "`top_p`"), ({"top_p": "most"}, "`top_p`"),
    ({"start": np.zeros((3, 3), int)}, "`start`"), ({"start": np.full((2, 3), 4)}, "`start"), ({"start": np.full((2, 3), -2)}, "`start"),
    ({"start": np.zeros((2, 3))}, "`start")], ids=str)
def test_bad_draws_are_refused(name, options, problem):
    with pytest.raises(ValueError, match=f"{problem}.* must .*Received: "):
        compiled(name).sample(**({"count": 2} | options))


@each
@pytest.mark.parametrize("arguments", [(0, (2, 3)), (4, (0, 3)), (4, (2.5, 3)), (4, ()), (4, (2, 3), 0), ("many", (2, 3))], ids=str)
def test_bad_sizes_are_refused(name, arguments):
    with pytest.raises(ValueError, match="must be .*Received: "):
        PRIORS[name](*arguments)


@each
def test_whole_floats_and_a_bare_length_are_sizes(name):
    prior = PRIORS[name](np.float64(4.0), np.int64(5))
    assert prior.shape == (5,) and prior.num_codes == 4 and prior.bits(maps((5,))).shape == (32,)


# Policies, settings, files, exports


@each
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_under_every_policy_from_training_to_sampling(name, policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    prior = PRIORS[name](4, (2, 3), 3)
    prior.compile(keras.optimizers.SGD(0.05), run_eagerly=True)
    losses = fitted(prior, given(maps(), LABELS), epochs=3)[1]["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    drawn, bits = prior.sample(5, label=1, seed=0), prior.bits(maps(), LABELS)
    assert keras.backend.standardize_dtype(prior(given(maps(), LABELS)).dtype) == "float32"
    prior.save(tmp_path / "prior.keras")
    for setting in ("float32", policy) if policy == "mixed_float16" else ("float32",):
        keras.config.set_dtype_policy(setting)
        again = keras.saving.load_model(tmp_path / "prior.keras")
        assert again.dtype_policy.name == policy
        np.testing.assert_array_equal(again.sample(5, label=1, seed=0), drawn)
        np.testing.assert_array_equal(again.bits(maps(), LABELS), bits)


@each
def test_channels_first_is_a_setting_for_others(name):
    right = shaken(name, 4, (2, 3), 3)
    keras.config.set_image_data_format("channels_first")
    prior = shaken(name, 4, (2, 3), 3)
    np.testing.assert_allclose(prior.bits(maps(), LABELS), right.bits(maps(), LABELS), rtol=1e-5)
    np.testing.assert_array_equal(prior.sample(5, label=1, seed=0), right.sample(5, label=1, seed=0))
    prior.compile(keras.optimizers.SGD(0.05), run_eagerly=True)
    fitted(prior, given(maps(), LABELS))


@each
def test_dropout_drops_in_training_alone_and_by_its_seed(name):
    if "dropout" not in PRIORS[name](4, (2, 3)).get_config():
        pytest.skip("has no dropout")
    prior = shaken(name, 4, (2, 3), dropout=0.5)
    still, one, other = (numbers(prior(maps(), training=training)) for training in (False, True, True))
    assert np.abs(still - one).max() > 0.01 and np.abs(one - other).max() > 0.01
    np.testing.assert_array_equal(still, numbers(prior(maps())))
    again = [numbers(shaken(name, 4, (2, 3), dropout=0.5, seed=3)(maps(), training=True)) for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_the_table_counts_from_a_half():
    from vqvae_tutorial import PositionPrior

    prior, codes = PositionPrior(4, (2, 3), 3), maps()
    prior.adapt(codes, LABELS)
    for label in range(3):
        counts = 0.5 + (codes[LABELS == label][..., None] == np.arange(4)).sum(axis=0)
        expected = -np.log(counts / counts.sum(-1, keepdims=True))
        np.testing.assert_allclose(nats(prior, codes, np.full(32, label, "int32")),
                                   np.take_along_axis(np.broadcast_to(expected, (32, 2, 3, 4)), codes[..., None], -1)[..., 0], rtol=1e-4)


OF_ITS_OWN = {"width": 6, "num_heads": 3, "steps": 5,
              "num_classes": 3, "filters": 5, "num_layers": 3, "kernel_size": 5, "dropout": 0.3, "code_dropout": 0.2, "seed": 7,
              "name": "mine", "dtype": "mixed_bfloat16", "trainable": False}


@each
def test_every_argument_survives_its_config(name):
    config = PRIORS[name](4, (2, 3)).get_config()
    options = {key: value for key, value in OF_ITS_OWN.items() if key in config}
    kind = type(PRIORS[name](4, (2, 3)))
    again = kind.from_config(kind(**(config | options)).get_config())
    for key in options.keys() - {"dtype"}:
        assert again.get_config()[key] == options[key] and getattr(again, key, options[key]) == options[key], key
    assert again.dtype_policy.name == "mixed_bfloat16" and again.shape == (2, 3) and again.num_codes == 4
    if "dropout" in options:
        layers = again.gated if name == "pixelcnn" else again.network.blocks
        assert len(layers) == 3 and {(layer.dropout.rate, layer.dropout.seed) for layer in layers} == {(0.3, 7)}


@each
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_files_keep_all(name, suffix, tmp_path):
    prior = compiled(name)
    fitted(prior, given(maps(), LABELS))
    path = tmp_path / f"prior{suffix}"
    prior.save(path) if suffix == ".keras" else prior.save_weights(path)
    if suffix == ".keras":
        again = keras.saving.load_model(path)
    else:
        again = type(prior).from_config(prior.get_config())
        again.load_weights(path)
    same(state(again), state(prior))
    np.testing.assert_allclose(again.bits(maps(), LABELS), prior.bits(maps(), LABELS), rtol=1e-6)


@each
@needs_tensorflow
@pytest.mark.parametrize("classes", [None, 3])
def test_it_can_be_exported_with_and_without_classes(name, classes, tmp_path):
    import tensorflow as tf

    prior, codes, label = shaken(name, 4, (2, 3), classes), maps(count=5), None if classes is None else LABELS[:5]
    prior.export(str(tmp_path / "prior"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "prior"))  # kept, since its variables go with it
    served = loaded.serve(given(codes, label) if classes else codes)
    np.testing.assert_allclose(numbers(served), numbers(prior(given(codes, label))), atol=1e-5)


@each_in_reading_order
@needs_tensorflow
def test_one_step_can_be_exported(name, tmp_path):
    import tensorflow as tf

    prior, codes = shaken(name, 4, (2, 3)), maps(count=1)
    cache = prior.start(1)
    flat = keras.tree.flatten(cache)

    def step(codes, index, *cache_parts):
        logits, cache_after = prior.call_with_cache(codes, keras.tree.pack_sequence_as(cache, list(cache_parts)), index)
        return [logits, *keras.tree.flatten(cache_after)]

    archive = keras.export.ExportArchive()
    archive.track(prior)
    specs = [tf.TensorSpec((1, 6), "int32"), tf.TensorSpec((), "int32")] + [tf.TensorSpec(x.shape, x.dtype) for x in flat]
    archive.add_endpoint("step", step, specs)
    archive.write_out(str(tmp_path / "step"), verbose=False)
    loaded, found = tf.saved_model.load(str(tmp_path / "step")), []
    for index in range(6):
        logits, *flat = loaded.step(codes.reshape(1, 6), np.int32(index), *flat)
        found.append(numbers(logits))
    np.testing.assert_allclose(np.concatenate(found), numbers(prior(codes)).reshape(6, 4), rtol=1e-4, atol=1e-5)
    assert ops.shape(logits) == (1, 4)
