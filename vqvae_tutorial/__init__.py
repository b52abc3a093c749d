"""How VQ-VAEs work: the library of the book.

The names most programs need are here; each is loaded when it is first used, so that `import vqvae_tutorial` is quick.
"""
from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "PixelCNN": "pixelcnn",
    "VQVAE": "model",
    "VectorQuantizer": "layers",
    "load_mnist": "data",
    "load_pretrained": "pixelcnn",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
