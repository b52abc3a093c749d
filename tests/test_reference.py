"""The reference: its pages agree with the package and the chapters, and its links lead where they say."""
import html
import json
import os
import re
import subprocess
import sys
import unicodedata
import warnings

import numpy as np
import pytest
from project import ROOT, cells, chapters, settings
from results import figure

import vqvae_tutorial

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))  # drafts too: the bibliography may run ahead of the contents
PAGES = {path: f"nbs/{path.stem}.html" for path in chapters()}


def links(site, page):
    """The links of a page's text, as pairs of target and what they show."""
    text = (site / page).read_text(encoding="utf-8")
    article = text[text.index("<article"):text.index("</article>")]
    return [(html.unescape(target), re.sub(r"<[^>]+>", "", shown)) for target, shown in
            re.findall(r'<a class="reference internal" href="([^"]*)"[^>]*>(.*?)</a>', article, re.S)]


# The library


def test_every_module_has_a_page_that_names_its_chapter(site):
    from reference import exports, modules

    assert set(modules()) == {path.stem for path in (ROOT / "vqvae_tutorial").glob("[!_]*.py")}
    assert {path.stem for path in (ROOT / "book" / "api").glob("*.md")} == set(modules())
    listed = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    assert re.findall(r"file: book/api/(\w+)", listed) == list(modules()), "in the order of the chapters"
    for name, chapter in modules().items():
        text = (site / "book" / "api" / f"{name}.html").read_text(encoding="utf-8")
        assert f'id="module-vqvae_tutorial.{name}"' in text
        assert f'Taught in <a class="reference internal" href="../../nbs/{chapter.stem}.html"' in text
        for full in exports():
            if full.startswith(f"{name}."):
                assert f'id="vqvae_tutorial.{full}"' in text, full


def test_exports_are_what_the_modules_offer():
    from importlib import import_module

    from reference import exports, modules

    for name in modules():
        module = import_module(f"vqvae_tutorial.{name}")
        offered = {each for each in module.__all__ if callable(getattr(module, each)) and getattr(module, each).__doc__}
        assert offered == {full.split(".")[1] for full in exports() if full.startswith(f"{name}.") and full.count(".") == 1}


def test_overview_lists_every_exported_name(site):
    from reference import exports

    targets = {target for target, _ in links(site, "book/api.html")}
    for full in exports():
        if full.count(".") == 1:
            assert f"api/{full.split('.')[0]}.html#vqvae_tutorial.{full}" in targets


def test_chapters_lead_to_the_library(site):
    from reference import exports, modules

    for full in exports():
        name, chapter = full.partition(".")[2], modules()[full.partition(".")[0]]
        if any(f"`{name}`" in text for text in cells(chapter, "markdown") if not text.startswith("#")):
            assert any(target.endswith(f"#vqvae_tutorial.{full}") for target, _ in links(site, PAGES[chapter])), full
    assert ("../book/api/model.html#vqvae_tutorial.model.VQVAE", "VQVAE") in links(site, "nbs/03_training.html")
    ours = links(site, "nbs/95_presets.html")
    assert ("../book/api/presets.html#vqvae_tutorial.presets.load_pretrained", "load_pretrained") in ours
    charged = ("../book/api/rate.html#vqvae_tutorial.rate.EntropyConstrainedQuantizer", "EntropyConstrainedQuantizer")
    assert charged in links(site, "nbs/07_choosing_k_and_d.html")
    collapse = [target for target, shown in links(site, "nbs/08_posterior_collapse.html") if shown == "distortion"]
    assert not any("api" in target for target in collapse), "there it is a metric of the chapter's own"
    assert all(full in exports() for path in PAGES.values() for target, _ in links(site, path)
               for full in re.findall(r"#vqvae_tutorial\.(.+)", target))


def test_names_mean_what_they_would_in_the_chapter():
    from crosslinks import names_in

    assert names_in("nbs/04_codebook")["load_pretrained"] == "presets.load_pretrained"
    assert "distortion" not in names_in("nbs/08_posterior_collapse")
    assert names_in("nbs/01_vector_quantization")["distortion"] == "quantization.distortion"


# Glossary and notation


def test_every_term_is_used_and_linked_once_in_a_chapter(site):
    text = (site / "book" / "glossary.html").read_text(encoding="utf-8")
    entries = re.findall(r'<dt id="(term-[^"]+)"', text)
    assert len(entries) > 40
    used = set()
    for page in PAGES.values():
        targets = [target for target, _ in links(site, page) if "glossary.html" in target]
        assert len(targets) == len(set(targets)), page
        used |= {target.partition("#")[2] for target in targets}
    assert set(entries) - used == set(), "terms that no chapter uses"


def test_every_term_names_its_chapter():
    from crosslinks import GLOSSARY, terms

    body = GLOSSARY.read_text(encoding="utf-8").partition("```{glossary}\n")[2].partition("\n```")[0]
    parts = [part for part in body.split("\n\n") if part.strip()]
    assert len(parts) == len({term for term in terms().values() if term})
    names = []
    for part in parts:
        term = next(line for line in part.splitlines() if not line.startswith((" ", "..")))
        found = re.findall(r"\]\(\.\./nbs/(\w+)\.ipynb#[\w–-]+\)", part)
        assert found and all((ROOT / "nbs" / f"{name}.ipynb").exists() for name in found), f"{term}: no chapter"
        names.append(unicodedata.normalize("NFD", term.lower()).encode("ascii", "ignore"))
    assert names == sorted(names), "the glossary is not in order"


def test_terms_are_found_as_whole_words_and_the_longest_first():
    from crosslinks import cut, term_pattern, terms

    def found(text):
        return [terms()[" ".join(match[0].lower().split())] for match in term_pattern().finditer(text)]

    assert found("Dead\ncodes, k-means++ and the commitment loss") == ["dead code", "k-means++ start", "commitment loss"]
    assert found("the learning rate, decoded, codebook-free, prioress") == [None]
    parts = cut("a prior b", term_pattern(), lambda match: None)
    assert [part.astext() for part in parts] == ["a prior b"]


def test_headings_code_and_boxes_have_no_terms(site):
    for page in PAGES.values():
        text = (site / page).read_text(encoding="utf-8")
        article = text[text.index("<article"):text.index("</article>")]
        for block in re.findall(r"<h[1-6].*?</h[1-6]>|<pre.*?</pre>|<blockquote.*?</blockquote>|<table.*?</table>", article, re.S):
            assert "glossary.html" not in block and "bibliography.html" not in block, f"{page}: {block[:200]}"


def uses(path, symbol):
    """Whether a chapter's prose holds a symbol: in a formula, or as a capital letter that stands alone."""
    text = "\n".join(cells(path, "markdown"))
    formulas = re.findall(r"\$\$?(.+?)\$\$?", text, re.S)
    prose = re.sub(r"`[^`]*`|\$[^$]*\$", "", text)
    return any(re.search(rf"(?<![A-Za-z\\]){re.escape(symbol)}(?![A-Za-z])", formula) for formula in formulas) or (
        symbol.isupper() and len(symbol) == 1 and bool(re.search(rf"(?<![\w’']){symbol}(?![\w’'.])", prose)))


def test_symbols_are_first_used_where_the_notation_says():
    page = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \$(.+?)\$ \|.*nbs/(\w+)\.ipynb#[\w–-]+\) \|$", page, re.M)
    assert len(rows) == page.count("\n| $")
    assert len(rows) > 40
    for symbol, chapter in rows:
        symbol = symbol.replace(r"\|", "|")
        assert next(path.stem for path in chapters()[1:] if uses(path, symbol)) == chapter, symbol


# Bibliography


def bibliography():
    from crosslinks import BIBLIOGRAPHY
    from pybtex.database import parse_file

    return parse_file(BIBLIOGRAPHY).entries


def plain(text):
    return re.sub(r"[^a-z0-9β]+", " ", text.lower().replace("{", "").replace("}", "")).strip()


def entries_for(item):
    """The keys of the entries that an item in a chapter's list of references may be."""
    return [key for key, entry in bibliography().items()
            if entry.fields.get("eprint", "no number") in item or f"*{plain(entry.fields['title'])}*" in titles(item)]


def titles(item):
    """An item with its titles, which stand between asterisks, in plain letters."""
    return re.sub(r"\*((?:\\.|[^*])+)\*", lambda match: f"*{plain(match[1].replace(chr(92), ''))}*", item)


def references(path):
    """The items of a notebook's list of references."""
    text = "\n\n".join(cells(path, "markdown")).partition("## References\n")[2]
    return [" ".join(item.split()) for item in re.split(r"^- ", text, flags=re.M)[1:]]


def cited_in_prose(path):
    from crosslinks import citations

    text = "\n\n".join(cells(path, "markdown")).partition("## References\n")[0]
    pattern, known = citations()
    return [key for match in pattern.finditer(text)
            for key, _ in known[" ".join(match["authors"].split()), match["plain"] or match["round"]]]


def test_lists_of_references_match_the_bibliography():
    listed = 0
    for path in NOTEBOOKS:
        for item in references(path):
            assert len(entries_for(item)) == 1, f"{path.name}: {item}: {entries_for(item)}"
            listed += 1
    assert listed > 30


def test_every_entry_is_cited_by_a_chapter():
    used = {key for path in NOTEBOOKS for item in references(path) for key in entries_for(item)}
    assert set(bibliography()) - used == set()


def test_what_the_prose_cites_is_in_the_chapters_list():
    for path in chapters():
        listed = {key for item in references(path) for key in entries_for(item)}
        if listed:
            assert set(cited_in_prose(path)) - listed == set(), path.name


def test_everything_that_looks_like_a_citation_is_one(site):
    looks = re.compile(r"\b[A-ZÀ-Ý][\w’'-]+(?:\s+et\s+al\.|\s+(?:and|&)\s+[A-ZÀ-Ý]\w+)?,?\s+\(?(?:1[89]|20)\d\d\b")
    count = 0
    for path, page in PAGES.items():
        text = "\n\n".join(cells(path, "markdown")).partition("## References\n")[0]
        wanted = [" ".join(match[0].split()) for match in looks.finditer(text)]
        linked = [" ".join(shown.split()) for target, shown in links(site, page) if "bibliography.html#" in target]
        for name in wanted:
            assert any(plain(name) in plain(shown) for shown in linked), f"{path.name}: {name}"
        count += len(linked)
    assert count > 15
    assert "../bibliography.html#oord2017" in {target for target, _ in links(site, "book/api/quantizers.html")}, "docstrings cite too"


def test_a_citation_that_may_mean_two_works_is_refused():
    from crosslinks import citations

    pattern, known = citations()
    assert len(known["van den Oord et al.", "2016"]) == 2, "so the text must name more of them, or the number"
    assert len(known["van den Oord, Kalchbrenner, Vinyals et al.", "2016"]) == 1
    assert pattern.search("van den Oord et al. (2016), arXiv:1606.05328, section 2")["arxiv"] == "1606.05328"


# Troubleshooting


def message(action):
    """What the error that an action raises says, or the warning that it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, of PyTorch's tensors
        try:
            action()
        except Exception as error:
            return str(error)
    return str(caught[0].message)


def load_from(cache, download=None):
    """`load_mnist` with another cache of Keras, and in the place of a download an error."""
    from vqvae_tutorial import data

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VQVAE_TUTORIAL_MNIST", raising=False)
        patch.setenv("KERAS_HOME", str(cache))
        patch.setattr(data, "_download", no_network)
        data.load_mnist()


def no_network(*arguments):
    raise OSError("no network")


def small_model(filters=4):
    """An untrained VQ-VAE of digits."""
    from vqvae_tutorial import VQVAE, VectorQuantizerEMA, build_networks

    model = VQVAE(*build_networks((28, 28, 1), 4, filters, 0), VectorQuantizerEMA(8, seed=0), value_range=(0, 1))
    model.compile("adam")
    return model


def backed_up(folder, images, filters=4, damage=lambda file: None):
    """Trains for an epoch more than stands in a folder, after something has happened to the newest backup there."""
    from vqvae_tutorial.callbacks import read_history, resumable

    for newest in sorted((folder / "backup").glob("[0-9]*"))[-1:]:
        damage(newest)
    done = len(read_history(folder)["mse"]) if (folder / "history.csv").exists() else 0
    small_model(filters).fit(images, epochs=done + 1, verbose=0, **resumable(folder))


def package_messages(folder):
    """What the package says in the cases of the page."""
    from vqvae_tutorial import VQVAE, PixelCNN, VectorQuantizer, build_networks, data, load_mnist
    from vqvae_tutorial.callbacks import StopAtNaN
    from vqvae_tutorial.model import build_encoder
    from vqvae_tutorial.priors import check_pair
    from vqvae_tutorial.quantization import squared_distances

    import tensorflow as tf  # isort: skip  # after Keras: see the troubleshooting page

    sample = data.SAMPLE.read_bytes()
    (folder / "half.npz").write_bytes(sample[:5000])
    (folder / "cache" / "datasets").mkdir(parents=True)
    (folder / "cache" / "datasets" / "mnist.npz").write_bytes(sample)
    images, codes = np.zeros((1, 28, 28, 1), "float32"), np.zeros((1, 7, 7), "int32")
    model = VQVAE(*build_networks((28, 28, 1), 4, 4, 0), VectorQuantizer(128), value_range=(0, 1))
    model.compile("adam")
    prior, tiny, labelled = (PixelCNN(64, **{"shape": (7, 7)} | options, filters=4, num_layers=1)
                             for options in ({}, {"shape": (2, 2)}, {"num_classes": 10}))
    for one in (tiny, labelled):
        one.compile("adam")
    small, quantizer, frozen = small_model(), VectorQuantizer(7), VectorQuantizer(7, trainable=False)
    quantizer(np.ones((8, 4), "float32"))
    many = np.random.default_rng(0).uniform(size=(64, 28, 28, 1)).astype("float32")
    bad = many.copy()
    bad[3, 5, 5] = np.nan
    for _ in range(2):
        backed_up(folder / "run", many)
    unchecked = tf.data.Dataset.from_tensor_slices(np.full((4, 2, 2), 64)).batch(2)
    stop = {"verbose": 0, "callbacks": [StopAtNaN()]}
    actions = [
        lambda: load_from(folder / "empty"),
        lambda: load_mnist(folder / "half.npz"),
        lambda: load_from(folder / "cache"),
        lambda: model.encode(images + 255 * np.eye(28)[..., None]),
        lambda: model.encode(images[0]),
        lambda: model.fit(many, np.zeros(64), verbose=0),
        lambda: small.adapt(image for image in many),
        lambda: quantizer(np.ones((8, 8), "float32")),
        lambda: squared_distances(np.zeros((6, 2)), np.zeros((4, 3))),
        lambda: build_encoder((30, 30, 1)),
        lambda: model.decode(np.where(np.eye(7, dtype=bool), 100, 227)[None]),
        lambda: tiny.fit(unchecked, shuffle=False, **stop),
        lambda: small.adapt(bad),
        lambda: small.fit(((batch, batch) for batch in (many, bad)), steps_per_epoch=2, **stop),
        lambda: backed_up(folder / "run", many, damage=lambda file: file.write_bytes(b"PK")),
        lambda: backed_up(folder / "run", many, damage=lambda file: (file.parent / "part.npz").mkdir()),
        lambda: backed_up(folder / "run", many, filters=8),
        lambda: frozen.adapt(np.ones((8, 4))),
        lambda: check_pair(model, prior),
        lambda: prior.bits(codes + 64),
        lambda: labelled.fit(codes, verbose=0),
        lambda: prior.bits(codes, 3),
    ]
    return [message(action) for action in actions]


def tool_messages(folder, capsys):
    """What the tools say in the cases of the page, and where they cannot be made to, the line that says it."""
    import reproduce
    import vendor

    old = folder / "old.ipynb"
    old.write_text(json.dumps({"cells": [], "metadata": {}}))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HERE": folder, "VENDOR": folder / "vendor", "STAMP": folder / "vendor" / ".complete"}.items():
            patch.setattr(vendor, name, value)
        patch.setattr(vendor, "npm", no_network)
        patch.setattr(sys, "argv", ["reproduce.py", "--check", str(old)])
        vendor.vendor()
        assert reproduce.main() == 1
    shown = capsys.readouterr()
    wrong = subprocess.run([sys.executable, "-c", "import keras"], env=os.environ | {"KERAS_BACKEND": "nonsense"}, capture_output=True,
                           text=True)
    setup = (ROOT / "book" / "setup.sh").read_text(encoding="utf-8")
    need = re.search(r"^need=\"(.+)\"", setup, re.M)[1].replace("$min", settings()["min_python"]).replace("$max", settings()["max_python"])
    refusal = re.search(r'echo "(The book needs .+)" >&2', setup)[1].replace("$need", need)
    skip = re.search(r'pytest\.skip\(f"(no Chromium .+)"\)', (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))[1]
    return [shown.err.strip(), shown.out.strip(), wrong.stderr.strip().splitlines()[-1].partition(": ")[2], refusal, skip]


def test_messages_on_the_page_are_what_is_said(tmp_path, capsys):
    page = (ROOT / "book" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"```text\n(.+?)\n```", page, re.S)
    messages = [" ".join(text.split()) for text in [*package_messages(tmp_path), *tool_messages(tmp_path, capsys)]]
    messages = [re.sub(r"^Exception encountered when calling .*?\x1b\[1m(.*)\x1b\[0m.*", r"\1", text) for text in messages]  # Keras's frame
    patterns = [re.compile(".*".join(map(re.escape, quote.split("…")))) for quote in quoted]
    assert [quote for quote, pattern in zip(quoted, patterns) if not any(map(pattern.fullmatch, messages))] == [], "nobody says this"
    assert [text for text in messages if not any(pattern.fullmatch(text) for pattern in patterns)] == [], "the page lacks this"


# Results


def test_results_page_shows_every_figure_and_chapter(site):
    from results import FIGURES

    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "book" / "results.html").read_text(encoding="utf-8"))).replace("’", "'")
    count = 0
    for stem, figures in FIGURES.items():
        assert f"book/reproduce.py nbs/{stem}.ipynb" in text
        for what, pattern in figures.items():
            assert re.search(rf"{re.escape(what)}\s+{re.escape(figure(ROOT / 'nbs' / f'{stem}.ipynb', what, pattern))}\s", text), what
            count += 1
    assert count > 40
    shown = {target for target, _ in links(site, "book/results.html")}
    assert {f"../nbs/{path.stem}.html" for path in chapters()} <= shown


def test_every_chapter_that_prints_has_its_figures():
    from results import FIGURES, printed

    numbered = {path.stem for path in chapters() if re.match(r"0\d_", path.stem) and printed(path)}
    assert numbered <= set(FIGURES) <= {path.stem for path in chapters()}


def test_a_figure_that_is_not_printed_or_printed_twice_is_refused(tmp_path):
    path = tmp_path / "tiny.ipynb"
    outputs = [{"output_type": "stream", "name": "stdout", "text": ["mse 0.1\n", "mse 0.1\n", "bits 3\n", "bits 4\n"]}]
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": [], "outputs": outputs}], "metadata": {}}))
    assert figure(path, "error", r"^mse (\S+)$") == "0.1"
    for pattern in (r"^bits (\d)$", r"^accuracy (\S+)$"):
        with pytest.raises(ValueError, match="tiny.ipynb should print one value for 'it'"):
            figure(path, "it", pattern)


def test_what_is_known_of_a_run_is_shown(tmp_path):
    from results import run, seeds

    path = tmp_path / "tiny.ipynb"
    cell = {"cell_type": "code", "source": ["keras.utils.set_random_seed(0)\n", "rng = np.random.default_rng(3); f(seed=1)"], "outputs": []}
    content = {"cells": [cell], "metadata": {}}
    path.write_text(json.dumps(content))
    assert run(path) == ("not recorded", "not recorded")
    assert seeds(path) == "Keras 0; NumPy 3; arguments 1"
    content["metadata"]["vqvae_tutorial"] = {"versions": {"python": "3.12.1", "keras": "3.9.0"}, "minutes": 7, "cores": 2}
    path.write_text(json.dumps(content))
    assert run(path) == ("python 3.12.1, keras 3.9.0", "7 min on 2 cores")


def test_the_file_for_assistants_leads_somewhere_and_names_everything(site):
    """`llms.txt`: every link is a page of the site, every chapter says what it is about, every public name is there."""
    text = (site / "llms.txt").read_text(encoding="utf-8")
    home = settings()["doc_host"] + settings()["doc_baseurl"]
    links = re.findall(re.escape(home) + r"([^)\s]+\.html)", text)
    assert len(links) >= len(chapters()) + 20 and all((site / link).exists() for link in links)
    said = dict(re.findall(r"^- \[([^]]+)\]\([^)]+\): (.+)$", text, re.M))
    assert len(said) == len(chapters()) and all(len(line) > 40 for line in said.values()), said
    assert not {name for name in vqvae_tutorial.__all__ if name[0] != "_" and f"- `{name}`: " not in text}
