"""Build the book, or serve it: `python book/build.py [--serve]`.

The site is made from the notebooks' committed outputs; nothing is executed. Every warning is an error. Where there is a
Chromium, the book is printed too, into a PDF beside the pages.
"""
import argparse
import contextlib
import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import time

from pdf import chromium, print_book
from project import ROOT, pages, settings
from reproduce import export
from vendor import vendor

SITE = ROOT / "_build" / "html"
STAMP = ROOT / "_build" / "inputs"
BASE = settings()["doc_baseurl"]


def inputs():
    """The files that the site is made of."""
    package = (ROOT / "vqvae_tutorial").glob("*.py")
    playground = (path for folder in ("static", "pretrained") for path in (ROOT / "vqvae_tutorial" / folder).glob("*.*"))
    book = (path for path in (ROOT / "book").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    notebooks = (ROOT / "nbs").glob("*.ipynb")
    tables = (path for folder in ("vqvae_tutorial", "benchmarks") for path in (ROOT / folder / "results").glob("*.csv"))
    return sorted([*package, *playground, *book, *notebooks, *tables, ROOT / "_config.yml", ROOT / "_toc.yml"])


def fingerprint():
    """One hash for the content of all inputs."""
    total = hashlib.sha256()
    for path in inputs():
        total.update(str(path.relative_to(ROOT)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def missing():
    """The pages of `_toc.yml` that the site lacks."""
    return [page for page in pages() if not (SITE / f"{page}.html").exists()]


def build():
    """Build the site where it is not built yet from just these files; raises when the build is not clean."""
    complete = vendor()
    if STAMP.exists() and STAMP.read_text() == f"{fingerprint()} {chromium()}" and not missing():
        return complete
    export()
    now = f"{fingerprint()} {chromium()}"
    shutil.rmtree(ROOT / "_build", ignore_errors=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "VQVAE_TUTORIAL_PDF": "1" if chromium() else "",  # the first page links to what will be there
    }
    start = time.monotonic()
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", ".", "-W", "--keep-going", "-q"]
    result = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            encoding="utf-8", errors="replace")
    if result.returncode or missing():
        lacks = f"\nPages of _toc.yml that were not built: {', '.join(missing())}" if missing() else ""
        raise RuntimeError(f"{result.stdout}{lacks}")
    print(f"The pages took {time.monotonic() - start:.0f} s.", flush=True)
    start = time.monotonic()
    if print_book():
        print(f"The PDF took {time.monotonic() - start:.0f} s.", flush=True)
    else:
        print("There is no Chromium here, so the book was not printed and its pages do not link to a PDF. "
              "CHROMIUM=/path/to/chromium names one.", flush=True)
    STAMP.write_text(now)
    return complete


class Pages(http.server.SimpleHTTPRequestHandler):
    """The site as its host serves it: under a path, and with a page of its own for addresses where there is none."""

    def log_message(self, *arguments):
        pass

    def translate_path(self, path):
        return super().translate_path(path.removeprefix(BASE) if path.startswith(BASE) else "/nothing here")

    def send_error(self, code, message=None, explain=None):
        if code != http.HTTPStatus.NOT_FOUND:
            return super().send_error(code, message, explain)
        text = (SITE / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def server():
    """A server of the built site on a free port of this machine, which is not started yet."""
    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Pages, directory=str(SITE)))


def main():
    parser = argparse.ArgumentParser(description="Build the book from the notebooks' committed outputs.")
    parser.add_argument("--serve", action="store_true", help="then serve it on a free local port until Ctrl-C")
    arguments = parser.parse_args()
    try:
        build()
    except RuntimeError as error:
        print(f"{error}\nThe book was not built: see the warnings above.", file=sys.stderr)
        return 1
    if not arguments.serve:
        print(f"The book is ready. Open {(SITE / 'index.html').as_uri()}")
        return 0
    with server() as site, contextlib.suppress(KeyboardInterrupt):
        print(f"The book is at http://127.0.0.1:{site.server_port}{BASE} until you press Ctrl-C.", flush=True)
        site.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
