"""What the benchmarks share: turns, medians, tables in files, and what they were made with. Imports no backend, and chooses none."""
import argparse
import csv
import math
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
QUALITY = 0.0042  # the test MSE that the well-known example ends with
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def options(parser, name, arguments=None, repeats=5):
    """Adds the arguments that all benchmarks take, and reads them; with `--quick` there is one repeat, and no table unless asked for."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat: to see that all of it works")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds of turns; the table gives medians")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.csv", help="the table")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.repeats = 1
        chosen.out = None if chosen.out == RESULTS / f"{name}.csv" else chosen.out
    return chosen


def stoppable(main):
    """Ends the process with what `main` gives. After Ctrl-C it says that nothing is lost."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        sys.exit(130)


def turns(calls, repeats, enough=20.0, least=0.0):
    """Calls functions in turns, A B A B, after one round that does not count; gives the median seconds of each.

    A call of the first round that took more than `enough` seconds counts, and is not repeated. In each later turn a function is
    called until `least` seconds are filled.
    """
    times = {name: [seconds(call)] for name, call in calls.items()}
    again = {name: call for name, call in calls.items() if times[name][0] <= enough}
    for name in again:
        times[name].clear()
    for _ in range(repeats):
        for name, call in again.items():
            times[name].append(seconds(call, least))
    return {name: median(each) for name, each in times.items()}


def seconds(call, least=0.0):
    """Seconds that a call takes: the mean over as many calls as fill `least` seconds, at least one."""
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < least:
        call()
        count += 1
    return (time.perf_counter() - start) / count


def made_with(*packages):
    """Versions and machine in a line: what one must know to compare times, and nothing of whose machine it is."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    versions = [f"{package} {metadata.version(package)}" for package in packages]
    return "; ".join([f"{cpu}, {os.cpu_count()} cores", f"Python {platform.python_version()}", *versions])


def times_to_quality(rows):
    """For each model, over its seeds: seconds to `QUALITY` (infinite where it was not reached); at the end error, batches, and the bits
    of a digit's codes by place (NaN where they were not measured)."""
    found = {}
    for model, seed in dict.fromkeys((row["model"], row["seed"]) for row in rows):
        run = sorted([float(row[name]) for name in ("seconds", "mse", "batches")]
                     for row in rows if (row["model"], row["seed"]) == (model, seed))
        entry = found.setdefault(model, {"seconds": [], "mse": [], "batches": [], "bits": []})
        entry["seconds"].append(next((seconds for seconds, mse, _ in run if mse <= QUALITY), math.inf))
        entry["mse"].append(run[-1][1])
        entry["batches"].append(run[-1][2])
        bits = [row["place_bits"] for row in rows if (row["model"], row["seed"]) == (model, seed) and row.get("place_bits")]
        entry["bits"].append(float(bits[-1]) if bits else math.nan)
    return found


def read(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _complete(found, count, things, how):
    """Ends where there is only a sample: its results must not be kept as if they were those of all."""
    if found < count:
        raise SystemExit(f"This needs {count:,} {things}, and there are {found:,}: {how}.")


def load_digits(count=60_000):
    """MNIST with its first `count` training digits, and all test digits; ends where there are not as many."""
    from vqvae_tutorial import load_mnist

    digits = load_mnist()
    _complete(len(digits.train.images), count, "training digits", "set VQVAE_TUTORIAL_MNIST to the path of an mnist.npz, or go online")
    return digits._replace(train=type(digits.train)(*(part[:count] for part in digits.train)))


def load_all_speech():
    """All 400 sentences by all voices; ends where there is only the sample."""
    from vqvae_tutorial.audio import load_speech

    speech = load_speech()
    _complete(len(speech.sounds), 1600, "spoken sentences",
              "run `python tools/make_speech.py speech.npz`, and set VQVAE_TUTORIAL_SPEECH to the path of that file")
    return speech


def load_people():
    """All 3,000 recordings of spoken digits; ends where there is only the sample."""
    from vqvae_tutorial.spoken import load_spoken_digits

    people = load_spoken_digits()
    _complete(len(people.sounds), 3000, "spoken digits", "`git clone https://github.com/Jakobovski/free-spoken-digit-dataset`, and set "
              "VQVAE_TUTORIAL_SPOKEN_DIGITS to its path")
    return people


def load_all_clothes(count=60_000):
    """Fashion-MNIST; ends where there are not as many training pictures."""
    from vqvae_tutorial.pictures import load_fashion_mnist

    clothes = load_fashion_mnist()
    _complete(len(clothes.train.images), count, "training pictures of clothes",
              "set VQVAE_TUTORIAL_FASHION_MNIST to the path of a fashion_mnist.npz, or go online")
    return clothes


def write(path, rows, keys):
    """Writes rows, dicts alike, into a CSV file as a whole; rows that are there already stay, unless they agree in `keys`."""
    path = Path(path)
    texts = [{name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items()} for row in rows]
    name = lambda row: tuple(row[key] for key in keys)
    kept = {name(row): row for row in (read(path) if path.exists() else []) if list(row) == list(texts[0])}
    kept |= {name(row): row for row in texts}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(texts[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept.values())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def says_who(out):
    """The line under a printed table: where the figures went."""
    return f"Written to {out.name}." if out else "Nothing was written."
