"""What the site's scripts and the tests need to know about the project: its folder, its settings and its chapters."""
import json
import re
from configparser import ConfigParser
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r"\s*#\s*\|\s*(.*?)\s*(?:\n|$)")


def settings():
    """The project's settings, from `settings.ini`."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def pages():
    """The book's pages in reading order, as they stand in `_toc.yml`: paths from the project's folder, no ending."""
    def under(part):
        return [page for entry in part.get("chapters", part.get("sections", [])) for page in [entry["file"], *under(entry)]]

    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"]] + [page for part in toc.get("parts", [toc]) for page in under(part)]


def chapters():
    """The notebooks of the book in reading order; pages that are not notebooks, or are not written yet, are left out."""
    return [path for path in (ROOT / f"{page}.ipynb" for page in pages()) if path.exists()]


def notebook(path):
    """A notebook as it stands in its file."""
    return json.loads(path.read_text(encoding="utf-8"))


def cells(path, kind):
    """The sources of a notebook's cells of one kind, `"code"` or `"markdown"`."""
    return ["".join(cell["source"]) for cell in notebook(path)["cells"] if cell["cell_type"] == kind]


def chapter_name(path):
    """What a link to a chapter says: its number, which is in the file's name, and its title."""
    title = next(match[1] for text in cells(path, "markdown") if (match := re.search(r"^# (.+)$", text, re.M)))
    number = re.match(r"0?(\d|1\d)_", path.name)
    return f"Chapter {number[1]}: {title}" if number else title


def chapter_link(path):
    """A link to a chapter, in the Markdown of the book's other pages."""
    return f"[{chapter_name(path)}](/nbs/{path.name})"


def split_directives(source):
    """The nbdev directives at the top of a cell (without `#|`), and the code below them."""
    directives = []
    while match := DIRECTIVE.match(source):
        directives.append(match[1])
        source = source[match.end():]
    return directives, source
