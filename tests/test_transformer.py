"""Attention, the transformer and MaskGIT beyond chapter 12 and the contract: against NumPy, by brute force, and bad input."""
import itertools

import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial import coding
from vqvae_tutorial.priors import draw_labels, most_probable
from vqvae_tutorial.transformer import (
    HIDDEN,
    Block,
    MaskGIT,
    Transformer,
    TransformerPrior,
    _nearness,
    _tokens,
    attention,
    cosine_groups,
    spread_order,
)

SMALL = {"width": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.0}


def numbers(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def shaken(kind, *sizes, weights=0, **options):
    """A prior whose weights are far from where they begin, drawn with the seed `weights`."""
    prior, random = kind(*sizes, **(SMALL | options)), np.random.default_rng(weights)
    prior.set_weights([random.normal(size=weight.shape, scale=0.7) for weight in prior.get_weights()])
    return prior


def every_map(num_codes, shape):
    return np.array(list(itertools.product(range(num_codes), repeat=int(np.prod(shape)))), "int32").reshape(-1, *shape)


# Attention and blocks, against NumPy


@pytest.mark.parametrize("bias", [None, np.where(np.tri(5), 0, HIDDEN), np.where(np.eye(5), 0, HIDDEN), -np.arange(5.0)],
                         ids=["all", "before", "itself", "leaning to the first"])
def test_attention_is_a_weighted_mean(bias):
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 4)).astype("float32")
    scores = np.einsum("nthd,nshd->nhts", q, k) / 2
    expected = np.einsum("nhts,nshd->nthd", softmax(scores if bias is None else scores + bias), v)
    found = attention(q, k, v, None if bias is None else np.broadcast_to(bias, (1, 1, 5, 5)).astype("float32"))
    np.testing.assert_allclose(numbers(found), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 1, 3)], ids=str)
def test_nearness_depends_on_the_offset_alone_and_begins_as_distance(shape):
    network = Transformer(4, shape, width=8, num_layers=1, num_heads=2)
    places = np.arange(np.prod(shape))
    grid = np.stack(np.unravel_index(places, shape), axis=-1)
    offsets = grid[:, None] - grid
    expected = -np.sqrt(np.square(offsets).sum(axis=-1))
    np.testing.assert_allclose(numbers(_nearness(network, places))[0], [expected, expected / 2], atol=1e-5)
    network.near.assign(np.random.default_rng(0).normal(size=network.near.shape))
    found, by_offset = numbers(_nearness(network, places))[0, 0], {}
    for pair in np.ndindex(found.shape):
        by_offset.setdefault(tuple(offsets[pair]), set()).add(float(found[pair]))
    assert all(len(values) == 1 for values in by_offset.values())
    assert len(set.union(*by_offset.values())) == len(by_offset)  # and no two offsets share a number
    np.testing.assert_array_equal(numbers(_nearness(network, np.array([2])))[0, 0, 0], found[2])


def block_by_numpy(block, x, bias):
    """Both halves, with the weights of `block`."""
    weights = {weight.path.split("/", 1)[-1]: np.float64(numbers(weight)) for weight in block.weights}

    def norm(x, half):
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-3)
        return x * weights[f"norm_{half}/gamma"] + weights[f"norm_{half}/beta"]

    dense = lambda x, name: x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]
    n, places, width = x.shape
    parts = dense(norm(x, 0), "project").reshape(n, places, 3, block.num_heads, -1)
    q, k, v = np.moveaxis(parts, 2, 0)
    scores = np.einsum("nthd,nshd->nhts", q, k) / np.sqrt(q.shape[-1])
    heard = np.einsum("nhts,nshd->nthd", softmax(scores + bias), v).reshape(n, places, width)
    x = x + dense(heard, "mix")
    return x + dense(np.maximum(dense(norm(x, 1), "widen"), 0), "narrow")


def test_a_block_is_both_halves_and_one_place_at_a_time_the_same():
    block, random = Block(8, 2), np.random.default_rng(0)
    block.build((None, None, 8))
    block.set_weights([random.normal(size=weight.shape) for weight in block.get_weights()])
    x, near = random.normal(size=(3, 5, 8)).astype("float32"), random.normal(size=(1, 2, 5, 5)).astype("float32")
    bias = np.where(np.tri(5), near, HIDDEN).astype("float32")
    expected = block_by_numpy(block, np.float64(x), bias)
    np.testing.assert_allclose(numbers(block(x, bias)), expected, rtol=1e-3, atol=1e-3)
    cache = [ops.zeros((3, 5, 2, 4)) for _ in range(2)]
    for place in range(5):
        here = ops.convert_to_tensor(x[:, place : place + 1])
        one, cache = block.call_with_cache(here, cache, place, near[:, :, place : place + 1])
        np.testing.assert_allclose(numbers(one)[:, 0], expected[:, place], rtol=1e-3, atol=1e-3)


def test_a_block_survives_its_config_and_stands_in_a_model_of_someone():
    block = Block.from_config(Block(8, 4, dropout=0.3, seed=5, name="mine").get_config())
    assert (block.width, block.num_heads, block.dropout.rate, block.dropout.seed, block.name) == (8, 4, 0.3, 5, "mine")
    model = keras.Sequential([keras.Input((6, 8)), Block(8, 2), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(16, 6, 8)).astype("float32")
    losses = model.fit(x, x[..., :1], epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_places_differ_by_row_and_by_column():
    network = Transformer(5, (2, 3), width=8, num_layers=1, num_heads=2)
    rows, columns = (numbers(axis) for axis in network.axes)
    tokens = numbers(_tokens(network, np.full((1, 6), 2), None, np.arange(6)))[0]
    np.testing.assert_allclose(tokens - numbers(network.codes.embeddings)[2], (rows + columns).reshape(6, 8), atol=1e-6)
    axes = Transformer(5, (2, 3, 4), width=8, num_heads=2).axes
    assert [tuple(axis.shape) for axis in axes] == [(2, 1, 1, 8), (1, 3, 1, 8), (1, 1, 4, 8)]


# The order


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 6), (4, 4), (7, 7), (3, 2, 4)], ids=str)
def test_each_place_is_as_far_as_can_be_from_all_before_it(shape):
    order = spread_order(shape)
    assert sorted(order) == list(range(int(np.prod(shape)))) and order.dtype == np.int32
    np.testing.assert_array_equal(order, spread_order(shape))
    grid = np.stack(np.unravel_index(np.arange(len(order)), shape), axis=-1).astype(float)
    middle = np.square(grid - grid.mean(axis=0)).sum(axis=-1)
    assert middle[order[0]] == middle.min()
    for count in range(1, len(order)):
        apart = np.square(grid[:, None] - grid[order[:count]]).sum(axis=-1).min(axis=1)
        assert apart[order[count]] == apart.max()


@pytest.mark.parametrize("places, steps", [(49, 8), (49, 49), (49, 1), (5, 3), (4, 4), (3136, 12), (2, 2)])
def test_groups_grow_as_a_cosine_falls(places, steps):
    sizes = cosine_groups(places, steps)
    assert sizes.sum() == places and len(sizes) == steps and sizes.min() >= 1
    if places > 4 * steps:
        left = places - np.cumsum(sizes)
        np.testing.assert_allclose(left, places * np.cos(np.pi / 2 * np.arange(1, steps + 1) / steps), atol=1.01)
        assert steps == 1 or sizes[0] < sizes[-1]


@pytest.mark.parametrize("steps", [0, -1, 50, 2.5, "few"])
def test_steps_that_cannot_be(steps):
    with pytest.raises(ValueError, match="`steps` must be .*Received: "):
        cosine_groups(49, steps)
    with pytest.raises(ValueError, match="`steps` must be .*Received: "):
        MaskGIT(8, (7, 7), steps=steps, **SMALL)


@pytest.mark.parametrize("kind", [TransformerPrior, MaskGIT])
@pytest.mark.parametrize("sizes, problem", [({"width": 0}, "`width`"), ({"num_heads": 3}, "`num_heads` must be a divisor of width=8"),
                                            ({"num_heads": 0}, "`num_heads`"), ({"num_layers": 0}, "`num_layers`")], ids=str)
def test_sizes_that_cannot_be(kind, sizes, problem):
    with pytest.raises(ValueError, match=f"{problem}.*Received: "):
        kind(8, (2, 4), **(SMALL | sizes))


# The transformer


def test_hidden_codes_are_hidden_in_training_alone():
    prior, codes = shaken(TransformerPrior, 4, (2, 3), code_dropout=0.5, seed=1), np.zeros((64, 2, 3), "int32")
    training = [numbers(prior(codes, training=True)) for _ in range(2)]
    assert np.abs(training[0] - training[1]).max() > 0.01
    np.testing.assert_array_equal(numbers(prior(codes)), numbers(prior(codes)))
    plain = shaken(TransformerPrior, 4, (2, 3))
    np.testing.assert_allclose(numbers(plain(codes, training=True)), numbers(plain(codes)), atol=1e-5)


def test_the_first_place_holds_the_label_alone():
    prior = shaken(TransformerPrior, 4, (2, 3), 3)
    codes = np.random.default_rng(0).integers(0, 4, size=(6, 2, 3))
    first = numbers(prior({"codes": codes, "label": np.arange(6) % 3}))[:, 0, 0]
    np.testing.assert_allclose(first[:3], first[3:], atol=1e-5)
    assert np.abs(first[0] - first[1]).max() > 0.1


def test_the_cached_step_is_the_whole_network_which_looks_back_alone():
    prior, random = shaken(TransformerPrior, 4, (2, 3), 3), np.random.default_rng(0)
    noise, label = random.gumbel(size=(8, 2, 3, 4)).astype("float32"), np.arange(8) % 3
    codes, on_the_way = prior.sampler(keep_logits=True).predict_on_batch({"noise": noise, "label": label})
    np.testing.assert_allclose(on_the_way, numbers(prior({"codes": codes, "label": label})), rtol=1e-3, atol=1e-3)
    other = codes.copy()
    other[:, 1, 1] = (other[:, 1, 1] + 1) % 4
    moved = np.abs(numbers(prior({"codes": other, "label": label})) - on_the_way).max(axis=(0, -1)) > 1e-2
    np.testing.assert_array_equal(moved, [[False, False, False], [False, False, True]])


def test_codes_by_the_transformer_survive_a_file_of_bytes():
    prior = shaken(TransformerPrior, 4, (2, 3), 3)
    codes, labels = np.random.default_rng(0).integers(0, 4, size=(9, 2, 3)), np.arange(9) % 3
    again, label = coding.decompress(prior, coding.compress(prior, codes, labels))
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal(label, labels)


# MaskGIT


def chance_by_hand(prior, codes, label=None):
    """p of each map by the chain rule over groups, with `look` alone; places that hold −1 are never seen and cost nothing."""
    flat, total = codes.reshape(len(codes), -1), 1.0
    labels = None if label is None else np.full(len(codes), label, "int32")
    for step in range(prior.steps):
        chances = softmax(np.float64(numbers(prior.look(np.where(prior.group < step, flat, -1), labels))))
        here = (prior.group == step) & (flat >= 0)
        each = np.take_along_axis(chances, np.maximum(flat, 0)[..., None], axis=-1)[..., 0]
        total = total * np.where(here, each, 1).prod(axis=1)
    return total


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_bits_are_the_chain_rule_over_groups(steps):
    prior, every = shaken(MaskGIT, 2, (2, 2), steps=steps), every_map(2, (2, 2))
    by_hand = chance_by_hand(prior, every)
    np.testing.assert_allclose(by_hand.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(2.0 ** -np.float64(prior.bits(every)), by_hand, rtol=1e-3)
    if steps == 1:  # all places are independent
        share = softmax(np.float64(numbers(prior(every[:1]))))[0]
        expected = [np.prod([share[place][code] for place, code in np.ndenumerate(codes)]) for codes in every]
        np.testing.assert_allclose(by_hand, expected, rtol=1e-4)


def test_given_codes_are_in_view_from_the_first_step():
    prior, every = shaken(MaskGIT, 2, (2, 2), steps=3, weights=2), every_map(2, (2, 2))
    last = int(np.argmax(prior.group))  # which causal drawing would come to at the end
    start = np.full(4, -1)
    start[last] = 1
    flat, expected = every.reshape(-1, 4), 1.0
    for step in range(prior.steps):
        seen = np.where((prior.group < step) | (np.arange(4) == last), flat, -1)
        chances = np.take_along_axis(softmax(np.float64(numbers(prior.look(seen)))), flat[..., None], axis=-1)[..., 0]
        expected = expected * np.where((prior.group == step) & (np.arange(4) != last), chances, 1).prod(axis=1)
    expected = np.where(flat[:, last] == 1, expected, 0)
    np.testing.assert_allclose(expected.sum(), 1, rtol=1e-5)
    drawn = prior.sample(8000, start=start.reshape(2, 2), seed=0, batch_size=4000)
    found = np.bincount(drawn.reshape(-1, 4) @ [8, 4, 2, 1], minlength=16) / 8000
    np.testing.assert_allclose(found, expected, atol=0.03)
    ignorant = np.where(flat[:, last] == 1, chance_by_hand(prior, every), 0)  # were it not in view
    assert np.abs(expected - ignorant / ignorant.sum()).max() > 0.1


def test_classes_are_drawn_by_all_that_is_given():
    prior = shaken(MaskGIT, 4, (2, 2), 2, steps=3)
    kept = np.array([[-1, 2], [-1, 1]])
    fit = np.array([chance_by_hand(prior, kept[None], label)[0] for label in range(2)])
    many = np.broadcast_to(kept, (4000, 2, 2))
    found = draw_labels(prior, many, np.random.default_rng(0)).mean()
    np.testing.assert_allclose(found, fit[1] / fit.sum(), atol=0.04)
    np.testing.assert_array_equal(prior.known_ahead(many), many >= 0)


def test_what_is_masked_is_never_seen():
    prior, random = shaken(MaskGIT, 4, (6,), steps=3), np.random.default_rng(0)
    codes, mask = random.integers(0, 4, size=(8, 6)), np.arange(6) < 4
    other = np.where(mask, codes, 3 - codes)
    np.testing.assert_array_equal(prior.bits(codes, mask=mask), prior.bits(other, mask=mask))
    assert np.abs(prior.bits(codes) - prior.bits(other)).max() > 0.1
    by_hand = chance_by_hand(prior, np.where(mask, codes, -1))
    np.testing.assert_allclose(2.0 ** -np.float64(prior.bits(codes, mask=mask)), by_hand, rtol=1e-3)


def test_training_hides_a_share_that_follows_the_cosine():
    prior, codes = shaken(MaskGIT, 4, (49,), steps=8, seed=0), np.random.default_rng(0).integers(0, 4, size=(2000, 49))
    logits = numbers(prior(codes, training=True))
    shown = np.all(logits == 100.0 * np.eye(4)[codes], axis=-1)
    share = 1 - shown.mean(axis=1)
    np.testing.assert_allclose(share.mean(), 2 / np.pi, atol=0.02)  # of cos(πu/2), u even in [0, 1]
    np.testing.assert_allclose(np.mean(share < np.cos(np.pi / 4)), 0.5, atol=0.05)
    assert np.abs(numbers(prior(codes, training=True)) - logits).max() > 1


def test_other_steps_share_the_weights():
    prior = shaken(MaskGIT, 4, (2, 3), 3, steps=2, seed=3)
    other = prior.with_steps(6)
    assert (prior.steps, other.steps, len(np.unique(other.group))) == (2, 6, 6) and other.num_classes == 3
    codes = np.random.default_rng(0).integers(0, 4, size=(5, 6))
    np.testing.assert_array_equal(numbers(other.look(codes, np.arange(5) % 3)), numbers(prior.look(codes, np.arange(5) % 3)))
    with pytest.raises(ValueError, match="`steps` must be at most 6"):
        prior.with_steps(7)


def test_what_wants_a_place_at_a_time_is_refused():
    prior = shaken(MaskGIT, 4, (2, 3), steps=2)
    with pytest.raises(NotImplementedError, match="draws groups of codes"):
        prior.call_with_cache(np.zeros((1, 6), "int32"), {}, 0)


@pytest.mark.parametrize("classes", [None, 3])
def test_codes_by_maskgit_survive_a_file_of_bytes(classes):
    """More maps than are coded side by side, group by group; the size is what `bits` say, and other groups read other codes."""
    prior, count = shaken(MaskGIT, 4, (2, 3), classes, steps=2), coding.BATCH + 7
    codes, labels = np.random.default_rng(0).integers(0, 4, size=(count, 2, 3)), None if classes is None else np.arange(count) % 3
    data = coding.compress(prior, codes, labels)
    again, label = coding.decompress(prior, data)
    np.testing.assert_array_equal(again, codes)
    assert label is None if classes is None else np.array_equal(label, labels)
    stated = prior.bits(codes, labels).sum() + (0 if classes is None else count * np.log2(3))
    assert abs(8 * len(data) - stated) < 0.01 * stated + 8 * 48
    with pytest.raises(ValueError, match="that of another prior"):
        coding.decompress(prior.with_steps(3), data)


def test_a_masked_model_learns_what_a_place_says_of_another():
    """Two places that always agree: drawn in two steps they do, in one they cannot know."""
    keras.utils.set_random_seed(0)
    codes = np.repeat(np.random.default_rng(0).integers(0, 4, size=(512, 1)), 2, axis=1)
    prior = MaskGIT(4, (2,), steps=2, **SMALL)
    prior.compile(keras.optimizers.Adam(0.02))
    prior.fit(codes, epochs=20, batch_size=64, verbose=0)
    ways = {steps: prior.with_steps(steps) for steps in (1, 2)}
    for each in ways.values():
        each.compile(run_eagerly=True)  # so that `bits` compiles nothing
    agree = {steps: np.mean(np.ptp(each.sample(400, seed=0), axis=1) == 0) for steps, each in ways.items()}
    assert agree[2] > 0.95 and agree[1] < 0.4
    assert ways[2].bits(codes).mean() < 2.4 and ways[1].bits(codes).mean() > 3.6


# The most probable


LIMITS = [{"top_k": 1}, {"top_k": 3}, {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 1e-9}, {"top_k": 3, "top_p": 0.7}, {"top_k": 0}]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_the_most_probable_are_those_of_numpy(limits):
    logits = np.random.default_rng(0).normal(size=(50, 6), scale=2).astype("float32")
    chances, expected = softmax(np.float64(logits)), np.zeros((50, 6), bool)
    for row, chance in enumerate(chances):
        total = 0.0
        for count, code in enumerate(np.argsort(-chance)):
            if count and (count >= limits.get("top_k", 6) or total >= limits.get("top_p", 1)):
                break
            expected[row, code], total = True, total + chance[code]
    found = numbers(most_probable(ops.convert_to_tensor(logits), **limits))
    np.testing.assert_array_equal(found > -1e7, expected)
    np.testing.assert_array_equal(found[expected], logits[expected])
