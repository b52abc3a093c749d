"""Mazes, moving digits, and how clips are shown."""
import base64
import re
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqvae_tutorial import video
from vqvae_tutorial.video import make_maze_clips, make_moving_digits, show_clips

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))


@pytest.fixture(scope="module")
def clips():
    return make_maze_clips(60, seed=3)


@pytest.fixture(scope="module")
def digits():
    return np.load(ROOT / "vqvae_tutorial/data/mnist_sample.npz")["x_test"]


def test_mazes_are_the_same_for_the_same_seed(clips):
    assert clips.frames.shape == (60, 16, 32, 32, 3) and clips.frames.dtype == np.uint8
    assert clips.actions.shape == (60, 16) and clips.actions.dtype == np.int32
    few, longer = make_maze_clips(3, seed=3), make_maze_clips(2, frames=20, seed=3)
    for part, whole in zip(few, clips):
        np.testing.assert_array_equal(part, whole[:3])
    np.testing.assert_array_equal(longer.frames[:, :16], clips.frames[:2])
    assert (make_maze_clips(3, seed=4).frames != few.frames).any()
    assert make_maze_clips(1, frames=1, size=8).frames.shape == (1, 1, 8, 8, 3)


def test_walk_has_every_action_and_is_never_blocked(clips):
    shares = np.bincount(clips.actions.ravel(), minlength=3) / clips.actions.size
    assert len(shares) == 3 and 0.4 < shares[0] < 0.65 and shares.min() > 0.15
    change = np.abs(np.diff(clips.frames.astype(int), axis=1)).mean(axis=(2, 3, 4))
    assert change.min() > 0.5, "every action changes what is seen"
    spread = clips.frames.reshape(60, 16, -1, 3).std(axis=2).max(axis=-1)
    assert spread.min() > 2, "no frame is all one colour"


def test_turns_are_undone_by_turns(clips):
    undone = np.argwhere(np.isin(clips.actions[:, :-2] * 3 + clips.actions[:, 1:-1], (5, 7)))
    assert len(undone) > 5
    for clip, frame in undone:
        seen = clips.frames[clip]
        np.testing.assert_array_equal(seen[frame], seen[frame + 2])


def test_actions_move_what_is_seen(clips):
    """Turning left moves the picture to the right; a step ahead moves it to neither side."""
    before, after = (clips.frames[:, part].astype(int) for part in (slice(-1), slice(1, None)))
    def apart(shift):
        left, right = max(0, shift), 32 + min(0, shift)
        return ((after[..., left:right, :] - before[..., left - shift:right - shift, :]) ** 2
                ).mean(axis=(2, 3, 4))
    moved = np.argmin([apart(shift) for shift in (0, 8, -8)], axis=0)
    assert np.mean(moved == clips.actions[:, :-1]) > 0.85


def test_the_walker_does_as_it_is_told(clips):
    same = make_maze_clips(60, actions=clips.actions, seed=3)
    for told, explored in zip(same, clips):
        np.testing.assert_array_equal(told, explored)
    around = np.full((2, 17), 1)
    turned = make_maze_clips(2, 17, actions=around, seed=3)
    np.testing.assert_array_equal(turned.frames[:, 0], turned.frames[:, 16])  # 16 turns are a circle
    assert (turned.actions == 1).all() and (turned.frames[:, 0] != turned.frames[:, 8]).any()
    ahead = make_maze_clips(40, 60, size=8, actions=np.zeros((40, 60), int), seed=3).frames
    np.testing.assert_array_equal(ahead[:, -2], ahead[:, -1])  # at last a wall is in the way
    other = clips.actions.copy()
    other[:, 9:] = (other[:, 9:] + 1) % 3
    np.testing.assert_array_equal(make_maze_clips(60, actions=other, seed=3).frames[:, :10], clips.frames[:, :10])


@pytest.mark.parametrize("actions", [np.zeros((2, 15), int), np.zeros((2, 16)), np.full((2, 16), 3), np.full((2, 16), -1), "left"], ids=str)
def test_actions_that_are_none_are_refused(actions):
    with pytest.raises(ValueError, match=r"`actions` must be integers from 0 to 2, of shape \(2, 16\).*Received.*forward"):
        make_maze_clips(2, actions=actions)


def test_ways_are_open_and_walls_are_met():
    for seed in range(20):
        walls = video._carve(np.random.default_rng(seed))
        border = np.ones_like(walls)
        border[1:-1, 1:-1] = False
        assert walls[border].all() and not walls[1::2, 1::2].any()
        reached = np.zeros_like(walls)
        reached[1, 1] = True
        for _ in range(81):
            grown = reached.copy()
            for axis in (0, 1):
                for step in (-1, 1):
                    grown |= np.roll(reached, step, axis)
            reached = grown & ~walls
        assert (reached == ~walls).all()
    room = np.ones((1, 9, 9), bool)
    room[:, 2:6, 1:8] = False
    east_south_west = np.array([[0, np.pi / 2, np.pi]])
    far, tile, place, side = video._cast(room, np.array([[3.5]]), np.array([[3.25]]), east_south_west)
    np.testing.assert_allclose(far, [[4.5, 2.75, 2.5]], atol=1e-6)
    np.testing.assert_array_equal(tile, [[3 * 9 + 8, 6 * 9 + 3, 3 * 9]])
    np.testing.assert_allclose(place, [[0.25, 0.5, 0.25]], atol=1e-6)
    np.testing.assert_array_equal(side, [[True, False, True]])


@pytest.mark.parametrize("size, side", [(32, 14), (64, 28), (48, 14)])
def test_digits_bounce_and_keep_their_ink(digits, size, side):
    clips = make_moving_digits(digits[:50], 30, frames=40, size=size, digits=1)
    assert clips.shape == (30, 40, size, size, 1) and clips.dtype == np.uint8
    ink = clips.sum(axis=(2, 3, 4), dtype=int)
    assert (ink == ink[:, :1]).all() and ink.min() > 0
    alone = digits[:50].reshape(50, side, 28 // side, side, 28 // side).mean(axis=(2, 4))
    assert set(ink[:, 0]) <= {int(np.rint(digit.astype("float32")).sum()) for digit in alone}
    two = make_moving_digits(digits, 30, size=size)
    ink = two.sum(axis=(2, 3, 4), dtype=int)
    assert (ink == ink.max(axis=1)[:, None]).mean() > 0.1, "whole where the two are apart"
    assert (two[:, 1:] != two[:, :-1]).any(axis=(2, 3, 4)).mean() > 0.95, "they move"


def test_digits_are_the_same_for_the_same_seed(digits):
    make = make_moving_digits
    clips = make(digits, 5)
    np.testing.assert_array_equal(clips[:2], make(digits / 255, 2, frames=20)[:, :16])
    np.testing.assert_array_equal(clips, make(digits[..., None], 5))
    assert (make(digits, 5, seed=1) != clips).any()
    places = video._bounce(np.linspace(-30, 30, 601), 9)
    assert places.min() >= 0 and places.max() <= 9 and np.allclose(np.abs(np.diff(places)), 0.1)


@pytest.mark.parametrize("wrong, words", [
    (dict(count=0), "`count` must be a whole number of at least 1. Received: 0"),
    (dict(frames=2.5), "Received: 2.5"), (dict(size=7), "`size`"), (dict(seed=-1), "`seed`")])
def test_wrong_sizes_are_refused(digits, wrong, words):
    for make in (make_maze_clips, lambda **sizes: make_moving_digits(digits, **sizes)):
        with pytest.raises(ValueError, match=re.escape(words)):
            make(**{"count": 2, **wrong})


@pytest.mark.parametrize("images", [np.zeros((3, 32, 32), "uint8"), np.zeros((0, 28, 28), "uint8"), "digits",
                                    np.full((3, 28, 28), 255.0), np.zeros((3, 28, 28), int), np.full((1, 28, 28), np.nan)])
def test_wrong_digits_are_refused(images):
    with pytest.raises(ValueError, match="`images` must be"):
        make_moving_digits(images, 2)


def _pictures(page):
    return [Image.open(BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,([^"]+)"', page)]


def test_clips_are_shown_without_loss(clips):
    page = show_clips(clips.frames[:2], ['<b>"A" & B', "C"], seconds=1.6).data
    sheet, other = _pictures(page)
    assert sheet.format == "WEBP" and sheet.size == other.size == (131, 131)
    for number, frame in enumerate(clips.frames[0]):
        row, column = divmod(number, 4)
        part = np.asarray(sheet)[33 * row:33 * row + 32, 33 * column:33 * column + 32]
        np.testing.assert_array_equal(part[..., :3], frame)
        assert (part[..., 3] == 255).all()
    assert 'alt="clip: &lt;b&gt;&quot;A&quot; &amp; B, 16 frames of 32 × 32 pixels"' in page and "<b>" not in page
    assert not re.search(r"https?://|<script", page) and "prefers-reduced-motion" in page


def test_clips_of_other_kinds(clips):
    floats = show_clips(clips.frames[:1] / np.float32(255))
    assert floats.data == show_clips(clips.frames[:1]).data
    assert all(_pictures(show_clips(np.zeros((1, frames, 8, 10, 1), "uint8")).data) for frames in (1, 2, 5))
    for wrong, words in [((clips.frames[0],), "`clips`"), ((clips.frames[:1].astype(int),), "`clips`"),
                         ((clips.frames[:1] * np.nan,), "finite|NaN"), ((clips.frames[:2], ["A"]), "1 titles"),
                         ((clips.frames[:1], None, 4, 0), "`seconds`")]:
        with pytest.raises(ValueError, match=words):
            show_clips(*wrong)


def _seen(view):
    view.wait_for_timeout(500)
    return view.screenshot()


@pytest.mark.parametrize("width", [390, 1440])
def test_clips_stop_from_the_keyboard(clips, width, tmp_path, browser):
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><meta charset=utf-8><meta name=viewport content=width=device-width>"
                    + show_clips(clips.frames[:4]).data, encoding="utf-8")
    moves = {}
    for motion in ("no-preference", "reduce"):
        view = browser.new_page(viewport={"width": width, "height": 800}, reduced_motion=motion)
        view.goto(path.as_uri())
        height = view.evaluate("document.documentElement.scrollHeight")
        moves[motion] = _seen(view) != _seen(view)
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        assert view.locator("input").is_visible() == (motion == "no-preference")
        if motion == "no-preference":
            view.keyboard.press("Tab")
            view.keyboard.press("Space")
            assert view.evaluate("document.documentElement.scrollHeight") == height, "nothing jumps"
            assert _seen(view) == _seen(view), "paused"
            view.keyboard.press("Space")
            assert _seen(view) != _seen(view), "goes on"
        view.close()
    assert moves == {"no-preference": True, "reduce": False}
