"""Lets Flite's four voices read the CMU ARCTIC sentences, and writes what they said with the exact times of all phones.

`python tools/make_speech.py speech.npz` makes the whole set, 67 minutes in about two; set VQVAE_TUTORIAL_SPEECH to its path.
`python tools/make_speech.py --sample` makes what ships again: the first 18 sentences, and the ten digits, said three times by each voice.
It needs the program `flite` (Debian, Ubuntu: apt install flite; elsewhere: github.com/festvox/flite). The sentences are in the sample.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

SAMPLE = Path(__file__).resolve().parent.parent / "vqvae_tutorial" / "data" / "speech_sample.npz"
DIGITS = SAMPLE.with_name("spoken_digits_sample.npz")
NAMES = "zero one two three four five six seven eight nine".split()
MANNERS = ((1.0, 1.0), (0.85, 1.1), (1.2, 0.9))  # how long, and how high, each digit is said
PITCH = {"kal16": 105, "awb": 120, "rms": 95, "slt": 165}  # Hz
NOTE = "spoken by Flite 2.2; voices and prompts (c) Carnegie Mellon University"
VOICES = ("kal16", "awb", "rms", "slt")
RATE, LOUDNESS = 8000, 0.08  # samples a second, and the root of the mean square of each clip
OF_SAMPLE = 18
PHONES = ("aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p pau r s sh t th uh uw v w y z zh").split()


def say(voice, text, folder, *manner):
    """What a voice makes of a sentence: samples at 8 kHz, and the names and ends (in seconds) of the phones."""
    path = Path(folder) / "said.wav"
    command = ["flite", "-voice", voice, *manner, "-psdur", "-t", text, "-o", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    names, ends = zip(*re.findall(r"(\S+):([\d.]+)", said))
    with wave.open(str(path)) as file:
        rate, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
    samples = resample_poly(samples / 2**15, RATE, rate)
    return samples * LOUDNESS / np.sqrt(np.mean(np.square(samples))), names, np.array(ends, float)


def to_bytes(samples):
    """µ-law, as telephones write it: a byte a sample, finer where it is quiet."""
    samples = np.clip(samples, -1, 1)
    curved = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log(256)
    return np.rint((curved + 1) / 2 * 255).astype("uint8")


def read_aloud(texts, test, count):
    """The archive's arrays: `count` of the sentences, read by each voice."""
    clips, phones, starts, speaker, sentence = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, voice in enumerate(VOICES):
            for index in range(count):
                samples, names, ends = say(voice, str(texts[index]), folder)
                clips.append(to_bytes(samples))
                phones.append(names)
                starts.append(np.rint(RATE * np.r_[0, ends[:-1]]))
                speaker.append(number)
                sentence.append(index)
            print(f"{voice}: {count} sentences", file=sys.stderr, flush=True)
    return {
        "mulaw": np.concatenate(clips), "offset": np.cumsum([0, *map(len, clips)]).astype("int32"),
        "speaker": np.array(speaker, "uint8"), "sentence": np.array(sentence, "int16"),
        "phone": np.array([PHONES.index(name) for names in phones for name in names], "uint8"),
        "phone_start": np.concatenate(starts).astype("int32"),
        "phone_offset": np.cumsum([0, *map(len, phones)]).astype("int32"),
        "phones": np.array(PHONES), "speakers": np.array(VOICES), "texts": texts,
        "test": np.tile(test[:count], len(VOICES)), "test_sentence": test, "sample_rate": np.int32(RATE),
        "note": np.array(f"CMU ARCTIC prompts {NOTE}"),
    }


def say_digits():
    """The arrays of the digits that ship: each one three times by each voice, without the silence around it."""
    clips, labels = [], []
    with tempfile.TemporaryDirectory() as folder:
        for speaker, voice in enumerate(VOICES):
            for digit, name in enumerate(NAMES):
                for take, (length, height) in enumerate(MANNERS):
                    manner = ("--setf", f"duration_stretch={length}", "--setf", f"int_f0_target_mean={height * PITCH[voice]:.0f}")
                    samples, phones, ends = say(voice, name, folder, *manner)
                    said = [index for index, phone in enumerate(phones) if phone != "pau"]
                    clips.append(to_bytes(samples[int(RATE * ends[said[0] - 1]) : int(RATE * ends[said[-1]])]))
                    labels.append((digit, speaker, take))
    digit, speaker, take = np.array(labels, "uint8").T
    return {"mulaw": np.concatenate(clips), "offset": np.cumsum([0, *map(len, clips)]).astype("int32"), "digit": digit,
            "speaker": speaker, "take": take, "speakers": np.array(VOICES), "note": np.array(f"digits {NOTE}")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", nargs="?", type=Path, help="where to write all of it")
    parser.add_argument("--sample", action="store_true", help="write the sample of the package instead")
    arguments = parser.parse_args()
    if arguments.sample == bool(arguments.path):
        parser.error("give a path, or --sample")
    if not shutil.which("flite"):
        raise SystemExit("The program `flite` is not installed. In Debian or Ubuntu: apt install flite")
    path = SAMPLE if arguments.sample else arguments.path
    if path.is_dir() or not path.absolute().parent.is_dir():  # before two minutes of work
        parser.error(f"{path} must be a file in a folder that exists")
    with np.load(SAMPLE, allow_pickle=False) as archive:
        texts, test = archive["texts"], archive["test_sentence"]
    write(path, read_aloud(texts, test, OF_SAMPLE if arguments.sample else len(texts)))
    if arguments.sample:
        write(DIGITS, say_digits())


def write(path, made):
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        np.savez_compressed(file, **made)
    os.replace(part, path)
    print(f"{path}: {len(made['mulaw']) / RATE / 60:.1f} minutes, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
