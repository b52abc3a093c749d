"""The quantizer against others: the paper's equations in plain NumPy, and `vector-quantize-pytorch` where it is installed.

Where ours differs on purpose, a test holds it against the paper's rule and its docstring says how they differ. K-means is held
against scikit-learn, from the same start, in test_quantization.py.
"""
import keras
import numpy as np
import pytest
from keras import ops

from vqvae_tutorial.composite import ResidualQuantizer
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


def test_more_codes_than_can_be_counted_are_refused():
    with pytest.raises(ValueError, match="`num_bits` must be at most 24. Received: 25"):
        BinaryQuantizer(25)
    with pytest.raises(ValueError, match="`levels`"):
        FSQ([2] * 25)


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
def package():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow and PyTorch in one process may crash it; `make test-backends` runs this on JAX and PyTorch")
    reason = "vector-quantize-pytorch and PyTorch are not installed; `make test-backends` installs them"
    pytest.importorskip("torch", reason=reason)
    return pytest.importorskip("vector_quantize_pytorch", reason=reason)


def put(layer, codebook):
    """Puts their layer's codebook, and its running means, where ours are."""
    import torch

    start = torch.from_numpy(codebook)[None]
    layer._codebook.embed.data.copy_(start)
    layer._codebook.cluster_size.data.fill_(N / K)
    layer._codebook.embed_avg.data.copy_(start * (N / K))
    return layer.train()


@pytest.fixture
def theirs(package, codebook):
    """Their layer at the same codebook, with our settings: no rotation trick, which theirs has by default; no Laplace smoothing."""
    def make(eps=0.0):
        return put(package.VectorQuantize(D, K, decay=DECAY, eps=eps, commitment_weight=0.25, rotation_trick=False), codebook)

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


def their_step(layer, x, sent):
    """Codes, output, own loss, and what a step takes off an identity before the layer: as `gradient_of_encoder` for ours."""
    import torch

    kernel = torch.eye(x.shape[-1], requires_grad=True)
    output, codes, loss = layer((torch.from_numpy(x) @ kernel)[None])
    ((output[0] * torch.from_numpy(sent)).sum(dim=-1).mean() + loss.sum()).backward()
    return codes[0].numpy(), output[0].detach().numpy(), float(loss.detach().sum()), kernel.grad.numpy()


def same(ours, theirs, x, sent):
    """Codes, output, loss and gradient of the encoder agree."""
    codes, output, loss, gradient = their_step(theirs, x, sent)
    np.testing.assert_array_equal(values(ours.encode(x)), codes)
    np.testing.assert_allclose(values(ours(x)), output, atol=1e-5)
    np.testing.assert_allclose(values(sum(ours.losses)), loss, rtol=1e-5)
    np.testing.assert_allclose(gradient_of_encoder(ours, x, sent), gradient, atol=1e-5)
    assert np.abs(gradient).max() > 0.01


@pytest.mark.parametrize("levels", [(8, 5, 4), (3, 7, 5)], ids=str)
def test_fsq_as_vector_quantize_pytorch(package, levels):
    """Theirs bounds by (1 + ε) (L − 1) / 2, so that the outer levels are a little wider, and shifts by the inverse of tanh, where the
    paper has (1 − ε) and the tangent. Given inputs at which both curves round alike, codes and outputs are equal, and gradients are but
    for the factor (1 − ε) / (1 + ε). Two levels are refused there."""
    import torch

    L, layer, ours = np.array(levels), package.FSQ(list(levels)), FSQ(levels)
    x = np.random.default_rng(0).normal(size=(200, len(levels))).astype("float32")
    offset, inner, outer = np.where(L % 2, 0, 0.5), 0.999 * (L - 1) / 2, 1.001 * (L - 1) / 2
    theirs = (x + np.tan(offset / inner) - np.arctanh(offset / outer)).astype("float32")  # so that both see the same tanh
    curve = np.tanh(x + np.tan(offset / inner))
    alike = np.all(np.round(curve * inner - offset) == np.round(curve * outer - offset), axis=-1)
    assert alike.mean() > 0.95
    x, theirs = x[alike], theirs[alike]
    given = torch.from_numpy(theirs).requires_grad_()
    output, codes = layer(given[None])
    np.testing.assert_array_equal(values(ours.encode(x)), codes[0])
    np.testing.assert_allclose(values(ours(x)), output[0].detach(), atol=1e-6)
    sent = np.random.default_rng(1).normal(size=x.shape).astype("float32")
    (output[0] * torch.from_numpy(sent)).sum(dim=-1).mean().backward()
    found = gradient_of_encoder(ours, x, sent)
    np.testing.assert_allclose(found, x.T @ given.grad.numpy() * (0.999 / 1.001), atol=1e-5)
    everything = np.arange(ours.num_codes)
    np.testing.assert_allclose(values(ours.decode(everything)), layer.indices_to_codes(torch.from_numpy(everything)), atol=1e-6)


@pytest.mark.parametrize("sphere", [False, True], ids=["LFQ", "BSQ"])
def test_signs_as_vector_quantize_pytorch(package, sphere):
    """Their first channel is a code's highest bit, ours its lowest. Their entropies are of all 2^D codes, in nats; ours are in bits per
    channel, and that of the mean is summed over channels. With a single channel there is no difference."""
    import torch

    for size in (1, D):
        x, sent = np.random.default_rng(size).normal(size=(2, N, size)).astype("float32")
        tau = 0.5 * size if sphere else 0.5  # ours is measured in squared corners, 1 / D on the sphere
        layer = package.LFQ(dim=size, codebook_size=2**size, spherical=sphere, entropy_loss_weight=0.1 / np.log(2),
                            commitment_loss_weight=0.25)
        quantizer = BinaryQuantizer(size, sphere=sphere, entropy_cost=0.1, commitment_cost=0.25, temperature=tau)
        (output, codes, loss), parts = layer(torch.from_numpy(x)[None], inv_temperature=2.0, return_loss_breakdown=True)
        theirs = (codes[0].numpy()[:, None] >> np.arange(size)[::-1]) & 1
        np.testing.assert_array_equal(values(quantizer.encode(x)), np.sum(theirs << np.arange(size), axis=-1))
        np.testing.assert_allclose(values(quantizer(x)), output[0].detach(), atol=1e-5)
        np.testing.assert_allclose(values(quantizer.losses[0]), 0.25 * float(parts.commitment), rtol=1e-5, atol=1e-9)
        before = unit(np.float64(x)) if sphere else np.float64(x)
        ones = np.mean(1 / (1 + np.exp(-4 * before / (tau * (size**-0.5 if sphere else 1)))), axis=0)
        spread = np.sum(-ones * np.log2(ones) - (1 - ones) * np.log2(1 - ones))
        sure = float(parts.per_sample_entropy) / np.log(2)
        np.testing.assert_allclose(values(quantizer.losses[1]), 0.1 * (sure - spread) / size, atol=1e-4)  # they clamp at 1e-5
        if size == 1 and not sphere:
            np.testing.assert_allclose(spread, float(parts.batch_entropy) / np.log(2), rtol=1e-4)
            kernel = torch.eye(1, requires_grad=True)
            output, _, loss = layer((torch.from_numpy(x) @ kernel)[None], inv_temperature=2.0)
            ((output[0] * torch.from_numpy(sent)).sum(dim=-1).mean() + loss).backward()
            np.testing.assert_allclose(gradient_of_encoder(quantizer, x, sent), kernel.grad, atol=1e-4)
    layer = package.LFQ(dim=D, codebook_size=2**D, spherical=sphere, entropy_loss_weight=0.0, commitment_loss_weight=0.25)
    gradient = their_step(layer, x, sent)[-1]
    quantizer = BinaryQuantizer(D, sphere=sphere, entropy_cost=0.0, commitment_cost=0.25)
    np.testing.assert_allclose(gradient_of_encoder(quantizer, x, sent), gradient, atol=1e-5)


def test_cosine_as_vector_quantize_pytorch(package, batches, codebook):
    """Codes, output, commitment loss and the encoder's gradient. Their codebook learns by running means, ours by gradient; so ours has
    the codebook's term of equation 3 as well, which is no business of the encoder."""
    settings = {"use_cosine_sim": True, "commitment_weight": 0.25, "rotation_trick": False, "freeze_codebook": True}
    layer = put(package.VectorQuantize(D, K, **settings), unit(codebook))
    quantizer = CosineQuantizer(K, commitment_cost=0.25, embeddings_initializer=codebook)
    codes, output, loss, gradient = their_step(layer, batches[0], batches[1])
    np.testing.assert_array_equal(values(quantizer.encode(batches[0])), codes)
    np.testing.assert_allclose(values(quantizer(batches[0])), output, atol=1e-5)
    np.testing.assert_allclose(values(sum(quantizer.losses)), loss * 1.25 / 0.25, rtol=1e-5)
    np.testing.assert_allclose(gradient_of_encoder(quantizer, batches[0], batches[1]), gradient, atol=1e-5)


def their_simvq(package, codebook, rotation):
    import torch

    layer = package.SimVQ(D, K, rotation_trick=rotation)
    layer.frozen_codebook.copy_(torch.from_numpy(codebook))
    layer.code_transform.weight.data.copy_(torch.eye(D))
    return layer


@pytest.mark.parametrize("rotation", [False, True], ids=["copied", "turned"])
def test_simvq_as_vector_quantize_pytorch(package, batches, codebook, rotation):
    """All of it, the rotation trick included, and a step of the matrix. Theirs calls 0.25 the weight of what the encoder pays."""
    import torch

    layer = their_simvq(package, codebook, rotation)
    gradient = "rotation" if rotation else "straight_through"
    fresh = lambda: SimVQ(K, commitment_cost=0.25, embeddings_initializer=codebook, gradient=gradient)
    same(fresh(), layer, batches[0], batches[1])
    quantizer, inputs = fresh(), keras.Input((D,))
    model = keras.Model(inputs, quantizer(inputs))
    model.compile(keras.optimizers.SGD(0.5))
    model.train_on_batch(batches[0])
    layer = their_simvq(package, codebook, rotation)
    layer(torch.from_numpy(batches[0])[None])[2].backward()
    expected = np.eye(D) - 0.5 * layer.code_transform.weight.grad.numpy().T
    np.testing.assert_allclose(values(quantizer.map), expected, atol=1e-5)
    assert not np.allclose(expected, np.eye(D), atol=1e-3)


def test_the_rotation_trick_as_vector_quantize_pytorch(package, batches, codebook):
    """Their codebook at its default, frozen."""
    layer = put(package.VectorQuantize(D, K, commitment_weight=0.25, rotation_trick=True, freeze_codebook=True), codebook)
    same(VectorQuantizerEMA(K, gradient="rotation", embeddings_initializer=codebook), layer, batches[0], batches[1])


def test_residual_as_vector_quantize_pytorch(package, batches):
    """Codes, output, codebooks and losses over eight batches, and the encoder's gradient at three levels. Every level of theirs has a
    straight-through step of its own, and their outputs are added: the encoder gets the decoder's gradient three times. Ours gets it
    once, since the sum of the levels is what replaces the vector."""
    import torch

    books = np.random.default_rng(3).normal(size=(3, K, D)).astype("float32") * np.array([1, 0.5, 0.25], "float32")[:, None, None]
    layer = package.ResidualVQ(dim=D, num_quantizers=3, codebook_size=K, decay=DECAY, eps=0.0, commitment_weight=0.25, rotation_trick=False)
    for level, book in zip(layer.layers, books):
        put(level, book)
    quantizer = ResidualQuantizer([ours(book, LONG_AGO) for book in books])
    quantizer.build((None, D))
    for batch in batches:
        output, codes, loss = layer(torch.from_numpy(batch)[None])
        np.testing.assert_array_equal(values(quantizer.encode(batch)), codes[0])
        np.testing.assert_allclose(values(quantizer(batch, training=True)), output[0].detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose([values(each) for each in quantizer.losses], loss.detach().numpy().ravel(), rtol=1e-4)
        for level, theirs in zip(quantizer.quantizers, layer.layers):
            np.testing.assert_allclose(values(level.codebook), theirs._codebook.embed[0], rtol=1e-4, atol=1e-5)

    x, sent = batches[0], batches[1]
    without_loss = package.ResidualVQ(dim=D, num_quantizers=3, codebook_size=K, commitment_weight=0.0, rotation_trick=False)
    for level, book in zip(without_loss.layers, books):
        put(level, book)
    gradient = their_step(without_loss.train(), x, sent)[-1]
    levels = [VectorQuantizerEMA(K, commitment_cost=0.0, embeddings_initializer=book) for book in books]
    np.testing.assert_allclose(3 * gradient_of_encoder(ResidualQuantizer(levels), x, sent), gradient, rtol=1e-4, atol=1e-5)
