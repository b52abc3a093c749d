"""Links from the chapters to the reference, a Sphinx extension: made when the book is built, so that notebooks stay plain Markdown.

In each chapter the first use of a term leads to the glossary; in each section the first mention of an exported name leads to
the library; and every citation, docstrings included, leads to the bibliography.
"""
import re
from collections import defaultdict
from functools import lru_cache

from docutils import nodes
from project import ROOT, cells, chapters
from pybtex.database import parse_file
from reference import exports, home, modules
from sphinx import addnodes
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

GLOSSARY, BIBLIOGRAPHY = ROOT / "book" / "glossary.md", ROOT / "book" / "references.bib"
IMPORT = re.compile(r"^from vqvae_tutorial(?:\.(\w+))? import (?:\(([^)]*)\)|(.+))$", re.M)
NAME = re.compile(r"(vqvae_tutorial\.)?(?:((?<=\.)[a-z]+)\.)?([A-Za-z_]\w*)((?:\.\w+)?)(?:\(.*\))?")
QUIET = (nodes.title, nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.reference, nodes.raw, nodes.comment,
         addnodes.pending_xref, addnodes.desc_signature)
log = logging.getLogger(__name__)


# What there is to link to


@lru_cache
def terms():
    """The glossary's term for each form of it in lower case; None for what looks like a term and is none.

    In the glossary `.. also:` before a term names its other forms, and `.. not:` phrases in which it means something else.
    """
    found, also, never = {}, [], []
    for line in GLOSSARY.read_text(encoding="utf-8").partition("```{glossary}\n")[2].partition("\n```")[0].splitlines():
        mark, _, forms = line.partition(": ")
        if mark == ".. also":
            also = forms.split(", ")
        elif mark == ".. not":
            never = forms.split(", ")
        elif line and not line.startswith(" "):
            found |= {form.lower(): line for form in [line, *also]} | {phrase.lower(): None for phrase in never}
            also, never = [], []
    return found


@lru_cache
def term_pattern():
    """A pattern that finds terms as whole words, the longest first."""
    return re.compile(rf"(?<![\w–-])(?:{any_of(terms())})(?![\w–-])", re.I)


@lru_cache
def citations():
    """A pattern that finds citations such as "He et al. (2016)", and the entries that authors and year may mean."""
    found = defaultdict(list)
    for key, entry in parse_file(BIBLIOGRAPHY).entries.items():
        names = [" ".join(person.prelast_names + person.last_names) for person in entry.persons["author"]]
        ways = {f"{', '.join(names[:count])} et al." for count in range(1, len(names))}
        ways |= {f" {link} ".join(filter(None, [", ".join(names[:-1]), names[-1]])) for link in ("and", "&")}
        for way in ways:
            found[way, entry.fields.get("year")].append((key, entry.fields.get("eprint")))
    year = r"(?:,?\s+(?P<plain>\d{4})\b|\s+\((?P<round>\d{4})\))(?:,\s+arXiv:(?P<arxiv>[\d.]*\d))?"
    return re.compile(rf"(?<!\w)(?P<authors>{any_of(way for way, _ in found)}){year}"), found


def any_of(phrases):
    """A pattern for any of the phrases, the longest first; their words may stand on two lines."""
    return "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in sorted(set(phrases), key=len, reverse=True))


def names_in(page):
    """What names in the prose of a chapter stand for, as Python would have it there.

    Beside what the chapter exports and imports, these are the package's own names and all that cannot be an everyday word.
    """
    path = ROOT / f"{page}.ipynb"
    public = [full.split(".") for full in exports() if full.count(".") == 1]
    known = {name: f"{module}.{name}" for module, name in public if re.search("[A-Z_]", name)} | home()
    for module, lines, line in IMPORT.findall("\n".join(cells(path, "code"))):
        for name, _, alias in (name.strip().partition(" as ") for name in (lines or line).split(",") if name.strip()):
            known[alias or name] = f"{module}.{name}" if module else home()[name]
    return known | {name: f"{module}.{name}" for module, name in public if modules()[module] == path}


# Where


def above(node):
    """The nodes that a node lies in, the nearest first."""
    while node := node.parent:
        yield node


def section(node):
    """The section of second level that a node lies in, or the chapter."""
    sections = [around for around in above(node) if isinstance(around, nodes.section)]
    return sections[-2] if len(sections) > 1 else sections[-1]


def quiet(node):
    """Whether nothing is linked here: headings, code, formulas, what is a link already, and a chapter's list of references."""
    return any(isinstance(around, QUIET) or isinstance(around, nodes.section) and around[0].astext() == "References"
               for around in above(node))


def aside(text):
    """Whether a text is not a chapter's running prose: its promise, which is one line in italics, the box at its head, or a table."""
    return any(isinstance(node, (nodes.block_quote, nodes.table))
               or isinstance(node, nodes.paragraph) and len(node) == 1 and isinstance(node[0], nodes.emphasis) for node in above(text))


def join_text(parent):
    """Makes one text of neighbouring ones: the parser cuts a paragraph at the ends of its lines."""
    children = []
    for child in parent.children:
        if isinstance(child, nodes.Text) and children and isinstance(children[-1], nodes.Text):
            children[-1] = nodes.Text(children[-1] + child)
        else:
            children.append(child)
    parent[:] = children


# Links


def pending(page, domain, kind, target, shown):
    """A link for Sphinx to resolve, and to complain of where it cannot."""
    return addnodes.pending_xref("", shown, refdomain=domain, reftype=kind, reftarget=target, refdoc=page, refexplicit=True,
                                 refwarn=True)


def citation(page, match):
    """The link for a citation; a warning where it may mean several entries, or none."""
    year = match["plain"] or match["round"]
    meant = [key for key, arxiv in citations()[1].get((" ".join(match["authors"].split()), year), ())
             if match["arxiv"] in (None, arxiv)]
    if len(meant) != 1:
        log.warning("%s may mean %s of references.bib", match[0], " or ".join(meant) or "nothing", location=page)
        return nodes.Text(match[0])
    return pending(page, "", "bibliography", meant[0], nodes.inline("", match[0]))


def cut(text, pattern, link):
    """A text as a list, with links in the place of what the pattern finds."""
    parts, end = [], 0
    for match in pattern.finditer(text):
        if (made := link(match)) is not None:
            parts += [nodes.Text(text[end:match.start()]), made]
            end = match.end()
    return [part for part in [*parts, nodes.Text(text[end:])] if part.astext()]


def link_prose(page, doctree, with_terms):
    seen = set()

    def term(match):
        name = terms()[" ".join(match[0].lower().split())]
        if name is None or name in seen:
            return None
        seen.add(name)
        return pending(page, "std", "term", name, nodes.inline("", match[0], classes=["term"]))

    for parent in list(doctree.findall(nodes.TextElement)):
        join_text(parent)
    for text in list(doctree.findall(nodes.Text)):
        if quiet(text):
            continue
        parts = cut(text, citations()[0], lambda match: citation(page, match))
        if with_terms and not aside(text):
            parts = [new for part in parts for new in (cut(part, term_pattern(), term) if isinstance(part, nodes.Text) else [part])]
        if len(parts) > 1 or parts and parts[0] != text:
            text.parent.replace(text, parts)


def link_names(page, doctree):
    known, seen = names_in(page), set()
    for code in list(doctree.findall(nodes.literal)):
        match = NAME.fullmatch(code.astext())
        if not match or quiet(code):
            continue
        package, module, name, method = match.groups()
        full = (f"{module}.{name}" if module else (home() if package else known).get(name, "")) + method
        place = section(code)["ids"][0], full
        if full in exports() and place not in seen:
            seen.add(place)
            code.parent.replace(code, pending(page, "py", exports()[full].role, f"vqvae_tutorial.{full}", code))


def link(app, doctree):
    page = app.env.docname
    chapter = page in {f"nbs/{path.stem}" for path in chapters()}
    if chapter:
        link_names(page, doctree)
    link_prose(page, doctree, with_terms=chapter)


def resolve(app, env, node, shown):
    """Finds the bibliography's entry for a citation."""
    if node["reftype"] == "bibliography":
        for entry in env.get_domain("cite").citations:
            if entry.key == node["reftarget"]:
                return make_refnode(app.builder, node["refdoc"], entry.bibliography_key.docname, entry.citation_id, shown)


def setup(app):
    app.connect("doctree-read", link)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
