"""What the contract holds: every quantizer, prior and kind of signal. A new one joins by one line in a table here."""
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from vqvae_tutorial import (
    VQVAE,
    EntropyConstrainedQuantizer,
    PixelCNN,
    PositionPrior,
    VectorQuantizer,
    VectorQuantizerEMA,
    build_networks,
)
from vqvae_tutorial.composite import ProductQuantizer, ResidualQuantizer
from vqvae_tutorial.quantizers import CodebookQuantizer
from vqvae_tutorial.transformer import MaskGIT, TransformerPrior
from vqvae_tutorial.zoo import FSQ, BinaryQuantizer, CosineQuantizer, SimVQ

ROOT = Path(__file__).resolve().parent.parent.parent
TENSORFLOW = keras.backend.backend() == "tensorflow"
K, D = 8, 4

# Each makes a quantizer for vectors of size D, of K codes where it has a codebook (grids: as many as their levels make); it takes
# the options of any Keras layer (name, dtype, trainable).
QUANTIZERS = {
    "gradient": lambda **options: VectorQuantizer(K, seed=0, **options),
    "ema": lambda **options: VectorQuantizerEMA(K, seed=0, **options),
    "entropy": lambda **options: EntropyConstrainedQuantizer(K, seed=0, **options),
    "fsq": lambda **options: FSQ((3, 2, 2, 4), **options),
    "binary": lambda **options: BinaryQuantizer(D, **options),
    "sphere": lambda **options: BinaryQuantizer(D, sphere=True, **options),
    "cosine": lambda **options: CosineQuantizer(K, seed=0, **options),
    "simvq": lambda **options: SimVQ(K, seed=0, **options),
    "rotation": lambda **options: VectorQuantizerEMA(K, seed=0, **({"gradient": "rotation"} | options)),
    "cosine, rotation": lambda **options: CosineQuantizer(K, seed=0, **({"gradient": "rotation"} | options)),
    "residual": lambda **options: ResidualQuantizer([VectorQuantizerEMA(K, seed=level) for level in range(3)], seed=0, **options),
    "residual, rotation": lambda **options: ResidualQuantizer(
        [VectorQuantizer(K, seed=level) for level in range(3)], seed=0, **({"gradient": "rotation"} | options)),
    "product": lambda **options: ProductQuantizer([VectorQuantizerEMA(K, seed=piece) for piece in range(2)], **options),
    "product of two kinds": lambda **options: ProductQuantizer([VectorQuantizer(K, seed=0), FSQ((2, 4))], **options),
}
WITH_CODEBOOK = {name: make for name, make in QUANTIZERS.items() if isinstance(make(), CodebookQuantizer)}
LEARNING = {name: make for name, make in QUANTIZERS.items() if make().starts_from_data}  # codebooks, and what is made of them


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def bound(x, levels=(3, 2, 2, 4)):
    levels = np.array(levels)
    half, offset = 0.999 * (levels - 1) / 2, 0.5 * (levels % 2 == 0)
    return (half * np.tanh(x + np.tan(offset / half)) - offset) / (levels // 2)


def unsure(x, corner):
    """0.1 · (mean entropy of soft bits − entropy of their mean), in bits a channel."""
    def entropy(chance):
        return -chance * np.log2(chance) - (1 - chance) * np.log2(1 - chance)

    chance = 1 / (1 + np.exp(-4 * x / corner))
    return 0.1 * (np.mean(entropy(chance)) - np.mean(entropy(chance.reshape(-1, D).mean(axis=0))))


def turned(x, q, slope):
    """The gradient of the rotation trick: s Rᵀ g, by the matrix R and the ratio s of lengths."""
    a, b = unit(x), unit(q)
    m = unit(a + b)
    R = np.eye(D) - 2 * m[:, :, None] * m[:, None] + 2 * b[:, :, None] * a[:, None]
    return np.einsum("nij,ni->nj", R, slope) * np.linalg.norm(q, axis=-1, keepdims=True) / np.linalg.norm(x, axis=-1, keepdims=True)


# By NumPy, where it is not the plain thing: what is done to vectors first, losses of their own, and what the gradient becomes at the step.
BEFORE = {"fsq": bound, "sphere": unit, "cosine": unit, "cosine, rotation": unit,
          "product of two kinds": lambda x: np.concatenate([x[..., :2], bound(x[..., 2:], (2, 4))], axis=-1)}
PENALTY = {"binary": lambda x: unsure(x, 1.0), "sphere": lambda x: unsure(unit(x), D**-0.5)}
BACKWARDS = {"rotation": turned, "cosine, rotation": turned, "residual, rotation": turned}


def of(table, make, otherwise):
    """The entry for what a maker makes."""
    return table.get(next(name for name, each in QUANTIZERS.items() if each is make), otherwise)


def slopes(function, x, step=1e-5):
    """The Jacobian of a function of an array, by differences: `(*value, *x)`."""
    x = np.float64(x)
    sides = []
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        sides.append((function(up) - function(down)) / (2 * step))
    return np.stack(sides, axis=-1).reshape(*np.shape(sides[0]), *x.shape)

# Each makes a prior; those of two dimensions at most stand in FLAT, too.
PRIORS = {
    "position": lambda num_codes, shape, classes=None, **options: PositionPrior(num_codes, shape, classes, **options),
    "pixelcnn": lambda num_codes, shape, classes=None, **options: PixelCNN(
        num_codes, shape, classes, **({"filters": 4, "num_layers": 2, "dropout": 0.0} | options)),
    "transformer": lambda num_codes, shape, classes=None, **options: TransformerPrior(num_codes, shape, classes, **(SMALL | options)),
    "maskgit": lambda num_codes, shape, classes=None, **options: MaskGIT(
        num_codes, shape, classes, **(SMALL | {"steps": 2, "seed": 0} | options)),
}
SMALL = {"width": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.0}
FLAT = {"pixelcnn"}
GROUPED = {"maskgit"}  # in an order of their own, and given codes are in view from the start

SIGNALS = {"one channel": (16, 1), "stereo": (16, 2), "grey": (8, 8, 1), "colour": (8, 8, 3), "video": (4, 4, 8, 1)}

JAX = keras.backend.backend() == "jax"  # where Keras loses the weights of a model when the first step of `fit` raises an error
TORCH = keras.backend.backend() == "torch"  # which knows no graph, and takes a step at a time
NEARLY = {"rtol": 1e-4, "atol": 1e-5}  # the same numbers, rounded in another order

POLICIES = ["float32", "mixed_float16", "mixed_bfloat16", "float64"]
if JAX:  # which has no float64 unless JAX_ENABLE_X64 is set
    POLICIES.remove("float64")


def numbers(tensor):
    """A copy as a NumPy array."""
    return np.array(ops.convert_to_numpy(tensor))


def vectors(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, D)).astype("float32")


def started(make, data=None, **options):
    """A quantizer that is built, and that has started from data where it can."""
    quantizer = make(**options)
    data = vectors(200, seed=9) if data is None else data
    quantizer.build((None, data.shape[-1]))
    if quantizer.starts_from_data:
        quantizer.adapt(data)
    return quantizer


def several(quantizer):
    """The axes of codes at a place: `()` for one code, `(n,)` for n of them."""
    return tuple(quantizer.frequencies.shape[:-1])


def all_codes(quantizer, codes=None):
    """Every code once, or some codes; where a place has several, each of them is that."""
    codes = np.asarray(range(quantizer.num_codes) if codes is None else codes)
    return np.broadcast_to(codes[(..., *[None] * len(several(quantizer)))], (*codes.shape, *several(quantizer)))


def shares(codes, quantizer):
    """How often each code stands in each column, `(..., K)`."""
    columns = np.moveaxis(np.reshape(numbers(codes), (-1, *several(quantizer))), 0, -1)
    return np.mean(columns[..., None] == np.arange(quantizer.num_codes), axis=-2)


def parts_of(quantizer):
    """Those that a quantizer is made of, or itself."""
    return getattr(quantizer, "quantizers", [quantizer])


def state(layer):
    """All numbers of a layer but the frequencies of the last batch, which are no state, and where its dice stand."""
    return {variable.path.rpartition("/")[2] + f" {number}": numbers(variable) for number, variable in enumerate(layer.variables)
            if not variable.path.endswith(("/frequencies", "seed_generator_state"))}


def same(one, other, **tolerance):
    """Whether two states are equal: to the bit, unless a tolerance is given."""
    assert list(one) == list(other)
    for name in one:
        if tolerance:
            np.testing.assert_allclose(one[name], other[name], err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def moved(one, other):
    """The names of what differs."""
    return [name for name in one if not np.array_equal(one[name], other[name])]


def remembered(make):
    """A function that makes a compiled model, but each kind only once: later calls set all its numbers back."""
    made = {}

    def again(*arguments, **options):
        key = repr((arguments, sorted(options.items(), key=str)))
        if key not in made:
            keras.utils.set_random_seed(0)
            model = make(*arguments, **options)
            model.optimizer.build(model.trainable_variables)
            made[key] = model, [(variable, numbers(variable)) for variable in [*model.variables, *model.optimizer.variables]]
        model, start = made[key]
        for variable, value in start:
            variable.assign(value)
        model.reset_metrics()
        keras.utils.set_random_seed(0)
        return model

    return again


def signals(shape, count=32, seed=0):
    """Smooth random signals in [0, 1]."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(size=(count, *(max(size // 4, 1) for size in shape[:-1]), shape[-1]))
    for axis, size in enumerate(shape[:-1], start=1):
        coarse = np.repeat(coarse, size // coarse.shape[axis], axis=axis)
    return coarse.astype("float32")


def model_for(shape, make=QUANTIZERS["ema"], halvings=1, **options):
    encoder, decoder = build_networks(shape, embedding_dim=D, filters=8, residual_blocks=1, halvings=halvings)
    return VQVAE(encoder, decoder, make(), **options)


def patch_model(length=12, **options):
    """A VQ-VAE of single frames of 2 numbers, whose places do not see each other: what is padded cannot reach what is not."""
    encoder = keras.Sequential([keras.Input((length, 2)), layers.Conv1D(D, 2, 2, kernel_initializer=spread)])
    decoder = keras.Sequential([keras.Input((length // 2, D)), layers.Conv1DTranspose(2, 2, 2)])
    return VQVAE(encoder, decoder, VectorQuantizerEMA(K, seed=0), **options)


def spread(shape, dtype=None):
    return np.random.default_rng(3).normal(size=shape).astype("float32")
