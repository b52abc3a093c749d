"""How VQ-VAEs work: the library of the book.

What most programs need is here. Importing the package also tells Keras how to load its files.
"""
__version__ = "0.1.0"

from .callbacks import resumable
from .composite import ProductQuantizer, ResidualQuantizer
from .data import load_mnist
from .model import VQVAE, build_networks
from .pixelcnn import PixelCNN
from .presets import load_pretrained
from .priors import PositionPrior, Prior
from .quantizers import Quantizer, VectorQuantizer, VectorQuantizerEMA
from .rate import EntropyConstrainedQuantizer
from .transformer import MaskGIT, TransformerPrior
from .zoo import FSQ, BinaryQuantizer, CosineQuantizer, SimVQ

__all__ = ["BinaryQuantizer", "CosineQuantizer", "EntropyConstrainedQuantizer", "FSQ", "MaskGIT", "PixelCNN", "PositionPrior",
           "Prior", "ProductQuantizer", "Quantizer", "ResidualQuantizer", "SimVQ", "TransformerPrior", "VQVAE", "VectorQuantizer",
           "VectorQuantizerEMA", "__version__", "build_networks", "load_mnist", "load_pretrained", "resumable"]
