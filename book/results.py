"""The page about the results: versions, seeds, times and the headline figures, read from what the chapters have printed.

A figure that a chapter's outputs do not hold, or hold with two values, stops the build.
"""
import csv
import re

from project import ROOT, cells, chapter_link, chapter_name, chapters, notebook

KEY = "vqvae_tutorial"
RESULTS = ROOT / KEY / "results"
SEEDS = {"Keras": r"set_random_seed\((\d+)\)", "NumPy": r"default_rng\((\d+)\)", "arguments": r"\bseed=(\d+)"}

# For each chapter what a figure is, and a pattern for the line that prints it. Another line here is another line on the page.
FIGURES = {
    "00_digits": {
        "error of the best single grey, test MSE": r"^test MSE of one grey +(\S+)$",
        "error of the mean picture, test MSE": r"^test MSE of mean picture +(\S+)$",
        "accuracy of the nearest neighbour in pixels": r"^moved by 0 pixels: +(\S+) of the neighbours",
        "the same, digits moved by three pixels": r"^moved by 3 pixels: +(\S+) of the neighbours",
        "without loss, LZMA, bits a digit": r"^LZMA, all together +(\d+) bits",
    },
    "01_vector_quantization": {
        "128 strokes of 4×4 pixels, bits a digit": r"^ 128 +(\d+) +\S+ +\S+ +\d+ +\S+$",
        "the same by entropy, bits a digit": r"^ 128 +\d+ +(\S+) +\S+ +\d+ +\S+$",
        "perplexity of the 128 strokes": r"^ 128 +\d+ +\S+ +(\S+) +\d+ +\S+$",
        "test MSE of the 128 strokes": r"^ 128 +\d+ +\S+ +\S+ +\d+ +(\S+)$",
    },
    "02_quantizer_layer": {
        "spiral of 64 clusters, gradient rule: codes in use": r"^spiral +codes used.*\n(?:.*\n)*?gradient +(\S+) ",
        "spiral, EMA with revival and k-means start: codes in use": r"^spiral +codes used.*\n(?:.*\n)*?EMA, k-means, revival +(\S+) ",
        "the same, perplexity": r"^spiral +codes used.*\n(?:.*\n)*?EMA, k-means, revival +\S+ +(\S+) ",
    },
    "03_training": {
        "test MSE": r"^test MSE (\S+), PSNR",
        "PSNR, dB": r"^test MSE \S+, PSNR (\S+) dB$",
        "codes in use": r"^codes in use (\d+ of \d+), perplexity \S+$",
        "perplexity": r"^codes in use \d+ of \d+, perplexity (\S+)$",
        "rate, at most, bits per digit": r"^bits per digit: \d+ raw, (\d+) to name 49 codes",
        "rate by the codes' entropy, bits per digit": r"^bits per digit: .* (\d+) by their entropy$",
    },
    "04_codebook": {
        "codes in use on 10,000 test digits": r"^ +10,000 +(\d+ of \d+) +\S+$",
        "share of a code's effect in its own cell": r"^share of the change, by distance in cells: 0: ([\d.]+%)",
        "rank correlation of distance and effect of codes": r"^effect +rank correlation with the distance of embeddings (\S+)$",
    },
    "05_priors": {
        "codes by frequency at each place, bits per digit": r"^(\S+) bits per test digit, each code by how often its place has it$",
    },
    "06_pixelcnn": {
        "every code alike, bits per digit": r"^every code alike +(\S+) bits",
        "codes by place, given the digit, bits per digit": r"^by place, given the digit +(\S+) bits",
        "PixelCNN, bits per digit": r"^PixelCNN +(\S+) bits",
        "PixelCNN, given the digit, bits per digit": r"^PixelCNN, given the digit +(\S+) bits",
        "pairs that one stack sees, of 1176": r"^one stack: (\d+) of 1176 pairs",
        "pairs that two stacks see, of 1176": r"^two stacks: (\d+) of 1176 pairs",
        "Fréchet distance of real digits to real digits": r"^real test digits +Fréchet distance +(\d\S*)",
        "Fréchet distance of samples": r"^drawn by the prior +Fréchet distance +(\d\S*)",
        "Fréchet distance of samples at temperature 0.9": r"^drawn at temperature 0.9 +Fréchet distance +(\d\S*)",
        "samples read as the digit asked for": r"^drawn by the prior +Fréchet .* (\S+) read right$",
        "the same at temperature 0.9": r"^drawn at temperature 0.9 +Fréchet .* (\S+) read right$",
    },
    "07_choosing_k_and_d": {
        "bits per digit at MSE 0.0042, small prior": r"^at MSE 0\.00420 our curve needs (\S+) bits",
        "bits per digit at the error of the Keras example, small prior": r"^at MSE (?!0\.00420)\S+ our curve needs (\S+) bits",
        "bits per digit of the Keras example, small prior": r"^at MSE .* the example (\S+)$",
        "error left at the example's bits, of the example's": r"^at the example's \S+ bits our curve leaves (\S+) of its error$",
        "K = 32 without a charge for bits": r"^K = 32 uncharged (\S+) bits",
        "the same with revival": r"^K = 32 revived +(\S+) bits",
        "K = 128 trained there without a charge, bits by place": r"^λ = 0\.0: test MSE .* bits (\d+)$",
        "the same with λ = 0.1": r"^λ = 0\.1: test MSE .* bits (\d+)$",
        "test MSE without a charge": r"^λ = 0\.0: test MSE (\S+),",
        "test MSE with λ = 0.1": r"^λ = 0\.1: test MSE (\S+),",
        "strokes, K = 128, bits by place": r"^strokes, K = 128: +(\d+) bits by place",
        "D = 64, K = 128, test MSE after 16 epochs of 8,000 digits": r"^D = 64, K = 128: MSE .* (\S+) after 16 epochs",
    },
    "08_posterior_collapse": {
        "decoder alone, total bits a picture": r"^decoder alone +[\d.]+ +[\d.]+ +([\d.]+) ",
        "Gaussian, rate in bits": r"^Gaussian +([\d.]+) +[\d.]+ +\S+ ",
        "Gaussian, total": r"^Gaussian +[\d.]+ +[\d.]+ +([\d.]+) ",
        "Gaussian annealed, total": r"^Gaussian, annealed +[\d.]+ +[\d.]+ +([\d.]+) ",
        "VQ, rate in bits": r"^VQ +([\d.]+) +[\d.]+ +\S+ ",
        "VQ, total": r"^VQ +[\d.]+ +[\d.]+ +([\d.]+) ",
        "VQ with the learned prior, total": r"^total with the learned prior ([\d.]+),",
    },
    "09_other_quantizers": {
        f"{name}, {what}": rf"^digits +MSE(?:.*\n)*?{name} +{column} "
        for name in ("gradient", "EMA revived", "EMA rotation", "charged λ = 0.1", "cosine", "SimVQ", "FSQ 8 · 4 · 4", "FSQ 5 · 5 · 5",
                     "LFQ 7 bits", "BSQ 7 bits", "residual 5 · 5 · 5", "product 5 · 5 · 5")
        for what, column in {"test MSE × 1000 on digits, mean and half span of three seeds": r"(\d+\.\d+ ± \d+\.\d+)",
                             "bits per digit under the small PixelCNN": r"\S+ ± \S+ +\S+ ± \S+ +\S+ ± \S+ +(\d+ ± \d+)"}.items()},
    "10_bytes": {
        "bytes per digit, PixelCNN": r"^PixelCNN: (\S+) bytes per digit",
        "more than it states": r"^PixelCNN: \S+ bytes per digit, (\S+) more",
        "bytes per digit, PNG": r"^PNG +(\S+) ",
        "bytes per digit, WebP at the error of the codes": r"^WebP, our error +(\S+) ",
    },
    "11_many_codes": {
        **{f"test MSE × 1000, {name}, {depth} of the codes at a place": rf"^{start} .*\b{depth}: (\S+)" for depth in (1, 2, 8)
           for name, start in {"models of their own": "a model for each depth", "one model": "one model, dropout 0.5"}.items()},
        **{f"{name}, {what}": rf"^{name} +{column}" for name in ("one codebook of 256", "2 levels of 16", "2 pieces of 16")
           for what, column in {"test MSE × 1000 of two seeds": r"(\S+ and \S+) ",
                                "bits a digit, by place": r"\S+ and \S+ +\d+ +(\d+)$"}.items()},
    },
    "12_other_priors": {
        f"{name}, {what}": rf"^{name} +[\d,]+ +{column}"
        for name in ("ungated PixelCNN", "PixelCNN", "transformer", "MaskGIT, 4 steps", "MaskGIT, 8 steps", "MaskGIT, 12 steps")
        for what, column in {"bits per digit, mean and half span of three seeds": r"(\S+ ± \S+) ",
                             "Fréchet distance of samples": r".* (\S+ ± \S+)$"}.items()},
    "13_speech": {
        "test frames, share of the variance that is not drawn": r"^share of the variance that is not drawn: (\S+);",
        "conversion, share of the way to the target": r"^share of the way to the target: .*, converted (\S+)$",
        "the same, taken for the target": r"^converted +[\d.]+ dB +(\S+) ",
        "the same, phones read right": r"^converted +[\d.]+ dB +\S+ +(\S+)$",
        "a real sentence, phones read right": r"^real sentence +[\d.]+ dB +\S+ +(\S+)$",
        **{f"{name}, seed {seed}, {what}": rf"^{name}, seed {seed} +{column}" for name in ("VQ-VAE", "k-means") for seed in range(3)
           for what, column in {"phones guessed from the code": r"(\S+) ", "share of their entropy explained": r"\S+ +(\S+) ",
                                "speaker guessed from the code": r"\S+ +\S+ +(\S+)$"}.items()},
    },
    "14_pictures": {
        "clothes, test MSE": r"^test MSE (\S+); \d+ codes in use",
        "clothes, bits per picture given its class": r"^(\d+) bits per picture given its class",
        "clothes, real ones that the judge reads right": r"^read right: (\S+) of the test pictures",
        "clothes, samples read as asked": r"; (\S+) of 2,000 samples read as asked$",
        **{f"emoji, test MSE with {depth + 1} codes per place": rf"test MSE by depth:{depth * r' +[.0-9]+'} +(\S+)" for depth in range(4)},
        "emoji, error of the codes beside that of the nearest training picture": r": (\S+) of the nearest$",
        "emoji, test MSE with two grids": r"^64 bytes: two grids (\S+),",
        "emoji, bits per test picture at two codes per place": r"of the training set, (\d+) of the test set$",
        "emoji, samples that are near copies": r"^samples +(\S+) are near copies",
    },
    "15_video": {
        **{f"{what}, test MSE by codes of {kind}": rf"^{name} +by codes of {kind} .*: test MSE (\S+),"
           for name, what in (("maze", "maze"), ("digits", "moving digits")) for kind in ("clips", "frames")},
        "bits per test clip": r"^(\d+) bits per test clip",
        "random actions that are obeyed": r"^(\S+) of [\d,]+ random actions are obeyed",
        "actions that the judge reads right in real clips": r"^read right: (\S+) of real pairs",
    },
    "16_spoken_digits": {
        **{f"{name}, {what}": rf"^{name} +{column}" for name in ("1 level", "3 levels", "6 levels")
           for what, column in {"extended STOI": r"\d+ +\S+ +(\S+) ", "digits read right": r"\d+ +\S+ +\S+ +(\S+)$"}.items()},
        **{f"conversion at depth {depth}, {what}": rf"^depth {depth}: \S+ dB, {column}" for depth in (1, 2, 6)
           for what, column in {"share of the way to the target": r"(\S+) of the way", "frames kept": r".*; (\S+) of frames"}.items()},
        **{f"prior {seed}, bits per test digit given digit and person": rf"^prior {seed}: (\d+) bits" for seed in range(3)},
        **{f"prior {seed}, dreamt digits read as asked": rf"^dreamt digits, prior {seed}: read as asked (\S+)$" for seed in range(3)},
        **{f"temperature {t}, the most similar recording is one learned from (by chance 90 %)":
           rf"^temperature {t}: the most similar recording is one it learned from (\S+)," for t in ("1.0", "0.6")},
    },
    "91_scoring": {
        "the judge's test accuracy": r"^the judge that ships: test accuracy (\S+)$",
        "Fréchet distance of two halves of the test digits": r"^other real digits +(\d\S+)$",
    },
    "92_scaling_out": {
        "codebook, one device against two of MirroredStrategy, largest difference": r"^MirroredStrategy +(\S+e\S+) ",
        "the same, against two processes": r"^worker 0 of 2 +(\S+e\S+) ",
        "the same, against two devices of JAX": r"^JAX, DataParallel +(\S+e\S+) ",
        "the same, against one device without revival": r"^single, without revival +(\S+e\S+) ",
    },
}


def printed(path, made=None):
    """All text that the committed outputs of a notebook hold, or those that were `made` for it."""
    outputs = [output for cell in (made or notebook(path))["cells"] for output in cell.get("outputs", [])]
    return "\n".join("".join(output.get("text") or output.get("data", {}).get("text/plain", [])) for output in outputs)


def figure(path, what, pattern):
    """The figure that a chapter has printed."""
    found = sorted(set(re.findall(pattern, printed(path), re.M)))
    if len(found) != 1:
        raise ValueError(f"{path.name} should print one value for {what!r} ({pattern}); found {found or 'none'}. "
                         "Correct the pattern in book/results.py.")
    return found[0]


def table(columns, rows):
    lines = [" | ".join(map(str, row)) for row in (columns, ["---"] * len(columns), *rows)]
    return "".join(f"| {line} |\n" for line in lines) + "\n"


def seeds(path):
    """The seeds that stand in a chapter's code."""
    code = "\n".join(cells(path, "code"))
    found = {name: sorted(set(map(int, re.findall(pattern, code)))) for name, pattern in SEEDS.items()}
    return "; ".join(f"{name} {', '.join(map(str, numbers))}" for name, numbers in found.items() if numbers) or "none"


def run(path):
    """What is known of the run that made a chapter's outputs: versions and time."""
    known = notebook(path)["metadata"].get(KEY, {})
    versions = ", ".join(f"{name} {version}" for name, version in known.get("versions", {}).items())
    time = f"{known['minutes']} min on {known['cores']} core{'s' * (known['cores'] > 1)}" if "minutes" in known else "not recorded"
    return versions or "not recorded", time


def read(name):
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def study():
    """The tables of the study of K and D, as far as they have got."""
    grid = {(int(row["K"]), int(row["D"])): row["mse"] for row in read("grid.csv")}
    sizes = sorted({D for _, D in grid})
    text = "Test MSE of models trained alike and briefly, from `grid.csv`:\n\n"
    text += table(["K", *(f"D = {D}" for D in sizes)], [[K, *(grid.get((K, D), "") for D in sizes)] for K in sorted({K for K, _ in grid})])
    columns = {"model": "model", "prior": "prior", "K": "K", "mse": "test MSE", "usage": "codes in use", "prior_bits": "bits by the prior",
               "zero_order_bits": "bits, zero order", "frechet": "Fréchet distance", "frechet_drawn": "Fréchet distance, reconstructions"}
    text += "Error, bits per image and samples, from `rate_distortion.csv`:\n\n"
    text += table(columns.values(), [[row[name] for name in columns] for row in read("rate_distortion.csv")])
    rows = read("recipes.csv")
    text += "Pairs as the one that ships (seed 0), by `python tools/train.py mnist --seed N`, from `recipes.csv`:\n\n"
    return text + table(rows[0], [row.values() for row in rows])


def page():
    """The page, below its introduction."""
    runs = [[chapter_link(path), *run(path), seeds(path)] for path in chapters()]
    text = "## Versions, times and seeds\n\n" + table(["chapter", "ran with", "took", "seeds in its code"], runs) + "## Figures\n\n"
    for path in chapters():
        if path.stem in FIGURES:
            rows = [[what, figure(path, what, pattern)] for what, pattern in FIGURES[path.stem].items()]
            again = f"`.venv/bin/python book/reproduce.py nbs/{path.name}`"
            text += f"### {chapter_name(path)}\n\nFrom {chapter_link(path)}; again with {again}.\n\n"
            text += table(["figure", "value"], rows)
    return text + "### The study of K and D\n\nAgain with `make study`.\n\n" + study()
