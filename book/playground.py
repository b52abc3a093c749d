"""The playground on the site, a Sphinx extension: its scripts and the weights that ship, served by the site itself.

The notebook keeps only the place where the playground appears; `reproduce.py` leaves the scripts out of its output.
"""
from pathlib import Path

FOLDER = "playground"
ASSETS = ("engine.js", "playground.js", "playground.css")


def write(app):
    """Write what the playground is made of beside the site's other scripts."""
    if app.builder.name != "html":
        return
    from vqvae_tutorial.playground import asset, mnist_playground

    folder = Path(app.outdir) / "_static" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in [*((name, asset(name)) for name in ASSETS), *mnist_playground().files().items()]:
        (folder / name).write_text(text, encoding="utf-8")


def add(app, page, template, context, doctree):
    """Give the scripts to the pages that show a playground."""
    if 'class="vqvae-playground"' in context.get("body", ""):
        app.add_css_file(f"{FOLDER}/playground.css")
        for name in ("engine.js", "playground.js"):
            app.add_js_file(f"{FOLDER}/{name}")


def setup(app):
    app.connect("builder-inited", write)
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
