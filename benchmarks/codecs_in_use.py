"""Codecs in use, on the clips and by the measures of chapter 16: `python benchmarks/codecs_in_use.py [--quick] [--out FILE]`.

Codec 2 (modes 3200, 1300, 700C), Opus at its lowest rate, and µ-law code Flite's test sentences and the test recordings of spoken digits.
All clips go through a codec as one stream with pauses between, so that a file's header weighs nothing; the rate is that of the stream (of
Codec 2 that of the mode, since its files fill up bytes). A codec's delay is taken out before copies are compared. A row has the error of
the logarithmic bands, in decibels, the extended STOI, and the share of digits that a judge reads right, who is taught on original
recordings here as in the chapter; the row "original" has gone through none of them.

It needs the programs c2enc, c2dec, opusenc and opusdec (Debian, Ubuntu: apt install codec2 opus-tools) and the package pystoi.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tools")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from grid import RESULTS, Table  # noqa: E402
from make_speech import to_bytes  # noqa: E402
from measure import load_all_speech, load_people, stoppable  # noqa: E402
from pystoi import stoi  # noqa: E402

from vqvae_tutorial.audio import _MULAW, RATE, load_speech, log_mel  # noqa: E402
from vqvae_tutorial.spoken import build_sound_judge, equally_loud, judge_frames, load_spoken_digits  # noqa: E402

PAUSE, SENTENCES, LESSONS = RATE // 4, 12, 20
CODECS = ("original", "Codec 2 700C", "Codec 2 1300", "Codec 2 3200", "Opus", "µ-law")
COLUMNS = ["codec", "bits_per_second", "error", "stoi", "digits", "sentences", "recordings"]


def run(*command):
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    if ran.returncode:
        raise SystemExit(f"{command[0]} failed: {ran.stderr.strip()[-300:]}")


def through(codec, sound, folder):
    """What a codec makes of a sound, and the bits per second of its stream."""
    if codec == "original":
        return sound, 16.0 * RATE
    if codec == "µ-law":
        return _MULAW[to_bytes(sound)], 8.0 * RATE
    integers = np.rint(np.clip(sound, -1, 1) * 32767).astype("<i2")
    given, coded, back = (Path(folder) / name for name in ("given", "coded", "back"))
    if codec == "Opus":
        with wave.open(str(given), "wb") as file:
            file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
            file.writeframes(integers.tobytes())
        run("opusenc", "--quiet", "--bitrate", 6, "--hard-cbr", "--framesize", 60, "--speech", given, coded)
        run("opusdec", "--quiet", "--rate", RATE, "--force-wav", coded, back)
        with wave.open(str(back)) as file:
            found = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    else:
        given.write_bytes(integers.tobytes())
        run("c2enc", codec.split()[-1], given, coded)
        run("c2dec", codec.split()[-1], coded, back)
        found = np.frombuffer(back.read_bytes(), "<i2")
        return found / 32767, float(codec.split()[-1].rstrip("C"))
    return found / 32767, 8 * coded.stat().st_size * RATE / len(sound)


def likeness(sound, copy):
    return stoi(sound, copy, RATE, extended=True)


def cut(copy, sounds, starts, delay):
    """A stream's clips, `delay` samples later than they were put in."""
    copy = np.pad(copy, (PAUSE, 2 * PAUSE))
    return [copy[PAUSE + start + delay:][:len(sound)].astype("float32") for start, sound in zip(starts, sounds)]


def copies_of(codec, sounds, folder):
    """All clips, through a codec, without its delay, and its rate."""
    starts = np.cumsum([PAUSE, *(len(sound) + PAUSE for sound in sounds)])
    stream = np.zeros(starts[-1], "float32")
    for start, sound in zip(starts, sounds):
        stream[start:start + len(sound)] = sound
    copy, rate = through(codec, stream, folder)
    delays = range(-PAUSE // 4, PAUSE // 2, RATE // 400)
    mean = lambda delay: np.mean([likeness(*pair) for pair in zip(sounds[:6], cut(copy, sounds[:6], starts, delay))])
    return cut(copy, sounds, starts, max(delays, key=mean)), rate


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Codecs in use, by the measures of chapter 16.")
    parser.add_argument("--quick", action="store_true", help="the samples that ship, and little training")
    parser.add_argument("--out", type=Path, help="the table (default: the one that ships, or codecs_quick.csv with --quick)")
    options = parser.parse_args(arguments)
    if missing := [name for name in ("c2enc", "c2dec", "opusenc", "opusdec") if not shutil.which(name)]:
        raise SystemExit(f"Missing: {', '.join(missing)}. In Debian or Ubuntu: apt install codec2 opus-tools")
    speech, people = (load_speech(), load_spoken_digits()) if options.quick else (load_all_speech(), load_people())
    sentences = np.unique(speech.sentences[speech.test])[:SENTENCES]
    digits = [equally_loud(sound) for sound in people.sounds]
    sounds = [sound for sound, what in zip(speech.sounds, speech.sentences) if what in sentences]
    spoken = [sound for sound, kept in zip(digits, people.test) if kept]
    keras.utils.set_random_seed(0)
    judge = build_sound_judge(10)
    judge.fit(judge_frames(digits)[~people.test], people.digits[~people.test], epochs=1 if options.quick else LESSONS, verbose=0)
    right = lambda copies: float(judge.evaluate(judge_frames(copies), people.digits[people.test], verbose=0, return_dict=True)["accuracy"])
    shared = {"sentences": len(sounds), "recordings": len(spoken)}
    table = Table(options.out or (Path("codecs_quick.csv") if options.quick else RESULTS / "codecs.csv"), COLUMNS, 1, shared)
    with tempfile.TemporaryDirectory() as folder:
        for codec in CODECS:
            copies, rate = copies_of(codec, sounds + spoken, folder)
            gaps = [20 / np.log(10) * (log_mel(copy) - log_mel(sound)) for sound, copy in zip(sounds, copies)]
            table.add({"codec": codec, "bits_per_second": rate, "error": float(np.mean([np.sqrt(np.square(gap).mean()) for gap in gaps])),
                       "stoi": float(np.mean([likeness(*pair) for pair in zip(sounds, copies)])),
                       "digits": right([equally_loud(copy) for copy in copies[len(sounds):]])} | shared)
            print(codec, "done", flush=True)
    return 0


if __name__ == "__main__":
    stoppable(main)
