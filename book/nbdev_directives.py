"""The book's reader of notebooks, a Sphinx extension: nbdev's `#|` lines say how a cell is shown, and are not shown.

The notebooks stay as they are, for Colab and GitHub; only what Sphinx reads of them is changed.
"""
import re
from collections import namedtuple

import nbformat
import yaml
from pictures import prepare
from project import chapters, split_directives

TAGS = {
    "default_exp": "remove-cell",
    "hide": "remove-cell",
    "echo: false": "remove-input",
    "output: false": "remove-output",
    "code-fold: true": "hide-input",
    "eval: false": "skip-execution",
}
WIDGETS = "application/vnd.jupyter.widget-state+json"
FIELD = type(namedtuple("Pair", "field").field)
FENCE = re.compile(r"^(\s*)```(\w*)\s*$")


def read(text):
    """A notebook as the book shows it: directives become cell tags and the alternative text of pictures."""
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        directives, cell.source = split_directives(cell.source)
        tags = cell.metadata.setdefault("tags", [])
        tags += [tag for directive in directives for name, tag in TAGS.items() if re.match(rf"{name}\b", directive)]
        for directive in directives:
            if directive.startswith("fig-alt:"):
                cell.metadata.setdefault("mystnb", {})["image"] = {"alt": alternative(directive)}
    prepare(notebook)
    for model in notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {}).values():
        if "description" not in model["state"]:
            model["state"].pop("tooltip", None)  # the widgets' script fails on a tooltip where there is no description
    return notebook


def alternative(directive):
    """The text in `fig-alt: "text"`, which says in words what a cell's pictures show."""
    try:
        text = yaml.safe_load(directive)["fig-alt"]
    except yaml.YAMLError:
        text = None
    if not isinstance(text, str):
        raise ValueError(f"got the directive `#| {directive}`; expected a sentence in double quotes on one line, as in "
                         '`#| fig-alt: "Ten digits in a row"`')
    return text


def modules():
    """The package's modules in the order of the chapters that export them."""
    found = []
    for path in chapters():
        for cell in nbformat.read(path, as_version=4).cells:
            for directive in split_directives(cell.source)[0] if cell.cell_type == "code" else []:
                name = directive.partition(" ")[2].strip()
                if directive.startswith("default_exp ") and name not in found:
                    found.append(name)
    return found


def write_api(app, page, source):
    """Fill the API page: one section for each module, in the order of the chapters."""
    if page == "book/api":
        package = app.config.nbdev_package
        source[0] += "".join(f"\n## {name}\n\n```{{eval-rst}}\n.. automodule:: {package}.{name}\n   :members:\n```\n"
                             for name in modules())


def fences(app, kind, name, item, options, lines):
    """Docstrings fence their examples as Keras does; reStructuredText wants a directive and an indent."""
    result, indent = [], None
    for line in lines:
        match = FENCE.match(line)
        if match and indent is None:
            indent = match[1]
            result += ["", f"{indent}.. code-block:: {match[2] or 'python'}", ""]
        elif match:
            indent = None
            result.append("")
        else:
            result.append(line if indent is None or not line.strip() else "   " + line)
    lines[:] = result


def skip_field(app, kind, name, item, skip, options):
    """The fields of a named tuple are told in its docstring; Python's "alias for field number 0" adds nothing."""
    return True if isinstance(item, FIELD) else None


def setup(app):
    app.add_config_value("nbdev_package", "vqvae_tutorial", "env")
    app.connect("source-read", write_api)
    app.connect("autodoc-process-docstring", fences)
    app.connect("autodoc-skip-member", skip_field)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
