"""Figures: shown once, sharp, readable on white and dark pages, and nothing left behind."""

import base64
import gc
import io
import weakref

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from keras import ops
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from vqvae_tutorial import plotting
from vqvae_tutorial.plotting import code_colors, show_codes, show_curves, show_images, show_rows, step_through

PIXELS = round(plotting.WIDTH * plotting.DPI)


@pytest.fixture
def shown(monkeypatch):
    """What was displayed: PNG bytes, or mime bundles."""
    outputs = []
    monkeypatch.setattr(plotting, "display", lambda output, **_: outputs.append(getattr(output, "data", output)))
    return outputs


@pytest.fixture
def figures(monkeypatch):
    """The figures that would be shown."""
    found = []
    monkeypatch.setattr(plotting, "show_figure", found.append)
    return found


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def one(shown):
    assert len(shown) == 1
    return pixels(shown.pop())


HALF = np.concatenate([np.zeros((14, 28)), np.ones((14, 28))])  # black above, white below

CALLS = {
    "images": lambda: show_images(np.stack([HALF] * 3), titles=["a", "b", "c"]),
    "codes": lambda: show_codes(np.arange(4).reshape(1, 2, 2), numbers=True),
    "rows": lambda: show_rows({"digit": HALF[np.newaxis], "codes": np.zeros((1, 7, 7), int)}),
    "curves": lambda: show_curves({"loss": [3.0, 2.0], "val_loss": [3.0, 2.5]}),
    "steps": lambda: step_through(lambda step: show_images(step / 2 * HALF), 3, "iteration"),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_helper_shows_one_figure_and_keeps_none(shown, monkeypatch, name):
    made = []

    class Watched(Figure):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(weakref.ref(self))

    monkeypatch.setattr(plotting, "Figure", Watched)
    before = dict(matplotlib.rcParams)
    assert CALLS[name]() is None
    assert len(shown) == 1 and made
    assert not plt.get_fignums() and dict(matplotlib.rcParams) == before
    gc.collect()
    assert not [figure for figure in made if figure() is not None]


@pytest.mark.parametrize("name", [name for name in CALLS if name != "steps"])
def test_pictures_are_page_wide_transparent_and_repeatable(shown, name):
    CALLS[name]()
    CALLS[name]()
    assert shown[0] == shown[1] and b"atplotlib" not in shown[0]
    picture = pixels(shown[0])
    assert picture.shape[1] <= PIXELS and plotting.DPI >= 200
    if name == "curves":
        assert picture.shape[1] == PIXELS and picture[-1, 0, 3] == 0  # a corner
    assert len(shown[0]) < 60_000


def test_the_users_own_figure_is_closed(shown):
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    plotting.show_figure(figure)
    assert len(shown) == 1 and not plt.get_fignums()


def test_styles_are_applied_and_taken_back():
    before = dict(matplotlib.rcParams)
    with plotting.book_style():
        assert matplotlib.rcParams["text.color"] == plotting.INK
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context():
        plotting.use_book_style()
        assert matplotlib.rcParams["axes.facecolor"] == "none"


@pytest.mark.parametrize("page", ["#ffffff", "#121212"])
def test_colours_stand_out_from_the_page(page):
    def luminance(color):
        channels = np.array(to_rgb(color))
        return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for color in (plotting.INK, *plotting.PALETTE):
        low, high = sorted([luminance(color), luminance(page)])
        assert (high + 0.05) / (low + 0.05) >= 3


# How colours look to those who lack one kind of cone (Machado, Oliveira and Fernandes, 2009), as matrices for linear RGB.
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("eyes", EYES)
def test_the_first_four_colours_stay_apart_for_all_eyes(eyes):
    """Figures with more than four colours must give each curve its own marker or dash too."""
    channels = np.array([to_rgb(color) for color in plotting.PALETTE[:4]])
    light = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(light @ np.transpose(EYES[eyes]), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(seen @ to_xyz.T / to_xyz.sum(axis=1)).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    apart = np.linalg.norm(lab[:, np.newaxis] - lab, axis=-1)[np.triu_indices(4, k=1)]
    assert apart.min() > 12, "a difference of 2 can just be seen"


def test_images_are_drawn_true(shown):
    show_images(HALF)
    picture = one(shown)
    column = picture[:, picture.shape[1] // 2]
    assert (column[: len(column) // 2 - 1] == (0, 0, 0, 255)).all()
    assert (column[len(column) // 2 + 1 :] == (255, 255, 255, 255)).all()
    assert len(column) % 28 == 0 or len(column) == round(0.68 * plotting.DPI)


def test_grey_is_not_stretched(shown):
    show_images(np.full((1, 28, 28), 0.5))
    assert one(shown)[60, 60, 0] in (127, 128)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (1, 28, 28), (1, 28, 28, 1)])
def test_all_shapes_of_one_digit(shown, shape):
    show_images(HALF.reshape(shape))
    show_images(ops.convert_to_tensor(HALF.reshape(shape).astype("float32")))
    assert shown[0] == shown[1]
    assert pixels(shown[0]).shape[0] < 150


def test_ten_in_a_row_then_a_new_row(shown):
    heights = []
    for count in (1, 10, 11, 20, 21):
        show_images(np.zeros((count, 28, 28)))
        heights.append(one(shown).shape[0])
    assert heights[0] == heights[1] < heights[2] == heights[3] < heights[4]
    show_images(np.zeros((6, 28, 28)), columns=2)
    assert one(shown).shape[0] == heights[4]


def test_a_row_too_long_for_the_page_becomes_smaller(shown):
    show_images(np.ones((40, 28, 28)), columns=40)
    picture = one(shown)
    assert PIXELS - 40 < picture.shape[1] <= PIXELS and picture.shape[0] < 40
    starts = np.flatnonzero(np.diff((picture[5, :, 3] > 0).astype(int)) == 1)
    assert len(starts) + (picture[5, 0, 3] > 0) == 40


def test_codes_have_their_colours(shown):
    show_codes(np.array([[[3, 90]]]), num_codes=128, size=2)
    picture = one(shown)
    middle = picture.shape[0] // 2
    inside = np.flatnonzero(picture[middle, :, 3])
    for position, code in ((0.25, 3), (0.75, 90)):
        found = picture[middle, inside[int(position * len(inside))], :3]
        np.testing.assert_allclose(found, 255 * code_colors(128)[code], atol=1)


def test_a_code_keeps_its_colour_whatever_the_codebook():
    for small, large in ((1, 2), (4, 6), (16, 512)):
        np.testing.assert_array_equal(code_colors(small), code_colors(large)[:small])
    assert len(np.unique(np.round(255 * code_colors(256)), axis=0)) == 256
    assert len(code_colors(0)) == 0


def test_rows_take_pictures_and_codes(figures):
    show_rows({"digit": np.zeros((3, 28, 28, 1)), "codes": np.ones((2, 7, 7), "int32")})
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["digit", "codes"]
    assert [image.get_array().shape for image in axes.images] == [(28, 28)] * 3 + [(7, 7, 3)] * 2
    boxes = np.array([image.get_extent() for image in axes.images])
    np.testing.assert_allclose(boxes[0, :2], boxes[3, :2])  # the codes stand under their digit
    assert boxes[3, 3] >= boxes[0, 2]  # y points down


def test_numbers_are_written_where_they_belong(figures):
    show_codes(np.array([[[7, 8], [9, 10]]]), numbers=True)
    texts = sorted(figures[0].axes[0].texts, key=lambda text: (text.get_position()[1], text.get_position()[0]))
    assert [text.get_text() for text in texts] == ["7", "8", "9", "10"]


@pytest.mark.parametrize("wrong, part", [
    (lambda: show_images(np.zeros((2, 28, 28), "uint8")), "Divide bytes by 255"),
    (lambda: show_images(np.zeros((2, 28, 28, 4))), "(2, 28, 28, 4)"),
    (lambda: show_images(np.zeros((0, 28, 28))), "(0, 28, 28)"),
    (lambda: show_images(np.zeros(28)), "(28,)"),
    (lambda: show_images(np.zeros((2, 28, 28)), titles=["a"]), "each of 2 tiles. Received: 1 titles"),
    (lambda: show_codes(np.zeros((1, 7, 7))), "must be integers"),
    (lambda: show_codes(-np.ones((1, 7, 7), int)), "from -1"),
    (lambda: show_codes(np.full((1, 7, 7), 128), num_codes=128), "Received: 128"),
    (lambda: show_codes(np.full((1, 7, 7), 128), colors=code_colors(128)), "Received: 128"),
    (lambda: show_rows({"codes": np.full((1, 7, 7), 128)}, colors=code_colors(128)), "Received: 128"),
    (lambda: show_codes(np.zeros((1, 7, 7), int), colors=np.zeros(3)), "Received: (3,)"),
    (lambda: show_codes(np.zeros((2, 7, 7), int), titles=["a"]), "each of 2 tiles. Received: 1 titles"),
    (lambda: code_colors(np.zeros((0, 2))), "(0, 2)"),
    (lambda: code_colors(np.zeros(4)), "(4,)"),
    (lambda: step_through(lambda step: show_images(HALF), 2, start=2), "one of 2 steps. Received: 2"),
    (lambda: show_curves({"loss": [1.0]}, names=["los"]), "los"),
    (lambda: show_curves({}), "nothing to draw"),
    (lambda: show_rows({}), "nothing to show"),
    (lambda: step_through(lambda step: None, 2), "showed 0 figures"),
    (lambda: step_through([]), "nothing to step through"),
])
def test_errors_say_what_was_given_and_show_nothing(shown, wrong, part):
    with pytest.raises(ValueError) as caught:
        wrong()
    assert part in str(caught.value) and not shown and not plt.get_fignums()
    CALLS["images"]()  # and the next figure is shown as ever
    assert len(shown) == 1


def test_curves_of_a_history(figures):
    show_curves({"loss": [3, 2, 1], "val_loss": [4, 3, 2], "usage": [1, 2, 3]})
    loss, usage = figures[0].axes
    assert [loss.get_title(), usage.get_title()] == ["loss", "usage"]
    assert [line.get_label() for line in loss.lines] == ["train", "validation"]
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3]
    assert list(loss.lines[1].get_ydata()) == [4, 3, 2] and len(usage.lines) == 1
    assert loss.lines[0].get_linestyle() != loss.lines[1].get_linestyle()


def test_curves_with_labels_names_and_titles(figures):
    show_curves({"ema": {"mse": [2, 1], "loss": [1, 1]}, "gradient": {"mse": [3, 2]}}, names={"mse": "error"})
    assert [axes.get_title() for axes in figures[0].axes] == ["error"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["ema", "gradient"]


def test_one_epoch_is_visible(figures):
    show_curves({"loss": [1.0]})
    assert figures[0].axes[0].lines[0].get_marker() == "o"


def test_legend_is_drawn_where_only_a_later_metric_has_two_curves(figures):
    show_curves({"usage": [1, 2], "loss": [2, 1], "val_loss": [2, 2]})
    assert len(figures[0].legends[0].get_texts()) == 2


def test_no_legend_where_no_metric_has_two_curves(figures):
    show_curves({"usage": [1, 2], "loss": [2, 1]})
    assert not figures[0].legends


def test_letters_of_a_legend_have_the_colour_of_the_others_whatever_the_style():
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure, plot = plotting.new_figure()
        plot.plot([0, 1], label="a curve")
        plot.set_title("a title")
        plotting.add_legend(figure)
        colours = {to_rgb(text.get_color()) for text in (*figure.legends[0].get_texts(), plot.title, *plot.get_xticklabels())}
    assert colours == {to_rgb(plotting.INK)}


def test_the_legend_lies_below_every_plot():
    figure = show_curves({"loss": [3, 2], "val_loss": [3, 2.5], "usage": [1, 2]}, show=False)
    figure.draw_without_rendering()
    top = figure.legends[0].get_window_extent().y1
    assert all(axes.get_tightbbox().y0 >= top for axes in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "validation"]


@pytest.mark.parametrize("name", ["images", "codes", "rows", "curves"])
def test_a_figure_can_be_had_and_saved_instead(shown, tmp_path, name):
    call = {"images": lambda: show_images(HALF, show=False), "codes": lambda: show_codes(np.eye(2, dtype=int), show=False),
            "rows": lambda: show_rows({"digit": HALF}, show=False), "curves": lambda: show_curves({"loss": [1, 2]}, show=False)}
    figure = call[name]()
    assert isinstance(figure, Figure) and not shown
    figure.savefig(tmp_path / "figure.png")
    saved = pixels((tmp_path / "figure.png").read_bytes())
    plotting.show_figure(figure)
    np.testing.assert_array_equal(saved.shape, one(shown).shape)
    if name == "curves":
        assert saved[-1, 0, 3] == 0, "as transparent as on the page"


def test_steps_can_be_had_instead(shown):
    frames = step_through(lambda step: show_images(step * HALF), 3, show=False)
    assert len(frames) == 3 and not shown
    assert [tuple(pixels(frame)[100, 60]) for frame in frames[::2]] == [(0, 0, 0, 255), (255, 255, 255, 255)]


@pytest.mark.parametrize("ticks, words", [(np.arange(100, 120), False), (["many words here"] * 12, True)])
def test_labels_of_an_axis_do_not_run_together(shown, ticks, words):
    figure, axes = plotting.new_figure(1, 2)
    axes[0].set_xticks(np.arange(len(ticks)) * 1000, ticks)
    plotting.show_figure(figure)
    texts = [label for label in axes[0].get_xticklabels() if label.get_text() and label.get_visible()]
    if words:
        assert len(texts) == 12 and texts[0].get_rotation() == 30
    else:
        boxes = [label.get_window_extent() for label in texts]
        assert 2 < len(boxes) < 20 and all(one.x1 < other.x0 for one, other in zip(boxes, boxes[1:]))


def test_labels_with_room_stay(shown):
    figure, axes = plotting.new_figure()
    axes.plot([0, 1])
    figure.draw_without_rendering()
    before = [label.get_text() for label in axes.get_xticklabels()]
    plotting.show_figure(figure)
    assert [label.get_text() for label in axes.get_xticklabels() if label.get_visible()] == before


def test_minor_labels_give_way(shown):
    figure, axes = plotting.new_figure(1, 4)
    axes[0].set(xscale="log", xlim=(0.7, 4))
    plotting.show_figure(figure)
    axis = axes[0].xaxis
    labels = [tick.label1 for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()] if tick.label1.get_text()]
    inside = [label.get_window_extent() for label in labels if label.get_visible()]
    boxes = sorted((box for box in inside if 0 <= box.x0), key=lambda box: box.x0)
    assert all(one.x1 <= other.x0 + 1 for one, other in zip(boxes, boxes[1:]))


def test_like_codes_look_alike():
    random = np.random.default_rng(0)
    ink, kind = random.gamma(2, 1, 300), random.normal(size=300)
    ink[0] = 0
    codebook = np.stack([ink, 0.3 * kind, 0.05 * random.normal(size=300)], axis=-1) @ np.linalg.qr(random.normal(size=(3, 3)))[0]
    colors = code_colors(codebook, codes=[0, 0, 5])
    assert colors.shape == (300, 3) and 0 <= colors.min() and colors.max() <= 1
    brightness = colors @ [0.299, 0.587, 0.114]
    assert colors[0].max() < 0.25, "paper is dark"
    assert np.corrcoef(np.minimum(ink, 3), brightness)[0, 1] > 0.6, "the more ink, the brighter"
    distance = np.linalg.norm(colors[:, None] - colors, axis=-1)
    nearest = np.argsort(np.linalg.norm(codebook[:, None] - codebook, axis=-1), axis=1)[:, 1]
    assert distance[np.arange(300), nearest].mean() < distance.mean() / 3
    np.testing.assert_allclose(code_colors(-codebook, codes=[0]), colors, atol=1e-6)


@pytest.mark.parametrize("codebook", [np.arange(4.0)[:, None], np.zeros((3, 2)), np.ones((1, 5)), np.eye(2)])
def test_small_and_degenerate_codebooks_have_colours_too(codebook):
    colors = code_colors(codebook)
    assert colors.shape == (len(codebook), 3) and np.isfinite(colors).all()
    np.testing.assert_array_equal(code_colors(codebook, codes=np.zeros((2, 2), int)).shape, colors.shape)


def test_embeddings_of_any_shape_and_backend():
    drawn = np.random.default_rng(0).random((5, 4, 4, 1)).astype("float32")
    np.testing.assert_array_equal(code_colors(ops.convert_to_tensor(drawn)), code_colors(drawn.reshape(5, -1)))


@pytest.mark.parametrize("shape", [(28, 28, 3), (1, 28, 28, 3)])
def test_colour_pictures(figures, shape):
    show_images(np.full(shape, 1.5))
    [image] = figures[0].axes[0].images
    assert image.get_array().shape == (28, 28, 3) and image.get_array().max() == 1


def test_small_figures_are_small_and_titles_are_not_cut(figures):
    show_images(HALF)
    show_images(HALF, titles=["a title much wider than the picture"])
    narrow, wide = (figure.get_figwidth() for figure in figures)
    assert narrow < 1 < wide < plotting.WIDTH
    figures[1].draw_without_rendering()
    box = figures[1].axes[0].texts[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figures[1].bbox.x1


def test_without_a_notebook_a_window_opens_where_there_is_a_screen(monkeypatch):
    opened, displayed = [], []
    monkeypatch.setattr(plotting, "display", lambda output, **_: displayed.append(output))
    monkeypatch.setattr(plt, "show", lambda: opened.append(plt.gcf()))
    show_images(HALF)
    assert len(displayed) == 1 and not opened
    from matplotlib.backend_bases import FigureCanvasBase

    monkeypatch.setattr(FigureCanvasBase, "required_interactive_framework", "some")
    show_images(HALF)
    assert len(displayed) == 1 and len(opened) == 1 and not plt.get_fignums()


needs_stack = pytest.mark.skipif(not hasattr(plotting.widgets, "Stack"), reason="this ipywidgets is older than 8 and has no Stack")


@needs_stack
def test_steps_move_without_a_kernel(shown):
    step_through(lambda step: show_images(step / 3 * HALF), 4, "iteration", start=-1)
    bundle = shown[0]
    state = plotting.widgets.Widget.get_manager_state(drop_defaults=False)["state"]
    box = state[bundle["application/vnd.jupyter.widget-view+json"]["model_id"]]["state"]
    controls, stack = (state[child.removeprefix("IPY_MODEL_")]["state"] for child in box["children"])
    play, slider = (child.removeprefix("IPY_MODEL_") for child in controls["children"])
    links = [[part.replace("IPY_MODEL_", "") if isinstance(part, str) else part for pair in
              (model["state"]["source"], model["state"]["target"]) for part in pair]
             for model in state.values() if model["model_name"] == "LinkModel"]
    assert [play, "value", slider, "value"] in links
    assert [slider, "value", box["children"][1].removeprefix("IPY_MODEL_"), "selected_index"] in links
    assert state[slider]["state"]["max"] == 3 and state[slider]["state"]["description"] == "iteration"
    assert state[play]["state"]["tooltip"] and len(stack["children"]) == 4
    assert stack["selected_index"] == state[slider]["state"]["value"] == state[play]["state"]["value"] == 3
    strip = pixels(base64.b64decode(bundle["image/png"]))
    assert strip.shape[1] == 136  # two columns at half their size


def test_steps_are_a_strip_without_stack(shown, monkeypatch):
    monkeypatch.delattr(plotting.widgets, "Stack", raising=False)
    step_through(lambda step: show_images(step * HALF), 2)
    strip = one(shown)
    middle = strip.shape[0] * 3 // 4
    assert strip[middle, strip.shape[1] // 4, 0] == 0 and strip[middle, strip.shape[1] * 3 // 4, 0] > 250


@needs_stack
def test_steps_take_figures_too(shown):
    def draw(step):
        figure, axes = plotting.new_figure(height=1)
        axes.plot([0, step])
        return figure

    with plotting.book_style():
        figures = [draw(step) for step in range(3)]
    step_through(figures, description="slope")
    step_through(draw, 3, "slope")
    assert shown[0]["image/png"] == shown[1]["image/png"]


def test_a_failing_step_does_not_swallow_later_figures(shown):
    with pytest.raises(ZeroDivisionError):
        step_through(lambda step: show_images(HALF) if step == 0 else 1 / 0, 2)
    assert not shown
    CALLS["images"]()
    assert len(shown) == 1
