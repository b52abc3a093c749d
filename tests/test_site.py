"""The built site, as files and in a browser: it is whole, asks nothing of third parties, and works without a kernel.

The browser loads each page from a server, under the path that the site has on its host, and looks at it as on a desk in the light
theme and as on a phone in the dark one; of the pages of source code it looks at one, and axe passes over code on most. With `--all`
(`make test-all`) it looks at all, at three widths in each theme, and loads what it sees in the dark one as a file. The tests judge
what was seen.
"""
import html
import json
import re
import unicodedata
from functools import cache
from types import SimpleNamespace
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from bs4 import BeautifulSoup
from project import ROOT, cells, chapters, pages, settings

SETTINGS = settings()
ROOT_URL = SETTINGS["doc_host"] + SETTINGS["doc_baseurl"]
SOURCES = sorted(path.stem for path in (ROOT / SETTINGS["lib_path"]).glob("[!_]*.py"))
PLAIN = [f"_modules/{SETTINGS['lib_path']}/{name}" for name in SOURCES if name != "quantizers"]  # all made alike: one is looked at
MADE = ["genindex", "py-modindex", "search", "404", "_modules/index", *(f"_modules/{SETTINGS['lib_path']}/{name}" for name in SOURCES)]
PAGES = pages()
LOOKED_AT = [*PAGES, *(pytest.param(page, marks=pytest.mark.slow) if page in PLAIN else page for page in MADE)]
WIDTHS = [1440, 768, 390]
PAGE_WEIGHT = 1_500_000  # bytes of a page and its own pictures, not compressed
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_PAGES = [f"nbs/{path.stem}" for path in chapters()
                if json.loads(path.read_text(encoding="utf-8"))["metadata"].get("widgets", {}).get(WIDGET_STATE)]
EXERCISES = [f"nbs/{path.stem}" for path in chapters() if "\n## Exercises" in "\n".join(["", *cells(path, "markdown")])]

LOOK = """() => {
    const box = (element) => element.getBoundingClientRect();
    const scroller = (element) => element.closest(".cell_output, .widget-box:not(.widget-vbox)");
    return {
        theme: document.documentElement.dataset.theme,
        width: document.documentElement.scrollWidth,
        headings: [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter((h) => h.checkVisibility()).map((h) => +h.tagName[1]),
        unnamed: [...document.querySelectorAll("img, svg[role=img]:not([aria-hidden=true])")].filter((image) => image.checkVisibility()
            && !(image.alt || image.getAttribute("aria-label") || image.querySelector("title"))).map((image) => image.outerHTML),
        figures: [...document.querySelectorAll(".bd-content .cell_output img:not(.vq-sounds img, .vq-clips img)")].filter(
            (image) => image.checkVisibility()).map((image) => ({
            background: getComputedStyle(image).backgroundColor, filter: getComputedStyle(image).filter, alt: image.alt,
            width: box(image).width, natural: image.naturalWidth,
            boxed: box(scroller(image)).right <= innerWidth && getComputedStyle(scroller(image)).overflowX === "auto",
        })),
    };
}"""


OTHER = """([box, before]) => {
    const [image, ...more] = [...box.querySelectorAll("img")].filter((image) => image.checkVisibility());
    if (more.length || !image?.complete || !image.alt) return null;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [360, 360];
    canvas.getContext("2d").drawImage(image, 0, 0, 360, 360);
    const now = {alt: image.alt, dots: canvas.toDataURL()};
    return now.alt === before?.alt ? null : now;
}"""


SEEN = """(parts) => parts.filter((part) => part.checkVisibility()).map((part) => part.innerText.slice(0, 80))"""
STYLES = """["--pst-font-size-base", "--book-accent"].map((name) => getComputedStyle(document.documentElement).getPropertyValue(name))"""


class Visits:
    """Pages that were loaded and have come to rest, with all that they asked for and complained of."""

    def __init__(self, browser, address, site, axe, all_views):
        self.address, self.site, self.axe = address, site, axe
        self.all = all_views
        self.starts = {"light": "server", "dark": "file" if all_views else "server"}
        self.widths = {"light": WIDTHS if all_views else WIDTHS[:1], "dark": WIDTHS if all_views else WIDTHS[-1:]}
        self.contexts = {scheme: browser.new_context(color_scheme=scheme, permissions=["clipboard-read", "clipboard-write"])
                         for scheme in ("light", "dark")}
        self.contexts["quiet"] = browser.new_context(java_script_enabled=False)
        self.look_all = cache(self.look_all)

    def open(self, url, scheme="light", width=WIDTHS[0]):
        """A page in the browser; close it."""
        page = self.contexts[scheme].new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.set_default_timeout(120_000)  # for a busy machine
        page.requests, page.failures, page.errors, page.complaints = [], [], [], []
        page.on("request", lambda request: page.requests.append(request))
        page.on("requestfailed", lambda request: page.failures.append(f"{request.url}: {request.failure}"))
        page.on("response", lambda response: page.failures.append(f"{response.url}: {response.status}")
                if response.status >= 400 else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
        page.goto(url if "://" in url else f"{self.address}/{url}.html", wait_until="networkidle")
        page.wait_for_function("[...document.querySelectorAll('.widget-subarea img')].every((i) => i.style.maxWidth && i.complete)")
        page.wait_for_timeout(200)
        return page

    def quiet(self, url):
        """A page in a browser that runs no scripts; close it."""
        page = self.contexts["quiet"].new_page()
        page.goto(url)
        return page

    def copy(self, page, count=6):
        """What the first buttons beside code put into the clipboard."""
        page.bring_to_front()
        copied = []
        for button in page.locator("div.highlight button.copybtn").all()[:count]:
            button.dispatch_event("click")
            copied.append(page.evaluate("navigator.clipboard.readText()"))
        return copied

    def see(self, name, scheme):
        """What there is to see on a page in a theme, at each width."""
        return self.look_all(name, scheme if self.all else None)[scheme]

    def look_all(self, name, scheme):
        """A page in one theme, or, loaded once, in both: light, then dark."""
        first = scheme or "light"
        url = name if self.starts[first] == "server" else (self.site / f"{name}.html").as_uri()
        page = self.open(url, first, self.widths[first][0])
        try:
            if self.axe:
                page.evaluate(self.axe)
            page.mouse.wheel(0, 2000)
            page.mouse.wheel(0, -1000)  # the button "Back to top" shows
            return {each: self.look(page, name, each) for each in ([scheme] if scheme else ["light", "dark"])}
        finally:
            page.close()

    def look(self, page, name, scheme):
        looks, violations = {}, []
        everywhere = self.all or name in MADE or name == EXERCISES[0]
        left = [] if everywhere else [["div.highlight pre"]]  # code is alike on all pages
        page.emulate_media(color_scheme=scheme)
        for width in self.widths[scheme]:
            if width != page.viewport_size["width"]:
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(400)  # the theme looks 300 ms later for what scrolls now
            looks[width] = SimpleNamespace(**page.evaluate(LOOK))
            if self.axe:
                found = page.evaluate("(left) => axe.run({exclude: left}, {resultTypes: ['violations']})", left)["violations"]
                violations += [(width, rule["id"], node["target"], node["failureSummary"]) for rule in found
                               if rule["impact"] in ("serious", "critical") for node in rule["nodes"]]
        own = [request.url.removeprefix(f"{self.address}/") for request in page.requests if request.url.startswith(self.address)]
        own = [name for name in own if not re.match("_static/|searchindex.js", name)]  # which all pages share
        paths = {name: self.site / unquote(urlsplit(name).path) for name in own}
        return SimpleNamespace(
            styles=page.evaluate(STYLES),
            buttons=page.locator("div.highlight button.copybtn").count(), copied=self.copy(page) if own and scheme == "light" else [],
            looks=looks, violations=violations, failures=[*page.failures], errors=[*page.errors], complaints=[*page.complaints],
            requests=[request.url for request in page.requests],
            weight={name: path.stat().st_size for name, path in paths.items() if path.exists()},
            formulas=page.locator(".math").count(), typeset=page.locator(".math mjx-container").count(),
            misread=page.locator("mjx-merror").count(),
        )


@pytest.fixture(scope="module")
def visits(browser, address, site, request):
    try:
        axe = request.getfixturevalue("axe")
    except pytest.skip.Exception:
        axe = None  # the test that wants it says so
    return Visits(browser, address, site, axe, request.config.getoption("--all"))


@cache
def soup(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def article(site, page):
    return soup(site / f"{page}.html").find("article")


def shown(text):
    """The text of a page without its tags and scripts."""
    return html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"<script.*?</script>", "", text, flags=re.S)))


# The files


def test_every_page_is_known_here(site):
    """What the tests below go through is the whole site; index.html only leads to the first page."""
    built = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html") if "_static" not in path.parts}
    assert built == {"index", *PAGES, *MADE}


@pytest.mark.parametrize("page", PAGES)
def test_page_shows_no_directive(site, page):
    text = (site / f"{page}.html").read_text(encoding="utf-8")
    assert not re.search(r"#\s*\|", shown(text)), f"{page} shows a line for the tools"
    assert str(ROOT) not in text and "file://" not in text, f"{page} leads to a file of the machine that built it"


def test_hidden_cells_are_not_on_the_page(site):
    for path in chapters():
        text = shown((site / "nbs" / f"{path.stem}.html").read_text(encoding="utf-8"))
        assert "%pip install" not in text, path.name
        assert "default_exp" not in text, path.name


@pytest.mark.parametrize("page", ["index", *PAGES, *MADE])
def test_links_and_anchors_lead_somewhere(site, page):
    path = site / f"{page}.html"
    base = soup(path).find("base")
    here = urljoin(ROOT_URL, base["href"]) if base else f"{ROOT_URL}{page}.html"
    broken = []
    for tag, key in [("a", "href"), ("link", "href"), ("img", "src"), ("script", "src")]:
        for element in soup(path).find_all(tag, attrs={key: True}):
            url = urlsplit(urljoin(here, element[key]))
            if not url.geturl().startswith(ROOT_URL):
                assert url.scheme in ("https", "http", "mailto") or (tag, url.scheme) == ("img", "data"), element[key]
                continue
            target = site / (unquote(url.path.removeprefix(urlsplit(ROOT_URL).path)) or "index.html")
            anchor = unquote(url.fragment)
            if not target.is_file() or (anchor and target.suffix == ".html" and not soup(target).find(id=anchor)):
                broken.append(element[key])
    assert broken == []


@pytest.mark.parametrize("page", ["index", *PAGES])
def test_page_tells_others_what_it_is(site, page):
    head = soup(site / f"{page}.html").head
    facts = {tag.get("property") or tag.get("name"): tag["content"] for tag in head.find_all("meta", content=True)}
    source = PAGES[0] if page == "index" else page
    assert facts["og:url"] == head.find("link", rel="canonical")["href"] == f"{ROOT_URL}{source}.html"
    assert facts["og:title"] == article(site, source).h1.get_text().removesuffix("#")
    promise = article(site, source).find("p").get_text()
    assert facts["description"] == facts["og:description"] == " ".join(promise.split())
    assert 40 < len(facts["description"]) < 300
    assert facts["twitter:card"] == "summary_large_image"
    assert (site / facts["og:image"].removeprefix(ROOT_URL)).exists()


def test_preview_and_icons_are_pictures(site):
    from PIL import Image

    with Image.open(site / "_static" / "preview.png") as preview:
        assert preview.size == (1200, 630) and len(preview.convert("RGB").getcolors(1 << 20)) > 1000
    for name in ("favicon.svg", "logo.svg"):
        assert (site / "_static" / name).read_text(encoding="utf-8").startswith("<svg")


def test_chapters_follow_each_other(site):
    for before, after in zip(PAGES, PAGES[1:]):
        forth = article(site, before).parent.select_one(".prev-next-area .right-next, a.right-next")["href"]
        back = article(site, after).parent.select_one(".prev-next-area .left-prev, a.left-prev")["href"]
        assert urljoin(f"{before}.html", forth) == f"{after}.html" and urljoin(f"{after}.html", back) == f"{before}.html"


@pytest.mark.parametrize("page", PAGES)
def test_page_can_be_had_edited_and_criticised(site, page):
    source = next(path for path in (ROOT / f"{page}{ending}" for ending in (".ipynb", ".md")) if path.exists())
    name = source.relative_to(ROOT).as_posix()
    buttons = {name: soup(site / f"{page}.html").select_one(f"a.btn-{name}-button")["href"]
               for name in ("download-source", "source-edit", "source-issues", "source-repository")}
    download = site / page / ".." / buttons["download-source"]
    assert download.resolve().read_bytes() == source.read_bytes()
    assert buttons["source-edit"] == f"{SETTINGS['git_url']}/edit/{SETTINGS['branch']}/{name}"
    assert buttons["source-issues"].startswith(f"{SETTINGS['git_url']}/issues/new?title=") and page in unquote(buttons["source-issues"])
    assert buttons["source-repository"] == SETTINGS["git_url"]
    if source.suffix == ".ipynb":
        colab = soup(site / f"{page}.html").select_one(".dropdown-launch-buttons a")["href"]
        assert colab.endswith(f"github/{SETTINGS['user']}/{SETTINGS['repo']}/blob/{SETTINGS['branch']}/{name}")


# The PDF


@pytest.fixture(scope="module")
def printed(site):
    """The book's PDF; skips where there is no Chromium to print it."""
    import pdf

    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed")
    if pdf.chromium() is None:
        assert not (site / pdf.PDF.name).exists() and not article(site, PAGES[0]).select(".book-pdf"), "a link to no PDF"
        pytest.skip("no Chromium on this machine, so no PDF")
    return pypdf.PdfReader(site / pdf.PDF.name)


def titles(outline):
    """The titles of the outline's first level, with the pages they lead to."""
    return [entry for entry in outline if not isinstance(entry, list)]


def test_pdf_is_the_whole_book_in_order(site, printed):
    chapters = titles(printed.outline)
    named = [article(site, page).h1.get_text().removesuffix("#") for page in PAGES]
    assert [entry.title for entry in chapters] == named
    starts = [printed.get_destination_page_number(entry) for entry in chapters]
    assert starts == sorted(set(starts)) and starts[0] == 0 and 100 < len(printed.pages) < 700
    for page, start in zip(PAGES, starts):
        text = unicodedata.normalize("NFKC", " ".join(printed.pages[start].extract_text().split()))  # no "fi" in one letter
        promise = " ".join(article(site, page).find("p").get_text().split())
        assert promise[:60] in text, f"{page} is not on page {start + 1}"


def test_pdf_has_all_figures_and_formulas(site, printed):
    drawn = sum(1 for page in printed.pages for name, item in page["/Resources"].get("/XObject", {}).items()
                if item.get_object()["/Subtype"] == "/Image")
    figures = sum(len(article(site, page).select(".cell_output img, .widget-subarea, script[type*=widget-view]")) for page in PAGES)
    assert drawn >= figures > 50
    fonts = {font.get_object()["/BaseFont"] for page in printed.pages for font in page["/Resources"].get("/Font", {}).values()}
    assert len(fonts) >= 3 and printed.trailer["/Root"]["/MarkInfo"]["/Marked"]
    assert not re.search(r"\\\(|\\\[", "".join(page.extract_text() for page in printed.pages[:40])), "a formula that was not typeset"


def test_links_of_the_pdf_lead_into_it_or_to_the_web(printed):
    inside, outside = 0, []
    for page in printed.pages:
        for annotation in page.get("/Annots", []):
            action = annotation.get_object()
            if "/A" in action and "/URI" in action["/A"]:
                outside.append(action["/A"]["/URI"])
            elif action["/Subtype"] == "/Link":
                inside += 1
    assert all(url.startswith(("https://", "http://", "mailto:")) for url in outside), outside
    assert inside > 20 and len(outside) > 10
    assert not [url for url in outside if any(url.startswith(f"{ROOT_URL}{page}.html") for page in PAGES)], "leads out of the book"


# In a browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", LOOKED_AT)
def test_page_is_whole(visits, address, page, scheme):
    seen = visits.see(page, scheme)
    asked = {urlsplit(url)[:2] for url in seen.requests if urlsplit(url).scheme not in ("data", "blob")}
    assert asked == {urlsplit(address)[:2] if visits.starts[scheme] == "server" else ("file", "")}, "a request to a third party"
    assert seen.errors == []
    if visits.starts[scheme] == "server":  # a browser keeps files from asking for fonts, and says so
        assert (seen.failures, seen.complaints) == ([], [])
    assert all(seen.styles), "has the style sheets of the theme and the book"
    for width, look in seen.looks.items():
        assert look.theme == scheme
        assert look.width <= width, f"scrolls sideways at {width}"
        assert look.unnamed == []
        assert look.headings[:1] == [1] and look.headings.count(1) == 1, look.headings
        assert all(after <= before + 1 for before, after in zip(look.headings, look.headings[1:])), look.headings


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", LOOKED_AT)
def test_page_is_for_everyone(axe, visits, page, scheme):
    assert visits.see(page, scheme).violations == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_figures_are_described_sharp_and_readable(visits, page, scheme):
    for width, look in visits.see(page, scheme).looks.items():
        for figure in look.figures:
            assert len(figure["alt"]) > 30 and "_images" not in figure["alt"], figure
            assert (figure["background"], figure["filter"]) == ("rgba(0, 0, 0, 0)", "none"), "the page shows through"
            assert figure["natural"] >= 1.9 * figure["width"], "sharp where a point has two dots"
            assert figure["width"] <= width or figure["boxed"]
            assert figure["width"] >= 570 * min(1, figure["natural"] / 1440), "text of nine points stays seven at least"


def test_sounds_play_and_say_what_they_are(visits, site):
    """All players of the chapter on speech: named, shown as what one hears, and of a kind that the browser reads."""
    view = visits.open((site / "nbs/13_speech.html").as_uri())
    try:
        players = view.locator(".vq-sounds audio")
        assert players.count() >= 30
        length = """async (player) => {
            player.load();
            player.preload = "auto";
            await new Promise((done) => { player.onloadedmetadata = player.onerror = done; });
            return player.error ? player.error.message : player.duration;
        }"""
        for player in players.all()[:6]:
            assert 0.5 < player.evaluate(length) < 5
            assert len(player.get_attribute("aria-label")) > 3 and player.get_attribute("autoplay") is None
        pictures = view.locator(".vq-sounds img").all()
        assert pictures and all(picture.get_attribute("alt").startswith("spectrogram: ") for picture in pictures)
    finally:
        view.close()


def test_dial_of_depth_turns_by_key_and_goes_on_where_it_was(visits, site):
    view = visits.open((site / "nbs/16_spoken_digits.html").as_uri())
    try:
        dial, players = view.locator(".vq-depths input"), view.locator(".vq-depths audio")
        shown = lambda: [number for number, player in enumerate(players.all(), start=1) if player.is_visible()]
        assert players.count() == 7 and shown() == [int(dial.input_value())]
        players.nth(shown()[0] - 1).evaluate("""async (player) => {
            player.preload = "auto"; player.load();
            await new Promise((done) => { player.onloadedmetadata = done; });
            player.currentTime = 0.5;
        }""")
        dial.focus()
        before = shown()[0]
        view.keyboard.press("ArrowRight")
        assert shown() == [before + 1] and "bits per second" in dial.get_attribute("aria-valuetext")
        assert players.nth(before).evaluate("(player) => player.currentTime") == pytest.approx(0.5, abs=0.05)
        view.keyboard.press("Home")
        assert shown() == [1] and dial.get_attribute("aria-valuetext").startswith("1 level,")
    finally:
        view.close()


@pytest.mark.parametrize("page", PAGES)
def test_page_is_light(visits, page, record_property):
    weight = visits.see(page, "light").weight
    received = sum(weight.values())
    assert f"{page}.html" in weight and received > 5000
    record_property("bytes", received)
    assert received <= PAGE_WEIGHT, {url.rpartition("/")[2]: size for url, size in weight.items()}


@pytest.mark.parametrize("page", PAGES)
def test_formulas_are_typeset(visits, scripts, page):
    seen = visits.see(page, "light")
    assert seen.typeset >= seen.formulas and seen.misread == 0


def other(page, box, before):
    """The one picture that a widget shows as soon as it is another than before."""
    return page.wait_for_function(OTHER, arg=[box.element_handle(), before]).json_value()


@pytest.mark.parametrize("start", ["server", "file"])
@pytest.mark.parametrize("page", WIDGET_PAGES)
def test_widgets_move_without_a_kernel(visits, site, scripts, page, start):
    view = visits.open(page if start == "server" else (site / f"{page}.html").as_uri())
    try:
        view.locator(".cell_output .noUi-handle").first.wait_for()
        boxes = view.locator(".cell_output .widget-subarea > .widget-vbox").all()
        assert boxes
        for box in boxes:
            handle = box.locator(".noUi-handle")
            assert handle.get_attribute("aria-label")
            opening = other(view, box, None)
            low, high, now = (float(handle.get_attribute(f"aria-value{name}")) for name in ("min", "max", "now"))
            there, back = ("ArrowLeft", "ArrowRight") if now == high else ("ArrowRight", "ArrowLeft")
            handle.press(there)
            second = other(view, box, opening)
            assert opening["alt"] != second["alt"] and opening["dots"] != second["dots"], "the picture and its description change"
            handle.press(back)
            assert other(view, box, second) == opening
            handle.press("Home")
            first = opening if now == low else other(view, box, opening)
            box.locator("button[aria-label='play']").click()
            other(view, box, first)
            box.locator("button[aria-label='stop']").click()
        assert view.errors == []
    finally:
        view.close()


@pytest.mark.parametrize("page", EXERCISES)
def test_answers_wait_until_they_are_asked_for(visits, site, page):
    """None is in view at first; each comes by mouse or key, code and output together; on one page also without JavaScript."""
    views = [visits.open(page)]
    if visits.all or page == EXERCISES[0]:
        views.append(visits.quiet((site / f"{page}.html").as_uri()))
    for answers in views:
        try:
            section = answers.locator("section#exercises")
            parts, folds = section.locator(".cell_input, .cell_output"), section.locator(".cell > details.hide")
            assert parts.count() >= folds.count() >= 3 and parts.evaluate_all(SEEN) == []
            for number, fold in enumerate(folds.all()):
                assert fold.locator("summary").inner_text().strip() == "Show the answer"
                if number % 2:
                    fold.locator("summary").click()
                else:
                    fold.locator("summary").press("Enter")
                assert fold.locator(".cell_input").is_visible() and fold.locator("summary").inner_text().strip() == "Hide the answer"
            assert len(parts.evaluate_all(SEEN)) == parts.count()
        finally:
            answers.close()


@pytest.mark.parametrize("words, chapter", [("perplexity", "nbs/01_vector_quantization"), ("blind spot", "nbs/06_pixelcnn")])
def test_search_finds(visits, address, words, chapter):
    view = visits.open("search")
    try:
        view.locator("article input[name=q], main input[name=q]").first.fill(words)
        view.keyboard.press("Enter")
        results = view.locator("#search-results ul.search a[href]")
        results.first.wait_for()
        view.wait_for_function("document.querySelector('#search-results .search-summary')?.textContent.match(/found/)")
        links = [link.evaluate("(a) => a.href") for link in results.all()]
        assert any(link.startswith(f"{address}/{chapter}.html") for link in links[:5]), links
        results.first.click()
        view.wait_for_load_state()
        assert all(word in view.locator("article").inner_text().lower() for word in words.split())
    finally:
        view.close()


@pytest.mark.parametrize("page", PAGES)
def test_copied_code_is_code(visits, site, page):
    """Each button gives just what its cell shows: no prompts, no lines for the tools."""
    seen, blocks = visits.see(page, "light"), article(site, page).select("div.highlight pre")
    assert seen.buttons == len(blocks) and len(seen.copied) == min(6, len(blocks))
    for copied, block in zip(seen.copied, blocks):
        assert copied.strip() == block.get_text().strip() and copied.strip()
        assert not re.search(r"^(>>> |\.\.\. |\$ |In \[|#\s*\|)", copied, flags=re.M)


def test_playground_says_what_it_is_where_no_script_runs(visits, site):
    page = visits.quiet((site / "nbs" / "playground.html").as_uri())
    host = page.locator(".vqvae-playground")
    assert "needs a browser that runs JavaScript" in host.inner_text()
    assert host.locator("img").get_attribute("alt") and host.locator("img").bounding_box()["width"] > 100
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["nbs/playground"])
def test_playground_works_on_the_site(visits, page, scheme):
    """Under the site's path and theme, it draws and dreams, fetches its prior when it is first wanted, and shuts nobody out."""
    view = visits.open(page, scheme)
    try:
        view.wait_for_selector(".vp-ready")
        assert not [request.url for request in view.requests if "prior" in request.url]
        view.get_by_role("gridcell").nth(24).click()
        view.get_by_role("button", name="Dream", exact=True).click()
        view.wait_for_function("document.querySelector('.vp-status').textContent.startsWith('Dreamt')")
        view.wait_for_selector(".vp-reading p")
        assert [request.url for request in view.requests if "prior" in request.url]
        assert all(request.url.startswith((visits.address, "data:", "blob:")) for request in view.requests)
        assert not view.errors and not view.failures
        for width in WIDTHS:
            view.set_viewport_size({"width": width, "height": 900})
            view.get_by_role("gridcell").nth(24).click()
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            if visits.axe:
                view.evaluate(visits.axe)
                found = view.evaluate("axe.run('.vqvae-playground', {resultTypes: ['violations']})")["violations"]
                assert [(rule["id"], node["failureSummary"]) for rule in found for node in rule["nodes"]] == []
    finally:
        view.close()


def test_lost_readers_find_back(visits, address):
    for wrong in ("nothing", "nbs/nothing/deeper/still"):
        view = visits.open(wrong)
        try:
            assert view.failures == [f"{address}/{wrong}.html: 404"], "all it needs is found from any depth"
            assert view.locator("h1:visible").inner_text() == "Page not found"
            view.locator("article a, main a").filter(has_text="first page").click()
            view.wait_for_url(f"{address}/{PAGES[0]}.html")
        finally:
            view.close()


def test_the_address_of_the_site_leads_to_its_first_page(visits, address):
    view = visits.open(f"{address}/")
    try:
        view.wait_for_url(f"{address}/{PAGES[0]}.html")
    finally:
        view.close()
