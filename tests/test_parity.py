"""The quantizer against others: the paper's equations in plain NumPy, and `vector-quantize-pytorch` where it is installed.

Where ours differs on purpose, a test holds it against the paper's rule and its docstring says how they differ. K-means is held
against scikit-learn, from the same start, in test_quantization.py.
"""
import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial.layers import VectorQuantizer

K, D, N, DECAY = 6, 4, 48, 0.9


def values(tensor):
    return np.array(ops.convert_to_numpy(tensor), "float64")


@pytest.fixture
def batches():
    return np.random.default_rng(0).normal(size=(8, N, D)).astype("float32")


@pytest.fixture
def codebook():
    return np.random.default_rng(1).normal(size=(K, D)).astype("float32")


class Paper:
    """Equations 1 to 3 and appendix A.1 of van den Oord et al. (2017), as they stand, in float64."""

    def __init__(self, codebook, counts, beta=0.25):
        self.e = codebook.astype("float64")
        self.N, self.m, self.beta = np.full(len(codebook), float(counts)), counts * self.e, beta

    def quantize(self, z):
        codes = np.argmin(np.linalg.norm(z[:, None] - self.e, axis=-1), axis=-1)  # equation 1
        return codes, self.e[codes]  # equation 2

    def commitment(self, z):
        return self.beta * np.mean((z - self.quantize(z)[1]) ** 2)  # equation 3, the third term, as a mean over D as well

    def update(self, z):
        codes, _ = self.quantize(z)
        for i in range(len(self.e)):  # equations 6 to 8
            mine = z[codes == i].astype("float64")
            self.N[i] = DECAY * self.N[i] + (1 - DECAY) * len(mine)
            self.m[i] = DECAY * self.m[i] + (1 - DECAY) * mine.sum(axis=0)
            if self.N[i] > 0:
                self.e[i] = self.m[i] / self.N[i]


def ours(codebook, steps, **options):
    """Our layer at a codebook that each code has had its fair share of, as if `steps` batches had been seen."""
    quantizer = VectorQuantizer(K, D, decay=DECAY, revival_threshold=0, embeddings_initializer=lambda shape, dtype: codebook, **options)
    quantizer.build((None, D))
    if quantizer.update == "ema":
        quantizer.ema_steps.assign(steps)
    return quantizer


LONG_AGO = 10_000  # steps after which nothing is left of debiasing


def test_ema_equals_the_paper(batches, codebook):
    """Codes, loss, running means and codebook. Ours keeps N and m as multiples of the fair share N / K, which the quotient forgets,
    so that nothing depends on the size of the batch; and the codebook moves after the batch was quantized, as in the paper."""
    quantizer, paper = ours(codebook, LONG_AGO), Paper(codebook, N / K)
    for batch in batches:
        output = quantizer(batch, training=True)
        codes, quantized = paper.quantize(batch)
        np.testing.assert_allclose(values(output), quantized, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(values(quantizer.batch_frequencies), np.bincount(codes, minlength=K) / N, rtol=1e-6)
        np.testing.assert_allclose(float(quantizer.losses[0]), paper.commitment(batch), rtol=1e-5)
        paper.update(batch)
        np.testing.assert_allclose(values(quantizer.ema_frequency), paper.N * K / N, rtol=1e-4)
        np.testing.assert_allclose(values(quantizer.ema_sum), paper.m * K / N, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(values(quantizer.codebook), paper.e, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(values(quantizer.encode(batch)), paper.quantize(batch)[0])


def test_debiasing_is_the_papers_rule_from_nothing(batches, codebook):
    """Debiased from the first step, as in Adam, N and m forget the start. It is the paper's rule from N = m = 0, divided by
    1 - decay^t: the quotient, the codebook, is the paper's. A code that nobody chose yet would be 0 / 0, and stays where it is."""
    quantizer, paper = ours(codebook, 0), Paper(codebook, 0)
    for step, batch in enumerate(batches, start=1):
        quantizer(batch, training=True)
        paper.update(batch)
        np.testing.assert_allclose(values(quantizer.ema_frequency), paper.N * K / N / (1 - DECAY**step), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(values(quantizer.codebook), paper.e, rtol=1e-4, atol=1e-5)


def test_codebook_loss_is_equation_3(batches, codebook):
    """Without EMA: the second and third terms of equation 3, and their step by gradient descent."""
    quantizer = ours(codebook, 0, update="gradient", commitment_cost=0.4)
    inputs = keras.Input((D,))
    model = keras.Model(inputs, quantizer(inputs))
    model.compile(keras.optimizers.SGD(0.5))
    paper = Paper(codebook, 0, beta=0.4)
    for batch in batches:
        codes, quantized = paper.quantize(batch)
        loss = model.train_on_batch(batch)
        np.testing.assert_allclose(float(loss), 1.4 * np.mean((batch - quantized) ** 2), rtol=1e-5)
        np.subtract.at(paper.e, codes, 0.5 * 2 * (quantized - batch) / batch.size)
        np.testing.assert_allclose(values(quantizer.codebook), paper.e, rtol=1e-4, atol=1e-5)
