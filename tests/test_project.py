"""The project holds together: modules and notebooks, outputs and code, settings and what repeats them."""
import base64
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from project import ROOT, chapters, pages, settings

NOTEBOOKS = sorted((ROOT / "nbs").glob("[!_]*.ipynb"))  # "_" marks a draft
SETTINGS = settings()
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def tracked():
    """The project's own text files."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:  # an unpacked archive
        made = {".git", ".venv", ".compat", "_build", "build", "dist", "vendor", "runs", "__pycache__", ".pytest_cache", ".ruff_cache"}
        paths = [path for path in ROOT.rglob("*") if not made & set(path.relative_to(ROOT).parts)]
    for path in paths:
        if path.is_file() and path.suffix not in (".npz", ".keras", ".h5", ".png"):
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made_again(tmp_path_factory):
    """A copy of the project whose modules were exported, and whose notebooks were cleaned, by nbdev."""
    copy = tmp_path_factory.mktemp("project")
    package = SETTINGS["lib_path"]
    (copy / "nbs").mkdir()
    (copy / package).mkdir()
    for path in [ROOT / "settings.ini", ROOT / package / "__init__.py", *NOTEBOOKS]:
        shutil.copy(path, copy / path.relative_to(ROOT))
    script = ("from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; "
              "nbdev_export(); nbdev_clean()")
    environment = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    subprocess.run([sys.executable, "-c", script], cwd=copy, env=environment, check=True)
    return copy


def test_modules_are_the_notebooks_export(made_again):
    package = SETTINGS["lib_path"]
    ours = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / package).glob("*.py")}
    exported = {path.name: path.read_text(encoding="utf-8") for path in (made_again / package).glob("*.py")}
    assert sorted(ours) == sorted(exported), "a module without a notebook, or the other way round"
    different = [name for name in ours if ours[name] != exported[name]]
    assert different == [], "run `make export`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(made_again, path):
    assert (made_again / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), "run `make export`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_fresh(path):
    from reproduce import stale

    assert stale([path]) == [], "its code changed after its outputs were made: run `make reproduce`"


def test_source_that_a_chapter_prints_is_that_of_the_package():
    """Which its own hash does not see."""
    owner = {name: path.stem for path in (ROOT / SETTINGS["lib_path"]).glob("[!_]*.py")
             for name in re.findall(r"^(?:def|class) (\w+)", path.read_text(encoding="utf-8"), flags=re.M)}
    found = []
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for name in re.findall(r"^print\(inspect.getsource\((\w+)\)\)", "".join(cell["source"]), flags=re.M):
                printed = "".join("".join(output.get("text", [])) for output in cell["outputs"])
                module = importlib.import_module(f"{SETTINGS['lib_path']}.{owner[name]}")
                assert inspect.getsource(getattr(module, name)).strip() in printed, f"{path.name}: {name}: run `make reproduce`"
                found.append(name)
    assert {"build_mnist", "train_vqvae"} <= set(found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_fit_to_print(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", f"{path.name}: {output}"
            assert output.get("name") != "stderr", f"{path.name}: {output}"
            text = json.dumps([output.get("text"), [value for key, value in output.get("data", {}).items() if key.startswith("text/")]])
            assert not re.search(r"\b0x[0-9a-f]{6,}\b|\d+/\d+ [━=]", text), f"an address or a progress bar: {text}"


def test_contents_and_notebooks_agree():
    listed = pages()
    assert len(listed) == len(set(listed))
    sources = {page: [ROOT / f"{page}{end}" for end in (".ipynb", ".md") if (ROOT / f"{page}{end}").exists()] for page in listed}
    assert [page for page, found in sources.items() if len(found) != 1] == [], "pages of _toc.yml without a source"
    assert sorted(f"nbs/{path.stem}" for path in NOTEBOOKS) == sorted(page for page in listed if page.startswith("nbs/"))


def test_config_agrees_with_settings():
    assert CONFIG["title"] == CONFIG["sphinx"]["config"]["html_title"] == SETTINGS["title"]
    assert CONFIG["author"] == SETTINGS["author"]
    assert f"{CONFIG['copyright']}, {CONFIG['author']}" == SETTINGS["copyright"]
    assert CONFIG["repository"] == {"url": SETTINGS["git_url"], "branch": SETTINGS["branch"], "path_to_book": ""}
    assert CONFIG["html"]["baseurl"] == SETTINGS["doc_host"] + SETTINGS["doc_baseurl"]


def test_name_and_version_agree():
    import vqvae_tutorial

    assert vqvae_tutorial.__version__ == SETTINGS["version"]
    assert f'name = "{SETTINGS["lib_name"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"## {SETTINGS['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_repository_address_is_the_same_everywhere():
    ours = f"{SETTINGS['user']}/{SETTINGS['repo']}"
    assert SETTINGS["git_url"] == f"https://github.com/{ours}"
    found = 0
    for path, text in tracked():
        for owner in re.findall(rf"(?:github\.com/|colab\.research\.google\.com/github/)([\w.-]+)/{SETTINGS['repo']}\b", text):
            assert owner == SETTINGS["user"], path
            found += 1
    assert found > 1


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_colab_link_opens_this_chapter(path):
    links = re.findall(r"https://colab\.research\.google\.com/github/[^\s)\"\\]+", path.read_text(encoding="utf-8"))
    own = f"https://colab.research.google.com/github/{SETTINGS['user']}/{SETTINGS['repo']}/blob/{SETTINGS['branch']}/nbs/"
    assert all(link.startswith(own) and (ROOT / "nbs" / link.removeprefix(own)).exists() for link in links), links
    if path.stem != "index":
        assert own + path.name in links


def test_no_file_names_a_folder_of_somebodys_machine():
    local = re.compile(r"(?<![\w.\-~])(?:/(?:home|root|Users|work|tmp|mnt)/\w|[A-Z]:\\\\?Users)")
    named = {str(path): match[0] for path, text in tracked() if (match := local.search(text))}
    assert named == {}


def test_package_imports_quickly_and_says_what_it_has():
    script = ("import sys, time, keras; before, start = set(sys.modules), time.process_time(); import vqvae_tutorial as v; "
              "print(time.process_time() - start); assert 'matplotlib' not in set(sys.modules) - before; "
              "assert set(v.__all__) <= set(dir(v)) and all(getattr(v, name).__doc__ for name in v.__all__)")
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 0.3  # some 0.05 s where the machine is idle; Keras itself takes seconds


# The tools themselves


def notebook(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def test_hash_follows_the_code_that_runs():
    from reproduce import outputs_hash

    before = outputs_hash(notebook("#| export\nx = 1", "#| eval: false\ny"))
    assert outputs_hash(notebook("#| export\nx = 2", "#| eval: false\ny")) != before
    assert outputs_hash(notebook('#| fig-alt: "a one"\nx = 1')) == before
    with_prose = notebook("x = 1")
    with_prose.cells.insert(0, nbformat.v4.new_markdown_cell("New prose."))
    assert outputs_hash(with_prose) == before


@pytest.mark.parametrize("other, same", [
    ("def f(a,\n      b):\n    return a + b  # the sum", True),
    ('def f(a, b):\n    """Adds."""\n    return (a + b)', True),
    ("def f(a, b):\n    return a - b", False),
    ("def f(a, b=0):\n    return a + b", False),
    ("def f(a, b):\n    'not alone'\n    'a docstring'\n    return a + b", False),
])
def test_hash_does_not_see_line_breaks_comments_or_docstrings(other, same):
    from reproduce import outputs_hash

    assert (outputs_hash(notebook(other)) == outputs_hash(notebook("def f(a, b):\n    return a + b"))) == same


def test_hash_of_a_cell_with_magics_follows_its_text():
    from reproduce import outputs_hash

    assert outputs_hash(notebook("%time x")) != outputs_hash(notebook("%time y"))


def test_a_full_run_refuses_a_sample_of_the_digits():
    from vqvae_tutorial.data import SAMPLE

    command = [sys.executable, str(ROOT / "book" / "reproduce.py"), str(chapters()[0])]
    stopped = subprocess.run(command, env={**os.environ, "VQVAE_TUTORIAL_MNIST": str(SAMPLE)}, capture_output=True, text=True)
    assert stopped.returncode == 1 and "This needs 60,000 training digits, and there are 7,000" in stopped.stderr


def test_reproducing_twice_gives_the_same_bytes_and_a_failure_changes_nothing(tmp_path, monkeypatch):
    import reproduce

    monkeypatch.setattr(reproduce, "RUNS", tmp_path)
    monkeypatch.setattr(reproduce, "STATE", tmp_path / "state.json")
    monkeypatch.setattr(reproduce, "export", lambda: None)
    path = tmp_path / "tiny.ipynb"
    nbformat.write(notebook("import sys, ipywidgets as w", "print('out'); print('noise', file=sys.stderr)",
                            "a, b = w.IntSlider(), w.IntText()\nw.jslink((a, 'value'), (b, 'value'))\nw.VBox([a, b])",
                            "#| eval: false\n1 / 0"), path)
    assert reproduce.stale([path]) == [path]
    reproduce.reproduce([path])
    once = path.read_bytes()
    made = nbformat.reads(once.decode(), as_version=4)
    assert reproduce.stale([path]) == []
    assert [[output.get("name", output.output_type) for output in cell.outputs] for cell in made.cells] == [
        [], ["stdout"], ["execute_result"], []]
    assert b"LinkModel" in once
    facts = made.metadata["vqvae_tutorial"]
    assert set(facts["versions"]) == {"python", *reproduce.MADE_WITH} and facts["minutes"] == 1 and facts["cores"] >= 1
    reproduce.reproduce([path])
    assert path.read_bytes() == once

    path.write_text(once.decode().replace("print('out')", "raise SystemError('stop')"), encoding="utf-8")
    broken = path.read_bytes()
    with pytest.raises(Exception, match="SystemError"):
        reproduce.reproduce([path])
    assert path.read_bytes() == broken and reproduce.stale([path]) == [path]


def test_no_time_is_kept_where_an_earlier_run_did_a_part(tmp_path, monkeypatch):
    import reproduce

    for name, value in {"RUNS": tmp_path, "export": lambda: None, "execute": lambda notebook, progress: notebook}.items():
        monkeypatch.setattr(reproduce, name, value)
    nbformat.write(notebook("1"), tmp_path / "one.ipynb")
    (tmp_path / "a-training").mkdir()
    reproduce.reproduce([tmp_path / "one.ipynb"])
    facts = reproduce.read(tmp_path / "one.ipynb")["metadata"]["vqvae_tutorial"]
    assert "minutes" not in facts and facts["versions"]["keras"]


def test_outputs_without_a_figure_of_the_page_of_results_are_not_kept(tmp_path, monkeypatch):
    import reproduce

    for name, value in {"RUNS": tmp_path, "export": lambda: None, "FIGURES": {"one": {"the answer": r"^answer (\d+)$"}}}.items():
        monkeypatch.setattr(reproduce, name, value)
    path = tmp_path / "one.ipynb"
    nbformat.write(notebook("print('no answer')"), path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="one.ipynb no longer prints the answer"):
        reproduce.reproduce([path])
    assert path.read_bytes() == before
    nbformat.write(notebook("print('answer 42')"), path)
    reproduce.reproduce([path])
    assert reproduce.stale([path]) == []


def test_a_stopped_pass_goes_on_where_it_was(tmp_path, monkeypatch):
    import reproduce

    ran = []

    def execute(notebook, progress):
        source = "".join(notebook["cells"][0]["source"])
        ran.append(source)
        if source == "two" and len(ran) == 2:
            raise KeyboardInterrupt
        return notebook

    for name, value in {"RUNS": tmp_path, "STATE": tmp_path / "state.json", "export": lambda: None, "execute": execute}.items():
        monkeypatch.setattr(reproduce, name, value)
    paths = [tmp_path / f"{name}.ipynb" for name in ("one", "two", "three")]
    for path in paths:
        nbformat.write(notebook(path.stem), path)
    with pytest.raises(KeyboardInterrupt):
        reproduce.reproduce(paths)
    reproduce.reproduce(paths)
    assert ran == ["one", "two", "two", "three"]
    reproduce.reproduce(paths)
    assert ran[4:] == ["one", "two", "three"], "a finished pass leaves nothing behind"


def test_reader_turns_directives_into_tags():
    from nbdev_directives import read

    cells = read(nbformat.writes(notebook("#| default_exp data", "#| hide\n1", "#| export\ndef f(): ...", "#| echo: false\n2",
                                          '#| code-fold: true\n#| fig-alt: "Ten: all \\"new\\""\nplot()'))).cells
    assert [cell.metadata.tags for cell in cells] == [["remove-cell"], ["remove-cell"], [], ["remove-input"], ["hide-input"]]
    assert [cell.source for cell in cells] == ["", "1", "def f(): ...", "2", "plot()"]
    assert cells[4].metadata.mystnb["image"]["alt"] == 'Ten: all "new"'
    with pytest.raises(ValueError, match="expected a sentence in double quotes"):
        read(nbformat.writes(notebook("#| fig-alt: a: b: c\nplot()")))


def test_widgets_lose_no_dot_and_say_what_they_show():
    from nbdev_directives import read
    from PIL import Image, ImageChops

    for path in chapters():
        before, after = (nbformat.reads(path.read_text(encoding="utf-8"), as_version=4), read(path.read_text(encoding="utf-8")))
        states = [made.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
                  for made in (before, after)]
        for name in [name for name, model in states[0].items() if model["model_name"] == "ImageModel"][::4]:
            old, new = (base64.b64decode(state[name]["buffers"][0]["data"]) for state in states)
            pictures = [Image.open(io.BytesIO(data)).convert("RGBA") for data in (old, new)]
            seen = [Image.alpha_composite(Image.new("RGBA", picture.size, "#123456"), picture) for picture in pictures]
            assert ImageChops.difference(*seen).getbbox() is None and len(new) < len(old)
            assert states[1][name]["state"]["format"] == "webp" and len(states[1][name]["state"]["tooltip"]) > 30


@pytest.mark.parametrize("path", ["book/vendor.json", "tests/axe.json"])
def test_scripts_are_pinned_by_hash(path):
    pins = json.loads((ROOT / path).read_text(encoding="utf-8"))
    assert all(pin["integrity"].startswith("sha512-") and re.fullmatch(r"\d+\.\d+\.\d+", pin["version"]) for pin in pins)


def test_a_site_without_its_scripts_asks_nobody(tmp_path, monkeypatch, capsys):
    import vendor

    monkeypatch.setattr(vendor, "HERE", tmp_path)
    monkeypatch.setattr(vendor, "VENDOR", tmp_path / "vendor")
    monkeypatch.setattr(vendor, "STAMP", tmp_path / "vendor" / ".complete")
    monkeypatch.setattr(vendor, "npm", lambda: [sys.executable, "-c", "import sys; sys.exit('no network')"])
    assert vendor.vendor() is False
    assert "could not be fetched (no network)" in capsys.readouterr().err
    wanted = [target for pin in json.loads(vendor.PINS.read_text()) for target in pin["files"].values()]
    assert all((tmp_path / "vendor" / target).read_bytes() == b"" for target in wanted)
    assert not vendor.STAMP.exists(), "the next build tries again"


def test_a_package_with_another_hash_is_refused(tmp_path, monkeypatch):
    import vendor

    pack = "import pathlib; pathlib.Path('other.tgz').write_bytes(b'not what was pinned')"
    pin = {"package": "other", "version": "1.0.0", "integrity": vendor.integrity(b"pinned"), "files": {"a.js": "a.js"}}
    with pytest.raises(ValueError, match="other@1.0.0 has the hash sha512-.* expects sha512-"):
        vendor.fetch([sys.executable, "-c", pack], pin, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_long_files_go_out_in_parts_and_a_page_stays_whole(request):
    """As `pytest -n` hands them out: a page is loaded once, and no file but those named is divided."""
    from conftest import PARTS, part_of

    ids = [item.nodeid for item in request.session.items]
    ids += [f"tests/test_site.py::test_{what}[{page}{view}]" for page in ("nbs/01_vector_quantization", "genindex", "nbs/13_speech")
            for what, view in (("page_is_whole", "-light"), ("page_is_whole", "-dark"), ("widgets_move", "-file"), ("page_is_light", ""))]
    parts = {}
    for each in ids:
        file, _, test = each.partition("::")
        parts.setdefault(file, {}).setdefault(part_of(each), set()).add(test)
    assert all(len(found) == 1 for file, found in parts.items() if Path(file).stem not in PARTS)
    site = parts["tests/test_site.py"].values()
    assert len(site) > 1
    for page in ("nbs/01_vector_quantization", "genindex", "nbs/13_speech"):
        assert sum(any(f"[{page}" in test for test in part) for part in site) == 1


def test_one_browser_serves_all_tests():
    """A second one in the same process does not start; so it is asked for by the fixture `browser`."""
    tests = (ROOT / "tests").rglob("*.py")
    assert [path.name for path in tests if re.search(r"sync_playwright\(", path.read_text(encoding="utf-8"))] == ["conftest.py"]


needs_sh = pytest.mark.skipif(os.name == "nt", reason="make and sh are not on Windows")


@needs_sh
def test_make_help_lists_every_target():
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)[1].split())
    if not shutil.which("make"):
        pytest.skip("no make on this machine")
    told = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make ([\w-]+)", told, flags=re.M)) == targets - {"help", "moved"}


@needs_sh
@pytest.mark.parametrize("case", ["missing", "too old", "too new", "without venv"])
def test_setup_says_what_to_install(tmp_path, case):
    for name in ("settings.ini", "book/setup.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    bounds = {"too old": ("min_python", "3.99"), "too new": ("max_python", "3.1")}
    if case in bounds:
        key, value = bounds[case]
        text = (tmp_path / "settings.ini").read_text(encoding="utf-8")
        (tmp_path / "settings.ini").write_text(re.sub(rf"{key} = .*", f"{key} = {value}", text), encoding="utf-8")
    if case == "too new":
        text = (tmp_path / "settings.ini").read_text(encoding="utf-8")
        (tmp_path / "settings.ini").write_text(re.sub("min_python = .*", "min_python = 3.0", text), encoding="utf-8")
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    if case == "without venv":
        (hiding / "ensurepip.py").write_text("raise ImportError('hidden', name='ensurepip')\n")
    python = "no-such-python" if case == "missing" else sys.executable
    ran = subprocess.run(["sh", "book/setup.sh", python], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(hiding)},
                         capture_output=True, text=True)
    said = {"missing": "was not found", "too old": "is too old", "too new": "is newer than", "without venv": "lacks the module ensurepip"}
    assert ran.returncode == 1 and said[case] in ran.stderr and "Install it (" in ran.stderr, ran.stderr
    assert not (tmp_path / ".venv").exists()
