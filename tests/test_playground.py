"""The playground: a browser's codes, pictures, logits and dreams are Keras's, and a hand can do with it what the page promises.

`PLAYGROUND_DIGITS=10000 pytest tests/test_playground.py` compares the codes of all test digits, where MNIST can be had.
"""
import base64
import json
import os
import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from project import ROOT, cells, notebook

from vqvae_tutorial import FSQ, VQVAE, PixelCNN, PositionPrior, VectorQuantizer, build_networks, load_mnist, load_pretrained, playground
from vqvae_tutorial.data import SAMPLE
from vqvae_tutorial.playground import Packed, Playground, asset, layer_steps, mnist_playground, pack_prior, pack_vqvae
from vqvae_tutorial.priors import keeping_noise

BENCHMARKS = ROOT / "benchmarks"
DIGITS = int(os.environ.get("PLAYGROUND_DIGITS", 100))
DREAMS = 20

COMPUTE = """({pixels, noise, labels, maps}) => {
    const {model, prior} = document.querySelector(".vqvae-playground").playground;
    const read = (text, Kind) => new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
    const part = (array, i, size) => array.subarray(i * size, (i + 1) * size);
    const size = model.shape.reduce((a, b) => a * b), places = model.grid[0] * model.grid[1], K = model.codebook.shape[0];
    const bytes = read(pixels, Uint8Array), codes = [], pictures = [], logits = [], dreams = [];
    for (let i = 0; i < bytes.length / size; i++) codes.push([...model.encode(part(bytes, i, size).reduce((x, value, j) => {
        x[j] = value / 255;
        return x;
    }, new Float32Array(size)))]);
    for (const each of codes.slice(0, 100)) pictures.push([...model.decode(each)]);
    const sums = read(noise, Float32Array);
    if (prior) labels.forEach((label, i) => {
        logits.push([...prior.sample(label, null, maps[i])].map((step) => [...step.logits]));
        const added = (place) => part(part(sums, i, places * K), place, K);
        dreams.push([...prior.sample(label, added)].map((step) => step.code));
    });
    return {codes, pictures, logits, dreams};
}"""


def text(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


@pytest.fixture(scope="module")
def pair():
    return load_pretrained("mnist")


@pytest.fixture(scope="module")
def digits():
    return (load_mnist() if DIGITS > 1000 else load_mnist(SAMPLE)).test.images[:DIGITS]


@pytest.fixture
def shown(browser, tmp_path):
    """Opens a playground as a file, and gives the page; it must ask for nothing else and complain of nothing."""
    opened = []

    def show(made, **options):
        made.save(tmp_path / "page.html")
        page = browser.new_context(**options).new_page()
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_selector(".vp-ready")
        opened.append(page)
        return page

    yield show
    for page in opened:
        assert not page.errors
        assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
        page.context.close()


def load_the_prior(page):
    page.get_by_label("show bits").check()
    page.wait_for_selector(".vp-reading p")


def computed(page, pair, digits):
    """What the page computes, and what Keras does, of the same digits and noise."""
    model, prior = pair
    codes = model.encode(digits)
    labels = np.arange(DREAMS, dtype="int32") % prior.num_classes
    noise = keeping_noise(np.full((DREAMS, *prior.shape), -1), prior.num_codes, 1.0, np.random.default_rng(0))
    load_the_prior(page)
    found = page.evaluate(COMPUTE, {"pixels": text(np.round(255 * digits).astype("uint8")), "noise": text(noise),
                                    "labels": labels.tolist(), "maps": codes[:DREAMS].reshape(DREAMS, -1).tolist()})
    logits = prior.predict({"codes": codes[:DREAMS], "label": labels}, verbose=0)
    expected = {"codes": codes, "pictures": model.decode(codes[:100]), "logits": logits, "dreams": prior.sample_with_noise(noise, labels)}
    return {name: np.reshape(found[name], np.shape(value)) for name, value in expected.items()}, expected


def test_page_computes_what_keras_computes(shown, pair, digits, record_property):
    found, expected = computed(shown(Playground(*pair, digits[:1])), pair, digits)
    wrong = np.count_nonzero(found["codes"] != expected["codes"])
    record_property("wrong_codes", f"{wrong} of {expected['codes'].size}")
    print(f"wrong codes: {wrong} of {expected['codes'].size:,}")
    assert wrong <= 1e-5 * expected["codes"].size
    assert np.abs(found["pictures"] - expected["pictures"]).max() < 2e-3
    assert np.abs(found["logits"] - expected["logits"]).max() < 2e-2
    assert np.mean(found["dreams"] == expected["dreams"]) > 0.9  # of rounded weights: one other code leads to another digit


def test_page_dreams_what_keras_dreams(shown, pair, digits, monkeypatch):
    monkeypatch.setattr(playground, "Packed", lambda dtype: Packed("float32"))
    found, expected = computed(shown(Playground(*pair, digits[:1])), pair, digits)
    assert np.abs(found["logits"] - expected["logits"]).max() < 1e-4
    assert np.array_equal(found["dreams"], expected["dreams"])


def test_comparison_can_fail(shown, pair, digits):
    """With one kernel turned around, nothing is what it was."""
    model = keras.models.clone_model(pair[0])
    model.set_weights([weights[::-1] if weights.ndim == 4 else weights for weights in pair[0].get_weights()])
    other = keras.models.clone_model(pair[1])
    other.set_weights([weights[::-1] if weights.ndim == 4 else weights for weights in pair[1].get_weights()])
    found, expected = computed(shown(Playground(model, other, digits[:1])), pair, digits)
    assert np.mean(found["codes"] != expected["codes"]) > 0.01
    assert np.abs(found["pictures"] - expected["pictures"]).max() > 0.1
    assert np.abs(found["logits"] - expected["logits"]).max() > 0.1


# What a hand does


def codes_of(page):
    return page.evaluate("[...document.querySelector('.vqvae-playground').playground.codes]")


@pytest.fixture
def page(shown):
    return shown(mnist_playground(), has_touch=True)


def drawing(page):
    return page.get_by_role("application")


def test_it_starts_with_a_digit_and_all_its_parts(page):
    assert len(set(codes_of(page))) > 5
    cells = page.get_by_role("gridcell")
    assert cells.count() == 49
    assert [int(number) for number in cells.all_text_contents()] == codes_of(page)
    assert re.match(r"row 1, column 1: code \d+$", cells.first.get_attribute("aria-label"))
    assert "of the 128 codes. Mean squared error 0.00" in page.get_by_role("status").text_content()


@pytest.mark.parametrize("way", ["mouse", "touch"])
def test_drawing_changes_codes_and_undo_brings_them_back(page, way):
    before = codes_of(page)
    page.get_by_role("button", name="Clear").click()
    empty = codes_of(page)
    assert max(map(empty.count, empty)) > 40
    box = drawing(page).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"]
    if way == "mouse":
        page.mouse.move(x, y + 0.2 * box["height"])
        page.mouse.down()
        page.mouse.move(x, y + 0.8 * box["height"], steps=8)
        page.mouse.up()
    else:
        page.touchscreen.tap(x, y + 0.5 * box["height"])
    page.wait_for_timeout(100)
    assert codes_of(page) != empty
    for expected in (empty, before):
        page.get_by_role("button", name="Undo").click()
        assert codes_of(page) == expected
    assert page.get_by_role("button", name="Undo").is_disabled()


def test_arrow_keys_move_the_drawing(page):
    before = codes_of(page)
    drawing(page).focus()
    page.keyboard.press("ArrowDown")
    assert codes_of(page) != before
    page.keyboard.press("ArrowUp")
    assert codes_of(page) == before


def test_keys_alone_choose_another_code(page):
    before = codes_of(page)
    page.get_by_role("gridcell").first.focus()
    for key in ["ArrowUp", "ArrowLeft", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight"]:
        page.keyboard.press(key)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("row 4, column 4")
    page.keyboard.press("Enter")
    choices = page.get_by_role("group", name="Codes for row 4, column 4").get_by_role("button")
    page.wait_for_function("document.querySelectorAll('.vp-list button').length === 17")
    assert choices.first.get_attribute("aria-pressed") == "true"
    choices.nth(3).focus()
    page.keyboard.press("Enter")
    changed = [place for place, (old, new) in enumerate(zip(before, codes_of(page))) if old != new]
    assert changed == [3 * 7 + 3]
    page.keyboard.press("Escape")
    assert page.locator(".vp-picker").is_hidden()
    assert page.evaluate("document.activeElement.getAttribute('role')") == "gridcell"


def test_dreams_keep_what_is_kept_and_come_again(page):
    page.emulate_media(reduced_motion="reduce")  # all at once
    page.get_by_role("button", name="7", exact=True).click()
    page.get_by_label("keep the first rows").fill("3")
    before = codes_of(page)
    dream = page.get_by_role("button", name="Dream", exact=True)
    done = "document.querySelector('.vp-status').textContent.startsWith('Dreamt for 7')"

    def dreamt(button):
        page.evaluate("document.querySelector('.vp-status').textContent = ''")
        button.click()
        page.wait_for_function(done)
        return codes_of(page)

    first = dreamt(dream)
    assert first[:21] == before[:21] and first[21:] != before[21:]
    assert dreamt(dream) == first
    assert dreamt(page.get_by_role("button", name="Another")) != first
    assert page.get_by_label("seed").input_value() == "2"


def test_animated_dream_ends_where_the_quick_one_does(page):
    dream = page.get_by_role("button", name="Dream", exact=True)
    found = []
    for motion in ("reduce", "no-preference"):
        page.emulate_media(reduced_motion=motion)
        page.evaluate("document.querySelector('.vp-status').textContent = ''")
        dream.click()
        page.wait_for_function("document.querySelector('.vp-status').textContent.startsWith('Dreamt')")
        found.append(codes_of(page))
    assert found[0] == found[1]


def test_bits_and_reading_are_those_of_the_prior(page, pair):
    load_the_prior(page)
    codes = np.reshape(codes_of(page), (1, 7, 7)).astype("int32")
    bits = pair[1].bits(np.repeat(codes, 10, axis=0), np.arange(10, dtype="int32"))
    assert page.locator(".vp-reading p").text_content() == (
        f"The prior reads {bits.argmin()}: told so, it can store these codes in {bits.min():.0f} bits.")
    shown = [float(number) for number in page.get_by_role("gridcell").all_text_contents()]
    assert abs(sum(shown) - bits.min()) < 49 * 0.05 + 0.5


def test_codes_travel_in_the_address(page):
    page.get_by_role("button", name="Take picture 4").click()
    codes = codes_of(page)
    page.get_by_role("button", name="Copy a link").click()
    page.wait_for_function("location.hash.startsWith('#codes=')")
    url = page.evaluate("location.href")
    page.goto("about:blank")
    page.goto(url)
    page.wait_for_selector(".vp-ready")
    assert codes_of(page) == codes
    for nonsense in ("!!!!", "AAAA", "_" * 66):
        page.goto("about:blank")
        page.goto(re.sub("#codes=.*", f"#codes={nonsense}", url))
        page.wait_for_selector(".vp-ready")
        assert len(set(codes_of(page))) > 5, "the digit that stands there without an address"


# Other models


def build(K=32, channels=3, quantizer=None, value_range=(0, 1), activation=None):
    networks = build_networks((16, 16, channels), embedding_dim=4, filters=8, residual_blocks=1)
    return VQVAE(*networks, quantizer or VectorQuantizer(K, seed=0), value_range=value_range)


@pytest.mark.parametrize("K, value_range", [(32, (0, 1)), (300, (-1, 1))])
def test_colour_other_sizes_and_no_prior(shown, K, value_range):
    model, random = build(K, value_range=value_range), np.random.default_rng(0)
    pictures = random.uniform(*value_range, (3, 16, 16, 3)).astype("float32")
    pictures = np.round((pictures - value_range[0]) / np.ptp(value_range) * 255) / 255 * np.ptp(value_range) + value_range[0]
    model.adapt(pictures)
    page = shown(Playground(model, examples=pictures))
    assert codes_of(page) == model.encode(pictures[:1]).ravel().tolist()
    assert page.get_by_role("button", name="Dream", exact=True).count() == 0
    page.get_by_role("button", name="Copy a link").click()
    page.wait_for_function("location.hash.startsWith('#codes=')")
    codes, url = codes_of(page), page.evaluate("location.href")
    page.goto("about:blank")
    page.goto(url)
    page.wait_for_selector(".vp-ready")
    assert codes_of(page) == codes


def test_prior_without_classes(shown):
    model = build(channels=1)
    prior = PixelCNN(32, model.code_shape, filters=8, num_layers=2)
    page = shown(Playground(model, prior))
    load_the_prior(page)
    assert page.get_by_role("button", name="any").count() == 0
    assert re.match(r"The prior can store these codes in \d+ bits.", page.locator(".vp-reading p").text_content())


def test_weights_that_are_cut_short_are_refused(browser, tmp_path):
    made = Playground(build())
    part = made.parts["model"]
    assert len(base64.b64decode(part["data"])) == sum(
        np.dtype(array["dtype"]).itemsize * int(np.prod(array["shape"])) for array in part["arrays"])
    part["data"] = part["data"][:-400]
    made.save(tmp_path / "page.html")
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert re.search(r"could not start: the weights have \d+ bytes instead of \d+", page.get_by_role("alert").text_content())
    page.close()


def test_two_on_one_page(browser, tmp_path):
    one, other = Playground(build(32)), Playground(build(16))
    (tmp_path / "page.html").write_text(one._repr_html_() + other._repr_html_(), encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("document.querySelectorAll('.vp-ready').length === 2")
    sizes = page.evaluate("[...document.querySelectorAll('.vqvae-playground')].map((host) => host.playground.model.codebook.shape[0])")
    assert sizes == [32, 16]
    page.close()


def test_sequential_networks_are_packed_too():
    layers = keras.layers
    encoder = keras.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(4, 4, 4, activation="relu"), layers.Conv2D(2, 1, use_bias=False)])
    decoder = keras.Sequential([layers.Input((2, 2, 2)), layers.Conv2D(16, 1), layers.Reshape((8, 8, 1))])
    steps = pack_vqvae(VQVAE(encoder, decoder, VectorQuantizer(8), value_range=(0, 1)))["about"]["encoder"]["steps"]
    assert [step["op"] for step in steps] == ["conv", "relu", "conv"]


@pytest.mark.parametrize("fault, message", [
    (lambda: pack_vqvae(build(value_range=None)), "`model` must be one of pictures .* Received: signals .*16, 16, 3.*, range None"),
    (lambda: pack_vqvae(build(channels=2)), "1 or 3"),
    (lambda: pack_vqvae(build(quantizer=FSQ((4, 4, 4, 4)))), "`quantizer` must be one that chooses the nearest embedding. Received: FSQ"),
    (lambda: Playground(build(), PixelCNN(16, (4, 4), filters=4, num_layers=1)), "32"),
    (lambda: pack_prior(PositionPrior(4, (2, 2))), "`prior` must be a PixelCNN. Received: PositionPrior"),
    (lambda: pack_vqvae(build(), np.full((1, 16, 16, 3), np.nan)), "NaN"),
    (lambda: layer_steps(keras.layers.Conv2DTranspose(4, 3), Packed()), "Conv2DTranspose 'conv2d_transpose.*', which it does not know"),
    (lambda: layer_steps(keras.layers.Conv2D(4, 3, dilation_rate=2), Packed()), "dilation"),
    (lambda: layer_steps(keras.layers.Activation("tanh"), Packed()), "activation tanh"),
    (lambda: layer_steps(keras.layers.ReLU(negative_slope=0.1), Packed()), "slope"),
])
def test_what_a_page_cannot_run_is_refused(fault, message):
    with pytest.raises(ValueError, match=message):
        fault()


def test_a_class_may_be_called_by_any_name():
    """A script ends at the first `</script`, wherever it stands."""
    names = ["</script><b>", "<!--"]
    written = Playground(build(), PixelCNN(32, (4, 4), 2, filters=4, num_layers=1), classes=names).files()
    told = [text for text in written.values() if "classes" in text]
    assert told and not any("<" in text for text in told)
    assert any(json.loads(re.search(r'"classes": (\[.*?\])', text)[1]) == names for text in told)


# What it costs


def test_the_chapter_shows_the_engine_as_it_is():
    """No hash sees that a script has changed; what the chapter printed of it must stand there, line by line."""
    cell = next(cell for cell in notebook(ROOT / "nbs" / "playground.ipynb")["cells"] if "show_javascript(" in "".join(cell["source"]))
    printed = "".join(cell["outputs"][0]["text"]).rstrip()
    functions = re.split(r"(?m)^(?=function )", printed)[1:]
    assert len(functions) == 2
    for function in functions:
        assert textwrap.indent(function.rstrip(), "  ") in asset("engine.js"), function[:40]


def test_the_chapter_states_what_was_measured():
    """The chapter's sentence on speed has the figures of the table."""
    sys.path.insert(0, str(BENCHMARKS))
    from measure import RESULTS, read

    row = {name: float(value) for name, value in read(RESULTS / "playground.csv")[-1].items() if name != "made_with"}
    said = "\n".join(cells(ROOT / "nbs" / "playground.ipynb", "markdown"))
    for words in (f"{row['stroke_ms']:.0f} milliseconds for a stroke", f"and {row['dream_ms']:.0f} for a dream",
                  f"{row['stroke_slowed_ms']:.0f} and {row['dream_slowed_ms']:.0f}.", f"{row['first_stroke_kb']:.0f} kB travel"):
        assert words in said, words


def test_a_reader_does_not_wait(browser, tmp_path):
    """The committed figures meet their bars, and the script that measured them runs."""
    sys.path.insert(0, str(BENCHMARKS))
    from measure import RESULTS, read

    bars = {"first_stroke_kb": 450, "first_dream_kb": 2000, "stroke_ms": 15, "dream_ms": 300, "stroke_slowed_ms": 80,
            "dream_slowed_ms": 1500}
    for row in read(RESULTS / "playground.csv"):
        assert {name: float(row[name]) for name, bar in bars.items() if float(row[name]) > bar} == {}
    out = tmp_path / "quick.csv"
    command = [sys.executable, BENCHMARKS / "playground.py", "--quick", "--out", out]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    [row] = read(out)
    assert list(row) == list(read(RESULTS / "playground.csv")[0])
    assert float(row["first_dream_kb"]) <= bars["first_dream_kb"] and float(row["first_stroke_kb"]) <= bars["first_stroke_kb"]
