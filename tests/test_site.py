"""The built site, as files and in a browser: it is whole, asks nothing of third parties, and works without a kernel."""
import html
import json
import re
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from project import ROOT, chapters, pages

PAGES = pages()
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_PAGES = [f"nbs/{path.stem}" for path in chapters()
                if json.loads(path.read_text(encoding="utf-8"))["metadata"].get("widgets", {}).get(WIDGET_STATE)]


@contextmanager
def opened(browser, url, **options):
    """A page that was loaded and has come to rest, with all that it asked for and complained of."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.requests, page.failures, page.errors, page.complaints = [], [], [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("requestfailed", lambda request: page.failures.append(f"{request.url}: {request.failure}"))
    page.on("response", lambda response: page.failures.append(f"{response.url}: {response.status}") if response.status >= 400 else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    try:
        page.goto(url, wait_until="networkidle")
        page.wait_for_timeout(300)
        yield page
    finally:
        context.close()


def foreign(page, *hosts):
    return [url for url in page.requests if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).netloc not in hosts]


def shown(text):
    """The text of a page without its tags and scripts."""
    return html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"<script.*?</script>", "", text, flags=re.S)))


@pytest.mark.parametrize("page", PAGES)
def test_page_was_built_and_shows_no_directive(site, page):
    path = site / f"{page}.html"
    assert path.exists(), f"{page} stands in _toc.yml but was not built"
    assert not re.search(r"#\s*\|", shown(path.read_text(encoding="utf-8"))), f"{page} shows a line for the tools"


def test_hidden_cells_are_not_on_the_page(site):
    for path in chapters():
        text = shown((site / "nbs" / f"{path.stem}.html").read_text(encoding="utf-8"))
        assert "%pip install" not in text, path.name
        assert "default_exp" not in text, path.name


def test_pictures_have_alternative_text(site):
    for path in chapters():
        text = (site / "nbs" / f"{path.stem}.html").read_text(encoding="utf-8")
        article = text[text.index("<article"):text.index("</article>")]
        for image in re.findall(r"<img[^>]*>", article):
            alt = re.search(r'alt="([^"]*)"', image)
            assert alt and len(alt[1]) > 10 and not alt[1].startswith("../_images"), f"{path.name}: {image}"


@pytest.mark.parametrize("page", PAGES)
def test_page_is_whole_on_a_server(browser, address, page):
    with opened(browser, f"{address}/{page}.html") as view:
        assert foreign(view, urlsplit(address).netloc) == []
        assert view.failures == []
        assert view.errors == []
        assert view.complaints == []


@pytest.mark.parametrize("page", PAGES)
def test_page_is_whole_as_a_file(browser, site, page):
    with opened(browser, (site / f"{page}.html").as_uri()) as view:
        assert [url for url in view.requests if urlsplit(url).scheme not in ("file", "data", "blob")] == []
        assert view.errors == []


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_figures_sit_on_it(browser, address, page, scheme):
    with opened(browser, f"{address}/{page}.html", viewport={"width": 390, "height": 844}, color_scheme=scheme) as view:
        assert view.evaluate("document.documentElement.dataset.theme") == scheme
        assert view.evaluate("document.documentElement.scrollWidth") <= 390
        figures = view.evaluate("""() => [...document.querySelectorAll(".cell_output img")].map((image) => {
            const style = getComputedStyle(image);
            return [style.backgroundColor, style.filter, image.getBoundingClientRect().width <= 390];
        })""")
        assert all(figure == ["rgba(0, 0, 0, 0)", "none", True] for figure in figures), figures


def test_formulas_are_typeset(browser, address, scripts):
    for path in chapters():
        with opened(browser, f"{address}/nbs/{path.stem}.html") as view:
            written = view.locator(".math").count()
            if written:
                view.wait_for_function("document.querySelectorAll('.math mjx-container').length > 0")
                assert view.locator(".math mjx-container").count() >= written
                assert view.locator("mjx-merror").count() == 0, path.name


@pytest.mark.parametrize("start", ["server", "file"])
@pytest.mark.parametrize("page", WIDGET_PAGES)
def test_widgets_move_without_a_kernel(browser, address, site, scripts, page, start):
    url = f"{address}/{page}.html" if start == "server" else (site / f"{page}.html").as_uri()
    with opened(browser, url) as view:
        handles = view.locator(".cell_output .noUi-handle")
        handles.first.wait_for()
        for handle in handles.all():
            box = handle.locator("xpath=ancestor::div[contains(@class, 'widget-vbox')][last()]")
            visible = "(box) => [...box.querySelectorAll('img')].filter((i) => i.getClientRects().length).map((i) => i.src)"
            before = box.evaluate(visible)
            assert len(before) == 1, f"expected one visible picture, got {len(before)}"
            handle.focus()
            view.keyboard.press("ArrowRight")
            view.wait_for_timeout(200)
            assert box.evaluate(visible) not in ([], before)
            assert handle.get_attribute("aria-label")
        assert view.errors == []


def test_the_book_names_only_its_own_folder(site):
    """No page leads to a file of the machine that built it."""
    for page in PAGES:
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        assert str(ROOT) not in text and "file://" not in text, page
