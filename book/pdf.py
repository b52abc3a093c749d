"""Prints the built book as one PDF, with a Chromium of this machine.

The pages' articles are put behind each other into one page, in which their links lead to each other, and Chromium prints that.
"""
import json
import os
import shutil
from urllib.parse import urljoin, urlsplit

from bs4 import BeautifulSoup
from pictures import VIEW, WIDGETS, pictures
from project import ROOT, pages, settings

SITE = ROOT / "_build" / "html"
PDF = SITE / "vqvae-tutorial.pdf"
CHROMIUMS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
             "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "/Applications/Chromium.app/Contents/MacOS/Chromium"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FOOTER = """<div style="width: 100%; font-size: 8px; text-align: center; color: #666; font-family: sans-serif">
<span class="pageNumber"></span></div>"""


def chromium():
    """The Chromium of this machine, or the one that `CHROMIUM` names; None where there is none."""
    named = os.environ.get("CHROMIUM")
    return next(filter(None, map(shutil.which, [named] if named else CHROMIUMS)), None)


def opening(state, name):
    """Which of a widget's pictures it shows at first."""
    model = state[name]["state"]
    inside = [opening(state, child.removeprefix("IPY_MODEL_")) for child in model.get("children", [])]
    return model.get("selected_index") or max(inside, default=0)


def still(page, article):
    """Put the picture that each widget shows at first in the widget's place."""
    states = page.find("script", type=WIDGETS)
    for view in article.find_all("script", type=VIEW):
        state, box = json.loads(states.string)["state"], json.loads(view.string)["model_id"]
        picture = list(pictures(state, box))[opening(state, box)]
        source = f"data:image/{picture['state']['format']};base64,{picture['buffers'][0]['data']}"
        view.replace_with(page.new_tag("img", src=source, alt=picture["state"].get("tooltip") or "", width="720"))


def article(name, names, base):
    """A page's article, whose anchors and links are made to stand beside those of other pages."""
    page = BeautifulSoup((SITE / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
    found = page.find("article")
    still(page, found)
    for useless in found.select(".headerlink, .viewcode-link, .book-pdf, script"):
        useless.decompose()
    for image in found.select("a.image-reference > img"):
        image.parent.unwrap()
    for plain in found.select("pre span.n, pre span.p, pre span.w"):  # each span makes the PDF larger
        plain.unwrap()
    for details in found.find_all("details"):
        details["open"] = ""
    for element in found.find_all(id=True):
        element["id"] = f"{name}--{element['id']}"
    for image in found.find_all("img"):
        image["src"] = image["src"] if image["src"].startswith("data:") else urljoin((SITE / name).as_uri(), image["src"])
    for link in found.find_all("a", href=True):
        url = urlsplit(urljoin(f"{base}{name}.html", link["href"]))
        target = url._replace(fragment="").geturl().removeprefix(base).removesuffix(".html")
        link["href"] = f"#{target}" + (f"--{url.fragment}" if url.fragment else "") if target in names else url.geturl()
    found.name = "section"
    found["id"] = name
    return found


def whole():
    """The whole book as one page."""
    names = pages()
    page = BeautifulSoup((SITE / f"{names[0]}.html").read_text(encoding="utf-8"), "html.parser")
    base = settings()["doc_host"] + settings()["doc_baseurl"]
    page.html["data-theme"] = page.html["data-mode"] = "light"
    for script in page.find_all("script"):
        if not (script.string or "").startswith("window.MathJax") and "tex-svg" not in script.get("src", ""):
            script.decompose()
    for link in page.head.find_all(["link", "script"]):
        for key in ("href", "src"):
            if link.get(key, "").startswith("../"):
                link[key] = urljoin((SITE / names[0]).as_uri(), link[key])
    page.body.clear()
    page.body["class"] = "book-print"
    content = page.new_tag("main", attrs={"class": "bd-content"})
    page.body.append(content)
    for name in names:
        content.append(article(name, names, base))
    return str(page)


def print_book():
    """Print the book where there is a Chromium; whether there was one."""
    path = chromium()
    if path is None:
        return False
    from playwright.sync_api import sync_playwright

    source = SITE / "print.html"
    source.write_text(whole(), encoding="utf-8")
    try:
        with sync_playwright() as control:
            browser = control.chromium.launch(executable_path=path, headless=True, args=FLAGS)
            page = browser.new_page(color_scheme="light")
            page.goto(source.as_uri(), timeout=300_000)
            page.evaluate("window.MathJax?.startup?.promise")
            page.pdf(path=PDF, format="A4", scale=0.8, outline=True, tagged=True, print_background=True, display_header_footer=True,
                     header_template="<span></span>", footer_template=FOOTER,
                     margin={"top": "18mm", "bottom": "18mm", "left": "20mm", "right": "20mm"})
            browser.close()
    finally:
        source.unlink()
    return True
