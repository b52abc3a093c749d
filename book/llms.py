"""Writes `llms.txt` beside the pages, a Sphinx extension: the book and the library in one plain file, for programs that write code.

The form is that of llmstxt.org: a title, a sentence, how the library is meant to be used, and links with a line about each.
"""
import re
from pathlib import Path

from project import ROOT, cells, chapter_name, chapters, settings
from reference import exports, modules


def first_snippet():
    """The README's first example, which a test runs."""
    return re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1].strip()


def subtitle(path):
    """The line in italics below a chapter's title, or its title again."""
    found = re.search(r"^\*([^*]+)\*$", cells(path, "markdown")[0], re.M)
    return " ".join(found[1].split()) if found else chapter_name(path)


def text():
    """The whole file."""
    names = settings()
    home = names["doc_host"] + names["doc_baseurl"]
    page = lambda path: f"{home}{path.relative_to(ROOT).with_suffix('.html').as_posix()}"
    lines = [f"# {names['title']}", "", f"> {names['description']}", "", f"Install: `pip install {names['lib_name']}`. First use:", "",
             "```python", first_snippet(), "```", "", "## Chapters", ""]
    lines += [f"- [{chapter_name(path)}]({page(path)}): {subtitle(path)}" for path in chapters()]
    for module, path in modules().items():
        lines += ["", f"## {names['lib_path']}.{module}", "",
                  f"Reference: {home}book/api/{module}.html. Taught in {chapter_name(path)}.", ""]
        lines += [f"- `{full.partition('.')[2]}`: {summary}" for full, (role, summary) in exports().items()
                  if full.startswith(f"{module}.") and role in ("class", "func")]
    return "\n".join(lines) + "\n"


def write(app, failure):
    if not failure:
        (Path(app.outdir) / "llms.txt").write_text(text(), encoding="utf-8")


def setup(app):
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
