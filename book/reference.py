"""The pages that are written when the book is built, a Sphinx extension: the library's, from its docstrings, and the results."""
import ast
import re
from collections import namedtuple
from functools import lru_cache

import compare
import results
from project import ROOT, cells, chapter_link, chapters, split_directives
from sphinx.util.inspect import signature as get_signature
from sphinx.util.inspect import stringify_signature

import vqvae_tutorial

PACKAGE = "vqvae_tutorial"
FIELD = type(namedtuple("Pair", "field").field)
FENCE = re.compile(r"^(\s*)```(\w*)\s*$")
CODE = re.compile(r"(?<!`)`([^`]+)`(?![`_])")
Export = namedtuple("Export", "role summary")


@lru_cache
def modules():
    """The package's modules in the order of the chapters, each with the chapter that exports it."""
    found = {}
    for path in chapters():
        for cell in cells(path, "code"):
            for directive in split_directives(cell)[0]:
                if directive.startswith("default_exp "):
                    found.setdefault(directive.split()[1], path)
    return found


@lru_cache
def exports():
    """What the package offers and documents, by module and name: classes, functions, and `Class.method`."""
    found = {}
    for module in modules():
        classes = {node.name: node for node in tree(module) if isinstance(node, ast.ClassDef)}
        for node in tree(module):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                note(found, module, node.name, node, "class" if node.name in classes else "func")
        for name in classes:
            for owner in [name, *(base.id for base in classes[name].bases if isinstance(base, ast.Name) and base.id in classes)]:
                for node in classes[owner].body:
                    if isinstance(node, ast.FunctionDef):
                        properties = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
                        note(found, module, f"{name}.{node.name}", node, "attr" if properties else "meth")
    return found


def tree(module):
    return ast.parse((ROOT / PACKAGE / f"{module}.py").read_text(encoding="utf-8")).body


def note(found, module, name, node, role):
    """Keeps a name that is public and has a docstring, and the docstring's first line."""
    if (text := ast.get_docstring(node)) and not re.search(r"(^|\.)_", name):
        found.setdefault(f"{module}.{name}", Export(role, text.splitlines()[0]))


def home():
    """The names that stand at the top of the package, and where they come from."""
    offered = {name: getattr(vqvae_tutorial, name) for name in vqvae_tutorial.__all__}
    return {name: f"{item.__module__.rpartition('.')[2]}.{name}" for name, item in offered.items() if callable(item)}


# The pages


def overview():
    """For each module the names that it exports, a line each."""
    text = ""
    for module, path in modules().items():
        rows = [f"| {{py:{role}}}`{full.split('.')[1]} <{PACKAGE}.{full}>` | {summary} |" for full, (role, summary) in exports().items()
                if full.startswith(f"{module}.") and full.count(".") == 1]
        text += f"\n## {module}\n\nTaught in {chapter_link(path)}.\n\n| name | in a line |\n| --- | --- |\n" + "\n".join(rows) + "\n"
    return text


def module_page(module):
    """All that a module documents; what a class takes from a base of this package is shown with it."""
    return f"""
Taught in {chapter_link(modules()[module])}. [The whole library](../api.md).

```{{eval-rst}}
.. automodule:: {PACKAGE}.{module}
   :members:
   :inherited-members: Layer, Model, Metric, Callback, tuple, object
```
"""


def write(app, page, source):
    """Complete the pages whose content comes from elsewhere."""
    if page == "book/api":
        source[0] += overview()
    elif page.startswith("book/api/"):
        source[0] += module_page(page.removeprefix("book/api/"))
    elif page == "book/results":
        source[0] += results.page()
    elif page == "book/how_it_compares":
        source[0] = compare.page(source[0])


# Docstrings


def code_and_fences(app, kind, name, item, options, lines):
    """Docstrings mark code as Keras and Markdown do; reStructuredText wants a directive, and two ticks for what is no name."""
    result, indent = [], None
    for line in lines:
        match = FENCE.match(line)
        if match and indent is None:
            indent = match[1]
            result += ["", f"{indent}.. code-block:: {match[2] or 'python'}", ""]
        elif match:
            indent = None
            result.append("")
        elif indent is None:
            result.append(CODE.sub(lambda code: code[0] if re.fullmatch(r"[A-Za-z_][\w.]*", code[1]) else f"`{code[0]}`", line))
        else:
            result.append("   " + line if line.strip() else line)
    lines[:] = result


def arguments(app, kind, name, item, options, signature, returned):
    """The arguments of a class. Keras makes objects by a `__new__` that takes anything, so autodoc knows none."""
    if kind == "class" and signature == "(*args, **kwargs)":
        return stringify_signature(get_signature(item.__init__, bound_method=True)), returned


def skip_field(app, kind, name, item, skip, options):
    """The fields of a named tuple are told in its docstring; Python's "alias for field number 0" adds nothing."""
    return True if isinstance(item, FIELD) else None


def setup(app):
    app.connect("source-read", write)
    app.connect("autodoc-process-docstring", code_and_fences)
    app.connect("autodoc-process-signature", arguments)
    app.connect("autodoc-skip-member", skip_field)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
