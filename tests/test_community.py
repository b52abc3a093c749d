"""What readers on other machines and contributors rely on: Colab, the files that GitHub reads, and the workflows."""
import importlib.util
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from project import ROOT, chapters, settings, split_directives

SETTINGS = settings()
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
CELLS = {path: nbformat.read(path, as_version=4).cells for path in chapters()}
each_chapter = pytest.mark.parametrize("path", CELLS, ids=lambda path: path.stem)
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def parsed(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path):
    return [step for job in parsed(path)["jobs"].values() for step in job["steps"]]


# Chapters in Colab and on GitHub

NOISE = re.compile(r"""(?mx)
      ^\s*(?:`{3,}|~{3,}|:{3,})\s*\{ | ^\s*:{3,}        # a directive
    | \{[\w:.+-]+\}`                                    # a role
    | ^\([\w-]+\)=\s*$                                  # a label
    | \{\{.*?\}\} | (?<![\w|])\|[A-Za-z][\w-]*\|        # a substitution
    | [\])]\{[.\#:]?\w | ^\{[.\#]\w                    # attributes
    | ^:\w+:\s                                          # a field
    | ^%\s                                              # a comment
""")


ORDINARY = re.compile(r"""(?msx)
      ^\s*(```+)\w*\n .*? ^\s*\1\s*$                # code
    | (?<![}`])(`+)(?!`) [^\n]*? (?<!`)\2(?!`)
    | \$\$.*?\$\$ | \$[^$\n]+\$                      # formulas
    | ^\s*\|[^\n]*\|\s*?$                             # tables
""")


def noise(prose):
    """What of Jupyter Book's own markup stands in a text."""
    return [match[0] for match in NOISE.finditer(ORDINARY.sub("", prose))]


@each_chapter
def test_prose_is_plain_markdown(path):
    assert [found for cell in CELLS[path] if cell.cell_type == "markdown" for found in noise(cell.source)] == []


@pytest.mark.parametrize("text", ["```{note}\nx\n```", ":::{tip}\nx\n:::", "see {py:class}`A`", "(here)=\n# Here", "{{ name }}",
                                  "a |name| b", "[x](y){.red}", "# A\n:class: b\n", "% hidden"])
def test_markup_of_the_book_is_recognised(text):
    assert noise(text)


def test_plain_markdown_is_not_taken_for_markup():
    assert noise("| a|b |\n|-|-|\n\n$|x|$ and $${a}$$, `{x}`, ``|a|``\n\n```python\n{1}`\n% who\n```\n\n- :-)\n\n[a](b) 5 % of it") == []


@each_chapter
def test_every_chapter_begins_by_installing_the_package_where_it_is_missing(path):
    code = [(split_directives(cell.source)) for cell in CELLS[path] if cell.cell_type == "code"]
    first = next((directives, source) for directives, source in code if source.strip())
    assert first[0] == ["hide"] and "%pip install" in first[1], first


@pytest.mark.parametrize("missing", [True, False])
def test_first_cell_installs_only_what_is_missing(missing, monkeypatch):
    from IPython.core.inputtransformer2 import TransformerManager

    cells = {cell.source for path in CELLS for cell in CELLS[path] if "%pip" in cell.source}
    assert len(cells) == 1, "every chapter has the same first cell"
    ran = []
    shell = type("Shell", (), {"run_line_magic": lambda self, *line: ran.append(line)})()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if missing else name)
    exec(TransformerManager().transform_cell(cells.pop()), {"get_ipython": lambda: shell})
    assert ran == ([("pip", f"install -q {SETTINGS['lib_name']}")] if missing else [])


@each_chapter
def test_colab_is_one_click_away(site, path):
    address = f"https://colab.research.google.com/github/{SETTINGS['user']}/{SETTINGS['repo']}/blob/{SETTINGS['branch']}/nbs/{path.name}"
    page = (site / "nbs" / f"{path.stem}.html").read_text(encoding="utf-8")
    article = page.index("<article")
    assert re.search(rf'<a [^>]*href="{re.escape(address)}"', page[:article]), "the theme's launch button"
    if path.stem != "index":
        head = [cell.source for cell in CELLS[path] if cell.cell_type == "markdown"][:2]
        assert re.search(rf"(?m)^> .*\[Open in Colab\]\({re.escape(address)}\)", "\n".join(head)), "the box at the head"
        assert f'href="{address}"' in page[article:]


def test_colab_has_what_the_package_requires():
    pinned = map(Requirement, re.findall(r"(?m)^\w.*", read("tests/constraints/colab.txt")))
    pins = {pin.name.lower(): next(iter(pin.specifier)) for pin in pinned}
    assert all(pin.operator == "==" for pin in pins.values())
    for required in map(Requirement, SETTINGS["requirements"].split()):
        assert required.specifier.contains(pins[required.name].version), required


# The run with other people's versions


def test_only_the_package_itself_may_be_new():
    from compat import changes

    before = {"numpy==2.1.3", "keras==3.13.2"}
    assert changes(before, before | {f"{SETTINGS['lib_name']} @ file:///there.whl"}) == []
    assert changes(before, {"numpy==2.4.0", "keras==3.13.2", "rich==1"}) == ["+numpy==2.4.0", "+rich==1", "-numpy==2.1.3"]


def test_a_chapter_that_installs_or_fails_is_noticed(tmp_path):
    from compat import run_chapter

    def chapter(first, then):
        path = tmp_path / "chapter.ipynb"
        cells = [nbformat.v4.new_code_cell(source) for source in (f"# %pip install\n{first}", then, "#| eval: false\n1 / 0")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return run_chapter(path, sys.executable, tmp_path)

    small = "import os, pathlib; assert os.environ['IN_TEST'] and pathlib.Path('chapter.ipynb').exists()"
    assert chapter("", small) == "2 cells ran"
    with pytest.raises(RuntimeError, match="did not leave the environment alone"):
        chapter("print('Collecting vqvae-tutorial')", small)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        chapter("", "1 / 0")


# What GitHub reads

SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "vendor.github-issue-forms": sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"),
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_file_follows_its_schema(schema):
    assert SCHEMAS[schema]
    checked = subprocess.run([sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, "--force-filetype", "yaml",
                              *map(str, SCHEMAS[schema])], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@each_workflow
def test_workflow_runs_what_exists(path):
    targets = re.search(r"(?m)^\.PHONY: (.*)$", read("Makefile"))[1].split()
    for command in (step["run"] for step in steps(path) if "run" in step):
        assert set(re.findall(r"\bmake ([\w-]+)", command)) <= set(targets), command
        files = re.findall(r"(?<![\w/.-])(?:\.ci|book|tests|benchmarks)[\\/][\w\\/.-]+", command)
        assert [name for name in files if not (ROOT / name.replace("\\", "/")).exists()] == [], command
    assert any("run" in step for step in steps(path))


@each_workflow
def test_workflow_may_do_no_more_than_it_must(path):
    """Reading is the rule; only jobs that run nothing of ours may write, and every action has a version."""
    workflow = parsed(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert "timeout-minutes" in job, name
        assert not ("permissions" in job and any("run" in step for step in job["steps"])), name
    for step in steps(path):
        assert re.search(r"@(release/)?v\d+(\.\d+)*$", step.get("uses", "@v1")), step


def test_workflows_use_the_pythons_of_the_settings():
    low, high = SETTINGS["min_python"], SETTINGS["max_python"]
    jobs = parsed(GITHUB / "workflows" / "test.yml")["jobs"]
    assert all(job["strategy"]["matrix"]["python"] == [low, high] for job in jobs.values())
    systems = {*jobs["make"]["strategy"]["matrix"]["os"], jobs["by-hand"]["runs-on"]}
    assert {name.partition("-")[0] for name in systems} == {"ubuntu", "macos", "windows"}


def test_windows_does_what_the_readme_says():
    told = re.search(r"the same by hand:\n\n```\n(.*?)```", read("README.md"), flags=re.S)[1].splitlines()
    assert [step["run"] for step in parsed(GITHUB / "workflows" / "test.yml")["jobs"]["by-hand"]["steps"] if "run" in step] == told


def test_citation_agrees_with_settings():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["title"] == SETTINGS["title"] and citation["abstract"] == SETTINGS["description"]
    assert str(citation["version"]) == SETTINGS["version"]
    assert citation["authors"] == [{"name": SETTINGS["author"]}]
    assert citation["url"] == SETTINGS["doc_host"] + SETTINGS["doc_baseurl"]
    assert citation["repository-code"] == SETTINGS["git_url"]
    assert citation["keywords"] == SETTINGS["keywords"].split()
    assert f'license = "{citation["license"]}"' in read("pyproject.toml")


def test_code_of_conduct_names_whom_to_write_to():
    assert f"<{SETTINGS['author_email']}>" in read("CODE_OF_CONDUCT.md")


def test_hooks_are_commands_of_this_project():
    hooks = {hook["id"]: hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]}
    assert set(hooks) == {"export", "ruff"}
    assert all(hook["language"] == "system" for hook in hooks.values()), "nothing else is fetched"
    assert hooks["export"]["entry"].split()[-1] in re.search(r"(?m)^\.PHONY: (.*)$", read("Makefile"))[1].split()
    for name in ("nbs/00_digits.ipynb", f"{SETTINGS['lib_path']}/data.py", "settings.ini"):
        assert re.search(hooks["export"]["files"], name), name
    clean = subprocess.run([sys.executable, "-m", *hooks["ruff"]["entry"].rpartition("/")[2].split(), str(ROOT)], cwd=ROOT,
                           capture_output=True, text=True)
    assert clean.returncode == 0, clean.stdout


def test_badges_are_about_this_project():
    badges = re.findall(r"\[!\[[^\]]+\]\(([^)]+)\)\]\(([^)]+)\)", read("README.md"))
    links = [link for _, link in badges]
    for wanted in (f"{SETTINGS['git_url']}/actions/workflows/test.yml", f"https://pypi.org/project/{SETTINGS['lib_name']}/",
                   SETTINGS["doc_host"] + SETTINGS["doc_baseurl"], "LICENSE"):
        assert wanted in links, wanted
    for image, link in badges:
        if "/actions/workflows/" in image:
            assert (GITHUB / "workflows" / image.split("/")[-2]).exists() and link == image.rpartition("/")[0]


def test_the_source_archive_builds_a_wheel(tmp_path):
    """Who installs from the archive on PyPI needs settings.ini in it, which setuptools does not add by itself."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / SETTINGS["lib_path"], source / SETTINGS["lib_path"], ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(source)],
                           capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert len(list(tmp_path.glob("*.tar.gz"))) == len(list(tmp_path.glob("*.whl"))) == 1
