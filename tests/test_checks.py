"""What the library accepts and refuses at its edges, in what words, and how long work is cut into batches."""
import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial import checks
from vqvae_tutorial.checks import check_codes, check_count, check_finite, check_range, in_batches, known

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FORM = r"^`{name}` must be .+\. Received: .+\. [A-Z].+\.$"


def refused(function, *given, name, match="", **options):
    """The message of a refusal, which has the library's form: what it must be, what was received, what to do."""
    with pytest.raises(ValueError, match=FORM.format(name=name)) as caught:
        function(*given, **options)
    message = str(caught.value)
    assert match in message, message
    return message


def inside_a_graph(function, values, jit=False):
    """What a function gives for values that are not known while it runs; they come as float32."""

    class Inside(keras.layers.Layer):
        def call(self, values):
            return function(values)

        def compute_output_spec(self, values):
            return keras.KerasTensor((None,), "float32")

    model = keras.Sequential([keras.Input(values.shape[1:]), Inside()])
    model.compile(jit_compile=jit)
    return model.predict(values, verbose=0)


def skip_where_values_are_known(jit):
    """PyTorch's tensors have their values everywhere, JAX's everywhere but under jit."""
    if keras.backend.backend() == "torch" or keras.backend.backend() == "jax" and not jit:
        pytest.skip("values are known inside models here")


# What is known


@pytest.mark.parametrize("values", [3, [1, 2], [[1.0], [2.0]], np.arange(3), np.float32(1), True])
def test_known_values_are_arrays(values):
    for given in (values, ops.convert_to_tensor(values)):
        assert isinstance(known(given), np.ndarray)
        np.testing.assert_array_equal(known(given), np.asarray(values))


def test_a_variable_is_known():
    np.testing.assert_array_equal(known(keras.Variable(np.eye(2))), np.eye(2))


def test_symbols_are_not_known():
    assert known(keras.Input((3,))) is None and known(keras.KerasTensor((2, 3))) is None


@pytest.mark.parametrize("jit", [False, True])
def test_what_is_traced_is_not_known(jit):
    skip_where_values_are_known(jit)
    seen = []
    inside_a_graph(lambda values: seen.append(known(values)) or values, np.ones((2, 3), "float32"), jit)
    assert seen[-1] is None


# Codes


@pytest.mark.parametrize("kind", INTEGERS)
def test_codes_of_every_integer_dtype_become_int32(kind):
    codes = np.array([[0, 127], [5, 1]], kind)
    for given in (codes, ops.convert_to_tensor(codes)):
        found = check_codes(given, 128)
        assert isinstance(found, np.ndarray) and found.dtype == np.int32
        np.testing.assert_array_equal(found, [[0, 127], [5, 1]])


def test_uint8_codes_reach_255():
    np.testing.assert_array_equal(check_codes(np.array([255, 0], "uint8"), 256), [255, 0])


@pytest.mark.parametrize("codes", [3, [1, 2], [[1, 2], [3, 0]], (1, 2), range(4)])
def test_lists_and_numbers_are_codes(codes):
    found = check_codes(codes, 4)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.asarray(codes))


@pytest.mark.parametrize("codes, shape", [([], (0,)), ([[], []], (2, 0)), (np.zeros((0, 7, 7), "int64"), (0, 7, 7))])
def test_no_codes_are_codes(codes, shape):
    found = check_codes(codes, 4)
    assert found.dtype == np.int32 and found.shape == shape
    assert check_codes(codes, 4, shape=shape).shape == shape


@pytest.mark.parametrize("codes, dtype", [(np.zeros((2, 7), "float32"), "float32 of shape (n, 7)"), ([0.0, 1.0], "float64 of shape (2,)"),
                                          ([True], "bool"), (np.array(["1"]), "str"), (np.array([None]), "object"),
                                          (np.zeros(2, "complex64"), "complex64"), (np.zeros(0), "float64 of shape (0,)")])
def test_what_is_no_integer_is_no_code(codes, dtype):
    message = refused(check_codes, codes, 128, name="codes", match="integers from 0 to 127. Received: ")
    assert dtype.replace("(n, 7)", "(2, 7)") in message


def test_tensors_of_other_dtypes_are_no_codes():
    for kind in ("float32", "float16", "bfloat16", "bool"):
        refused(check_codes, ops.cast(np.zeros((2, 2)), kind), 4, name="codes", match=f"Received: {kind} of shape (2, 2)")
    refused(check_codes, keras.Input((7, 7)), 4, name="codes", match="Received: float32 of shape (n, 7, 7)")


@pytest.mark.parametrize("codes, values", [([4], "from 4 to 4"), ([[-1, 0]], "from -1 to 0"), ([2, 900, -7], "from -7 to 900"),
                                           (np.array([2**40]), str(2**40)), (np.array([2**63 + 3], "uint64"), str(2**63 + 3))])
def test_codes_out_of_range(codes, values):
    refused(check_codes, codes, 4, name="codes", match=values)


def test_the_last_code_exists_and_the_next_does_not():
    assert check_codes([0, 3], 4).tolist() == [0, 3]
    assert "from 0 to 3" in refused(check_codes, [0, 4], 4, name="codes")


@pytest.mark.parametrize("shape, given", [((None, 7, 7), (2, 7, 7)), ((None, 7, 7), (0, 7, 7)), ((2, None), (2, 9)), ((), ()), ((3,), (3,)),
                                          ((None, None), (4, 1)), (None, (1, 2, 3, 4))])
def test_shapes_that_fit(shape, given):
    assert check_codes(np.zeros(given, "int32"), 1, shape=shape).shape == given


@pytest.mark.parametrize("shape, given, text", [((None, 7, 7), (2, 7), "(n, 7, 7). Received: int32 of shape (2, 7)"),
                                                ((None, 7, 7), (7, 7), "(n, 7, 7)"), ((None, 7, 7), (2, 7, 6), "(2, 7, 6)"),
                                                ((None, 7, 7), (2, 7, 7, 1), "(2, 7, 7, 1)"), ((2, None), (3, 9), "(2, any)"),
                                                ((None,), (), "(n,)"), ((None, 7, 7), (), "of shape ()")])
def test_shapes_that_do_not_fit(shape, given, text):
    refused(check_codes, np.zeros(given, "int32"), 128, shape=shape, name="codes", match=text)


def test_the_error_uses_the_name_it_is_given():
    with pytest.raises(ValueError, match="^`start` must be integers from 0 to 3 of shape"):
        check_codes([9], 4, shape=(None,), name="start")


def test_ragged_lists_are_named():
    refused(check_codes, [[0], [1, 2]], 4, name="codes", match="unequal length")


@pytest.mark.parametrize("jit", [False, True])
def test_inside_a_graph_codes_are_cast_and_pass(jit):
    skip_where_values_are_known(jit)
    seen = []

    def look(values):
        codes = check_codes(ops.cast(values, "int16"), 3, shape=(None, 2))
        seen.append(keras.backend.standardize_dtype(codes.dtype))
        return ops.cast(codes, "float32")

    values = np.array([[0, 1], [-1, 9]], "float32")
    np.testing.assert_array_equal(inside_a_graph(look, values, jit), values)
    assert seen[-1] == "int32"


def test_dtype_and_shape_are_checked_where_values_are_not_known():
    symbol = keras.Input((7, 7), dtype="int64")
    found = check_codes(symbol, 4, shape=(None, 7, 7))
    assert tuple(found.shape) == (None, 7, 7) and found.dtype == "int32"
    refused(check_codes, symbol, 4, shape=(None, 7, 8), name="codes", match="int64 of shape (n, 7, 7)")
    assert tuple(check_codes(keras.Input((None, None), dtype="uint8"), 4, shape=(None, 7, 7)).shape) == (None, None, None)


# Finite numbers


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "bfloat16"])
def test_the_first_example_that_is_not_finite_is_named(bad, kind):
    values = np.zeros((9, 4, 2), "float32")
    check_finite(ops.cast(values, kind))
    values[[3, 7], 1] = bad
    for given in (values.astype(kind) if kind != "bfloat16" else ops.cast(values, kind), ops.cast(values, kind)):
        assert "2 of 8 numbers are NaN or infinite in `x[3]`" in refused(check_finite, given, name="x")


@pytest.mark.parametrize("most", [1, 7, 8, 9, 10**9])
@pytest.mark.parametrize("index", [0, 1, 2, 12])
def test_slices_miss_nothing(monkeypatch, most, index):
    monkeypatch.setattr(checks, "_MOST_NUMBERS", most)
    values = np.zeros((13, 4), "float32")
    check_finite(values)
    values[index, 3] = np.nan
    with pytest.raises(ValueError, match=rf"^`signals` must be finite.*1 of 4 .*`signals\[{index}\]`"):
        check_finite(values, name="signals")


def test_large_arrays_are_looked_at_in_slices():
    import tracemalloc

    values = np.zeros((400, 100_000), "float32")  # 40 million numbers, 160 MB
    tracemalloc.start()
    check_finite(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000


@pytest.mark.parametrize("values", [np.arange(5), np.array([True]), np.zeros((0, 3)), np.zeros((3, 0)), 1.5, [1.0, 2.0], np.uint8([255])])
def test_what_is_finite_passes(values):
    check_finite(values)
    check_finite(ops.convert_to_tensor(values))


def test_a_single_number_is_checked_too():
    refused(check_finite, np.nan, name="x", match="1 of 1 numbers")


def test_values_that_are_not_known_pass_as_finite_and_in_range():
    check_finite(keras.Input((3,)))
    check_range(keras.Input((3,)), (0, 1))


# Ranges


@pytest.mark.parametrize("values, value_range", [([0, 1], (0, 1)), ([0.2, 0.7], (0, 1)), ([-0.5, 0.5], (-0.5, 0.5)), ([0, 255], (0, 255)),
                                                 ([-3.0, 1e9], None), ([], (0, 1)), ([1 + 1e-6, -1e-6], (0, 1))])
def test_what_is_in_range_passes(values, value_range):
    check_range(np.array(values), value_range)
    check_range(ops.convert_to_tensor(np.array(values, "float32")), value_range)


@pytest.mark.parametrize("values, value_range, advice", [
    ([0, 255], (0, 1), "Divide by 255: `x / 255`."),
    ([0, 3], (0, 1), "Divide by 255: `x / 255`."),
    ([-0.5, 0.5], (0, 1), "`x + 0.5`."),
    ([-1, 1], (0, 1), "`(x + 1) / 2`."),
    ([0, 1], (-0.5, 0.5), "`x - 0.5`."),
    ([0, 255], (-0.5, 0.5), "`x / 255 - 0.5`."),
    ([0, 255], (-1, 1), "`x / 127.5 - 1`."),
    ([-0.9, 0.9], (0, 255), "`(x + 1) * 127.5`."),
    ([-7, 300], (0, 1), "Scale them"),
    ([0, 256], (0, 1), "Scale them"),
])
def test_the_advice_brings_values_into_range(values, value_range, advice):
    lo, hi = value_range
    for given in (np.array(values, "float32"), ops.convert_to_tensor(np.array(values, "float32"))):
        message = refused(check_range, given, value_range, name="x", match=f"numbers from {lo:g} to {hi:g}. Received: float32 from ")
        assert f"from {min(values):g} to {max(values):g}" in message and advice in message
    if "`x" in advice or "`(" in advice:
        converted = eval(message.rsplit("`", 2)[1], {"x": np.array(values)})  # what it says is right
        check_range(converted, value_range)


def test_advice_uses_the_arguments_own_name_and_dtype():
    message = refused(check_range, np.array([0, 200], "uint8"), (0, 1), "images", name="images")
    assert "uint8 from 0 to 200" in message and "`images / 255`" in message


@pytest.mark.parametrize("values", [[1.001, 0.5], [0.5, -0.001]])
def test_one_side_is_enough(values):
    refused(check_range, np.array(values), (0, 1), name="x")


def test_nan_is_named_rather_than_its_range():
    refused(check_range, np.array([[0.0], [np.nan]]), (0, 1), name="x", match="`x[1]`")
    refused(check_range, np.array([[0.0], [np.inf]]), (0, 1), name="x", match="`x[1]`")


# Counts


@pytest.mark.parametrize("value, whole", [
    (64, 64), (64.0, 64), (np.int64(3), 3), (np.uint8(200), 200), (np.float32(7), 7), (np.array(5), 5),
                                          (1, 1), (10**20, 10**20)])
def test_whole_numbers(value, whole):
    found = check_count(value, "num_codes")
    assert type(found) is int and found == whole


@pytest.mark.parametrize("value", [0, -1, 2.5, "64", None, True, False, np.bool_(True), np.nan, np.inf, -np.inf, [3], np.array([3]), 1 + 2j,
                                   b"3", (1,), {}])
def test_what_is_no_count(value):
    message = refused(check_count, value, "num_codes", name="num_codes", match="a whole number of at least 1")
    assert repr(value) in message


def test_the_least_is_allowed_and_what_is_below_is_not():
    assert check_count(0, "iterations", least=0) == 0 and check_count(5, "epochs", least=5) == 5
    refused(check_count, -1, "iterations", least=0, name="iterations", match="at least 0")
    refused(check_count, 4.0, "epochs", least=5, name="epochs", match="at least 5. Received: 4.0")


# Batches


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 100])
def test_batches_are_consecutive_and_joined(batch_size):
    values, sizes = np.arange(14).reshape(7, 2), []
    found = in_batches(lambda part: sizes.append(len(part)) or part * 10, values, batch_size=batch_size)
    np.testing.assert_array_equal(found, values * 10)
    assert isinstance(found, np.ndarray) and sum(sizes) == 7 and set(sizes[:-1]) <= {batch_size}
    assert sizes[-1] == (7 % batch_size or batch_size)


def test_structures_go_in_and_come_out():
    a, b = np.arange(5.0), np.arange(10).reshape(5, 2)
    for arrays in ((a, b), (ops.convert_to_tensor(a.astype("float32")), b)):
        total = in_batches(lambda part: ops.cast(part[0], "float32") + ops.cast(part[1][:, 0], "float32"), arrays, 2)
        np.testing.assert_array_equal(total, a + b[:, 0])
    found = in_batches(lambda part: {"twice": 2 * part["a"], "both": (part["b"], part["a"])}, {"a": a, "b": b}, 2)
    assert set(found) == {"twice", "both"}
    np.testing.assert_array_equal(found["twice"], 2 * a)
    np.testing.assert_array_equal(found["both"][0], b)
    np.testing.assert_array_equal(found["both"][1], a)
    np.testing.assert_array_equal(in_batches(lambda part: part, a.tolist(), 2), a)


def test_none_stays_none():
    seen = []
    found = in_batches(lambda part: seen.append(part[1]) or part[0], (np.arange(5), None), 2)
    assert seen == [None] * 3 and found.tolist() == [0, 1, 2, 3, 4]
    codes, labels = in_batches(lambda part: part, (np.arange(5), None), 2)
    assert labels is None and codes.tolist() == [0, 1, 2, 3, 4]


def test_dtypes_are_kept():
    for kind in ("int32", "uint8", "float32", "bool"):
        assert in_batches(lambda part, kind=kind: ops.cast(part, kind), np.arange(5.0), 2).dtype == kind


def test_nothing_gives_none_and_the_function_is_not_called():
    for arrays in (np.zeros((0, 3)), (np.zeros(0), np.zeros((0, 2))), []):
        assert in_batches(lambda part: pytest.fail("called"), arrays) is None


def test_unequal_lengths_are_refused():
    refused(in_batches, lambda part: part, (np.zeros(3), np.zeros(4)), name="arrays", match="lengths [3, 4]")
    refused(in_batches, lambda part: part, np.zeros(3), 0, name="batch_size")


def test_progress_comes_late_stays_on_one_line_and_ends_it(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 1.99, 2.0, 2.05, 2.2, 9.0, 9.0, 9.0, 9.0])  # begun; after each of five batches and each word
    monkeypatch.setattr(checks.time, "monotonic", lambda: next(clock))
    in_batches(lambda part: part, np.arange(10_000), batch_size=2_000, what="dreaming")
    out, err = capsys.readouterr()
    assert out == ""
    words = err.split("\r")
    assert words[0] == "" and words[1] == "dreaming: 6,000 of 10,000"
    assert words[-1] == "dreaming: 10,000 of 10,000\n" and err.count("\n") == 1


def test_quick_work_is_silent(capsys, monkeypatch):
    monkeypatch.setattr(checks._Progress, "PATIENCE", 60.0)  # machines can be slow
    in_batches(lambda part: part, np.arange(1_000), batch_size=10)
    assert capsys.readouterr() == ("", "")


def test_a_shorter_word_covers_the_longer_one_before_it(capsys, monkeypatch):
    monkeypatch.setattr(checks._Progress, "PATIENCE", 0.0)
    monkeypatch.setattr(checks._Progress, "PAUSE", 0.0)
    with checks._Progress("work") as progress:
        progress.say("a long way to go")
        progress.say("done")
    first, second, last = capsys.readouterr().err.split("\r")[1:]
    assert len(second) == len(first) and second.rstrip() == "work: done" and last.endswith("\n")


def test_the_line_is_ended_when_work_fails(capsys, monkeypatch):
    monkeypatch.setattr(checks._Progress, "PATIENCE", 0.0)

    def fail(part):
        if part[0] > 3:
            raise RuntimeError("no more")
        return part

    with pytest.raises(RuntimeError, match="no more"):
        in_batches(fail, np.arange(10), batch_size=2)
    assert capsys.readouterr().err.endswith("encoding: 4 of 10\n")
