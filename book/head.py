"""What the site tells those who link to it, a Sphinx extension: descriptions and previews of pages, and a page for lost readers."""
import os
import re
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from docutils import nodes
from PIL import Image, ImageDraw, ImageFont
from project import settings

HERE = Path(__file__).resolve().parent
PREVIEW, SIZE = "_static/preview.png", (1200, 630)
PDF = "vqvae-tutorial.pdf"
LOST = """<h1>Page not found</h1>
<p>There is no page at this address. The book begins at <a href="{first}">its first page</a>, and all of it can be
<a href="search.html">searched</a>.</p>"""
REBASE = '<base href="{root}" /><script>if (location.protocol === "file:") document.querySelector("base").remove();</script>'


def promise(doctree):
    """The first words under a page's title, which say what the page gives; the book's own description where there are none."""
    paragraph = doctree and doctree.next_node(nodes.paragraph)
    return " ".join(paragraph.astext().split()) if paragraph else settings()["description"]


def tags(app, title, description, page):
    """The lines in a page's head that search engines and previews read."""
    base = app.config.html_baseurl
    facts = {"og:type": "article", "og:site_name": app.config.html_title, "og:title": title, "og:description": description,
             "og:url": f"{base}{page}.html", "og:image": base + PREVIEW, "og:image:width": SIZE[0], "og:image:height": SIZE[1],
             "og:image:alt": "Digits written by hand, the codes of each, and digits that a network made up"}
    lines = [f'<meta property="{name}" content="{escape(str(content))}" />' for name, content in facts.items()]
    return "\n".join([f'<meta name="description" content="{escape(description)}" />', *lines,
                      '<meta name="twitter:card" content="summary_large_image" />'])


def complete(app, page, template, context, doctree):
    """Add those lines to a page; the page for lost readers is served at any address, so it says where its links start."""
    title = app.env.titles[page].astext() if page in app.env.titles else context.get("title", "")
    context["metatags"] = context.get("metatags", "") + tags(app, title, promise(doctree), page)
    if page == "404":
        context["metatags"] = REBASE.format(root=urlsplit(app.config.html_baseurl).path) + context["metatags"]


def lost(app):
    """The page that the server shows where there is none."""
    yield "404", {"title": "Page not found", "body": LOST.format(first=f"{app.config.root_doc}.html")}, "page.html"


def number(app, doctree, page):
    """Say above the title of a chapter which one it is."""
    if match := re.fullmatch(r"nbs/0?(\d|1\d)_\w+", page):
        section = doctree.next_node(nodes.section)
        section.insert(0, nodes.raw("", f'<div class="book-number">Chapter {match[1]}</div>', format="html"))


def offer(app, doctree, page):
    """Make a button of the first page's link into the book, and link to the PDF, where the builder says that there will be one."""
    if page != app.config.root_doc:
        return
    paragraph = list(doctree.findall(nodes.paragraph))[1]
    paragraph.next_node(nodes.reference)["classes"].append("book-start")
    if os.environ.get("VQVAE_TUTORIAL_PDF"):
        up = "../" * page.count("/")
        link = f'<span class="book-pdf"> You can also take <a href="{up}{PDF}">the whole book as a PDF</a>.</span>'
        paragraph.append(nodes.raw("", link, format="html"))


def preview(path, title):
    """Draw the picture that stands beside a link to the book."""
    card, font = Image.new("RGB", SIZE, "#14181f"), ImageFont.load_default(84)
    digits = Image.open(HERE / "static" / "digits.png").convert("RGBA")
    scale = min((SIZE[0] - 560) / digits.width, (SIZE[1] - 80) / digits.height)
    digits = digits.resize((round(scale * digits.width), round(scale * digits.height)), Image.Resampling.LANCZOS)
    card.paste(digits, (SIZE[0] - digits.width - 40, (SIZE[1] - digits.height) // 2), digits)
    ImageDraw.Draw(card).multiline_text((60, SIZE[1] // 2), title.replace(" ", "\n"), font=font, fill="white", anchor="lm", spacing=16)
    card.save(path, optimize=True)


def finish(app, error):
    """Write the preview, and the page at the site's own address, which only leads on to the first one but is what others link to."""
    if error or app.builder.name != "html":
        return
    out, first = Path(app.outdir), app.config.root_doc
    page = out / "404.html"  # where links do not start at the page itself, those to its own parts must name it
    page.write_text(page.read_text(encoding="utf-8").replace('href="#', 'href="404.html#'), encoding="utf-8")
    title = app.env.titles[first].astext()
    preview(out / PREVIEW, title)
    head = tags(app, title, promise(app.env.get_doctree(first)), first)
    (out / "index.html").write_text(
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n<title>{escape(title)}</title>\n{head}\n'
        f'<link rel="canonical" href="{app.config.html_baseurl}{first}.html" />\n'
        f'<meta http-equiv="refresh" content="0; url={first}.html" />\n</head>\n'
        f'<body><p><a href="{first}.html">{escape(title)}</a></p></body>\n</html>\n', encoding="utf-8")


def setup(app):
    app.connect("html-page-context", complete)
    app.connect("html-collect-pages", lost)
    app.connect("doctree-resolved", number)
    app.connect("doctree-resolved", offer)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
