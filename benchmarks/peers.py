"""The models that the benchmarks train: the Keras example's, written anew as it was published, and one that uses its codes evenly."""
import keras
from keras import layers

from vqvae_tutorial.model import VQVAE, build_networks
from vqvae_tutorial.quantizers import VectorQuantizer, VectorQuantizerEMA


def build_keras_example(seed=None):
    """Makes the VQ-VAE of the well-known Keras example: D = 16, K = 128, a codebook that learns by gradient.

    It works on pixels in [-0.5, 0.5], as the example does; the shift is inside, so that images go in and come out in [0, 1].
    Trained as published: Adam at 0.001, batches of 128, 30 epochs on the 60,000 digits.

    Returns:
        A `VQVAE`, not compiled.

    Reference:
        https://keras.io/examples/generative/vq_vae/ (S. Paul, 2021).
    """
    images = keras.Input((28, 28, 1))
    x = layers.Rescaling(1.0, offset=-0.5)(images)
    x = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2D(64, 3, strides=2, padding="same", activation="relu")(x)
    encoder = keras.Model(images, layers.Conv2D(16, 1)(x), name="encoder")

    embeddings = keras.Input((7, 7, 16))
    x = layers.Conv2DTranspose(64, 3, strides=2, padding="same", activation="relu")(embeddings)
    x = layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(1, 3, padding="same")(x)
    decoder = keras.Model(embeddings, layers.Rescaling(1.0, offset=0.5)(x), name="decoder")

    quantizer = VectorQuantizer(128, commitment_cost=0.25, embeddings_initializer="uniform", seed=seed)
    return VQVAE(encoder, decoder, quantizer, value_range=(0, 1))


def build_even_model(num_codes=128, embedding_dim=16, seed=None, encoder=None, decoder=None):
    """Makes a VQ-VAE that uses its codes evenly: residual networks, and an EMA codebook with revival below a quarter of a fair share.

    Args:
        num_codes: K.
        embedding_dim: D.
        seed: makes the quantizer repeatable.
        encoder, decoder: other networks in the place of the residual ones.

    Returns:
        A `VQVAE`, not compiled: `adapt` and `StopRevival` are the caller's part.
    """
    parts = build_networks((28, 28, 1), embedding_dim)
    quantizer = VectorQuantizerEMA(num_codes, revival_threshold=0.25, seed=seed, name="quantizer")
    return VQVAE(encoder or parts[0], decoder or parts[1], quantizer, value_range=(0, 1))
