"""What codes of speech know, under other settings: `python benchmarks/speech.py [--quick] [--seeds 3] [--unheard FILE] [--out FILE]`.

Chapter 13 trains one kind of model: 128 codes, 25 a second, frames from which a linear map has taken the speaker's voice, and a decoder
that is told who speaks. Here one of these things changes at a time, in shorter trainings. A row says how well phones are guessed from
single codes of the test sentences, which share of the phones' entropy the codes explain, how often a code gives its speaker away, and the
squared error beside the frames' variance (of other frames where the rate or the voice is another); beside it stands k-means on the same
frames. Codes at other rates come from the same networks: a code always takes four frames, but frames are averaged in pairs first (12.5 a
second), or each is said twice (50).

`--unheard` names an archive of one more speaker, in the layout of tools/make_speech.py, and makes a table of its own: a voice that no
network has heard goes through the usual models. (The linear map that takes her voice out is measured on her own training sentences, as
everybody's is, and moves frames towards the average of all five.) Her phones are guessed by what the four speakers' codes have taught;
then the four say what her codes hold, and judges tell who speaks, how many of the real frames they read right, and which share of these
is kept. The four speakers' own test sentences, said by the other three, stand beside hers. The table that ships is of
github.com/rhasspy/dataset-voice-cathy, 400 sentences at 8 kHz, with phones aligned by a hidden Markov model and starts cut to the clip;
that archive is not part of the project.

The command can be stopped at any time and goes on with the models that are missing. Chapter 16 shows what it finds.
"""
import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import keras  # noqa: E402
import numpy as np  # noqa: E402
from grid import RESULTS, Table  # noqa: E402
from measure import load_all_speech, stoppable  # noqa: E402

from vqvae_tutorial import VQVAE, VectorQuantizerEMA  # noqa: E402
from vqvae_tutorial.audio import (  # noqa: E402
    build_speech_networks,
    code_table,
    explained,
    load_speech,
    mapping_accuracy,
    measure_voices,
    pad_frames,
    to_sound,
)
from vqvae_tutorial.quantization import kmeans, nearest_code  # noqa: E402
from vqvae_tutorial.spoken import build_sound_judge, judge_frames  # noqa: E402

USUAL = {"K": 128, "rate": 25.0, "voice": "out", "told": True}
SETTINGS = {
    "usual settings": {}, "32 codes": {"K": 32}, "512 codes": {"K": 512}, "12.5 codes a second": {"rate": 12.5},
    "50 codes a second": {"rate": 50.0}, "decoder not told": {"told": False}, "voice left in": {"voice": "in"},
    "voice left in and not told": {"voice": "in", "told": False},
}
COLUMNS = ["setting", "model", "seed", "K", "rate", "guessed", "explained", "speaker", "lost", "sentences", "epochs"]
WHOLE = 400  # frames of a sentence that the judge of speakers hears
FULL = {"epochs": 12, "kept": 1600}
QUICK = {"epochs": 1, "kept": 72}


def frames_of(speech, voices, rate, voice):
    """Each clip's frames, four for a code at `rate` codes a second, and the phone at the middle of each code."""
    frames = [voices[who if voice == "out" else 0].frames(sound) for who, sound in zip(speech.speakers, speech.sounds)]
    if rate < 25:
        pairs = int(25 / rate)
        frames = [each[:len(each) // pairs * pairs].reshape(-1, pairs, each.shape[1]).mean(axis=1) for each in frames]
    frames = [np.repeat(each, max(int(rate / 25), 1), axis=0) for each in frames]
    step = int(100 / rate)
    return frames, [phones[step // 2::step][:len(each) // 4] for phones, each in zip(speech.phones, frames)]


def train(spoken, learn, setting, seed, epochs):
    """A VQ-VAE as chapter 13 trains it, and its error on test frames in units of all frames' variance."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    only = lambda which: {name: values[which] for name, values in spoken.items()}
    networks = build_speech_networks(int(spoken["speaker"].max()) + 1)
    model = VQVAE(*networks, VectorQuantizerEMA(setting["K"], seed=seed))
    model.adapt(only(learn))
    steps = epochs * -(-learn.sum() // 32)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps)))
    model.fit(only(learn), batch_size=32, epochs=epochs, verbose=0)
    lost = model.evaluate(only(~learn), batch_size=32, verbose=0, return_dict=True)["mse"]
    return model, lost / spoken["signal"][spoken["mask"]].var()


def encode(model, frames):
    codes = model.encode(pad_frames(frames)["signal"])
    return [np.asarray(each[:len(f) // 4]) for each, f in zip(codes, frames)]


def centres_of(frames, number, seed):
    """k-means on the mean of each code's four frames."""
    return kmeans(np.concatenate([means(each) for each in frames]), number, seed=seed)


def assign(frames, centres):
    return [np.asarray(nearest_code(means(each), centres)) for each in frames]


def means(frames):
    return frames[:len(frames) // 4 * 4].reshape(-1, 4, frames.shape[1]).mean(axis=1)


def tables(codes, labels, number, many):
    return code_table([c[:len(p)] for c, p in zip(codes, labels)], [p[:len(c)] for c, p in zip(codes, labels)], number, many)


def score(codes, phones, speakers, learn, number, names):
    """Phones guessed, explained, and speakers guessed, in the test sentences, by what the training sentences teach."""
    split = lambda values: [[value for value, use in zip(values, part) if use] for part in (learn, ~learn)]
    whose = [np.full(len(each), who) for each, who in zip(codes, speakers)]
    phone_of, voice_of = ([tables(c, x, number, many) for c, x in zip(split(codes), split(labels))]
                          for labels, many in ((phones, len(names)), (whose, speakers.max() + 1)))
    return {"guessed": mapping_accuracy(*phone_of), "explained": explained(phone_of[1]), "speaker": mapping_accuracy(*voice_of)}


def judges(speech, frames, learn, epochs):
    """Two networks that learn from the speakers' own training sentences: who speaks, and which phone each frame has."""
    keras.utils.set_random_seed(0)
    clips = np.flatnonzero(learn)
    who = build_sound_judge(speech.speakers.max() + 1)
    who.fit(judge_frames([speech.sounds[clip] for clip in clips], WHOLE), speech.speakers[clips], epochs=epochs // 2 + 1, verbose=0)
    phone, lessons = build_sound_judge(len(speech.phone_names), whole=False), pad_frames([frames[clip] for clip in clips])
    labels = pad_frames([speech.phones[clip][:, None] for clip in clips])["signal"][..., 0].astype("int32")
    phone.fit(lessons["signal"], labels, epochs=epochs, verbose=0, sample_weight=lessons["mask"].astype("float32"))
    return who, phone


def other_voice(path, speech, learn):
    """The voices of the training speakers and of another one, towards the average of all; her test sentences, and their phones."""
    other = load_speech(path)
    if set(other.phone_names) != set(speech.phone_names) or len(set(other.speakers)) != 1:
        raise SystemExit(f"{path} must hold one speaker, with the phones {', '.join(speech.phone_names)}.")
    hers, tested = np.flatnonzero(~other.test), np.flatnonzero(other.test)
    who = np.r_[speech.speakers[learn], np.full(len(hers), speech.speakers.max() + 1)]
    sounds = [speech.sounds[clip] for clip in np.flatnonzero(learn)] + [other.sounds[clip] for clip in hers]
    names = np.array([speech.phone_names.index(name) for name in other.phone_names])
    return measure_voices(sounds, who), [other.sounds[clip] for clip in tested], [names[other.phones[clip]] for clip in tested]


def worth_keeping(model, spoken, learn):
    """Which numbers of a frame are drawn better than their mean would, on a quarter of the training sentences."""
    some = {name: values[learn][::4] for name, values in spoken.items()}
    real, drawn = some["signal"][some["mask"]], model.predict(some, batch_size=32, verbose=0)[some["mask"]]
    return np.square(drawn - real).mean(axis=0) < real.var(axis=0)


def conversions(model, clips, voices, kept, judged):
    """Clips `(codes, speaker or None, phones)`, said by all others: the share taken for the target, and of frames read right."""
    who, phone = judged
    taken, read = [], []
    for codes, speaker, truth in clips:
        for target, voice in enumerate(voices):
            if target != speaker:
                frames = kept * model.decode(codes[None], speaker=target)[0]
                sound = to_sound(voice.log_mel(frames), seed=1)
                taken.append(who(judge_frames([sound], WHOLE)).numpy()[0].argmax() == target)
                read.append(frames_right(phone, voice.frames(sound), truth))
    return float(np.mean(taken)), float(np.mean(read))


def frames_right(phone, frames, truth):
    return np.mean(phone(frames[None]).numpy()[0].argmax(axis=-1) == truth[:len(frames)])


def unheard(speech, path, seeds, budget, out):
    """Another speaker, whom no training hears: what her codes tell, and what becomes of her when others say them."""
    shared = {"sentences": len(speech.sounds), "epochs": budget["epochs"]}
    table = Table(out, ["whose", "model", "seed", "guessed", "explained", "target", "read", "kept", *shared], 3, shared)
    learn = ~speech.test
    (*voices, voice), sounds, labels = other_voice(path, speech, learn)
    frames, phones = frames_of(speech, voices, 25.0, "out")
    mine, spoken = [voice.frames(sound) for sound in sounds], pad_frames(frames) | {"speaker": speech.speakers}
    judged, some = judges(speech, frames, learn, budget["epochs"]), np.flatnonzero(~learn)[::8]
    clear = {"her": np.mean([frames_right(judged[1], *pair) for pair in zip(mine, labels)]),
             "the four": np.mean([frames_right(judged[1], frames[clip], speech.phones[clip]) for clip in some])}
    for seed in (seed for seed in range(seeds) if ("the four", "VQ-VAE", seed) not in table):
        model, _ = train(spoken, learn, USUAL, seed, budget["epochs"])
        centres = centres_of([f for f, use in zip(frames, learn) if use], USUAL["K"], seed)
        for kind, code in {"k-means": lambda many, centres=centres: assign(many, centres),
                           "VQ-VAE": lambda many, model=model: encode(model, many)}.items():
            theirs, hers = code(frames), code(mine)
            split = [[[each for each, use in zip(values, part) if use] for values in (theirs, phones)] for part in (learn, ~learn)]
            learned, tested = (tables(*part, USUAL["K"], len(speech.phone_names)) for part in split)
            asked = {"her": tables(hers, [each[2::4] for each in labels], USUAL["K"], len(speech.phone_names)), "the four": tested}
            clips = {"her": [(line, None, truth) for line, truth in zip(hers, labels)],
                     "the four": [(theirs[clip], speech.speakers[clip], speech.phones[clip]) for clip in some]}
            for whose, counts in asked.items():
                taken, read = np.nan, np.nan
                if kind == "VQ-VAE":
                    taken, read = conversions(model, clips[whose], voices, worth_keeping(model, spoken, learn), judged)
                table.add({"whose": whose, "model": kind, "seed": seed, "guessed": float(mapping_accuracy(learned, counts)),
                           "explained": float(explained(counts)), "target": taken, "read": float(clear[whose]),
                           "kept": float(read / clear[whose])} | shared)
        print(f"seed {seed}: done", flush=True)


def study(speech, seeds, budget, out):
    shared = {"sentences": len(speech.sounds), "epochs": budget["epochs"]}
    table = Table(out, COLUMNS, 3, shared)
    wanted = [(name, seed) for seed in range(seeds) for name in SETTINGS]
    missing = [key for key in wanted if (key[0], "k-means", key[1]) not in table]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} models are in {out}", flush=True)
    learn, bar = ~speech.test, keras.utils.Progbar(max(len(missing), 1), unit_name="model")
    sounds = [speech.sounds[clip] for clip in np.flatnonzero(learn)]
    voices = {"out": measure_voices(sounds, speech.speakers[learn]), "in": measure_voices(sounds, np.zeros(len(sounds), int))}
    for done, (name, seed) in enumerate(missing, start=1):
        setting = USUAL | SETTINGS[name]
        frames, phones = frames_of(speech, voices[setting["voice"]], setting["rate"], setting["voice"])
        told = speech.speakers if setting["told"] else np.zeros_like(speech.speakers)
        model, lost = train(pad_frames(frames) | {"speaker": told}, learn, setting, seed, budget["epochs"])
        row = {"setting": name, "seed": seed, "K": setting["K"], "rate": setting["rate"]} | shared
        centres = centres_of([f for f, use in zip(frames, learn) if use], setting["K"], seed)
        found = {"VQ-VAE": (encode(model, frames), lost),
                 "k-means": (assign(frames, centres), float("nan"))}
        for kind, (codes, lost) in found.items():
            scores = score(codes, phones, speech.speakers, learn, setting["K"], speech.phone_names)
            table.add(row | {"model": kind, "lost": float(lost)} | {key: float(value) for key, value in scores.items()})
        bar.update(done)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="What codes of speech know under other settings; goes on where it was stopped.")
    parser.add_argument("--quick", action="store_true", help="a tiny budget, to see that all of it works")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--unheard", type=Path, help="an archive of a speaker whom no training has heard")
    parser.add_argument("--out", type=Path, help="the table (default: the one that ships, or speech_quick.csv with --quick)")
    options = parser.parse_args(arguments)
    budget = QUICK if options.quick else FULL
    speech = load_speech() if options.quick else load_all_speech()
    out = options.out or (Path("speech_quick.csv") if options.quick else RESULTS / "speech.csv")
    seeds = 1 if options.quick else options.seeds
    if options.unheard:
        unheard(speech, options.unheard, seeds, budget, out.with_name(f"{out.stem}_unheard.csv"))
    else:
        study(speech, seeds, budget, out)
    return 0


if __name__ == "__main__":
    stoppable(main)
