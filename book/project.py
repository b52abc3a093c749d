"""What the site's scripts and the tests need to know about the project: its folder, its settings and its chapters."""
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
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in toc.get("parts", [toc]) for chapter in part.get("chapters", [])]
    return [toc["root"]] + [chapter["file"] for chapter in chapters]


def chapters():
    """The notebooks of the book in reading order; pages that are not notebooks, or are not written yet, are left out."""
    return [path for path in (ROOT / f"{page}.ipynb" for page in pages()) if path.exists()]


def split_directives(source):
    """The nbdev directives at the top of a cell (without `#|`), and the code below them."""
    directives = []
    while match := DIRECTIVE.match(source):
        directives.append(match[1])
        source = source[match.end():]
    return directives, source
