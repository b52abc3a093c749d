"""The wheel: small, complete, and enough for the README's example in an empty folder, with no development tool."""
import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest
from project import ROOT, settings

SETTINGS = settings()
PACKAGE = SETTINGS["lib_path"]
TOOLS = ["nbdev", "fastcore", "execnb", "jupyter_book", "sphinx", "nbclient", "sklearn", "scipy", "pytest", "playwright", "yaml"]
LIMIT = 12_000_000

RUNNER = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {tools!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Forbidden())
sys.path.insert(0, {target!r})
exec(compile({code!r}, "README.md", "exec"), {{"__name__": "__main__"}})
import {package}
assert {package}.__file__.startswith({target!r}), {package}.__file__
used = {{name.partition(".")[0] for name in sys.modules}} & set({tools!r})
assert not used, used
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what goes into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / PACKAGE, source / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    built = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
                           env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning" not in built.stderr.lower(), built.stderr
    return next(out.glob("*.whl"))


def requirement(text):
    return re.match(r"[\w.-]+", text)[0].lower()


def test_wheel_is_small(wheel):
    assert wheel.stat().st_size <= LIMIT


def test_wheel_has_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    ours = {str(path.relative_to(ROOT).as_posix()) for path in (ROOT / PACKAGE).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}
    assert {name for name in names if not re.match(r"[^/]+\.dist-info/", name)} == ours
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_metadata_comes_from_settings(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    metadata = Parser().parsestr(text)
    assert metadata["Name"] == SETTINGS["lib_name"]
    assert metadata["Version"] == SETTINGS["version"]
    assert metadata["Summary"] == SETTINGS["description"]
    assert metadata["Requires-Python"] == f">={SETTINGS['min_python']}"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"Source, {SETTINGS['git_url']}" in metadata.get_all("Project-URL")
    required = metadata.get_all("Requires-Dist")
    assert sorted(requirement(text) for text in required if "extra ==" not in text) == sorted(
        requirement(text) for text in SETTINGS["requirements"].split())
    assert {"nbdev", "jupyter-book"} <= {requirement(text) for text in required if 'extra == "dev"' in text}


def test_modules_import_only_what_the_wheel_requires():
    allowed = {requirement(text).replace("-", "_") for text in SETTINGS["requirements"].split()}
    allowed |= set(sys.stdlib_module_names) | {PACKAGE, "IPython", "cycler"}  # ipywidgets brings IPython, matplotlib cycler
    for path in (ROOT / PACKAGE).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
            assert {name.partition(".")[0] for name in names} <= allowed, f"{path.name}: {names}"


def test_readme_example_runs_from_the_wheel_alone(wheel, tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)[1]
    assert f"from {PACKAGE} import" in code
    target, empty = tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check",
                    "--target", str(target), str(wheel)], check=True)
    script = RUNNER.format(tools=TOOLS, target=str(target), code=code, package=PACKAGE)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "IN_TEST"))}
    ran = subprocess.run([sys.executable, "-I", "-c", script], cwd=empty, env=environment | {"MPLBACKEND": "Agg"},
                         capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert list(empty.iterdir()) == [], "the example leaves files behind"
