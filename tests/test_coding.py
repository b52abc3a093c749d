"""Codes as bytes: what is written is read back, in the size that the prior states, and nothing damaged passes for codes."""
from fractions import Fraction

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqvae_tutorial import PixelCNN, PositionPrior
from vqvae_tutorial import coding as module
from vqvae_tutorial.coding import BATCH, TABLE_BITS, RangeDecoder, RangeEncoder, compress, decompress, table_ends

TOTAL = 1 << TABLE_BITS


def make(kind, classes=None, shape=(3, 4), K=8):
    keras.utils.set_random_seed(0)
    if kind is PositionPrior:
        prior, random = PositionPrior(K, shape, classes), np.random.default_rng(0)
        label = None if classes is None else random.integers(classes, size=300)
        prior.adapt(np.minimum(random.geometric(0.5, (300, *shape)) - 1, K - 1), label)
        return prior
    return PixelCNN(K, shape, classes, filters=4, num_layers=2)


def draw(prior, count):
    random = np.random.default_rng(1)
    codes = np.minimum(random.geometric(0.5, (count, *prior.shape)) - 1, prior.num_codes - 1).astype("int32")
    return codes, random.integers(prior.num_classes or 1, size=count).astype("int32") if prior.num_classes else None


# The coder


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_symbols_of_changing_tables_come_back(data):
    """Tables of any kind, also with pieces of width 1, and messages that make the window carry."""
    message = []
    for _ in range(data.draw(st.integers(0, 60))):
        cuts = sorted(data.draw(st.sets(st.integers(1, TOTAL - 1), min_size=0, max_size=6)))
        ends = np.array([*cuts, TOTAL])
        message.append((ends, data.draw(st.integers(0, len(ends) - 1))))
    encoder, bits = RangeEncoder(), 0.0
    for ends, symbol in message:
        start = int(ends[symbol - 1]) if symbol else 0
        encoder.put(start, int(ends[symbol]) - start)
        bits -= np.log2((int(ends[symbol]) - start) / TOTAL)
    written = encoder.finish()
    decoder = RangeDecoder(written)
    assert [decoder.get(ends) for ends, _ in message] == [symbol for _, symbol in message]
    assert 8 * len(written) <= bits * (1 + 1e-6) + 16


def test_a_carry_runs_through_many_bytes():
    """The last piece of each table keeps the window at its upper end; a final step tips it over."""
    encoder, table = RangeEncoder(), np.array([TOTAL - 1, TOTAL])
    message = [1] * 20 + [0] * 5 + [1]
    for symbol in message:
        encoder.put((TOTAL - 1) * symbol, 1 if symbol else TOTAL - 1)
    decoder = RangeDecoder(encoder.finish())
    assert [decoder.get(table) for _ in message] == message


def test_the_number_lies_in_the_interval():
    """The bytes are a binary fraction inside the piece that exact arithmetic finds."""
    ends = np.array([TOTAL // 2, 3 * TOTAL // 4, 7 * TOTAL // 8, TOTAL])
    message = np.random.default_rng(0).integers(4, size=40)
    low, width, encoder = Fraction(0), Fraction(1), RangeEncoder()
    for symbol in message:
        start = int(ends[symbol - 1]) if symbol else 0
        encoder.put(start, int(ends[symbol]) - start)
        low, width = low + width * Fraction(start, TOTAL), width * Fraction(int(ends[symbol]) - start, TOTAL)
    written = encoder.finish()
    number = Fraction(int.from_bytes(written, "big"), 256 ** len(written))
    assert low <= number < low + width


@pytest.mark.parametrize("logits", [np.zeros((2, 3)), [[0, -1e30, 1e30]], [[-np.inf, 0.0, -np.inf]],
                                    np.random.default_rng(0).normal(0, 50, (5, 1000))])
def test_tables_are_whole_and_leave_nobody_out(logits):
    sizes = np.diff(table_ends(logits), axis=-1, prepend=0)
    assert (sizes >= 1).all() and (sizes.sum(axis=-1) == TOTAL).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="`logits` must be numbers. Received: NaN among them, or infinity."), np.errstate(invalid="ignore"):
        table_ends([[0.0, bad, 1.0]])


# Files


@pytest.mark.parametrize("kind", [PositionPrior, PixelCNN])
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("count", [0, 1, 7, BATCH, BATCH + 1])
def test_codes_come_back_in_the_size_that_is_stated(kind, classes, count):
    prior = make(kind, classes)
    codes, label = draw(prior, count)
    data = compress(prior, codes, label)
    back, back_label = decompress(prior, data)
    assert back.dtype == "int32" and np.array_equal(back, codes)
    assert (back_label is None) if classes is None else np.array_equal(back_label, label)
    stated = (prior.bits(codes, label).sum() + count * np.log2(classes or 1)) / 8 if count else 0
    assert stated - 1 <= len(data) - 28 <= 1.01 * stated + 3


@pytest.mark.parametrize("shape", [(5,), (1, 6)])
def test_other_grids(shape):
    prior = make(PixelCNN, shape=shape)
    codes, _ = draw(prior, 5)
    assert np.array_equal(decompress(prior, compress(prior, codes))[0], codes)


def test_without_labels_the_cheapest_class_is_chosen():
    prior = make(PositionPrior, 3)
    codes, label = draw(prior, 40)
    back, chosen = decompress(prior, compress(prior, codes))
    assert np.array_equal(back, codes)
    assert (prior.bits(codes, chosen) <= prior.bits(codes, label) + 1e-4).all()
    assert len(compress(prior, codes)) <= len(compress(prior, codes, label))


@pytest.fixture(scope="module")
def written():
    prior = make(PositionPrior)
    return prior, compress(prior, draw(prior, 20)[0])


@pytest.mark.parametrize("place", ["magic", "fingerprint", "count", "checksum", "of file", "stream"])
@pytest.mark.parametrize("bit", range(8))
def test_one_wrong_bit_anywhere_is_refused(written, place, bit):
    prior, data = written
    at = {"magic": 3, "fingerprint": 9, "count": 17, "checksum": 21, "of file": 25, "stream": 40}[place]
    damaged = bytearray(data)
    damaged[at] ^= 1 << bit
    with pytest.raises(ValueError, match="`data` must be what `compress` gave"):
        decompress(prior, bytes(damaged))


@pytest.mark.parametrize("data", [b"", b"VQcodes1", "VQcodes1", None, 5, b"PK\3\4" + bytes(100)])
def test_foreign_data_are_refused(written, data):
    with pytest.raises(ValueError, match="whole file"):
        decompress(written[0], data)


@pytest.mark.parametrize("less", [1, 5, 30])
def test_a_shortened_file_is_refused(written, less):
    with pytest.raises(ValueError, match="damaged or shortened"):
        decompress(written[0], written[1][:-less])


def test_another_prior_is_refused(written):
    other = make(PositionPrior)
    other.table.assign(other.table + 1e-3 * np.random.default_rng(0).normal(size=other.table.shape))
    with pytest.raises(ValueError, match="another prior"):
        decompress(other, written[1])


def test_other_rounding_is_noticed(written, monkeypatch):
    """Where a table comes out differently by a little, the codes would be others; they are not given out."""
    prior, data = written
    monkeypatch.setattr(module, "table_ends", lambda logits: table_ends(np.asarray(logits) * 1.001))
    with pytest.raises(ValueError, match="other codes here"):
        decompress(prior, data)


@pytest.mark.parametrize("codes, part", [(np.full((1, 3, 4), 8), "8"), (np.zeros((1, 4, 3), int), "shape"), (np.zeros((1, 3, 4)), "int")])
def test_bad_codes_are_refused(written, codes, part):
    with pytest.raises((ValueError, TypeError), match=part):
        compress(written[0], codes)
