"""The book's reader of notebooks, a Sphinx extension: nbdev's `#|` lines say how a cell is shown, and are not shown.

The notebooks stay as they are, for Colab and GitHub; only what Sphinx reads of them is changed.
"""
import re

import nbformat
import yaml
from pictures import prepare
from project import split_directives

TAGS = {
    "default_exp": "remove-cell",
    "hide": "remove-cell",
    "echo: false": "remove-input",
    "output: false": "remove-output",
    "code-fold: true": "hide-input",
    "eval: false": "skip-execution",
}
HEADING = re.compile(r"^## (.+?) *$", re.M)
ANSWER = {"code_prompt_show": "Show the answer", "code_prompt_hide": "Hide the answer"}
WIDGETS = "application/vnd.jupyter.widget-state+json"


def read(text):
    """A notebook as the book shows it: directives become cell tags and the alternative text of pictures."""
    notebook, section = nbformat.reads(text, as_version=4), ""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            section = [section, *HEADING.findall(cell.source)][-1]
            continue
        directives, cell.source = split_directives(cell.source)
        tags = cell.metadata.setdefault("tags", [])
        if is_answer(directives, section):
            tags.append("hide-cell")
            cell.metadata.setdefault("mystnb", {}).update(ANSWER)
        else:
            tags += [tag for directive in directives for name, tag in TAGS.items() if re.match(rf"{name}\b", directive)]
        for directive in directives:
            if directive.startswith("fig-alt:"):
                cell.metadata.setdefault("mystnb", {})["image"] = {"alt": alternative(directive)}
    prepare(notebook)
    for model in notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {}).values():
        if "description" not in model["state"]:
            model["state"].pop("tooltip", None)  # the widgets' script fails on a tooltip where there is no description
    return notebook


def is_answer(directives, section):
    """Whether a cell answers an exercise: code and output are then folded together, until the reader asks for them."""
    return "solution" in directives or section == "Exercises" and "code-fold: true" in directives


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


def setup(app):
    return {"parallel_read_safe": True, "parallel_write_safe": True}
