"""A careless or hostile world: killed trainings, full disks, numbers that are none, damaged and malicious files, many calls and threads."""
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from keras import ops
from project import ROOT

from vqvae_tutorial import PixelCNN, VectorQuantizer, VectorQuantizerEMA
from vqvae_tutorial.callbacks import Backup, StopAtNaN, read_history, resumable
from vqvae_tutorial.data import SAMPLE, load_mnist
from vqvae_tutorial.quantization import code_frequencies, distortion, entropy, kmeans, look_up, nearest_code, perplexity, usage

sys.path.insert(0, str(ROOT / "benchmarks"))
from kill_and_resume import differences, make_model, state, trials  # noqa: E402

quick = hypothesis_settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def values(tensor):
    return np.array(ops.convert_to_numpy(tensor))


@pytest.fixture(scope="module")
def images():
    return load_mnist(SAMPLE).train.images[:64]


@pytest.fixture(scope="module")
def model(images):
    model = make_model()
    model.adapt(images)
    return model


@pytest.fixture(scope="module")
def prior():
    return PixelCNN(16, (7, 7), filters=4, num_layers=2, seed=0)


# Interruption


def test_killed_trainings_end_bit_for_bit_like_one_left_alone():
    """Also that two processes with the same seed end equal: the first row. `benchmarks/kill_and_resume.py` does it more often."""
    rows = list(trials(2, seed=1))
    assert [found for _, found in rows] == [[], [], []]
    assert sum(len(kills) for kills, _ in rows) >= 2


@pytest.fixture(scope="module")
def interrupted(images, tmp_path_factory):
    """Three epochs of training: the folder after each, as any moment of its last backup could have left it, and the state at each end."""
    home, moments, states = tmp_path_factory.mktemp("interrupted"), [], []
    folder, watching = home / "run", [False]

    def keep(event, arguments):
        if watching[0] and event in ("open", "os.rename", "os.remove", "shutil.copyfile") and str(arguments[0]).startswith(str(folder)):
            watching[0] = False  # what follows is our own doing
            for emptied in ([None, arguments[0]] if event == "open" and "w" in str(arguments[1]) else [None]):
                moments.append(home / f"moment {len(moments)}")
                shutil.copytree(folder, moments[-1])
                if emptied:  # the moment after, in which the file is open and nothing is in it yet
                    (moments[-1] / Path(emptied).relative_to(folder)).write_bytes(b"")
            watching[0] = True

    sys.addaudithook(keep)

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            states.append(state(self.model))
            watching[0] = epoch == 2

        def on_train_end(self, logs=None):
            watching[0] = False

    model = make_model()
    states.append(state(model))
    arguments = resumable(folder)
    arguments["callbacks"].insert(0, Watch())  # which is told of an epoch's end before the backup is
    model.fit(images, batch_size=32, epochs=3, shuffle=False, verbose=0, **arguments)
    return folder, moments, states


def restored(folder):
    """A new model as the backup in a folder makes it, and the epoch that it says comes next."""
    model, arguments = make_model(), resumable(folder)
    [backup] = [each for each in arguments["callbacks"] if isinstance(each, Backup)]
    backup.set_model(model)
    backup.on_train_begin()
    return state(model), arguments["initial_epoch"]


def test_a_backup_restores_the_epoch_it_was_made_at(interrupted):
    folder, moments, states = interrupted
    now, epoch = restored(folder)
    assert epoch == 3 and differences(now, states[3]) == [] and len(differences(states[2], states[3])) > 20
    assert len(moments) >= 2


@pytest.mark.parametrize("left", [0, 1, 100, 0.3, 0.6, 0.9, -1])
def test_a_half_written_backup_is_noticed_and_the_one_before_it_used(interrupted, tmp_path, left):
    folder, _, states = interrupted
    shutil.copytree(folder, tmp_path / "run")
    weights = [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".h5", ".npz")]
    newest = max(weights, key=lambda path: path.stat().st_mtime_ns)
    content = newest.read_bytes()
    newest.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    now, epoch = restored(tmp_path / "run")
    assert epoch == 2 and differences(now, states[2]) == []


def test_no_moment_of_a_backup_leaves_it_torn(interrupted):
    """Whenever the process dies, weights and epoch are those of one and the same epoch, this one or the one before."""
    _, moments, states = interrupted
    for moment in moments:
        now, epoch = restored(moment)
        assert epoch in (2, 3) and differences(now, states[epoch]) == [], f"{moment.name}: weights of another epoch than {epoch}"


def test_a_prior_with_dropout_goes_on_bit_for_bit(tmp_path):
    codes = np.random.default_rng(0).integers(0, 5, size=(40, 3, 4)).astype("int32")

    def end(folder, *stops):
        for epochs in stops:
            keras.utils.set_random_seed(0)
            prior = PixelCNN(5, (3, 4), filters=4, num_layers=2, dropout=0.3, seed=1)
            prior.compile("adam")
            prior.fit(codes, batch_size=20, epochs=epochs, shuffle=False, verbose=0, **resumable(folder))
        return prior.get_weights()

    for one, other in zip(end(tmp_path / "alone", 4), end(tmp_path / "resumed", 2, 4)):
        np.testing.assert_array_equal(one, other)


@contextmanager
def full_disk(size):
    """No file can grow beyond `size` bytes, as if the disk were full there."""
    resource = pytest.importorskip("resource", reason="no limit to the size of files on this system")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_and_loses_nothing(interrupted, images, tmp_path):
    folder, _, states = interrupted
    shutil.copytree(folder, tmp_path / "run")
    size = max(path.stat().st_size for path in folder.rglob("*"))
    with full_disk(size // 2), pytest.raises(OSError, match="(?i)too large|no space|unable to|can't write"):
        make_model().fit(images, batch_size=32, epochs=4, shuffle=False, verbose=0, **resumable(tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "later")  # HDF5 keeps the failed file open in this process; a new one would not
    now, epoch = restored(tmp_path / "later")
    assert epoch == 3 and differences(now, states[3]) == []


FULL_FROM_THE_FIRST_BACKUP = """
import resource, sys
from kill_and_resume import train
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
train(sys.argv[1])
"""


def test_a_disk_that_is_full_at_the_first_backup_is_an_error(tmp_path):
    pytest.importorskip("resource", reason="no limit to the size of files on this system")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *sys.path])}
    ran = subprocess.run([sys.executable, "-c", FULL_FROM_THE_FIRST_BACKUP, str(tmp_path / "run")], env=environment, capture_output=True,
                         text=True, timeout=300)
    assert ran.returncode == 1 and "OSError" in ran.stderr.splitlines()[-1], ran.stderr[-500:]


@pytest.mark.parametrize("options", [{"metrics": ["mae"]}, {"optimizer": "rmsprop", "weighted_metrics": ["mse"]}], ids=str)
def test_what_was_compiled_with_metrics_resumes(images, tmp_path, options):
    """Whose variables are made only when they are first fed."""
    def end(folder, *stops):
        for epochs in stops:
            model = make_model()
            model.compile(**({"optimizer": "adam"} | options))
            model.fit(images, batch_size=32, epochs=epochs, shuffle=False, verbose=0, **resumable(folder))
        return state(model), read_history(folder)

    (alone, history), (resumed, again) = end(tmp_path / "alone", 3), end(tmp_path / "resumed", 1, 3)
    assert differences(alone, resumed) == []
    for name, column in history.items():
        np.testing.assert_array_equal(column, again[name], err_msg=name)


def test_a_process_killed_while_it_writes_its_very_first_backup_starts_anew(images, tmp_path):
    """What was half written does not pass for a backup, and none that is whole is missing."""
    folder = tmp_path / "run"
    wrote, real = [], os.replace

    def die(source, target):
        if str(target).startswith(str(folder)):
            wrote.append(source)
            raise KeyboardInterrupt
        return real(source, target)

    os.replace = die
    try:
        with pytest.raises(KeyboardInterrupt):
            make_model().fit(images, batch_size=32, epochs=2, shuffle=False, verbose=0, **resumable(folder))
    finally:
        os.replace = real
    assert wrote and list((folder / "backup").iterdir()) == [Path(wrote[0])]
    Path(wrote[0]).write_bytes(Path(wrote[0]).read_bytes()[:1000])  # a kill tears it as well
    arguments = resumable(folder)
    assert arguments["initial_epoch"] == 0
    model, alone = make_model(), make_model()
    model.fit(images, batch_size=32, epochs=2, shuffle=False, verbose=0, **arguments)
    alone.fit(images, batch_size=32, epochs=2, shuffle=False, verbose=0)
    assert differences(state(model), state(alone)) == []


def test_only_the_two_newest_backups_are_kept_and_one_of_another_model_is_refused(interrupted, images):
    folder, _, _ = interrupted
    assert sorted(path.name for path in (folder / "backup").iterdir()) == ["000002.npz", "000003.npz"]
    other = PixelCNN(5, (3, 4), filters=4, num_layers=2)
    other.compile("adam")
    with pytest.raises(ValueError, match="must be one of this model. Received: .*000003.npz"):
        other.fit(np.zeros((4, 3, 4), "int32"), epochs=4, verbose=0, **resumable(folder))


def test_where_no_backup_can_be_read_it_says_so(interrupted, tmp_path):
    shutil.copytree(interrupted[0], tmp_path / "run")
    for path in (tmp_path / "run" / "backup").iterdir():
        path.write_bytes(b"")
    with pytest.raises(OSError, match="No backup in .* can be read. Delete the folder"), pytest.warns(UserWarning, match="cannot be read"):
        resumable(tmp_path / "run")


# Numbers that are none


def spoiled(images, number=np.nan):
    images = images.copy()
    images[3, 5, 5] = number
    return images


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_adapt_and_encode_name_the_picture_that_holds_numbers_that_are_none(model, images, number):
    before = state_of(model)
    for use in (model.adapt, model.encode):
        with pytest.raises(ValueError, match=r"`x` must be finite. Received: 1 of 784 .* `x\[3\]`"), np.errstate(invalid="ignore"):
            use(spoiled(images, number))
    assert all(np.array_equal(old, new) for old, new in zip(before, state_of(model), strict=True))


def state_of(model):
    return [np.array(weight) for weight in model.get_weights()]


def test_fit_stops_where_a_stream_holds_nan_and_the_codebook_stays(images):
    model = make_model()
    model.adapt(images)
    batches = ((batch, batch) for batch in (images[:32], spoiled(images[32:]), images[:32]))
    with pytest.raises(ValueError, match="loss must be a number. Received: nan after batch 2"):
        model.fit(batches, verbose=0, callbacks=StopAtNaN())
    assert np.isfinite(values(model.quantizer.codebook)).all() and np.isfinite(values(model.quantizer.ema_sum)).all()


RULES = {"ema": VectorQuantizerEMA, "gradient": VectorQuantizer}


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("rule", RULES)
def test_one_bad_vector_never_reaches_the_codebook(rule, number):
    quantizer = RULES[rule](5, seed=0)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, quantizer(inputs))
    model.compile("sgd")
    vectors = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    quantizer.adapt(vectors)
    vectors[7, 1] = number
    model.fit(vectors, batch_size=32, epochs=2, verbose=0)
    assert np.isfinite(values(quantizer.codebook)).all()


# Batches at the edge


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("training", [False, True])
def test_an_empty_batch_is_refused_and_moves_nothing(rule, training):
    quantizer = RULES[rule](5, seed=0)
    quantizer.build((None, 3))
    before = [values(variable) for variable in quantizer.variables]
    with pytest.raises(ValueError, match="`codes` must be at least one code. Received: "):
        quantizer(np.zeros((0, 3), "float32"), training=training)
    assert all(np.array_equal(old, values(new)) for old, new in zip(before, quantizer.variables))


def test_adapt_on_no_image_says_so(images):
    with pytest.raises(ValueError, match="at least one example. Received: none"):
        make_model().adapt(images[:0])


@pytest.mark.filterwarnings("ignore:.*distinct vectors")
@pytest.mark.parametrize("kind", ["one image", "a last batch of one", "constant", "duplicates"])
def test_poor_data_trains_without_harm(images, kind):
    data = {"one image": images[:1], "a last batch of one": images[:33], "constant": np.full_like(images, 0.5),
            "duplicates": np.repeat(images[:2], 32, axis=0)}[kind]
    model = make_model()
    model.adapt(data)
    history = model.fit(data, batch_size=32, epochs=3, verbose=0).history
    assert all(np.isfinite(column).all() for column in history.values()) and history["mse"][-1] <= 1.2 * history["mse"][0]
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert model.encode(data).max() < 16


def test_a_last_partial_batch_counts_as_one_batch():
    """In the running means a batch is a batch, whatever its size: shares are averaged, not vectors."""
    random, quantizer = np.random.default_rng(0), VectorQuantizerEMA(4, decay=0.5, revival_threshold=0, seed=0)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, quantizer(inputs))
    model.compile("sgd")
    vectors = random.normal(size=(37, 2)).astype("float32")
    quantizer.adapt(vectors)
    codebook = values(quantizer.codebook)
    frequency, total, steps = np.ones(4), codebook.copy(), 2  # the start counts as 1 / (1 − γ) steps
    model.fit(vectors, batch_size=32, shuffle=False, verbose=0)
    for batch in (vectors[:32], vectors[32:]):
        chosen = np.eye(4)[np.argmin(np.sum((batch[:, None] - codebook) ** 2, axis=-1), axis=-1)]
        steps += 1
        weight = 0.5 / (1 - 0.5**steps)
        frequency = (1 - weight) * frequency + weight * 4 * chosen.mean(axis=0)
        total = (1 - weight) * total + weight * 4 * chosen.T @ batch / len(batch)
        codebook = np.where(frequency[:, None] > 0, total / np.maximum(frequency, 1e-12)[:, None], codebook)
    np.testing.assert_allclose(values(quantizer.codebook), codebook, rtol=1e-4, atol=1e-5)


# Properties


def finite(shape, limit=100.0):
    return some.arrays("float32", shape, elements=st.floats(-limit, limit, width=32))


@st.composite
def quantizations(draw, limit=100.0):
    """Vectors and a codebook that fit."""
    depth = draw(st.integers(1, 4))
    return draw(finite((draw(st.integers(1, 12)), depth), limit)), draw(finite((draw(st.integers(1, 9)), depth), limit))


@quick
@given(quantizations())
def test_no_code_is_nearer_than_the_one_that_is_chosen(both):
    vectors, codebook = both
    exact = np.square(vectors[:, None].astype("float64") - codebook).sum(axis=-1)
    codes = values(nearest_code(vectors, codebook))
    rounding = 1e-5 * (1 + np.square(vectors.astype("float64")).sum(axis=-1) + np.square(codebook.astype("float64")).sum(axis=-1).max())
    assert (exact[np.arange(len(codes)), codes] <= exact.min(axis=-1) + rounding).all()
    np.testing.assert_array_equal(values(look_up(codes, codebook)), codebook[codes])


@quick
@given(quantizations(), st.integers(0, 2**31 - 1))
@pytest.mark.filterwarnings("ignore:.*distinct vectors")
def test_kmeans_gives_finite_codes_among_the_vectors_that_are_no_worse_than_its_start(both, seed):
    vectors, codebook = both
    start, found = (kmeans(vectors, len(codebook), iterations=count, seed=seed) for count in (0, 5))
    assert found.shape == codebook.shape and np.isfinite(found).all()
    assert (found >= vectors.min(axis=0) - 1e-3).all() and (found <= vectors.max(axis=0) + 1e-3).all()
    assert distortion(vectors, found) <= distortion(vectors, start) * (1 + 1e-4) + 1e-2


@quick
@given(some.arrays("int32", some.array_shapes(max_dims=3, max_side=9), elements=st.integers(0, 8)), st.integers(9, 20))
def test_frequencies_are_shares_and_perplexity_lies_between_one_and_usage(codes, num_codes):
    frequencies = code_frequencies(codes, num_codes)
    assert values(frequencies).sum() == pytest.approx(1, abs=1e-5)
    used = int(usage(frequencies))
    assert used == len(np.unique(codes)) and -1e-6 <= float(entropy(frequencies)) <= np.log2(used) + 1e-5
    assert 1 - 1e-5 <= float(perplexity(frequencies)) <= used * (1 + 1e-5)


@quick
@given(quantizations(limit=2.0**66), st.sampled_from([0.0, 0.5, 0.99]), st.sampled_from([0.0, 0.9]))
def test_no_finite_batch_breaks_the_layer(both, decay, revival):
    """Numbers up to 2^66, whose squares overflow float32: the codebook stays finite, and the output is what the codes stand for."""
    vectors, codebook = both
    quantizer = VectorQuantizerEMA(len(codebook), decay=decay, revival_threshold=revival, seed=0, embeddings_initializer=codebook)
    quantizer.build(vectors.shape)
    for _ in range(2):
        before = values(quantizer.codebook)
        output, codes = values(quantizer(vectors, training=True)), values(nearest_code(vectors, before))
        np.testing.assert_array_equal(output, before[codes])
        assert all(np.isfinite(values(variable)).all() for variable in quantizer.weights)


@quick
@given(some.arrays("int32", st.tuples(st.integers(1, 4), st.just(7), st.just(7)), elements=st.integers(0, 15)), st.integers(0, 7),
       st.floats(0.1, 5))
def test_priors_charge_bits_and_keep_what_they_are_given(prior, codes, kept, temperature):
    bits = prior.bits(codes)
    assert bits.shape == codes.shape[:1] and np.isfinite(bits).all() and (bits > 0).all()
    start = codes.copy()
    start[:, kept:] = -1
    drawn = prior.sample(len(codes), temperature=temperature, start=start, seed=0)
    assert drawn.shape == codes.shape and drawn.min() >= 0 and drawn.max() < 16
    np.testing.assert_array_equal(drawn[:, :kept], codes[:, :kept])


@quick
@given(some.arrays("uint8", st.tuples(st.integers(1, 5), st.just(28), st.just(28))), st.data())
def test_archives_come_back_as_they_were(tmp_path, pixels, data):
    labels = data.draw(some.arrays(st.sampled_from(["uint8", "int8", "int64", ">u2"]), len(pixels), elements=st.integers(0, 9)))
    np.savez(tmp_path / "digits.npz", x_train=pixels, y_train=labels, x_test=pixels[:1], y_test=labels[:1])
    digits = load_mnist(tmp_path / "digits.npz")
    np.testing.assert_array_equal(np.round(digits.train.images[..., 0] * 255), pixels)
    np.testing.assert_array_equal(digits.train.labels, labels)
    assert digits.train.images.min() >= 0 and digits.train.images.max() <= 1


@quick
@given(st.binary(max_size=300))
def test_no_bytes_pass_for_an_archive(tmp_path, content):
    (tmp_path / "digits.npz").write_bytes(content)
    with pytest.raises(ValueError, match="digits.npz"):
        load_mnist(tmp_path / "digits.npz")


# Files


def test_bad_files_end_in_an_error_that_says_something():
    """In a process of its own, so that a crash or a hang would be seen; it prints what was tried."""
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz.py"), "--count", "240"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    print(ran.stdout)
    assert ran.returncode == 0 and "240 tried" in ran.stdout and "0 silent, 0 code ran" in ran.stdout, ran.stdout + ran.stderr[-2000:]


# Many calls, many threads


@pytest.mark.slow
def test_hundreds_of_calls_do_not_grow_memory(model, prior, images):
    """What one call is given or gives, 50 kB of pictures, must not stay behind."""
    memory = pytest.importorskip("psutil", reason="psutil, which ipykernel brings, is not installed").Process().memory_info

    def calls(count):
        for number in range(count):
            model.decode(model.encode(images[number % 8 :][:16]))
            prior.sample(16, seed=number)

    calls(50)
    before = memory().rss
    calls(300)
    assert memory().rss - before < 6e6, "pictures that stay behind would be 15 MB"


def test_threads_get_right_answers_from_everything_at_once(model, prior, images):
    parts = [images[start : start + 4] for start in range(0, 32, 4)]
    # On JAX a model lends its weights to one call at a time: see the troubleshooting page.
    turn = threading.Lock() if keras.backend.backend() == "jax" else nullcontext()

    def work(number):
        with turn:
            codes = model.encode(parts[number % 8])
            return codes, model.decode(codes), prior.sample(2, seed=number), prior.bits(codes)

    fresh = PixelCNN.from_config(prior.get_config())  # whose sampler nobody has made yet
    fresh.set_weights(prior.get_weights())
    expected = [work(number) for number in range(16)]
    prior = fresh
    with ThreadPoolExecutor(8) as pool:
        for right, found in zip(expected, pool.map(work, range(16))):
            for one, other in zip(right, found):
                np.testing.assert_allclose(one, other, atol=1e-5)
