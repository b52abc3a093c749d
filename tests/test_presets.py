"""What ships is built, trained and loaded from one place, and its halves fit each other."""
import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial import (
    FSQ,
    VQVAE,
    EntropyConstrainedQuantizer,
    PixelCNN,
    Prior,
    ResidualQuantizer,
    VectorQuantizerEMA,
    build_networks,
    callbacks,
    load_mnist,
    load_pretrained,
    presets,
)
from vqvae_tutorial.callbacks import read_history
from vqvae_tutorial.presets import PRESETS, build_mnist, cosine_schedule, train_prior, train_vqvae

TRAIN = Path(__file__).resolve().parent.parent / "tools" / "train.py"


@pytest.fixture(scope="module")
def digits():
    return load_mnist()


def small(seed=0):
    """A pair with the parts of the real one, and next to no weights."""
    parts = build_networks((28, 28, 1), 16, filters=8, residual_blocks=0)
    model = VQVAE(*parts, EntropyConstrainedQuantizer(128, seed=seed, name="quantizer"), value_range=(0, 1))
    return model, PixelCNN(128, model.code_shape, num_classes=10, filters=8, num_layers=2, seed=seed)


def weights(model):
    """All but the frequencies, which are those of the batch that was last looked at."""
    return [ops.convert_to_numpy(weight) for weight in model.weights if not weight.path.endswith("/frequencies")]


@pytest.mark.parametrize("build", [build_mnist, *PRESETS.values()])
def test_a_preset_is_of_the_stated_sizes(build):
    model, prior = build()
    assert isinstance(model, VQVAE) and isinstance(prior, Prior)
    assert model.signal_shape == (28, 28, 1) and model.code_shape == (7, 7) == prior.shape
    assert model.quantizer.num_codes == 128 == prior.num_codes
    assert model.quantizer.embedding_dim == 16 and model.value_range == (0, 1) and prior.num_classes == 10


def test_the_shipped_recipe_charges_for_bits_and_revives_nothing():
    quantizer = build_mnist()[0].quantizer
    assert isinstance(quantizer, EntropyConstrainedQuantizer)
    assert quantizer.rate_weight > 0 and quantizer.revival_threshold == 0


def test_a_seed_makes_the_pair_repeatable():
    def made(seed):
        keras.utils.set_random_seed(seed)
        return [array for part in build_mnist(seed) for array in weights(part)]

    for ours, theirs in zip(made(1), made(1), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any((ours != theirs).any() for ours, theirs in zip(made(1), made(2)))
    assert [part.seed for part in (build_mnist(5)[0].quantizer, build_mnist(5)[1])] == [5, 5]


def test_the_schedule_climbs_and_falls():
    rate = cosine_schedule(1000, peak=0.01, warmup=100)
    values = [float(rate(step)) for step in (0, 50, 100, 550, 1000, 2000)]
    assert values == pytest.approx([0.0005, 0.00525, 0.01, 0.01 * (0.01 + 0.99 / 2), 0.0001, 0.0001], rel=1e-3)
    assert 0 < float(cosine_schedule(1)(0)) <= 2.001e-3 and float(cosine_schedule(8)(2)) == pytest.approx(2e-3)


def test_trainings_resume_and_end_where_one_training_ends(digits, tmp_path):
    images, labels = digits.train.images[:128], digits.train.labels[:128]
    pairs = []
    for epochs, name in ((1, "stopped"), (3, "stopped"), (3, "stopped"), (3, "whole")):
        keras.utils.set_random_seed(0)
        model, prior = small()
        train_vqvae(model, images, tmp_path / name / "vqvae", epochs=epochs, batch_size=32, shuffle=False)
        codes = model.encode(images)
        train_prior(prior, codes, labels, tmp_path / name / "prior", epochs=epochs, batch_size=32, shuffle=False)
        assert len(read_history(tmp_path / name / "vqvae")["mse"]) == epochs == len(read_history(tmp_path / name / "prior")["bits"])
        assert int(model.optimizer.iterations) == int(prior.optimizer.iterations) == 4 * epochs
        assert float(model.variance) == pytest.approx(images.var(), rel=1e-3)
        pairs.append((model, prior))
    for part in (0, 1):
        for again, finished in zip(weights(pairs[1][part]), weights(pairs[2][part]), strict=True):
            np.testing.assert_array_equal(again, finished)  # a finished training trains no further
    history = read_history(tmp_path / "whole" / "vqvae")
    assert history["loss"][-1] < history["loss"][0]
    assert float(pairs[-1][0].optimizer.learning_rate) < 1e-3


def test_the_script_trains_both_and_then_nothing(digits, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("train", TRAIN)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "QUICK_DIGITS", 64)
    monkeypatch.setattr(presets, "build_mnist", small)
    model, prior = script.train(["vqvae", "prior"], seed=2, quick=True, data=digits)
    assert sorted(path.name for path in (tmp_path / "nbs" / "runs").iterdir()) == ["prior_seed2_quick", "vqvae_seed2_quick"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [line["part"] for line in lines] == ["vqvae", "prior"] and all(line["seed"] == 2 for line in lines)
    assert lines[0]["mse"] == pytest.approx(model.evaluate(digits.test.images[:64], verbose=0, return_dict=True)["mse"], rel=1e-3)
    test_codes = model.encode(digits.test.images[:64])
    assert lines[1]["bits"] == pytest.approx(prior.bits(test_codes, digits.test.labels[:64]).mean(), rel=1e-3)
    assert json.loads((tmp_path / "nbs" / "runs" / "prior_seed2_quick" / "scores.json").read_text()) == lines[1]
    (tmp_path / "vqvae_tutorial" / "pretrained").mkdir(parents=True)
    script.release(model, prior)
    for part, fresh in zip(("vqvae", "prior"), small(), strict=True):
        fresh.load_weights(tmp_path / "vqvae_tutorial" / "pretrained" / f"mnist_{part}.weights.h5")
        for ours, theirs in zip(weights(model if part == "vqvae" else prior), weights(fresh), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    again, _ = script.train(["vqvae"], seed=2, quick=True, data=digits)
    assert [line["part"] for line in map(json.loads, filter(lambda x: x[:1] == "{", capsys.readouterr().out.splitlines()))] == ["vqvae"]
    for ours, theirs in zip(weights(model), weights(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other, _ = script.train(["vqvae"], seed=2, quick=True, data=digits, recipe=(0.5, 3, 1))
    assert other.quantizer.rate_weight == 0.5 and (tmp_path / "nbs" / "runs" / "vqvae_0.5_3_1_seed2_quick").is_dir()
    for refused in (["-1", "2", "2"], ["0.1", "0", "2"], ["0.1", "2.5", "2"]):
        with pytest.raises(SystemExit):
            script.main(["mnist", "--recipe", *refused])
        assert "--recipe takes a charge" in capsys.readouterr().err
    assert script.folder("vqvae").name == "vqvae" and script.folder("prior").name == "prior"  # where chapters 3 and 6 look


def test_a_pair_is_worth_one_row_of_the_table(digits, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("train", TRAIN)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, value in {"TABLE": tmp_path / "recipes.csv", "SAMPLES": 80, "REFERENCE": 200}.items():
        monkeypatch.setattr(script, name, value)
    few = digits._replace(test=type(digits.test)(*(part[:300] for part in digits.test)))
    pair = load_pretrained("mnist")
    for seed in (0, 1, 0):
        script.keep_row(pair, seed, few)
    rows = np.genfromtxt(script.TABLE, delimiter=",", names=True, dtype=None, encoding="utf-8")
    recipe = f"λ = {pair[0].quantizer.rate_weight}: {presets.VQVAE_EPOCHS} + {presets.PRIOR_EPOCHS} epochs"
    assert rows["recipe"].tolist() == [recipe] * 2 and sorted(rows["seed"]) == [0, 1]
    codes = pair[0].encode(few.test.images)
    assert rows["mse"][0] == pytest.approx(np.mean((pair[0].decode(codes) - few.test.images) ** 2), rel=1e-3)
    assert rows["usage"][0] == len(np.unique(codes))
    assert rows["bits"][0] == pytest.approx(pair[1].bits(codes, few.test.labels).mean(), rel=1e-3)
    assert 0.9 < rows["accuracy"][0] <= 1 and rows["frechet"][0] > 0 and rows["frechet_drawn"][0] > 0


def test_the_best_epoch_of_a_prior_is_kept(digits, tmp_path, monkeypatch):
    model, prior = small()
    codes, labels = model.encode(digits.train.images[:96]), digits.train.labels[:96]
    held = {"codes": codes[64:], "label": labels[64:]}
    monkeypatch.setattr(presets, "cosine_schedule", lambda steps, peak: 0.5)  # each epoch is worse than the first
    for epochs in (1, 4):
        train_prior(prior, codes[:64], labels[:64], tmp_path, epochs=epochs, validation_data=(held,))
        history = read_history(tmp_path)["val_bits"]
        assert len(history) == epochs
        assert prior.bits(held["codes"], held["label"]).mean() == pytest.approx(history.min(), rel=1e-4)


@pytest.mark.parametrize("when", ["in its first epoch", "before a backup", "after a backup"])
def test_a_prior_that_is_killed_loses_no_best_epoch(digits, tmp_path, monkeypatch, when):
    """Its best weights are written before the backup that counts the epoch as done."""
    codes, labels = small()[0].encode(digits.train.images[:96]), digits.train.labels[:96]
    held = {"codes": codes[64:], "label": labels[64:]}
    monkeypatch.setattr(presets, "cosine_schedule", lambda steps, peak: 0.5)  # each epoch is worse than the first

    def train(folder, callbacks=()):
        keras.utils.set_random_seed(0)
        prior = small()[1]
        train_prior(prior, codes[:64], labels[:64], folder, epochs=2, callbacks=callbacks, validation_data=(held,), shuffle=False)
        return prior.get_weights()

    def die(*_, **__):
        raise KeyboardInterrupt

    if when == "before a backup":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(callbacks.Backup, "on_epoch_end", die)
            train(tmp_path / "killed")
    else:
        event = "on_train_batch_end" if when == "in its first epoch" else "on_epoch_end"  # which comes after the backup's
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", [keras.callbacks.LambdaCallback(**{event: die})])
    for one, other in zip(train(tmp_path / "alone"), train(tmp_path / "killed"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", [lambda: FSQ((3, 3)), lambda: ResidualQuantizer([VectorQuantizerEMA(4) for _ in range(2)])])
def test_any_quantizer_trains_and_a_dict_is_as_long_as_its_signals(digits, tmp_path, make, monkeypatch):
    steps, schedule = [], presets.cosine_schedule
    monkeypatch.setattr(presets, "cosine_schedule", lambda count: steps.append(count) or schedule(count))
    for name, given in {"array": digits.train.images[:128], "dict": {"signal": digits.train.images[:128]}}.items():
        model = VQVAE(*build_networks((28, 28, 1), 2, filters=8, residual_blocks=0), make(), value_range=(0, 1))
        train_vqvae(model, given, tmp_path / name, epochs=2)
        assert [float(each.ema_steps.value) for each in getattr(model.quantizer, "quantizers", []) if each.ema_steps.value != 4] == []
    assert steps == [4, 4]


def test_what_ships_draws_digits_and_knows_its_codes(digits):
    model, prior = load_pretrained("mnist")
    images, labels = digits.test.images[:500], digits.test.labels[:500]
    codes = model.encode(images)
    assert np.mean((model.decode(codes) - images) ** 2) < 0.0027  # .0026 on these, .0025 on all
    assert len(np.unique(codes)) > 4
    bits = prior.bits(codes, labels)
    shuffled = np.random.default_rng(0).permuted(codes.reshape(500, -1), axis=1).reshape(codes.shape)
    assert bits.mean() < 90 and prior.bits(shuffled, labels).mean() > 1.3 * bits.mean()
    assert prior.bits(codes, (labels + 1) % 10).mean() > bits.mean() + 5  # the label says something
    drawn = model.decode(prior.sample(4, label=[0, 1, 2, 3], seed=0))
    assert drawn.shape == (4, 28, 28, 1) and 0.03 < drawn.mean() < 0.3


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="mnist.*Received: 'imagenet'"):
        load_pretrained("imagenet")
