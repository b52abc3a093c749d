"""Callbacks: when codes stop being revived, what ends a training, what a history holds, what a line says."""
import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial import ResidualQuantizer, VectorQuantizer, VectorQuantizerEMA, resumable
from vqvae_tutorial.callbacks import ProgressLine, StopAtNaN, StopRevival, read_history


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def points(count=64):
    return np.random.default_rng(0).normal(size=(count, 2)).astype("float32")


def alone(**options):
    quantizer = VectorQuantizerEMA(8, seed=0, **options)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, quantizer(inputs))
    model.compile("sgd", run_eagerly=True)
    return model, quantizer


@pytest.mark.parametrize("epochs, after, early", [(10, 0.8, 8), (5, 0.5, 3), (3, 0.0, 0), (3, 1.0, 3), (1, 0.8, 1)])
def test_codes_are_revived_only_in_early_epochs(epochs, after, early):
    model, quantizer = alone(revival_threshold=0.9)
    thresholds = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: thresholds.append(float(quantizer.revival.value)))
    model.fit(points(), epochs=epochs, batch_size=64, verbose=0, callbacks=[StopRevival(quantizer, after), watch])
    np.testing.assert_allclose(thresholds, [0.9] * early + [0.0] * (epochs - early), rtol=1e-6)


def test_after_it_no_code_is_revived_and_the_next_fit_revives_again():
    far = np.full((8, 2), 1e3, "float32")
    model, quantizer = alone(revival_threshold=0.9, embeddings_initializer=far)
    model.fit(points(), epochs=1, verbose=0, callbacks=[StopRevival(quantizer, 0.0)])
    assert np.sum(np.abs(np.array(ops.convert_to_numpy(quantizer.codebook))) > 100) == 14  # all but the one that won
    model.fit(points(), epochs=1, verbose=0)  # also without it
    assert np.abs(ops.convert_to_numpy(quantizer.codebook)).max() < 100


def test_of_a_composite_those_inside_rest():
    quantizer = ResidualQuantizer([VectorQuantizerEMA(4, revival_threshold=0.5, seed=0), VectorQuantizer(4)])
    quantizer.build((None, 2))
    stop = StopRevival(quantizer, 0.5)
    stop.set_params({"epochs": 2})
    seen = []
    for epoch in range(2):
        stop.on_epoch_begin(epoch)
        seen.append(float(quantizer.quantizers[0].revival.value))
    stop.on_train_end()
    assert [*seen, float(quantizer.quantizers[0].revival.value)] == [0.5, 0.0, 0.5]
    with pytest.raises(ValueError, match="`quantizer` must be one that revives codes. Received: ResidualQuantizer"):
        StopRevival(ResidualQuantizer([VectorQuantizer(4)]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("use", ["fit", "evaluate"])
def test_a_loss_that_is_no_number_ends_it_at_once(bad, use):
    model, _ = alone()
    data = points(96)
    data[40] = bad
    seen = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    options = {"shuffle": False} if use == "fit" else {}
    with pytest.raises(ValueError, match="loss must be a number. Received: (nan|inf) after batch 2"), np.errstate(all="ignore"):
        getattr(model, use)(data, batch_size=32, verbose=0, callbacks=[StopAtNaN(), count], **options)
    assert len(seen) <= 2


def test_a_finite_loss_passes():
    model, _ = alone()
    model.fit(points(), verbose=0, callbacks=StopAtNaN())


def test_the_history_goes_on_over_interruptions_and_knows_each_epoch_once(tmp_path):
    for epochs in (2, 5):
        model, _ = alone()
        found = model.fit(points(), epochs=epochs, verbose=0, validation_data=points() + 1, **resumable(tmp_path))
        assert found.epoch == list(range(epochs))[-3 if epochs == 5 else -2:]
    history = read_history(tmp_path)
    assert set(history) == {"loss", "val_loss"} and all(len(column) == 5 for column in history.values())
    np.testing.assert_allclose(history["loss"][-3:], found.history["loss"], rtol=1e-6)
    with (tmp_path / "history.csv").open("a") as file:  # an epoch that was interrupted and trained again
        file.write("4,0.25,0.5\n")
    assert read_history(tmp_path)["loss"][4] == 0.25 and len(read_history(tmp_path)["loss"]) == 5


def test_a_finished_run_trains_no_further_and_keeps_its_end(tmp_path):
    model, _ = alone()
    model.fit(points(), epochs=2, verbose=0, **resumable(tmp_path))
    again, _ = alone()
    found = again.fit(points(), epochs=2, verbose=0, **resumable(tmp_path))
    assert found.epoch == []
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_training_in_bfloat16_goes_on(tmp_path):
    """NumPy's files have no name for that kind of number."""
    def end(folder, *stops):
        for epochs in stops:
            keras.utils.set_random_seed(0)
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, dtype="bfloat16"), keras.layers.Dense(2)])
            model.compile("adam", "mse", run_eagerly=True)
            model.fit(points(), points(), epochs=epochs, shuffle=False, verbose=0, **resumable(folder))
        return [np.float32(ops.convert_to_numpy(weight)) for weight in model.weights]

    for one, other in zip(end(tmp_path / "alone", 3), end(tmp_path / "resumed", 1, 3), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_training_that_was_stopped_in_its_first_epoch_has_no_history_yet(tmp_path):
    resumable(tmp_path)["callbacks"][0].on_train_begin()
    assert (tmp_path / "history.csv").exists() and read_history(tmp_path) == {}


def test_more_callbacks_are_called_and_none_is_needed(tmp_path):
    mine = keras.callbacks.History()
    arguments = resumable(tmp_path, callbacks=[mine])
    assert arguments["callbacks"][-1] is mine and arguments["initial_epoch"] == 0
    alone()[0].fit(points(), verbose=0, **arguments)
    assert len(mine.history["loss"]) == 1


def test_the_line_of_progress_says_where_it_stands(monkeypatch):
    import IPython.display

    said = []

    class Line:
        def update(self, shown):
            said.append(shown.data)

    monkeypatch.setattr(IPython.display, "display", lambda shown, display_id: said.append(shown.data) or Line())
    alone()[0].fit(points(), epochs=2, batch_size=32, verbose=0, callbacks=[ProgressLine()])
    assert said[0] == "starting" and said[1] == "epoch 1 of 2, batch 1 of 2" and said[-1] == "trained for 2 epochs"
    monkeypatch.setattr(IPython.display, "display", lambda shown, display_id: None)  # outside of notebooks
    alone()[0].fit(points(), verbose=0, callbacks=[ProgressLine()])
