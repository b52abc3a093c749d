"""Speech beyond what chapter 13 shows: archives of every kind, sounds against other people's formulas, bad input."""
import base64
import importlib.util
import io
import os
import random
import re
import shutil
import struct
import sys
import warnings
import zipfile
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import keras
import numpy as np
import pytest

from vqvae_tutorial import VQVAE, VectorQuantizerEMA
from vqvae_tutorial import audio as module
from vqvae_tutorial.audio import (
    BANDS,
    COSINES,
    EAR,
    HOP,
    RATE,
    SPEECH_SAMPLE,
    WINDOW,
    align,
    build_speech_networks,
    code_table,
    explained,
    load_speech,
    log_mel,
    mapping_accuracy,
    measure_voices,
    mel_bank,
    mel_cepstral_distortion,
    pad_frames,
    show_sounds,
    to_sound,
)

ROOT = Path(__file__).parents[1]
LENGTHS, COUNTS = (400, 800, 330, 240), (3, 2, 4, 1)  # samples and phones of the clips of a small archive


def parts():
    """The contents of a small archive: two speakers, two sentences, five phones."""
    generator = np.random.default_rng(0)
    starts = [np.r_[0, np.sort(generator.choice(np.arange(1, size), n - 1, replace=False))] for size, n in zip(LENGTHS, COUNTS)]
    starts[1][1] = 360  # at the very middle of a step
    return {
        "mulaw": generator.integers(0, 256, sum(LENGTHS)).astype("uint8"), "offset": np.cumsum([0, *LENGTHS]).astype("int32"),
        "speaker": np.array([0, 0, 1, 1], "uint8"), "sentence": np.array([0, 1, 0, 1], "int16"),
        "test": np.array([False, True, False, True]), "phone": generator.integers(0, 5, sum(COUNTS)).astype("uint8"),
        "phone_start": np.concatenate(starts).astype("int32"), "phone_offset": np.cumsum([0, *COUNTS]).astype("int32"),
        "phones": np.array(list("abcde")), "speakers": np.array(["he", "she"]), "texts": np.array(["One.", "Two.", "Three."]),
    }


def packed(**changes):
    """The bytes of that archive, with arrays changed, or left out where None is given."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{key: value for key, value in (parts() | changes).items() if value is not None})
    return buffer.getvalue()


def moved(name, **changes):
    """An array of the archive with some entries changed, as `at3=7`."""
    array = parts()[name].copy()
    for place, value in changes.items():
        array[int(place.removeprefix("at"))] = value
    return {name: array}


@pytest.fixture(scope="module")
def speech():
    return load_speech(SPEECH_SAMPLE)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_speech", ROOT / "tools" / "make_speech.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def noise(samples=800, seed=0, loudness=0.1):
    return loudness * np.random.default_rng(seed).normal(size=samples)


# What an archive gives


def test_values_types_and_order(tmp_path):
    (tmp_path / "s.npz").write_bytes(packed())
    speech, source = load_speech(str(tmp_path / "s.npz")), parts()
    assert [sound.shape for sound in speech.sounds] == [(size,) for size in LENGTHS]
    assert all(sound.dtype == np.float32 and abs(sound).max() <= 1 for sound in speech.sounds)
    assert speech.speakers.dtype == speech.sentences.dtype == np.int32 and speech.test.dtype == bool
    assert speech.speakers.tolist() == [0, 0, 1, 1] and speech.sentences.tolist() == [0, 1, 0, 1]
    assert speech.speaker_names == ["he", "she"] and speech.phone_names == list("abcde") and len(speech.texts) == 3
    curved = np.concatenate(speech.sounds).astype("float64")
    curved = np.sign(curved) * np.log1p(255 * np.abs(curved)) / np.log(256)
    np.testing.assert_allclose((curved + 1) / 2 * 255, source["mulaw"], atol=1e-3)


def test_phones_are_those_at_the_middle_of_each_step(tmp_path):
    (tmp_path / "s.npz").write_bytes(packed())
    source, phones = parts(), load_speech(tmp_path / "s.npz").phones
    for clip, size in enumerate(LENGTHS):
        mine = slice(*source["phone_offset"][clip:clip + 2])
        starts, labels = source["phone_start"][mine], source["phone"][mine]
        heard = [labels[max(i for i, start in enumerate(starts) if start <= 80 * step + 40)] for step in range(size // 80)]
        assert phones[clip].dtype == np.int32 and phones[clip].tolist() == heard


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "s.npz").write_bytes(packed())
    assert len(load_speech("~/s.npz").sounds) == 4


def test_path_comes_before_environment_before_sample(tmp_path, monkeypatch):
    for name, names in (("path", ["a", "b"]), ("environment", ["c", "d"])):
        (tmp_path / f"{name}.npz").write_bytes(packed(speakers=np.array(names)))
    monkeypatch.setenv("VQVAE_TUTORIAL_SPEECH", str(tmp_path / "environment.npz"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_speech(tmp_path / "path.npz").speaker_names == ["a", "b"]
        assert load_speech().speaker_names == ["c", "d"]


@pytest.mark.parametrize("variable", [None, ""])
def test_the_sample_comes_with_one_warning_that_says_all(monkeypatch, variable):
    monkeypatch.delenv("VQVAE_TUTORIAL_SPEECH", raising=False)
    if variable is not None:
        monkeypatch.setenv("VQVAE_TUTORIAL_SPEECH", variable)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        speech = load_speech()
    [warning] = [each for each in caught if each.category is not ResourceWarning]
    assert len(speech.sounds) == 72 and warning.category is UserWarning and warning.filename == __file__
    for part in ("18 sentences", "400", "tools/make_speech.py", "VQVAE_TUTORIAL_SPEECH"):
        assert part in str(warning.message)


# Damaged archives


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def foreign():
    buffer = io.BytesIO()
    np.savez(buffer, x_train=np.zeros((2, 28, 28), "uint8"), y_train=np.zeros(2, "uint8"))
    return buffer.getvalue()


UNREADABLE = {
    "no bytes": b"",
    "text": b"<html>log in first</html>",
    "half": packed()[: len(packed()) // 2],
    "a single array": saved(parts()["mulaw"]),
    "pickled names": packed(speakers=np.array(["he", None], dtype=object)),
}
FLAWED = {
    "foreign": (foreign(), "lacks mulaw, offset"),
    **{f"no {name}": (packed(**{name: None}), f"lacks {name}") for name in parts()},
    "float sounds": (packed(mulaw=parts()["mulaw"] / 255), "type float64, not uint8"),
    "int16 sounds": (packed(mulaw=parts()["mulaw"].astype("int16")), "type int16, not uint8"),
    "no clips": (packed(speaker=np.zeros(0, "uint8")), "0 speakers"),
    "fewer sentences": (packed(sentence=parts()["sentence"][:-1]), "4 speakers for 3"),
    "more tests": (packed(test=np.ones(5, bool)), "test"),
    **{f"{name}: {how}": (packed(**{name: values}), f"`{name}`")
       for name in ("offset", "phone_offset") for how, values in (
           ("short", parts()[name][:-1]), ("not from 0", moved(name, at0=1)[name]), ("not to the end", moved(name, at4=9)[name]),
           ("beyond the end", parts()[name] * 2), ("an empty clip", moved(name, at2=parts()[name][1])[name]),
           ("two axes", parts()[name][:, None]))},
    **{f"{name} beyond": (packed(**moved(name, at1=9)), f"`{name}` beyond") for name in ("speaker", "sentence", "phone")},
    "sentence below 0": (packed(**moved("sentence", at1=-1)), "`sentence` beyond its 3 texts"),
    "no names": (packed(speakers=np.zeros(0, "U3")), "`speaker` beyond its 0 speakers"),
}


@pytest.fixture(params=["path", "environment"])
def load_fails(request, tmp_path, monkeypatch):
    """Loads these bytes from a file, in either way; gives the error's message, which must name the file and help."""
    def fails(content):
        file = tmp_path / "given speech.npz"
        file.write_bytes(content)
        monkeypatch.setenv("VQVAE_TUTORIAL_SPEECH", str(file if request.param == "environment" else SPEECH_SAMPLE))
        with pytest.raises(ValueError) as caught:
            load_speech() if request.param == "environment" else load_speech(file)
        message = str(caught.value)
        assert message.startswith(str(file)) and file.read_bytes() == content and list(tmp_path.iterdir()) == [file]
        assert "Correct " in message and ("VQVAE_TUTORIAL_SPEECH" if request.param == "environment" else "`path`") in message
        return message
    return fails


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_an_error_that_helps(load_fails, kind):
    assert re.search("is empty|is not a complete|cannot be read", load_fails(UNREADABLE[kind]))


@pytest.mark.parametrize("kind", FLAWED)
def test_damage_is_an_error_that_says_which(load_fails, kind):
    content, part = FLAWED[kind]
    message = load_fails(content)
    assert part in message and "expected what tools/make_speech.py writes" in message


def test_a_wrong_number_of_tests_is_not_told_as_one_of_sentences(load_fails):
    assert "4 speakers for 4 sentences" not in load_fails(FLAWED["more tests"][0])


TWISTED = {
    "too few starts": {"phone_start": parts()["phone_start"][:-2]},
    "too many starts": {"phone_start": np.r_[parts()["phone_start"], 1, 2, 3].astype("int32")},
    "starts out of order": {"phone_start": parts()["phone_start"][::-1]},
    "starts with NaN": {"phone_start": np.where(parts()["phone_start"] == 0, np.nan, parts()["phone_start"])},
    "starts beyond the clip": {"phone_start": parts()["phone_start"] + np.int32(9000)},
    "offset out of order, unsigned": {"offset": np.array([0, 1200, 400, 1530, 1770], "uint32")},
    "offset of floats": {"offset": parts()["offset"].astype("float64")},
    "speakers with NaN": {"speaker": np.array([0, np.nan, 1, 1])},
    "half a sentence": {"sentence": np.array([0, 0.5, 1, 1])},
    "sounds in two axes": {"mulaw": parts()["mulaw"][:, None]},
    "one number for all speakers": {"speaker": np.uint8(0)},
    "one name for all": {"texts": np.array("One.")},
    "speakers in two axes": {"speaker": parts()["speaker"][:, None]},
}


@pytest.mark.parametrize("kind", TWISTED)
def test_no_twisted_array_passes_for_speech(tmp_path, kind):
    (tmp_path / "s.npz").write_bytes(packed(**TWISTED[kind]))
    with pytest.raises(ValueError, match="s.npz"):
        load_speech(tmp_path / "s.npz")


def test_pickles_are_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "trap.npz").write_bytes(packed(texts=np.array([Trap()] * 3, dtype=object)))
    with pytest.raises(ValueError, match="cannot be read"):
        load_speech(tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("where", ["path", "environment"])
def test_missing_file_and_folder_do_not_fall_back(tmp_path, monkeypatch, where):
    def load(target):
        monkeypatch.setenv("VQVAE_TUTORIAL_SPEECH", str(target))
        return load_speech() if where == "environment" else load_speech(target)

    with pytest.raises(FileNotFoundError, match=r"nowhere.npz\. Correct"):
        load(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="Correct"):
        load(tmp_path)


def test_empty_path_is_not_taken_for_no_path():
    with pytest.raises(ValueError, match="Correct `path`"):
        load_speech("")


def test_cut_files_and_flipped_bytes_never_pass_unnoticed(tmp_path):
    good, file, dice, noticed = packed(), tmp_path / "s.npz", random.Random(0), 0
    file.write_bytes(good)
    reference = load_speech(file)
    for trial in range(200):
        place = dice.randrange(len(good))
        file.write_bytes(good[:place] + (b"" if trial % 2 else bytes([good[place] ^ 1 << dice.randrange(8)]) + good[place + 1:]))
        try:
            found = load_speech(file)
        except ValueError as error:
            noticed += str(file) in str(error)
        else:  # a date or an attribute of the zip archive
            for ours, theirs in zip(reference, found):
                assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert noticed > 170


# The packaged sample


def test_sample_is_what_the_attribution_says(speech):
    assert SPEECH_SAMPLE.stat().st_size <= 1_200_000
    assert speech.speaker_names == ["kal16", "awb", "rms", "slt"] and len(set(speech.texts)) == len(speech.texts) == 400
    assert sorted(zip(speech.speakers, speech.sentences)) == list(product(range(4), range(18)))
    text = (SPEECH_SAMPLE.parent / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    for part in ("speech_sample.npz", "18 of the CMU ARCTIC sentences", "four voices", "400", *speech.speaker_names, "Flite",
                 "Carnegie Mellon", "Permission is hereby granted", "Original authors' names are not deleted"):
        assert part in text
    assert 2.5 < sum(map(len, speech.sounds)) / RATE / 60 < 3.5  # "three minutes"


def test_test_sentences_are_the_same_for_all_speakers(speech):
    tests = [set(speech.sentences[speech.test & (speech.speakers == who)]) for who in range(4)]
    assert tests[0] and all(each == tests[0] for each in tests)
    assert not tests[0] & set(speech.sentences[~speech.test])


def test_phone_times_lie_inside_each_clip(speech):
    with np.load(SPEECH_SAMPLE, allow_pickle=False) as archive:
        cuts, starts = archive["phone_offset"], np.split(archive["phone_start"], archive["phone_offset"][1:-1])
        assert len(archive["phone"]) == len(archive["phone_start"]) == cuts[-1] and archive["sample_rate"] == RATE
    for sound, start, phones in zip(speech.sounds, starts, speech.phones):
        assert start[0] == 0 and (np.diff(start) > 0).all() and start[-1] < len(sound)
        assert len(phones) == len(sound) // HOP
        assert speech.phone_names[phones[0]] == speech.phone_names[phones[-1]] == "pau"


def test_sample_names_41_phones_and_is_equally_loud(speech, tool):
    assert speech.phone_names == tool.PHONES and len(set(speech.phone_names)) == 41
    for sound in speech.sounds:
        assert np.sqrt(np.mean(np.square(sound))) == pytest.approx(tool.LOUDNESS, rel=0.02) and abs(sound).max() < 1


def test_sample_is_a_plain_archive():
    with zipfile.ZipFile(SPEECH_SAMPLE) as archive:
        assert archive.testzip() is None
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_DEFLATED}  # no optional module


# Sound to frames


EDGES = 700 * ((1 + RATE / 2 / 700) ** (np.arange(BANDS + 2) / (BANDS + 1)) - 1)  # evenly spaced in mel, of any base


def by_scipy(sound):
    signal = pytest.importorskip("scipy.signal")
    padded = np.r_[np.zeros(60), sound, np.zeros(200)]
    pitch, _, strength = signal.spectrogram(padded, RATE, "hann", 200, 120, 256, False, scaling="spectrum", mode="magnitude")
    bank = np.stack([np.interp(pitch, EDGES[band:band + 3], [0, 1, 0]) for band in range(BANDS)])
    return np.log(np.maximum(bank @ strength * 100, 0.01)).T[:len(sound) // 80]  # a Hann window of 200 sums to 100


@pytest.mark.parametrize("samples", [200, 201, 239, 240, 241, 799, 800, 4321])
def test_log_mel_agrees_with_scipy(samples):
    sound = noise(samples, samples)
    frames = log_mel(sound)
    assert frames.dtype == np.float32 and frames.shape == (samples // HOP, BANDS)
    np.testing.assert_allclose(frames, by_scipy(sound), atol=1e-5)


def test_log_mel_agrees_with_scipy_on_speech(speech):
    for clip in (0, 30, 71):
        np.testing.assert_allclose(log_mel(speech.sounds[clip]), by_scipy(speech.sounds[clip]), atol=1e-5)


def test_a_step_later_is_a_frame_later():
    sound = noise(4000)
    np.testing.assert_array_equal(log_mel(np.r_[np.zeros(3 * HOP), sound])[3:], log_mel(sound))
    np.testing.assert_array_equal(log_mel(sound[HOP:])[1:-2], log_mel(sound)[2:-2])


@pytest.mark.parametrize("gain", [0.5, 3, -1])
def test_a_louder_sound_has_the_logarithm_of_the_gain_more(gain):
    np.testing.assert_allclose(log_mel(gain * noise()), log_mel(noise()) + np.log(abs(gain)), atol=1e-5)


def test_silence_is_the_floor():
    np.testing.assert_allclose(log_mel(np.zeros(800)), np.log(0.01), rtol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 0), ("float32", 1e-4), ("float16", 0.05)])
def test_any_floats_and_lists(dtype, tolerance):
    np.testing.assert_allclose(log_mel(noise().astype(dtype)), log_mel(noise().tolist()), atol=tolerance)


@pytest.mark.parametrize("sound, part", [
    (np.zeros(800, "int16"), "int16 of shape (800,)"), (np.zeros(800, bool), "bool"), (np.zeros(800, complex), "complex128"),
    (np.zeros((800, 2)), "(800, 2)"), (np.zeros((1, 800)), "(1, 800)"), (np.zeros(WINDOW - 1), "(199,)"), (np.zeros(0), "(0,)"),
    (0.5, "()"), ("sound.wav", "()"), (None, "()")])
def test_log_mel_refuses_other_sounds(sound, part):
    with pytest.raises(ValueError, match="`sound` must be floats .* Received: ") as caught:
        log_mel(sound)
    assert part in str(caught.value) and "stereo" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_log_mel_refuses_what_is_not_finite(value):
    sound = noise()
    sound[321] = value
    with pytest.raises(ValueError, match=r"`sound` must be finite\. Received: .*sound\[321\]"):
        log_mel(sound)


def test_mel_bank_shares_out_every_inner_pitch():
    bank, pitch = mel_bank(), np.linspace(0, 4000, 129)
    assert bank.shape == (129, 40) and bank.min() == 0 and bank.max() <= 1
    inner = (pitch >= EDGES[1]) & (pitch <= EDGES[-2])
    np.testing.assert_allclose(bank[inner].sum(axis=1), 1, rtol=1e-12)
    assert ((bank[inner] > 0).sum(axis=1) <= 2).all() and (bank.sum(axis=1) <= 1 + 1e-12).all()


def test_mel_bank_has_no_empty_band_and_rises():
    bank = mel_bank()
    assert (bank.max(axis=0) > 0.3).all() and (np.diff(bank.argmax(axis=0)) >= 1).all()
    assert (np.diff((bank > 0).sum(axis=0)[10:]) >= -1).all() and (bank > 0).sum(axis=0)[-1] > 10 * (bank > 0).sum(axis=0)[0] / 2


# Frames to sound


@pytest.fixture(scope="module")
def said(speech):
    frames = log_mel(speech.sounds[38])[:100]
    return frames, to_sound(frames)


def test_speech_comes_back_within_a_decibel_or_so(said):
    frames, back = said
    error = 20 / np.log(10) * (log_mel(back) - frames)
    assert np.sqrt(np.mean(np.square(error))) < 1.2
    assert back.dtype == np.float32 and back.shape == (8000,) and abs(back).max() <= 1


def test_the_seed_decides(said):
    frames, back = said
    np.testing.assert_array_equal(to_sound(frames), back)
    assert not np.array_equal(to_sound(frames, seed=1), back)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_80_samples_a_frame(count, iterations):
    sound = to_sound(np.random.default_rng(0).normal(size=(count, BANDS)), iterations)
    assert sound.shape == (80 * count,) and np.isfinite(sound).all() and abs(sound).max() <= 1


def test_silence_stays_silence():
    back = to_sound(log_mel(np.zeros(1600)), iterations=5)
    assert np.sqrt(np.mean(np.square(back))) < 0.08 / 100  # 40 dB below speech


def test_too_loud_is_clipped():
    back = to_sound(np.full((5, BANDS), 8.0), iterations=2)
    assert np.isfinite(back).all() and abs(back).max() == 1


def test_no_frames_whatever_are_anything_but_a_sound_in_range():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            back = to_sound(np.full((5, BANDS), 800.0), iterations=2)  # exp overflows
        except ValueError as error:
            assert "must be" in str(error)
        else:
            assert abs(back).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_to_sound_refuses_what_is_not_finite(value):
    frames = np.zeros((5, BANDS))
    frames[3, 7] = value
    with pytest.raises(ValueError, match=r"`frames` must be finite\. Received: .*frames\[3\]"):
        to_sound(frames)


@pytest.mark.parametrize("shape", [(0, 40), (5, 39), (40,), (1, 5, 40)])
def test_to_sound_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="`frames` must be .* Received: "):
        to_sound(np.zeros(shape))


# Players


class Page(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page._repr_html_())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def data_of(address, kind):
    head, data = address.split(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(data, validate=True)


def chunks(wav):
    """The chunks of a RIFF file, whose sizes must add up to its own; one of odd length is padded."""
    assert wav[:4] == b"RIFF" and wav[8:12] == b"WAVE" and int.from_bytes(wav[4:8], "little") == len(wav) - 8
    place, found = 12, {}
    while place < len(wav):
        size = int.from_bytes(wav[place + 4:place + 8], "little")
        found[wav[place:place + 4]] = wav[place + 8:place + 8 + size]
        assert len(found[wav[place:place + 4]]) == size
        place += 8 + size + size % 2
    assert place == len(wav)
    return found


def decode(data):
    """ITU-T G.711, µ-law: 16-bit values, and the step at each."""
    flipped = ~np.frombuffer(data, "uint8").astype(int) & 255
    exponent = flipped >> 4 & 7
    size = (((flipped & 15) << 3) + 132 << exponent) - 132
    return np.where(flipped & 128, -size, size), 8 << exponent


def wav_of(sound):
    [player] = Page(show_sounds({"a": sound}, pictures=False)).all("audio")
    return data_of(player["src"], "audio/wav")


def test_hostile_titles_stay_text():
    title = '"><script>alert(1)</script><img src=x onerror=\'alert(2)\'> & <b>'
    page = Page(show_sounds({title: noise(), "quiet": noise(seed=1)}))
    assert {tag for tag, _ in page.tags} == {"div", "figure", "img", "audio", "figcaption"}
    assert page.text == [title, "quiet"]
    assert [player["aria-label"] for player in page.all("audio")] == [title, "quiet"]
    assert [image["alt"] for image in page.all("img")] == [f"spectrogram: {title}", "spectrogram: quiet"]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


@pytest.mark.parametrize("pictures", [True, False])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_player_for_each_sound_that_keys_operate_and_none_starts(count, pictures):
    page = Page(show_sounds({f"sound {number}": noise(seed=number) for number in range(count)}, columns=3, pictures=pictures))
    assert len(page.all("audio")) == len(page.all("figcaption")) == count and len(page.all("img")) == count * pictures
    for player in page.all("audio"):
        assert "controls" in player and not {"autoplay", "loop"} & set(player) and player["preload"] == "metadata"
    assert "repeat(3," in page.all("div")[0]["style"]
    assert all(data_of(image["src"], "image/png").startswith(b"\x89PNG") for image in page.all("img"))


def test_header_says_mulaw_mono_8000():
    found = chunks(wav_of(noise(800)))
    assert list(found)[0] == b"fmt " and len(found[b"data"]) == 800
    assert struct.unpack("<HHIIHHH", found[b"fmt "]) == (7, 1, 8000, 8000, 1, 8, 0)


@pytest.mark.parametrize("samples", [1, 7, 801])
def test_odd_sounds_are_padded_as_riff_wants(samples):
    assert len(chunks(wav_of(noise(samples)))[b"data"]) == samples


def test_every_loudness_comes_back_within_half_a_step():
    sound = np.arange(-32767, 32768) / 32767
    data = wav_of(sound)[46:46 + len(sound)]
    found, step = decode(data)
    wanted = np.clip(sound * 32767, -32635, 32635)
    assert (abs(found - wanted) <= step / 2 + 1e-6).all()
    assert (np.diff(found) >= 0).all() and len(set(data)) == 256
    assert decode(wav_of(np.zeros(2))[46:48])[0].tolist() == [0, 0]


def test_decoded_speech_sounds_the_same(speech):
    sound = speech.sounds[5]
    found, step = decode(wav_of(sound)[46:46 + len(sound)])
    assert (abs(found / 32767 - sound) <= (step / 2 + 0.51) / 32767).all()


def test_out_of_range_is_clipped_not_wrapped():
    assert decode(wav_of(np.array([-9.0, -1.0, 1.0, 9.0]))[46:50])[0].tolist() == [-32124, -32124, 32124, 32124]


@pytest.mark.parametrize("sound", [(noise() * 32767).astype("int16"), np.zeros((800, 2)), noise() * np.nan],
                         ids=["int16", "stereo", "NaN"])
@pytest.mark.parametrize("pictures", [True, False])
def test_what_is_no_sound_is_not_played(sound, pictures):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="`sound` must be .* Received: "):
            show_sounds({"loud": sound}, pictures=pictures)


@pytest.mark.parametrize("titles", [["one", "two"], [1, 2]])
def test_a_terminal_shows_the_titles(titles):
    assert repr(show_sounds({title: noise() for title in titles})) == f"sounds: {titles[0]}, {titles[1]}"


# Voices


@pytest.fixture(scope="module")
def measured(speech):
    use = np.flatnonzero(speech.sentences < 5)
    sounds, who = [speech.sounds[clip] for clip in use], speech.speakers[use]
    return sounds, who, measure_voices(sounds, who)


def test_cosines_are_orthonormal_and_ears_count_less_and_less():
    np.testing.assert_allclose(COSINES.T @ COSINES, np.eye(BANDS), atol=1e-12)
    fft = pytest.importorskip("scipy.fft")
    np.testing.assert_allclose(COSINES, fft.dct(np.eye(BANDS), norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(EAR[8 * np.arange(5)], np.exp(-np.arange(5.0)))


def test_a_voice_taken_away_and_given_back_changes_nothing(speech, measured):
    for clip in (9, 28, 50, 71):  # not measured
        voice = measured[2][speech.speakers[clip]]
        frames = voice.frames(speech.sounds[clip])
        assert frames.dtype == np.float32 and frames.shape == (len(speech.sounds[clip]) // HOP, BANDS)
        np.testing.assert_allclose(voice.log_mel(frames), log_mel(speech.sounds[clip]), atol=1e-4)


def test_all_speakers_have_the_same_cloud(measured):
    sounds, who, voices = measured
    clouds = [np.concatenate([voices[i].frames(sound) for sound, j in zip(sounds, who) if i == j]) for i in range(4)]
    shapes = [np.cov(cloud.T.astype("float64")) / np.outer(EAR, EAR) for cloud in clouds]
    for cloud, shape in zip(clouds, shapes):
        np.testing.assert_allclose(cloud.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(np.diag(shape), 1, atol=1e-4)  # each number as it counts
        np.testing.assert_allclose(shape, shapes[0], atol=1e-4)


def test_the_map_is_the_one_that_moves_points_least(measured):
    """It is symmetric and positive, before the numbers are weighted; it is the only such map between the clouds."""
    sounds, who, voices = measured
    raw = [np.concatenate([log_mel(sound) @ COSINES for sound, j in zip(sounds, who) if i == j]) for i in range(4)]
    average = np.mean([np.cov(cloud.T) for cloud in raw], axis=0)
    for voice in voices:
        plain = voice.matrix * np.sqrt(np.diag(average)) / EAR
        np.testing.assert_allclose(plain, plain.T, atol=1e-6)
        assert np.linalg.eigvalsh(plain).min() > 0


def test_identical_speakers_get_equal_maps(measured):
    sounds = measured[0][:3]
    one, other = measure_voices([*sounds, *sounds], [0] * 3 + [1] * 3)
    np.testing.assert_array_equal(one.matrix, other.matrix)
    np.testing.assert_array_equal(one.mean, other.mean)
    alone = measure_voices(sounds, [0, 0, 0])[0]
    np.testing.assert_allclose(alone.matrix, one.matrix, atol=1e-9)
    np.testing.assert_allclose(alone.matrix, np.diag(np.diag(alone.matrix)), atol=1e-6)  # nothing but weights


def test_the_order_of_clips_does_not_matter(measured):
    sounds, who, voices = measured
    for one, other in zip(voices, measure_voices(sounds[::-1], who[::-1].tolist())):
        np.testing.assert_allclose(one.matrix, other.matrix, atol=1e-8)


@pytest.mark.parametrize("count, speakers", [(2, [0, 2]), (0, []), (2, [0]), (1, [0, 1])])
def test_speakers_without_sounds_are_refused(count, speakers):
    with pytest.raises(ValueError, match="must be .* Received: "):
        measure_voices([noise(8000, seed) for seed in range(count)], speakers)


@pytest.mark.parametrize("sounds", [[np.zeros(8000)], [noise(1600)]], ids=["silence", "20 frames"])
def test_too_little_to_measure_is_refused_or_gives_finite_frames(sounds):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            [voice] = measure_voices(sounds, [0])
        except ValueError as error:
            assert "must be" in str(error)
        else:
            assert abs(voice.frames(noise(1600, 1))).max() < 1e3  # 10 is much


# Padding


@pytest.mark.parametrize("multiple, lengths", [(4, [8, 4, 12]), (1, [9, 5, 14]), (5, [5, 5, 10])])
def test_frames_are_cut_and_padded(multiple, lengths):
    frames = [np.random.default_rng(n).normal(size=(n, 3)) for n in (9, 5, 14)]
    padded = pad_frames(frames, multiple)
    assert padded["signal"].dtype == np.float32 and padded["mask"].dtype == bool
    assert padded["signal"].shape == (3, max(lengths), 3) and padded["mask"].shape == (3, max(lengths))
    for signal, mask, each, length in zip(padded["signal"], padded["mask"], frames, lengths):
        np.testing.assert_array_equal(signal[:length], each[:length].astype("float32"))
        assert not signal[length:].any() and mask[:length].all() and not mask[length:].any()


@pytest.mark.parametrize("frames", [[], [np.zeros((3, 40))], [np.zeros((8, 40)), np.zeros((0, 40))]],
                         ids=["none", "short", "empty"])
def test_frames_without_a_code_are_refused(frames):
    with pytest.raises(ValueError, match="`frames` must be arrays of at least 4 frames each. Received: "):
        pad_frames(frames)


@pytest.mark.parametrize("frames", [[np.zeros(8)], [np.zeros((8, 40)), np.ones((8, 1))], [np.zeros((8, 40)), np.zeros((8, 39))]],
                         ids=["no channels", "one channel", "39 channels"])
def test_frames_of_other_channels_are_refused(frames):
    with pytest.raises(ValueError, match="`frames` must be .* Received: "):
        pad_frames(frames)


# Networks


def tiny(seed=0):
    keras.utils.set_random_seed(seed)
    networks = build_speech_networks(3, embedding_dim=4, filters=8)
    quantizer = VectorQuantizerEMA(8, revival_threshold=0, embeddings_initializer=keras.initializers.RandomNormal(seed=1))
    model = VQVAE(*networks, quantizer)
    model.variance.assign(1.0)
    model.compile(keras.optimizers.SGD(0.05), run_eagerly=True)
    return model


def clips(*lengths):
    padded = pad_frames([np.random.default_rng(n).normal(size=(n, BANDS)) for n in lengths])
    return padded | {"speaker": np.arange(len(lengths), dtype="int32") % 3}


@pytest.mark.parametrize("codes", [1, 2, 7, 50])
def test_networks_take_any_length(codes):
    encoder, decoder = build_speech_networks(3, embedding_dim=5, filters=8)
    vectors = encoder(np.ones((2, 4 * codes, BANDS), "float32"))
    assert tuple(vectors.shape) == (2, codes, 5)
    assert tuple(decoder({"embeddings": vectors, "speaker": keras.ops.array([0, 2])}).shape) == (2, 4 * codes, BANDS)


def test_the_speaker_changes_what_is_drawn_and_not_the_codes():
    model, data = tiny(), clips(16, 16, 16)
    codes = model.encode(data)
    np.testing.assert_array_equal(codes, model.encode(data["signal"]))
    same = np.repeat(codes[:1], 3, axis=0)
    drawn = model.decode(same, speaker=np.array([0, 1, 2]))
    assert drawn.shape == (3, 16, BANDS)
    assert all(np.abs(drawn[i] - drawn[j]).max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
    np.testing.assert_allclose(model.decode(same[:2], speaker=np.array([2, 2])), drawn[[2, 2]], atol=1e-6)


def test_a_model_comes_back_from_a_file_bit_for_bit(tmp_path):
    model, data = tiny(), clips(16, 12, 4)
    model.fit(data, epochs=1, verbose=0)
    model.save(tmp_path / "speech.keras")
    back, codes = keras.saving.load_model(tmp_path / "speech.keras"), model.encode(data)
    np.testing.assert_array_equal(back.encode(data), codes)
    np.testing.assert_array_equal(back.decode(codes, speaker=data["speaker"]), model.decode(codes, speaker=data["speaker"]))


def trained(data, steps=2):
    """What two steps on this batch leave: the losses, the usage, and all weights."""
    model = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        logs = [model.train_on_batch(data, return_dict=True) for _ in range(steps)]
    return logs, [keras.ops.convert_to_numpy(weight) for weight in model.weights]


@pytest.fixture(scope="module")
def plain():
    return trained(clips(32, 16, 8))


def assert_same_training(one, other):
    for ours, theirs in zip(one[0], other[0]):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for ours, theirs in zip(one[1], other[1]):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_values_in_the_padding_change_no_training(plain):
    """From the third padded code on: the last frame's output sees the next code, and that sees three frames to its right."""
    data = clips(32, 16, 8)
    near = np.arange(32) < np.array([[32], [16 + 8], [8 + 8]])
    changed = data | {"signal": np.where(near[..., None], data["signal"], np.float32(50))}
    assert_same_training(plain, trained(changed))


def test_nor_do_values_right_after_the_last_frame(plain):
    data = clips(32, 16, 8)
    changed = data | {"signal": np.where(data["mask"][..., None], data["signal"], np.float32(5))}
    assert_same_training(plain, trained(changed))


def test_codes_do_not_depend_on_the_padding_but_for_the_last():
    model, data = tiny(), clips(64, 16)
    together, alone = model.encode(data)[1, :4], model.encode(data["signal"][1:, :16])[0]
    np.testing.assert_array_equal(together[:3], alone[:3])


def test_a_length_between_two_codes_is_refused():
    model, x = tiny(), np.zeros((2, 10, BANDS), "float32")
    with pytest.raises(ValueError, match="shape"):
        model.fit({"signal": x, "speaker": np.zeros(2, "int32")}, verbose=0)


# Alignment


def every_path(n, m):
    """All ways from (0, 0) to (n - 1, m - 1) by steps to the right, up, or both."""
    if n == m == 1:
        yield [(0, 0)]
    for i, j in ((n - 1, m), (n, m - 1), (n - 1, m - 1)):
        if i and j:
            yield from (path + [(n - 1, m - 1)] for path in every_path(i, j))


@pytest.mark.parametrize("n, m", [(1, 1), (1, 4), (4, 1), (3, 3), (5, 4), (2, 6)])
@pytest.mark.parametrize("kind", ["normal", "few values"])
def test_no_path_is_better(n, m, kind):
    for seed in range(5):
        generator = np.random.default_rng(seed)
        a, b = (generator.normal(size=(k, 2)) if kind == "normal" else generator.integers(0, 2, (k, 2)) for k in (n, m))
        cost = lambda path: sum(np.linalg.norm(a[i] - b[j]) for i, j in path)  # noqa: B023
        found = list(zip(*align(a, b)))
        assert found in list(every_path(n, m))
        assert cost(found) == pytest.approx(min(map(cost, every_path(n, m))))


def test_identical_sequences_go_straight(speech):
    for x in (log_mel(speech.sounds[2]), np.arange(9.0)[:, None], np.random.default_rng(0).normal(size=(30, 5))):
        assert all(np.array_equal(side, np.arange(len(x))) for side in align(x, x))


def test_identical_sequences_that_hardly_move_go_straight():
    """The square of a difference, found from squares of numbers, would drown in their rounding."""
    for middle, scale in ((np.log(0.01), 0.002), (1000, 0.01)):
        x = (middle + scale * np.random.default_rng(2).normal(size=(50, BANDS))).astype("float32")
        assert all(np.array_equal(side, np.arange(50)) for side in align(x, x))


def test_small_integers_do_not_overflow():
    a, b = np.random.default_rng(0).integers(0, 256, (2, 6, 2)).astype("uint8")
    assert [side.tolist() for side in align(a, b)] == [side.tolist() for side in align(a.astype(float), b.astype(float))]


@pytest.mark.parametrize("a, b", [((0, 3), (4, 3)), ((4, 3), (0, 3)), ((4, 3), (4, 2)), ((4,), (4,))], ids=str)
def test_what_cannot_be_aligned_is_refused(a, b):
    with pytest.raises(ValueError, match="must be .* Received: "):
        align(np.zeros(a), np.zeros(b))


def test_no_spectrogram_is_refused():
    with pytest.raises(ValueError, match="must be .* Received: "):
        mel_cepstral_distortion(np.zeros((0, BANDS)), np.zeros((3, BANDS)))


def test_distortion_of_equal_sounds_is_0(speech):
    frames = log_mel(speech.sounds[2])
    assert mel_cepstral_distortion(frames, frames) == 0
    assert mel_cepstral_distortion(frames, np.repeat(frames, 2, axis=0)) < 1e-9  # twice as slow


def test_distortion_is_symmetric_and_knows_no_loudness(speech):
    one, other = (log_mel(speech.sounds[clip]) for clip in (2, 20))
    there = mel_cepstral_distortion(one, other)
    assert there == pytest.approx(mel_cepstral_distortion(other, one), rel=1e-9) and 3 < there < 20
    assert there == pytest.approx(mel_cepstral_distortion(one + 1, other.astype("float64") - 2), rel=1e-4)


def test_distortion_is_symmetric_where_paths_are_equally_long():
    generator = np.random.default_rng(0)
    for _ in range(300):
        a, b = (generator.integers(0, 3, (n, 1)) * COSINES[:, 3] for n in generator.integers(1, 7, 2))
        assert mel_cepstral_distortion(a, b) == pytest.approx(mel_cepstral_distortion(b, a))


@pytest.mark.parametrize("number", [0, 1, 5, 13, 14, 39])
def test_one_cepstral_number_moved(number):
    """By c in ln|H| = Σ cₙ cos nω; that is 10/ln 10 √2 c decibels, and the spectra's difference as an engineer takes it."""
    frames = np.tile(np.random.default_rng(0).normal(size=BANDS), (6, 1))
    bump = 0.3 * np.cos(np.pi / BANDS * (np.arange(BANDS) + 0.5) * number)
    found = mel_cepstral_distortion(frames, frames + bump)
    assert found == pytest.approx(10 / np.log(10) * np.sqrt(2) * 0.3 if 1 <= number <= 13 else 0, abs=1e-9)
    if 1 <= number <= 13:
        assert found == pytest.approx(np.sqrt(np.mean((20 * np.log10(np.exp(bump))) ** 2)))


# Codes and labels


def test_code_table_counts():
    generator = np.random.default_rng(0)
    codes, labels = ([generator.integers(0, many, n) for n in (5, 90, 1)] for many in (7, 3))
    table = code_table(codes, labels, 8, 3)
    metrics = pytest.importorskip("sklearn.metrics")
    counted = metrics.confusion_matrix(np.concatenate(codes), np.concatenate(labels), labels=range(8))[:, :3]
    np.testing.assert_array_equal(table, counted)
    assert table.dtype.kind == "i" and table.sum() == 96


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 2, 3)])
def test_code_table_takes_two_arrays(shape):
    codes, labels = np.arange(12).reshape(shape) % 5, np.arange(12).reshape(shape) % 3
    np.testing.assert_array_equal(code_table(codes, labels, 5, 3), code_table([codes.ravel()], [labels.ravel()], 5, 3))


@pytest.mark.parametrize("codes, labels", [
    ([[3]], [[0]]), ([[-1]], [[0]]), ([[0]], [[2]]), ([[0]], [[-1]]), ([[0, 1, 2]], [[0]]), ([[0, 1], [2]], [[0], [1, 1]]),
    ([[0.5]], [[0]])],
    ids=["code beyond", "code below 0", "label beyond", "label below 0", "one label for all", "other lengths", "floats"])
def test_code_table_refuses_what_would_be_counted_wrong(codes, labels):
    with pytest.raises(ValueError, match="must be"):
        code_table(codes, labels, 3, 2)


def test_nothing_to_count_is_an_empty_table():
    assert code_table([], [], 3, 2).tolist() == [[0, 0]] * 3
    assert code_table([[]], [[]], 3, 2).tolist() == [[0, 0]] * 3


def test_mapping_accuracy_guesses_what_was_learned():
    learned, table = np.array([[5, 1], [2, 9], [0, 0]]), np.array([[3, 4], [1, 10], [2, 0]])
    assert mapping_accuracy(learned, table) == pytest.approx((3 + 10 + 2) / 20)
    assert mapping_accuracy(table, table) == pytest.approx((4 + 10 + 2) / 20)
    generator = np.random.default_rng(0)
    codes, labels, new, truth = (generator.integers(0, many, 400) for many in (9, 4, 9, 4))
    guess = np.array([np.bincount(labels[codes == k], minlength=4).argmax() for k in range(9)])
    found = mapping_accuracy(code_table([codes], [labels], 9, 4), code_table([new], [truth], 9, 4))
    assert found == pytest.approx(np.mean(guess[new] == truth))


@pytest.mark.parametrize("seed", range(4))
def test_explained_is_mutual_information_over_entropy(seed):
    metrics, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 9, 500)
    labels = np.where(generator.random(500) < 0.6, codes % 4, generator.integers(0, 4, 500))
    expected = metrics.mutual_info_score(labels, codes) / stats.entropy(np.bincount(labels))
    assert explained(code_table([codes], [labels], 12, 5)) == pytest.approx(expected)
    assert expected == pytest.approx(metrics.homogeneity_score(labels, codes))


def test_explained_reaches_from_0_to_1():
    generator = np.random.default_rng(0)
    for _ in range(50):
        assert explained(np.outer(generator.integers(1, 50, 5), generator.integers(1, 50, 4))) == pytest.approx(0, abs=1e-6)
        assert explained(np.diag(generator.integers(1, 50, 6))[:, generator.permutation(6)]) == pytest.approx(1)
        assert explained(np.diag(generator.integers(1, 50, 6)).repeat(2, axis=0)) == pytest.approx(1)


def test_one_label_only_is_explained_by_anything():
    """As sklearn's homogeneity_score has it: where there is nothing to be explained, nothing is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert explained(np.array([[3, 0], [4, 0]])) == 1


@pytest.mark.parametrize("function", [explained, lambda table: mapping_accuracy(table, table)],
                         ids=["explained", "mapping_accuracy"])
def test_an_empty_table_is_refused(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="must be .* Received: "):
            function(np.zeros((3, 2), int))


# The tool that makes archives


def test_bytes_are_the_nearest_on_the_curve(tool):
    assert tool.to_bytes(module._MULAW.astype("float64")).tolist() == list(range(256))
    curve = lambda x: np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
    x = np.r_[np.linspace(-1, 1, 20001), 1e-6, -1e-6]
    back = module._MULAW[tool.to_bytes(x)].astype("float64")
    assert abs(curve(back) - curve(x)).max() <= 1 / 255 + 1e-6  # half a step
    assert tool.to_bytes(np.array([-7.0, 7.0])).tolist() == [0, 255]


def run(tool, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["make_speech.py", *map(str, arguments)])
    tool.main()


def test_without_flite_nothing_is_written(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="`flite` is not installed.*apt install flite"):
        run(tool, monkeypatch, tmp_path / "speech.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("both", [True, False])
def test_a_path_or_the_sample_not_both_and_not_neither(tool, tmp_path, monkeypatch, capsys, both):
    monkeypatch.setattr(tool, "say", None)
    with pytest.raises(SystemExit) as caught:
        run(tool, monkeypatch, *(["--sample", tmp_path / "speech.npz"] if both else []))
    assert caught.value.code == 2 and "give a path, or --sample" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def fast(tool, monkeypatch):
    """`say` as a list of what was said, with a tenth of a second of noise in place of Flite's voice."""
    said = []

    def say(voice, text, folder):
        said.append((voice, text))
        return noise(800), ("pau", "aa", "pau"), np.array([0.02, 0.05, 0.1])

    monkeypatch.setattr(tool, "say", say)
    monkeypatch.setattr(tool.shutil, "which", lambda name: name)
    return said


def test_what_is_written_is_read(tool, fast, tmp_path, monkeypatch, speech):
    run(tool, monkeypatch, tmp_path / "speech.npz")
    made = load_speech(tmp_path / "speech.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["speech.npz"] and len(made.sounds) == len(fast) == 1600
    assert [(made.speaker_names[who], made.texts[what]) for who, what in zip(made.speakers, made.sentences)] == fast
    assert made.texts == speech.texts and made.test.reshape(4, 400)[:, :18].tolist() == speech.test.reshape(4, 18).tolist()
    assert (made.test.reshape(4, 400) == made.test[:400]).all() and made.test.mean() == 0.2
    assert [made.phone_names[phone] for phone in made.phones[7]] == ["pau"] * 2 + ["aa"] * 3 + ["pau"] * 5


def test_a_folder_that_does_not_exist_is_told_before_the_work(tool, fast, tmp_path, monkeypatch):
    with pytest.raises((SystemExit, OSError)):
        run(tool, monkeypatch, tmp_path / "nowhere" / "speech.npz")
    assert fast == []


def test_flite_says_the_first_clip_of_the_sample_again(tool, tmp_path, speech):
    if not shutil.which("flite"):
        pytest.skip("flite is not installed")
    with np.load(SPEECH_SAMPLE, allow_pickle=False) as archive:
        clip, starts = archive["mulaw"][:archive["offset"][1]], archive["phone_start"][:archive["phone_offset"][1]]
        names = [tool.PHONES[phone] for phone in archive["phone"][:len(starts)]]
    samples, phones, ends = tool.say(tool.VOICES[0], speech.texts[0], tmp_path)
    made = tool.to_bytes(samples)
    assert made.shape == clip.shape and abs(made.astype(int) - clip).max() <= 2
    assert list(phones) == names and np.rint(RATE * np.r_[0, ends[:-1]]).tolist() == starts.tolist()
