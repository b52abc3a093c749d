"""The model beyond what chapter 3 shows: data in every form, files, interruption, and bad input."""
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from vqvae_tutorial import load_mnist
from vqvae_tutorial.layers import VectorQuantizer
from vqvae_tutorial.model import VQVAE, build_decoder, build_encoder, load_pretrained, read_history, resumable, upsample


@pytest.fixture(scope="module")
def images():
    return load_mnist().train.images[:300]


@pytest.fixture(scope="module")
def pretrained():
    model = load_pretrained("mnist")
    model.compile()
    return model


def tiny(**options):
    encoder = build_encoder(4, filters=8, residual_blocks=1)
    decoder = build_decoder(4, filters=8, residual_blocks=1)
    model = VQVAE(4, 16, encoder=encoder, decoder=decoder, seed=0, **options)
    model.compile("adam")
    return model


def test_metrics_do_not_depend_on_the_batches(pretrained, images):
    at_once, uneven = (pretrained.evaluate(images, batch_size=size, verbose=0, return_dict=True) for size in (300, 77))
    codes = pretrained.encode(images)
    frequencies = np.bincount(codes.ravel(), minlength=128) / codes.size
    used = frequencies[frequencies > 0]
    expected = {"mse": np.mean((pretrained.decode(codes) - images) ** 2), "usage": len(used),
                "perplexity": 2 ** -(used * np.log2(used)).sum()}
    for name, value in expected.items():
        assert at_once[name] == pytest.approx(value, rel=1e-4)
        assert uneven[name] == pytest.approx(value, rel=1e-4)


def test_loss_is_the_formula(pretrained, images):
    scores = pretrained.evaluate(images, batch_size=300, verbose=0, return_dict=True)
    assert scores["loss"] == pytest.approx(scores["mse"] / float(pretrained.variance) + scores["commitment"], rel=1e-5)
    vectors = ops.convert_to_numpy(pretrained.encoder(images))
    nearest = ops.convert_to_numpy(pretrained.quantizer.decode(pretrained.encode(images)))
    assert scores["commitment"] == pytest.approx(0.25 * np.mean((vectors - nearest) ** 2), rel=1e-4)


def test_sample_weight_leaves_images_out(pretrained, images):
    weights = np.repeat([1.0, 0.0], 150)
    scores = pretrained.evaluate(images, images, sample_weight=weights, batch_size=300, verbose=0, return_dict=True)
    assert scores["mse"] == pytest.approx(pretrained.evaluate(images[:150], verbose=0, return_dict=True)["mse"], rel=1e-4)


@pytest.mark.parametrize("form", ["array", "pairs", "dataset", "dataset of pairs", "PyDataset"])
def test_fit_takes_data_in_every_form(images, form):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return (images[index * 100 : index * 100 + 100],)

    dataset = tf.data.Dataset.from_tensor_slices(images).batch(100)
    data = {"array": (images,), "pairs": (images, images), "dataset": (dataset,),
            "dataset of pairs": (dataset.map(lambda x: (x, x)),), "PyDataset": (Batches(),)}[form]
    model = tiny()
    history = model.fit(*data, verbose=0, epochs=2).history
    assert np.isfinite(history["loss"]).all() and float(model.quantizer.adapted) == 1
    assert float(model.variance) == pytest.approx(images.var(), rel=1e-3)


def test_no_data_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        tiny().adapt([])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_file_brings_back_everything(images, tmp_path, jit_compile):
    model = tiny()
    model.compile("adam", jit_compile=jit_compile)
    model.fit(images, verbose=0, epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(loaded.variables) == len(model.variables)
    for ours, theirs in zip(model.variables, loaded.variables):
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs), err_msg=ours.path)
    for ours, theirs in zip(model.optimizer.variables, loaded.optimizer.variables):
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs), err_msg=ours.path)
    assert loaded.evaluate(images, verbose=0) == model.evaluate(images, verbose=0)


def test_fit_does_not_adapt_twice(images, tmp_path, monkeypatch):
    model = tiny()
    model.fit(images, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    monkeypatch.setattr(VQVAE, "adapt", lambda *_: pytest.fail("adapted again"))
    loaded.fit(images, verbose=0)


def test_same_seed_same_model(images):
    def trained():
        keras.utils.set_random_seed(3)
        model = tiny()
        model.fit(images, verbose=0, epochs=2)
        return model

    for ours, theirs in zip(trained().weights, trained().weights):
        np.testing.assert_allclose(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs), atol=1e-4, err_msg=ours.path)


def test_a_stopped_training_goes_on(images, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny().fit(images, verbose=0, epochs=4, callbacks=[*resumable(tmp_path), Stop()])
    model = tiny()
    assert model.fit(images, verbose=0, epochs=4, callbacks=resumable(tmp_path)).epoch == [2, 3]
    assert len(read_history(tmp_path)["mse"]) == 4
    assert int(model.optimizer.iterations) == 4 * 10
    again = tiny()
    assert again.fit(images, verbose=0, epochs=4, callbacks=resumable(tmp_path)).epoch == []
    np.testing.assert_array_equal(again.encode(images[:5]), model.encode(images[:5]))


def test_an_epoch_that_was_cut_off_counts_once(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,mse\n0,0.5\n1,0.4\n1,0.3\n")
    assert read_history(tmp_path)["mse"].tolist() == [0.5, 0.3]


def test_revival_ends_before_training_does(images):
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(float(self.model.quantizer.revival))

    tiny().fit(images, verbose=0, epochs=5, callbacks=[Watch()])
    assert seen == pytest.approx([0.25, 0.25, 0.25, 0.25, 0.0])


def test_predictions_are_pictures(pretrained):
    noise = np.random.default_rng(0).uniform(size=(8, 28, 28, 1)).astype("float32")
    drawn = pretrained.predict(noise, verbose=0)
    assert drawn.min() >= 0 and drawn.max() <= 1
    np.testing.assert_allclose(drawn, pretrained.decode(pretrained.encode(noise)), atol=1e-5)


def test_encode_and_decode_do_not_depend_on_the_batch_size(pretrained, images):
    codes = pretrained.encode(images[:50])
    np.testing.assert_array_equal(pretrained.encode(images[:50], batch_size=7), codes)
    np.testing.assert_allclose(pretrained.decode(codes, batch_size=7), pretrained.decode(codes), atol=1e-5)


def test_nothing_in_nothing_out(pretrained):
    assert pretrained.encode(np.zeros((0, 28, 28, 1))).shape == (0, 7, 7)
    assert pretrained.decode(np.zeros((0, 7, 7), int)).shape == (0, 28, 28, 1)


def test_threads_get_their_own_answers(pretrained, images):
    expected = [pretrained.encode(image[None]) for image in images[:24]]
    with ThreadPoolExecutor(4) as pool:
        for codes, right in zip(pool.map(pretrained.encode, images[:24, None]), expected):
            np.testing.assert_array_equal(codes, right)


@pytest.mark.parametrize("bad, message", [
    (np.zeros((2, 28, 28)), "shape"), (np.zeros((2, 32, 32, 1)), "shape"), (np.zeros(()), "shape"),
    (np.full((2, 28, 28, 1), 255), "255"), (np.full((2, 28, 28, 1), -0.1), r"\[0, 1\]"),
    (np.full((2, 28, 28, 1), np.nan), "NaN"), (np.full((2, 28, 28, 1), "x"), "<U1"),
])
def test_encode_refuses(pretrained, bad, message):
    with pytest.raises(ValueError, match=message):
        pretrained.encode(bad)


@pytest.mark.parametrize("bad, message", [
    (np.zeros((2, 7, 7)), "float64"), (np.zeros((2, 49), int), "shape"), (np.full((2, 7, 7), 128), "127"),
    (np.full((2, 7, 7), -1), "-1"), (np.zeros((7, 7), int), "shape"),
])
def test_decode_refuses(pretrained, bad, message):
    with pytest.raises(ValueError, match=message):
        pretrained.decode(bad)


@pytest.mark.parametrize("options, message", [
    ({"image_shape": (30, 30, 1)}, "multiples of 4"),
    ({"quantizer": VectorQuantizer(64, 16)}, "64 embeddings"),
    ({"quantizer": VectorQuantizer(128, 8)}, "size 8"),
    ({"encoder": build_encoder(8)}, "encoder gives"),
    ({"decoder": build_decoder(16, (28, 28, 3))}, "decoder gives"),
])
def test_parts_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        VQVAE(16, 128, **options)


def test_other_sizes_and_colours():
    pictures = np.random.default_rng(0).uniform(size=(20, 16, 24, 3)).astype("float32")
    model = VQVAE(4, 8, image_shape=(16, 24, 3), seed=0)
    model.compile("adam")
    model.fit(pictures, verbose=0)
    assert model.encode(pictures).shape == (20, 4, 6) and model.decode(model.encode(pictures)).shape == pictures.shape


def test_upsample_needs_no_square():
    x = keras.Input((3, 5, 2))
    assert keras.Model(x, upsample(x, 7)).output_shape == (None, 6, 10, 7)


def test_mixed_precision_keeps_the_codebook_in_float32(images):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = tiny()
        history = model.fit(images, verbose=0).history
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert np.isfinite(history["loss"]).all()
    assert {str(weight.dtype) for weight in model.quantizer.weights} == {"float32"}
    assert model.predict(images[:2], verbose=0).dtype == np.float32


def test_unknown_pretrained_model():
    with pytest.raises(ValueError, match="mnist"):
        load_pretrained("imagenet")
