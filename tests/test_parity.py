"""The quantizer against others: the paper's equations in plain NumPy, and `vector-quantize-pytorch` where it is installed.

Where ours differs on purpose, a test holds it against the paper's rule and its docstring says how they differ. K-means is held
against scikit-learn, from the same start, in test_quantization.py.
"""
import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial.quantizers import VectorQuantizer, VectorQuantizerEMA
from vqvae_tutorial.zoo import FSQ, BinaryQuantizer, CosineQuantizer, SimVQ

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


def ours(codebook, steps):
    """Our layer at a codebook that each code has had its fair share of, as if `steps` batches had been seen."""
    quantizer = VectorQuantizerEMA(K, decay=DECAY, revival_threshold=0, embeddings_initializer=codebook)
    quantizer.build((None, D))
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
        np.testing.assert_allclose(values(quantizer.frequencies), np.bincount(codes, minlength=K) / N, rtol=1e-6)
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
    quantizer = VectorQuantizer(K, commitment_cost=0.4, embeddings_initializer=codebook)
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


# Other quantizers, by the formulas of their papers


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def gradient_of_encoder(quantizer, x, sent):
    """What one step of plain gradient descent takes off an identity in front of a quantizer, when the decoder sends `sent`."""
    inputs = keras.Input((x.shape[-1],))
    encoder = keras.layers.Dense(x.shape[-1], use_bias=False, kernel_initializer=keras.initializers.Identity())
    model = keras.Model(inputs, quantizer(encoder(inputs)))
    model.compile(keras.optimizers.SGD(1.0), loss=lambda target, output: ops.sum(target * output, axis=-1))
    model.train_on_batch(x, sent)
    return np.eye(x.shape[-1]) - values(encoder.kernel)


@pytest.mark.parametrize("levels", [(8, 4, 4), (8, 5, 5, 5), (7, 5, 5, 5, 5), (2, 3), (16,)], ids=str)
def test_fsq_equals_the_paper(levels):
    """Mentzer et al. (2023), appendix A.1: bound, round, scale to half the levels; the code in mixed radix, the first channel first."""
    x, L = np.random.default_rng(0).normal(scale=2, size=(200, len(levels))).astype("float32"), np.array(levels)
    half, offset = (L - 1) * (1 - 1e-3) / 2, np.where(L % 2, 0, 0.5)
    bounded = np.tanh(np.float64(x) + np.tan(offset / half)) * half - offset
    whole = np.round(bounded)
    quantizer = FSQ(levels)
    np.testing.assert_allclose(values(quantizer(x)), whole / (L // 2), rtol=1e-6)
    codes = np.sum((whole + L // 2) * np.cumprod([1, *levels[:-1]]), axis=-1)
    np.testing.assert_array_equal(values(quantizer.encode(x)), codes)
    everything = np.arange(quantizer.num_codes)
    digits = values(quantizer.decode(everything)) * (L // 2) + L // 2
    np.testing.assert_allclose(digits, np.stack(np.unravel_index(everything, levels[::-1])[::-1], axis=-1), atol=1e-5)
    assert not quantizer.losses


@pytest.mark.parametrize("sphere", [False, True], ids=["LFQ", "BSQ"])
@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_signs_equal_the_papers(sphere, tau):
    """L. Yu et al. (2024) and Zhao et al. (2024): signs, and entropies from a table of all 2^D chances.

    The entropy of the mean is the sum over bits, as in the second paper; the first takes it over the table. The temperature is
    measured in squared corners, so that LFQ's is the paper's and BSQ's the paper's times D."""
    x = np.random.default_rng(0).normal(size=(50, D)).astype("float32")
    quantizer = BinaryQuantizer(D, sphere=sphere, entropy_cost=0.5, commitment_cost=0.4, temperature=tau)
    before, corner = (unit(np.float64(x)), D**-0.5) if sphere else (np.float64(x), 1.0)
    output = values(quantizer(x))
    np.testing.assert_allclose(output, corner * np.sign(x), rtol=1e-6)
    np.testing.assert_array_equal(values(quantizer.encode(x)), np.sum((x > 0) * 2 ** np.arange(D), axis=-1))
    corners = values(quantizer.decode(np.arange(2**D)))
    table = np.exp(-np.square(before[:, None] - corners).sum(axis=-1) / (tau * corner**2))
    table /= table.sum(axis=-1, keepdims=True)
    sure = -np.sum(table * np.log2(np.maximum(table, 1e-30)), axis=-1).mean() / D
    ones = (table @ (corners > 0)).mean(axis=0)
    spread = np.mean(-ones * np.log2(ones) - (1 - ones) * np.log2(1 - ones))
    expected = [0.4 * np.mean((before - output) ** 2), 0.5 * (sure - spread)]
    np.testing.assert_allclose([float(loss) for loss in quantizer.losses], expected, rtol=1e-4, atol=1e-6)


def test_cosine_equals_the_paper(batches, codebook):
    """J. Yu et al. (2021): the code of the largest cosine, the embedding of length 1; and a step of its codebook."""
    x, rate = batches[0], 0.5
    quantizer = CosineQuantizer(K, commitment_cost=0.4, embeddings_initializer=codebook)
    codes = np.argmax(unit(np.float64(x)) @ unit(np.float64(codebook)).T, axis=-1)
    np.testing.assert_array_equal(values(quantizer.encode(x)), codes)
    np.testing.assert_allclose(values(quantizer(x)), unit(codebook)[codes], rtol=1e-5, atol=1e-6)
    inputs = keras.Input((D,))
    model = keras.Model(inputs, quantizer(inputs))
    model.compile(keras.optimizers.SGD(rate))
    loss = model.train_on_batch(x)
    gap = unit(np.float64(codebook))[codes] - unit(np.float64(x))
    np.testing.assert_allclose(float(loss), 1.4 * np.mean(gap**2), rtol=1e-5)
    pull = np.zeros((K, D))
    np.add.at(pull, codes, 2 * gap / x.size)
    e = unit(np.float64(codebook))
    across = (pull - np.sum(pull * e, axis=-1, keepdims=True) * e) / np.linalg.norm(codebook, axis=-1, keepdims=True)
    np.testing.assert_allclose(values(quantizer.codebook), codebook - rate * across, rtol=1e-4, atol=1e-5)


def test_simvq_equals_the_paper(batches, codebook):
    """Zhu et al. (2024): the codebook is frozen, all learning is the matrix's, and an unused embedding moves with it."""
    quantizer = SimVQ(K, commitment_cost=0.4, embeddings_initializer=codebook)
    inputs = keras.Input((D,))
    model = keras.Model(inputs, quantizer(inputs))
    model.compile(keras.optimizers.SGD(0.5))
    W = np.eye(D)
    for x in batches:
        e = np.float64(codebook) @ W
        codes = np.argmin(np.square(x[:, None] - e).sum(axis=-1), axis=-1)
        loss = model.train_on_batch(x)
        np.testing.assert_allclose(float(loss), 1.4 * np.mean((x - e[codes]) ** 2), rtol=1e-5)
        W = W - 0.5 * 2 * codebook[codes].T @ (e[codes] - x) / x.size
        np.testing.assert_allclose(values(quantizer.embeddings), codebook @ W, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(values(quantizer.codebook), codebook)
    assert [each.name for each in quantizer.trainable_variables] == ["map"]


@pytest.mark.parametrize("make", [VectorQuantizer, VectorQuantizerEMA])
def test_the_rotation_trick_equals_the_paper(make, batches, codebook):
    """Fifty et al. (2024), section 4: s Rᵀ g, here with R built as a turn by an angle in the plane of x and q, not from reflections."""
    x, sent = batches[0], batches[1]
    options = {"embeddings_initializer": codebook, "commitment_cost": 0.0}
    q = values(make(K, **options)(x))
    a, b = unit(np.float64(x)), unit(q)
    cosine = np.sum(a * b, axis=-1, keepdims=True)
    w = unit(b - cosine * a)
    sine = np.sum(b * w, axis=-1, keepdims=True)
    outer = [one[:, :, None] * other[:, None] for one, other in ((w, a), (a, w), (a, a), (w, w))]
    R = np.eye(D) + sine[..., None] * (outer[0] - outer[1]) + (cosine[..., None] - 1) * (outer[2] + outer[3])
    s = np.linalg.norm(q, axis=-1) / np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(s[:, None] * np.einsum("nij,nj->ni", R, x), q, rtol=1e-4, atol=1e-5)  # forwards it is q
    slope = s[:, None] * np.einsum("nij,ni->nj", R, sent) / len(x)
    found = gradient_of_encoder(make(K, gradient="rotation", **options), x, sent)
    np.testing.assert_allclose(found, x.T @ slope, rtol=1e-3, atol=1e-5)
    copied = gradient_of_encoder(make(K, **options), x, sent)
    np.testing.assert_allclose(copied, x.T @ sent / len(x), rtol=1e-3, atol=1e-5)


# vector-quantize-pytorch


@pytest.fixture
def theirs(codebook):
    """Their layer at the same codebook, with our settings: no rotation trick, which theirs has by default; no Laplace smoothing."""
    reason = "vector-quantize-pytorch and PyTorch are not installed; `make test-backends` installs them"
    torch = pytest.importorskip("torch", reason=reason)
    package = pytest.importorskip("vector_quantize_pytorch", reason=reason)

    def make(eps=0.0):
        layer = package.VectorQuantize(D, K, decay=DECAY, eps=eps, commitment_weight=0.25, rotation_trick=False)
        start = torch.from_numpy(codebook)[None]
        layer._codebook.embed.data.copy_(start)
        layer._codebook.cluster_size.data.fill_(N / K)
        layer._codebook.embed_avg.data.copy_(start * (N / K))
        return layer.train()

    return make


def test_ema_equals_vector_quantize_pytorch(theirs, batches, codebook):
    """Codes, output, loss and running means over eight batches. Theirs is not debiased, counts vectors where ours counts fair shares,
    and also moves the codebook after the batch was quantized."""
    import torch

    quantizer, layer = ours(codebook, LONG_AGO), theirs()
    for batch in batches:
        output, codes, loss = layer(torch.from_numpy(batch)[None])
        np.testing.assert_array_equal(values(quantizer.encode(batch)), codes[0])
        np.testing.assert_allclose(values(quantizer(batch, training=True)), output[0].detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(float(quantizer.losses[0]), float(loss.detach()), rtol=1e-5)
        state = layer._codebook
        np.testing.assert_allclose(values(quantizer.ema_frequency), state.cluster_size[0] * (K / N), rtol=1e-4)
        np.testing.assert_allclose(values(quantizer.ema_sum), state.embed_avg[0] * (K / N), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(values(quantizer.codebook), state.embed[0], rtol=1e-4, atol=1e-5)


def test_laplace_smoothing_is_all_that_differs_by_default(theirs, batches, codebook):
    """Theirs divides the sums by (n + ε) / (Σn + K ε) · Σn instead of n, so that no quotient is 0 / 0; it pulls rare codes towards
    the origin and pushes frequent ones away. Ours leaves a code that nobody chose where it is, and needs no ε."""
    import torch

    quantizer, layer, eps = ours(codebook, LONG_AGO), theirs(eps=0.5), 0.5
    quantizer(batches[0], training=True)
    layer(torch.from_numpy(batches[0])[None])
    counts = values(quantizer.ema_frequency)[:, None] * N / K
    smooth = (counts + eps) / (counts.sum() + K * eps) * counts.sum()
    np.testing.assert_allclose(layer._codebook.embed[0], values(quantizer.codebook) * counts / smooth, rtol=1e-4, atol=1e-5)
    assert not np.allclose(layer._codebook.embed[0], values(quantizer.codebook), rtol=1e-3)


def test_the_encoder_gets_the_same_gradient(theirs, batches, codebook):
    """One step of gradient descent through the straight-through estimator and the commitment loss moves an encoder alike."""
    import torch

    slope, start = batches[1], np.random.default_rng(2).normal(size=(D, D)).astype("float32")
    inputs = keras.Input((D,))
    encoder = keras.layers.Dense(D, use_bias=False)
    model = keras.Model(inputs, ours(codebook, LONG_AGO)(encoder(inputs)))
    encoder.kernel.assign(start)
    model.compile(keras.optimizers.SGD(1.0), loss=lambda target, output: ops.sum(target * output, axis=-1))
    model.train_on_batch(batches[0], slope)

    kernel = torch.from_numpy(start).requires_grad_()
    output, _, loss = theirs()((torch.from_numpy(batches[0]) @ kernel)[None])
    ((output[0] * torch.from_numpy(slope)).sum(dim=-1).mean() + loss).backward()
    np.testing.assert_allclose(values(encoder.kernel), start - kernel.grad.numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(values(encoder.kernel), start, atol=1e-2)
