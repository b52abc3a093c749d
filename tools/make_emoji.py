"""Makes the archive of emoji: Google's pictures (Noto Emoji 2.048) of Unicode 16, from the npm package `emoji-datasource-google`.

`python tools/make_emoji.py vqvae_tutorial/data/emoji.npz` makes the one that ships again, with 32 × 32 pixels;
`python tools/make_emoji.py emoji_64.npz --size 64` makes one for `load_emoji("emoji_64.npz")`.
It downloads 74 MB, or takes the package that `npm pack emoji-datasource-google@16.0.0` has saved: `--package FILE`.
"""
import argparse
import base64
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image

NAME, VERSION = "emoji-datasource-google", "16.0.0"
SHA512 = "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A=="  # as npm publishes it
REGISTRY = os.environ.get("npm_config_registry") or "https://registry.npmjs.org"
LIST, PICTURES = "package/emoji.json", "package/img/google/64/"


def fetch(registry):
    """The bytes of the package."""
    url = f"{registry.rstrip('/')}/{NAME}/-/{NAME}-{VERSION}.tgz"
    try:
        with urlopen(url, timeout=30) as answer:
            return answer.read()
    except OSError as error:
        raise SystemExit(f"{url} could not be downloaded: {error}. Try again, or give --registry or --package.") from error


def unpack(package):
    """The files of the package that are needed, by name; only of the very package that was published."""
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != SHA512:
        raise SystemExit(f"This is not {NAME} {VERSION} as published: its SHA-512 differs.")
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        return {file.name: archive.extractfile(file).read() for file in archive if file.name.startswith((LIST, PICTURES))}


def draw(png, size):
    """The pixels of a picture on white, each the mean of those it is made of."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB").resize((size, size), Image.Resampling.BOX))


def is_test(emoji):
    """Whether an emoji is kept for testing, in all skin tones: a tenth, by a hash of its code points."""
    return int(hashlib.md5(emoji["unified"].encode(), usedforsecurity=False).hexdigest(), 16) % 10 == 0


def make(files, size):
    """The archive's arrays. An emoji's number in the package's list is the `base` of all its skin tones."""
    emojis = json.loads(files[LIST])
    classes = sorted({emoji["category"] for emoji in emojis})
    made = {}
    for part, tested in (("train", False), ("test", True)):
        rows = [(files[PICTURES + variant["image"]], classes.index(emoji["category"]), number)
                for number, emoji in enumerate(emojis) if is_test(emoji) == tested
                for variant in (emoji, *emoji.get("skin_variations", {}).values()) if variant["has_img_google"]]
        pictures, labels, bases = zip(*rows)
        made[f"x_{part}"] = np.stack([draw(picture, size) for picture in pictures])
        made[f"y_{part}"], made[f"base_{part}"] = np.array(labels, "uint8"), np.array(bases, "int16")
    return made | {"classes": np.array(classes)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path, help="where to write the archive")
    parser.add_argument("--size", type=int, choices=(32, 64), default=32, help="pixels of a side (default: 32)")
    parser.add_argument("--package", type=Path, help="the package, where it need not be downloaded")
    parser.add_argument("--registry", default=REGISTRY, help=f"the npm registry to download it from (default: {REGISTRY})")
    arguments = parser.parse_args()
    path, package = arguments.path, arguments.package
    if path.is_dir() or not path.absolute().parent.is_dir():  # before the download
        parser.error(f"{path} must be a file in a folder that exists")
    if package and not package.is_file():
        parser.error(f"there is no package at {package}")
    made = make(unpack(package.read_bytes() if package else fetch(arguments.registry)), arguments.size)
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        np.savez_compressed(file, **made)  # the same bytes on every run
    os.replace(part, path)
    print(f"{path}: {len(made['x_train']):,} + {len(made['x_test'])} pictures, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
