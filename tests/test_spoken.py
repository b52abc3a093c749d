"""Spoken digits beyond what chapter 16 shows: folders of every kind, loudness, lines of codes with an end, the dial of depth."""
import re
import sys
import wave
from pathlib import Path

import keras
import numpy as np
import pytest

from vqvae_tutorial.audio import COSINES, RATE, SPEECH_SAMPLE, load_speech, log_mel, measure_voices
from vqvae_tutorial.spoken import (
    DIGITS_SAMPLE,
    build_sound_judge,
    equally_loud,
    judge_frames,
    load_spoken_digits,
    show_depths,
    until_end,
    with_end,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
TAKES = {"3_zoe_0.wav": 400, "3_zoe_7.wav": 640, "0_adam_4.wav": 500, "9_adam_5.wav": 480, "9_adam_12.wav": 401}


def samples(name, count):
    return np.random.default_rng(len(name) + count).integers(-2**15, 2**15, count).astype("<i2")


def write(path, values, channels=1, width=2, rate=RATE):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels), file.setsampwidth(width), file.setframerate(rate)
        file.writeframes(values.tobytes())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recordings").mkdir()
    for name, count in TAKES.items():
        write(tmp_path / "recordings" / name, samples(name, count))
    (tmp_path / "recordings" / "notes_of_a_take.wav").write_bytes(b"not one of them")
    (tmp_path / "README.md").write_text("Spoken digits.")
    return tmp_path


# Loading


@pytest.mark.parametrize("inner", ["", "recordings"])
def test_a_folder_of_recordings(folder, inner):
    spoken = load_spoken_digits(str(folder / inner))
    assert spoken.speaker_names == ["adam", "zoe"]
    assert spoken.digits.dtype == spoken.speakers.dtype == np.int32 and spoken.test.dtype == bool
    found = list(zip(spoken.digits.tolist(), spoken.speakers.tolist(), spoken.test.tolist(), map(len, spoken.sounds)))
    assert sorted(found) == sorted([(3, 1, True, 400), (3, 1, False, 640), (0, 0, True, 500), (9, 0, False, 480), (9, 0, False, 401)])
    for sound, count in zip(spoken.sounds, map(len, spoken.sounds)):
        name = next(name for name, size in TAKES.items() if size == count)
        assert sound.dtype == np.float32
        np.testing.assert_array_equal(sound, samples(name, count) / np.float32(2**15))


def test_the_variable_names_a_folder_too(folder, monkeypatch):
    monkeypatch.setenv("VQVAE_TUTORIAL_SPOKEN_DIGITS", str(folder))
    assert len(load_spoken_digits().sounds) == 5
    monkeypatch.setenv("VQVAE_TUTORIAL_SPOKEN_DIGITS", str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere holds no recordings .* unset it"):
        load_spoken_digits()
    assert len(load_spoken_digits(folder).sounds) == 5, "what is asked for goes first"


def test_a_folder_without_recordings(tmp_path):
    (tmp_path / "7_theo.wav").write_bytes(b"")
    for place in (tmp_path, tmp_path / "none", tmp_path / "7_theo.wav"):
        with pytest.raises(FileNotFoundError, match="holds no recordings named like 7_theo_12.wav. Correct `folder`"):
            load_spoken_digits(place)


@pytest.mark.parametrize("form", [{"channels": 2}, {"width": 1}, {"rate": 16_000}])
def test_another_form_is_refused(folder, form):
    write(folder / "recordings" / "1_zoe_3.wav", samples("", 800), **form)
    with pytest.raises(ValueError, match="1_zoe_3.wav has . channels of .* expected one of 16 bits at 8000 Hz"):
        load_spoken_digits(folder)


@pytest.mark.parametrize("cut", [*range(0, 44, 5), 45, 500, 843])
def test_a_recording_cut_short_is_never_a_shorter_sound(folder, cut):
    path = folder / "recordings" / "3_zoe_0.wav"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="3_zoe_0.wav (cannot be read|has 1 channels).*Fetch the data set again"):
        load_spoken_digits(folder)


def test_less_than_a_window_is_refused(folder):
    write(folder / "recordings" / "3_zoe_0.wav", samples("", RATE // 20 - 1))
    with pytest.raises(ValueError, match="50 ms or more"):
        load_spoken_digits(folder)


def test_the_sample_is_what_the_attribution_says(monkeypatch):
    monkeypatch.delenv("VQVAE_TUTORIAL_SPOKEN_DIGITS", raising=False)
    with pytest.warns(UserWarning, match="120 digits said by Flite.*git clone.*VQVAE_TUTORIAL_SPOKEN_DIGITS"):
        spoken = load_spoken_digits()
    assert DIGITS_SAMPLE.stat().st_size < 400_000 and len(spoken.sounds) == 120
    assert np.bincount(10 * spoken.speakers + spoken.digits).tolist() == 40 * [3] and spoken.test.sum() == 40
    assert all(sound.dtype == np.float32 and 0.1 < len(sound) / RATE < 1 for sound in spoken.sounds)
    text = (DIGITS_SAMPLE.parent / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    assert "spoken_digits_sample.npz" in text and "ten digits" in text


# Loudness


def test_loudness_is_what_was_asked_for():
    sound = np.random.default_rng(0).normal(size=4000)
    for scale, level in ((1e-3, 0.08), (0.2, 0.08), (0.2, 0.01)):
        loud = equally_loud(scale * sound, level)
        assert loud.dtype == np.float32 and np.sqrt(np.mean(loud**2)) == pytest.approx(level, rel=1e-3)
        np.testing.assert_allclose(loud / np.abs(loud).max(), sound / np.abs(sound).max(), atol=1e-5)


def test_silence_stays_silence_and_peaks_stay_in_range():
    assert not equally_loud(np.zeros(500)).any()
    click = np.zeros(10_000, "float32")
    click[50] = 0.5
    assert equally_loud(click).max() == 1


@pytest.mark.parametrize("sound", [np.zeros(0), np.zeros((2, 500)), np.zeros(500, "int16"), np.array([0.1, np.nan]), np.array([np.inf])])
def test_what_is_no_sound_is_refused(sound):
    with pytest.raises(ValueError, match="sound"):
        equally_loud(sound)


# Lines of codes with an end


@pytest.mark.parametrize("depth", [(), (3,), (2, 2)])
def test_lines_come_back(depth):
    random = np.random.default_rng(1)
    lines = [random.integers(0, 9, (size, *depth)) for size in (1, 4, 6, 2)]
    table = with_end(lines, 6, 9)
    assert table.shape == (4, 6, *depth) and table.dtype == np.int32
    assert all(map(np.array_equal, until_end(table, 9), lines))
    shorter = until_end(with_end(lines, 3, 9), 9)
    assert all(np.array_equal(a, b[:3]) for a, b in zip(shorter, lines))


def test_an_end_at_any_level_ends_a_line():
    table = np.array([[[1, 2], [3, 9], [4, 4]], [[9, 0], [1, 1], [1, 1]]])
    first, second = until_end(table, 9)
    assert first.tolist() == [[1, 2]] and second.shape == (0, 2)


@pytest.mark.parametrize("codes", [[], [[]], [[1], []], [[1, 9]], [[-1]], [[0.5]], [[[1, 2]], [3]]])
def test_lines_that_cannot_be_are_refused(codes):
    with pytest.raises(ValueError, match="codes"):
        with_end([np.array(line, int if line != [0.5] else float) for line in codes], 4, 9)


def test_codes_beyond_the_end_are_refused():
    with pytest.raises(ValueError, match="`codes` must be integers from 0 to 9"):
        until_end(np.array([[1, 10]]), 9)


# The judge


@pytest.mark.parametrize("whole", [True, False])
def test_a_judge_learns_to_tell_two_sounds_apart(whole):
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 512)
    frames = random.normal(size=(512, 12, 40)).astype("float32")
    if whole:  # what tells them apart is heard for one moment, anywhere
        frames[np.arange(512), random.integers(0, 12, 512), 5] += 9.0 * labels
    else:
        frames[..., 5] += 3.0 * labels[:, None]
    judge = build_sound_judge(2, whole)
    targets = labels if whole else np.repeat(labels[:, None], 12, axis=1)
    judge.fit(frames[:256], targets[:256], epochs=20, verbose=0)
    assert judge.evaluate(frames[256:], targets[256:], verbose=0, return_dict=True)["accuracy"] > 0.9
    assert judge(frames[:64, :7]).shape == ((64, 2) if whole else (64, 7, 2)), "sounds of any length"


def test_a_judge_hears_cepstra_of_one_length():
    short, long = 0.1 * np.random.default_rng(0).normal(size=(2, 1600))
    heard = judge_frames([short[:800], long], length=15)
    assert heard.shape == (2, 15, 40) and heard.dtype == np.float32 and not heard[0, 10:].any() and heard[0, :10].any()
    np.testing.assert_allclose((6 * heard[1] - 1) @ COSINES.T, log_mel(long)[:15], atol=1e-4)
    assert judge_frames([], 5).shape == (0, 5, 40)
    with pytest.raises(ValueError, match="length"):
        judge_frames([short], 0)


def test_a_judge_of_nothing_is_refused():
    with pytest.raises(ValueError, match="num_classes"):
        build_sound_judge(0)


# The dial


def test_one_sound_stands_there_and_all_can():
    sounds = {f"{depth} levels & <more>": np.full(800, depth / 10) for depth in (1, 2, 3)}
    page = show_depths(sounds, start=2).data
    assert page.count("<audio") == page.count("<img") == 3 and page.count("<div hidden>") == 2
    assert "autoplay" not in page and "& <more>" not in page and page.count("&amp; &lt;more&gt;") >= 7
    dial = re.search(r"<label>quality <input ([^>]*)>", page.replace("=>", "")).group(1)
    assert 'type="range" min="1" max="3" value="2" aria-valuetext="2 levels &amp; &lt;more' in dial
    order = [match.group(1) for match in re.finditer(r"<div( hidden)?><div class=.vq-sounds", page)]
    assert order == [" hidden", None, " hidden"]


@pytest.mark.parametrize("count, start", [(0, 1), (2, 0), (2, 3), (2, 1.5)])
def test_a_dial_that_cannot_stand_there_is_refused(count, start):
    with pytest.raises(ValueError, match="start"):
        show_depths({str(number): np.zeros(400) for number in range(count)}, start)


# The studies that the chapter shows


@pytest.fixture(scope="module")
def study():
    import speech

    return speech


@pytest.mark.parametrize("rate", [12.5, 25.0, 50.0])
def test_codes_at_every_rate_stand_over_the_phone_at_their_middle(study, rate):
    speech = load_speech(SPEECH_SAMPLE)
    speech = speech._replace(sounds=speech.sounds[:72:18], phones=speech.phones[:72:18], speakers=speech.speakers[:72:18])
    frames, phones = study.frames_of(speech, measure_voices(speech.sounds, speech.speakers), rate, "out")
    for sound, each, heard, truth in zip(speech.sounds, frames, phones, speech.phones):
        count = len(each) // 4
        assert count == len(heard) == pytest.approx(len(sound) / RATE * rate, abs=1)
        middles = np.minimum((np.arange(count) + 0.5) * 100 / rate, len(truth) - 1).astype(int)
        assert heard.tolist() == truth[middles].tolist()


def test_scores_of_codes_that_know_all_and_nothing(study):
    random = np.random.default_rng(0)
    phones = [random.integers(0, 5, 200) for _ in range(8)]
    learn, speakers = np.arange(8) % 2 == 0, np.array([0, 0, 0, 0, 1, 1, 1, 1])
    known = study.score(phones, phones, speakers, learn, 5, list("abcde"))
    assert known["guessed"] == 1 and known["explained"] == pytest.approx(1) and known["speaker"] < 0.6
    betrayed = study.score([np.full(200, who) for who in speakers], phones, speakers, learn, 5, list("abcde"))
    assert betrayed["speaker"] == 1 and betrayed["guessed"] < 0.3 and betrayed["explained"] < 0.01


@pytest.mark.slow
def test_the_study_runs_and_goes_on(study, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VQVAE_TUTORIAL_SPEECH", raising=False)
    out = tmp_path / "quick.csv"
    with pytest.warns(UserWarning, match="18 sentences"):
        study.main(["--quick", "--out", str(out)])
    rows = np.genfromtxt(out, delimiter=",", names=True, dtype=None, encoding="utf-8")
    assert len(rows) == 2 * len(study.SETTINGS) and list(rows.dtype.names) == study.COLUMNS
    before = out.read_bytes()
    with pytest.warns(UserWarning):
        study.main(["--quick", "--out", str(out)])
    assert "8 of 8 models are in" in capsys.readouterr().out and out.read_bytes() == before


def test_a_codecs_delay_is_taken_out(monkeypatch, tmp_path):
    pytest.importorskip("pystoi")
    import codecs_in_use as codecs

    sounds = load_speech(SPEECH_SAMPLE).sounds[:7]
    late = lambda codec, sound, folder: (np.r_[np.zeros(140), sound], 123.0)
    monkeypatch.setattr(codecs, "through", late)
    copies, rate = codecs.copies_of("late", sounds, tmp_path)
    assert rate == 123 and all(map(np.array_equal, copies, sounds))


def test_what_a_telephone_makes_of_a_sound(tmp_path):
    pytest.importorskip("pystoi")
    import codecs_in_use as codecs

    sound = np.linspace(-1, 1, 999)
    copy, rate = codecs.through("µ-law", sound, tmp_path)
    assert rate == 64_000 and np.abs(copy - sound).max() < 0.025 and len(np.unique(copy)) <= 256
