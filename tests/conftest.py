"""What several test files share: the project's scripts, the built site, and a browser where there is one."""
import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers are as many as the cores, so each needs one thread
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
PARTS = {"test_site": 6, "test_contract_quantizers": 4, "test_contract_priors": 3, "test_abuse": 2}
FIRST = ("test_site", "test_abuse", "test_export", "test_readme", "test_scaling", "test_presets")  # long, with few tests or much waiting


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="every page at three widths in both themes, all combinations, and what is slow")
    parser.addoption("--combinations", action="store_true", help="all combinations, but not what is slow")


def ranks(values):
    """The number of each value, in the order in which they first come."""
    known = {}
    return tuple(known.setdefault(repr(value), len(known)) for value in values)


def diagonal(items):
    """Those of the tests that try each value of each parameter, the values of one with the others' in turn, but not each with each."""
    groups = {}
    for item in items:
        if item.get_closest_marker("combinations") and hasattr(item, "callspec"):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = set(items).difference(*groups.values())
    for group in groups.values():
        columns = {ranks(item.callspec.params[name] for item in group) for name in group[0].callspec.params}
        first, *others = sorted(columns, key=lambda column: (-max(column), column))
        seen = set()
        for wanted in (True, False):  # the diagonal, then what it has left out
            for at, item in enumerate(group):
                turn, fits = 1, True
                for column in others:
                    fits &= column[at] == (first[at] + (first[at] // turn if turn > 1 else 0)) % (1 + max(column))
                    turn *= 1 + max(column)
                values = {(column, column[at]) for column in columns}
                if fits if wanted else not values <= seen:
                    kept.add(item)
                    seen |= values
    return kept


@pytest.hookimpl(trylast=True)  # after what -k and the like leave out
def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.stem not in FIRST)  # so that at the end no worker is alone with them
    if config.getoption("--all"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: by `make test-all`"))
    kept = set(items) if config.getoption("--combinations") else diagonal(items)
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def part_of(nodeid):
    """Which tests stay together: those of a file, so that its fixtures are made once, or of a part of the longest files; all of a page."""
    file, _, test = nodeid.partition("::")
    what = re.sub(r".*\[|(-light|-dark|-server|-file)?\]$", "", test)
    return f"{file} {zlib.crc32(what.encode()) % PARTS.get(Path(file).stem, 1)}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Gives `--dist loadfile` the parts. (The marks of `loadgroup` are lost under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByPart(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return part_of(nodeid)

    return ByPart(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def site():
    """The folder of the built site; it is built first where it is not up to date, once, and apart: it may want a browser of its own."""
    import build
    from filelock import FileLock

    name = hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    with FileLock(Path(tempfile.gettempdir()) / f"vqvae-tutorial-{name}.lock"):
        subprocess.run([sys.executable, ROOT / "book" / "build.py"], check=True)
    return build.SITE


@pytest.fixture(scope="session")
def scripts(site):
    """Whether the site has its scripts for formulas and widgets; skips where they could not be fetched."""
    from vendor import STAMP

    if not STAMP.exists():
        pytest.skip("the scripts for formulas and widgets could not be fetched (no network)")


@pytest.fixture(scope="session")
def address(site):
    """The address of the built site, served on this machine under the path that it has on its host."""
    import build

    with build.server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{build.BASE}".rstrip("/")
        server.shutdown()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def web():
    """A server on this machine: `files` by name. What `bad` names, or every file, goes out as `mode` says: whole, missing, cut, stall."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name, ours = self.path.rpartition("/")[2], self.server
            ours.requests.append(name)
            content, mode = ours.files[name], ours.mode if ours.bad in (None, name) else "whole"
            if mode == "missing":
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if mode == "whole" else content[: len(content) // 2])
            if mode == "stall":
                ours.release.wait(60)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as running:
        running.files, running.requests, running.mode, running.bad = {}, [], "whole", None
        running.release, running.address = threading.Event(), f"http://127.0.0.1:{running.server_address[1]}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.release.set()
        running.shutdown()


@pytest.fixture(scope="session")
def browser():
    """A Chromium of this machine; skips where there is none."""
    import pdf

    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = pdf.chromium()
    if path is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(pdf.CHROMIUMS[:4])}; CHROMIUM=… names one)")
    with playwright.sync_playwright() as control:
        chromium = control.chromium.launch(executable_path=path, headless=True, args=pdf.FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core, which finds what keeps some readers out; fetched once, and no part of the site."""
    from vendor import FAILURES, fetch, npm, reason

    folder = ROOT / "tests" / "vendor"
    [pin] = json.loads((ROOT / "tests" / "axe.json").read_text(encoding="utf-8"))
    [script] = [folder / target for target in pin["files"].values()]
    if not script.exists():
        try:
            fetch(npm(), pin, folder)
        except FAILURES as error:
            pytest.skip(f"axe-core could not be fetched ({reason(error)})")
    return script.read_text(encoding="utf-8")
