"""The page "How it compares": tables and pictures of what the benchmarks measured, from the tables in `benchmarks/results`.

A table that is missing stops the build, and so does a figure that is missing in one.
"""
import math
import sys
from statistics import mean, median

from project import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from measure import BACKENDS, QUALITY, read, times_to_quality  # noqa: E402
from results import table

from vqvae_tutorial.plotting import DPI, INK, PALETTE, WIDTH, add_legend, book_style, new_figure

RESULTS, PICTURES = ROOT / "benchmarks" / "results", ROOT / "_build" / "pictures"
STUDIES = ROOT / "vqvae_tutorial" / "results"  # tables that chapters show, too
UNKNOWN = "not measured yet"
MARKERS = "os^Dv"
BATCHES = 469  # of 128 digits, in an epoch of 60,000
LAYERS = {"ours, TensorFlow": "ours on TensorFlow", "one-hot, TensorFlow": "one-hot on TensorFlow",
          "ours, PyTorch": "ours on PyTorch", "vector-quantize-pytorch": "vector-quantize-pytorch", "ours, JAX": "ours on JAX"}
PAIRS = {"one-hot, TensorFlow": "ours, TensorFlow", "vector-quantize-pytorch": "ours, PyTorch"}  # of one framework each
SAMPLERS = {"loop of predict": "loop of `predict`", "compiled loop": "compiled loop", "cached": "cached"}


def picture(name, figure, alternative):
    """Keeps a figure for the site, and gives the Markdown that shows it as the figures of the chapters are shown."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / f"{name}.png", dpi=DPI, metadata={"Software": None})
    link = f"![{alternative}](/{(PICTURES / name).relative_to(ROOT).as_posix()}.png){{.no-scaled-link width={round(100 * WIDTH)}px}}"
    return f'<div class="cell_output">\n\n{link}\n\n</div>\n\n'  # a directive would call it cell-output


def short(number):
    """A number with three digits that count, or all before the point."""
    return f"{number:,.{max(0, 2 - math.floor(math.log10(number)))}f}" if number else "0"


# The sections, each from the rows of its table


MODELS = {"example": "the example", "quantizer": "its networks, our quantizer", "ours": "a larger model"}


def time_to_quality(rows):
    """Seconds until the goal, over the seeds of each model, and at the end error *and* bits: neither says enough alone."""
    found = times_to_quality(rows)
    found = {model: found[model] for model in MODELS if model in found}
    figure, axes = new_figure(height=2.8)
    for model, color, marker in zip(found, PALETTE, MARKERS):
        for number, seed in enumerate(dict.fromkeys(row["seed"] for row in rows if row["model"] == model)):
            run = [row for row in rows if (row["model"], row["seed"]) == (model, seed)]
            axes.plot([float(row["seconds"]) for row in run], [float(row["mse"]) for row in run], color=color, marker=marker, markersize=3,
                      label=None if number else MODELS[model])
    axes.axhline(QUALITY, linestyle="--", linewidth=1, color=INK)
    axes.set(xlabel="seconds of training", ylabel="test MSE", xscale="log", yscale="log")
    axes.grid(True)
    add_legend(figure)
    until = {model: median(entry["seconds"]) for model, entry in found.items()}
    lines = []
    for model, entry in found.items():
        ends, epochs = entry["mse"], {round(batches / BATCHES) for batches in entry["batches"]}
        lines.append([MODELS[model], len(ends), f"{until[model]:.0f}" if math.isfinite(until[model]) else "not reached",
                      f"{until['example'] / until[model]:.1f}" if math.isfinite(until[model] + until.get("example", math.inf)) else "",
                      ", ".join(map(str, sorted(epochs))), f"{mean(ends):.5f}", f"{min(ends):.5f} to {max(ends):.5f}",
                      rate(entry["bits"])])
    shown = picture("time_to_quality", figure, "Test error against seconds of training, a line for each seed of "
                    f"{' and '.join(map(MODELS.get, found))}; a dashed line marks {QUALITY}")
    columns = ["model", "seeds", f"seconds to test MSE {QUALITY}, median", "example / this", "epochs", "test MSE after them", "from, to",
               "bits a digit after them, by place"]
    return shown + table(columns, lines)


def rate(bits):
    """The mean rate of the seeds of which it is known, and how many these are."""
    known = [each for each in bits if math.isfinite(each)]
    return f"{mean(known):.0f}" + f" (of {len(known)} seed{'s' * (len(known) > 1)})" * (len(known) < len(bits)) if known else UNKNOWN


COLUMNS = {"forward_seconds": ("Forward, in milliseconds", 1000), "step_seconds": ("A training step, in milliseconds", 1000),
           "step_megabytes": ("Peak memory of a training step, in megabytes", 1)}


def quantizer(rows):
    """Times and memory of all cells, and a sentence on where ours is ahead."""
    found = {}
    for row in rows:
        found.setdefault(tuple(int(row[name]) for name in "NKD"), {})[row["layer"]] = row
    cells, layers = sorted(found), [layer for layer in LAYERS if any(layer in each for each in found.values())]

    def value(cell, layer, column):
        """A figure, or None where a peer's cell was left out."""
        if layer not in found[cell] and (layer in layers and layer.startswith("ours") or layer in ("ours, TensorFlow", "ours, JAX")):
            raise ValueError(f"quantizer.csv lacks {layer} at N, K, D = {cell}: run `make bench` where JAX and PyTorch are installed")
        return float(found[cell][layer][column]) if layer in found[cell] else None

    text = picture("quantizer", drawing(cells, value, layers), "Milliseconds of a training step of each quantizer layer, for each number "
                   "of vectors, number of codes and size of embeddings, on a logarithmic scale; the tables below give the numbers")
    pairs = {other: ours for other, ours in PAIRS.items() if {other, ours} <= set(layers)}
    for column, (what, factor) in COLUMNS.items():
        lines = []
        for cell in cells:
            numbers = {layer: value(cell, layer, column) for layer in layers}
            ratios = [f"{numbers[other] / numbers[ours]:.1f}" if numbers[other] else "" for other, ours in pairs.items()]
            lines.append([*map("{:,}".format, cell), *(short(factor * number) if number else "" for number in numbers.values()), *ratios])
        text += f"{what}; the last column{'s compare' if len(pairs) > 1 else ' compares'} layers of one framework:\n\n"
        text += table(["N", "K", "D", *(LAYERS[layer] for layer in layers), *(f"{other.partition(',')[0]} / ours" for other in pairs)],
                      lines)
    rivals = ["ours, PyTorch"] if "ours, PyTorch" in layers else ["ours, TensorFlow", "ours, JAX"]
    text += "".join(ahead(cells, value, *each, rivals) for each in (("forward_seconds", "Forward"), ("step_seconds", "In training")))
    if "ours, PyTorch" not in layers:
        text += ("Ours on PyTorch is not measured yet, so that the two sentences above compare frameworks as well as layers. They say what "
                 "a user of one or the other waits for, and not whose layer is better.\n\n")
    return text


def kinds(rows):
    """A training step and a forward of each kind, in ours on each backend and in vector-quantize-pytorch."""
    found = {}
    for row in rows:
        found.setdefault((row["kind"], row["D"]), {})[row["layer"]] = row
    layers, other = [layer for layer in LAYERS if not layer.startswith("one-hot")], "vector-quantize-pytorch"
    frameworks = "PyTorch", "TensorFlow"
    heads = ["kind", "D", *(LAYERS[layer] for layer in layers), *(f"{other} / ours on {each}" for each in frameworks)]
    text = f"There are {int(rows[0]['N']):,} vectors and about {int(rows[0]['K']):,} codes (residual: four codebooks of 256). "
    for column in ("step_seconds", "forward_seconds"):
        what, factor = COLUMNS[column]
        lines = []
        for cell, each in found.items():
            times = {layer: float(each[layer][column]) if layer in each else math.nan for layer in layers}
            ratios = [times[other] / times[ours] for ours in map("ours, {}".format, frameworks)]
            known = [short(factor * time) if time == time else UNKNOWN for time in times.values()]
            lines.append([*cell, *known, *(f"{ratio:.1f}" if ratio == ratio else "" for ratio in ratios)])
        text += f"{what}:\n\n" + table(heads, lines)
        slower = {ours: [kind for (kind, _), each in found.items() if float(each[ours][column]) > float(each[other][column])]
                  for ours in layers if ours != other and all({ours, other} <= set(each) for each in found.values())}
        text += " ".join(f"O{LAYERS[ours][1:]} is slower for {' and '.join(names) or 'none of the kinds'}."
                         for ours, names in slower.items())
        text += "\n\n"
    return text


def ahead(cells, value, column, what, rivals):
    """In how many cells ours is faster than vector-quantize-pytorch, and which are the others."""
    both = [cell for cell in cells if value(cell, "vector-quantize-pytorch", column)]
    sentences = []
    for ours in rivals:
        slower = [cell for cell in both if value(cell, ours, column) > value(cell, "vector-quantize-pytorch", column)]
        where = " and ".join(f"N = {N:,}, K = {K:,}, D = {D}" for N, K, D in slower)
        sentences.append(f"{LAYERS[ours]} is faster than vector-quantize-pytorch in {len(both) - len(slower)} of {len(both)} cells"
                         + (f" (not at {where})" if slower else ""))
    return f"{what}, {', and '.join(sentences)}.\n\n"


def drawing(cells, value, layers):
    """Times of a training step, a panel for each number of vectors."""
    counts = sorted({cell[0] for cell in cells})
    figure, axes = new_figure(1, len(counts), height=3.2, sharey=True, squeeze=False)
    for plot, count in zip(axes.flat, counts):
        here = [cell for cell in cells if cell[0] == count]
        for layer, color, marker in zip(layers, PALETTE, MARKERS):
            label, times = LAYERS[layer], [value(cell, layer, "step_seconds") for cell in here]
            points = [(place, 1000 * seconds) for place, seconds in enumerate(times) if seconds]
            plot.plot(*zip(*points), color=color, marker=marker, markersize=4, linewidth=0.8, label=label)
        plot.set(title=f"{count:,} vectors", yscale="log", xlabel="K, and D below")
        plot.set_xticks(range(len(here)), [f"{K}\n{D}" for _, K, D in here], fontsize=7)
        plot.grid(True, axis="y")
    axes.flat[0].set_ylabel("milliseconds a training step")
    add_legend(figure, 3)
    return figure


def sampling(rows):
    """Seconds for each number of digits and each grid."""
    found = {}
    for row in rows:
        found.setdefault((row["prior"], int(row["grid"]), int(row["digits"])), {})[row["sampler"]] = float(row["seconds"])
    figure, (left, right) = new_figure(1, 2, height=2.8)
    for (sampler, label), color, marker in zip(SAMPLERS.items(), PALETTE, MARKERS):
        for plot, prior, axis in ((left, "shipped", 2), (right, "untrained", 1)):
            points = sorted((cell[axis], seconds[sampler]) for cell, seconds in found.items() if cell[0] == prior)
            plot.plot(*zip(*points), color=color, marker=marker, markersize=4, label=label.replace("`", ""))
    left.set(title="shipped prior, 7×7 codes", xlabel="digits", ylabel="seconds", xscale="log", yscale="log")
    right.set(title="untrained prior", xlabel="rows and columns of the grid", yscale="log")
    right.set_xticks(sorted({grid for prior, grid, _ in found if prior == "untrained"}))
    for plot in (left, right):
        plot.grid(True)
    add_legend(figure)
    lines = [[prior, f"{grid}×{grid}", f"{digits:,}", *(short(seconds[sampler]) for sampler in SAMPLERS), short(digits / seconds["cached"]),
              f"{seconds['loop of predict'] / seconds['cached']:.0f}"] for (prior, grid, digits), seconds in sorted(found.items())]
    shown = picture("sampling", figure, "Seconds to draw digits with three samplers: on the left for more and more digits, on the right "
                    "for larger grids; the cached sampler is the fastest throughout")
    columns = [f"{label}, seconds" for label in SAMPLERS.values()]
    return shown + table(["prior", "grid", "digits", *columns, "cached, images a second", "loop / cached"], lines)


def limit(rows):
    """Rates beside the limit, and the share of a step that its products would take alone."""
    by = {row["what"]: row for row in rows}
    names = list(by)[::-1]
    figure, axes = new_figure(height=0.32 * len(rows) + 0.6)
    colors = [PALETTE[name != "matrix product"] for name in names]
    axes.barh(names, [float(by[name]["billions_per_second"]) for name in names], color=colors)
    axes.set(xlabel="10⁹ multiplications a second")
    axes.grid(True, axis="x")
    text = picture("limit", figure, "Bars of multiplications a second: a large matrix product, the training steps of VQ-VAE and PixelCNN, "
                   "their products alone, and the quantizer layer at three sizes")
    text += table(["what", "million multiplications", "milliseconds", "10⁹ a second", "of the limit"],
                  [[name, f"{int(row['multiplications']) / 1e6:,.0f}", short(1000 * float(row["seconds"])),
                    short(float(row["billions_per_second"])), f"{float(row['share']):.0%}"] for name, row in by.items()])
    for model in ("VQ-VAE", "PixelCNN"):
        share = float(by[f"{model}, products alone"]["seconds"]) / float(by[f"{model}, training step"]["seconds"])
        text += f"The products of the {model}, each alone, take {share:.0%} of the time of its training step.\n"
    return text + "\n"


def prior(rows):
    """Seconds of an epoch beside the bits that chapter 6's study has found for the same two priors."""
    seconds, bits = {row["prior"]: float(row["seconds_per_epoch"]) for row in rows}, ablation()
    names = {"published": "the Keras tutorial's PixelCNN", "ours": "ours, with classes"}
    return table(["prior", "weights", "seconds an epoch", "the tutorial's / this", "bits a test digit's codes cost"], [
        [names[row["prior"]], f"{int(row['weights']):,}", short(seconds[row["prior"]]),
         f"{seconds['published'] / seconds[row['prior']]:.2f}", bits.get(row["prior"], UNKNOWN)] for row in rows])


def ablation():
    """Test bits of the study's first variant, which is the tutorial's network, and of its last, which is ours: means of three seeds."""
    found = {}
    for row in read(STUDIES / "prior_ablation.csv"):
        found.setdefault(int(row["number"]), []).append(float(row["test_bits"]))
    ends = {"published": found.get(0, []), "ours": found.get(6, [])}
    return {name: f"{mean(bits):.1f}" for name, bits in ends.items() if len(bits) >= 3}


def accelerator(rows):
    """What was checked and timed on each machine, which is named first, and what was not."""
    text = ""
    for machine, backend in dict.fromkeys((row["machine"], row["backend"]) for row in rows):
        found = [row for row in rows if (row["machine"], row["backend"]) == (machine, backend)]
        versions = ", ".join(dict.fromkeys(part for row in found for part in row["versions"].split("; ")))
        where = "**On a processor, and no accelerator**" if machine.startswith("processor") else "**On an accelerator**"
        text += f"{where}: {machine.removeprefix('processor: ')}; {BACKENDS[backend]} ({versions}).\n\n"
        text += table(["what", "found", "unit", "note"], [[row[name] for name in ("what", "value", "unit", "note")] for row in found
                                                          if not row["what"].startswith("step ")])
        rest = [f"{row['what'].removeprefix('step ')} ({row['note']})" for row in found
                if row["what"].startswith("step ") and row["note"] != "done"]
        text += f"Not measured to its end there: {', '.join(rest)}.\n\n" if rest else ""
    return text


# Of each table: the title of its section, what writes it, and whether the book must have it.
SECTIONS = {
    "time_to_quality": ("Time to quality", time_to_quality, False),
    "quantizer": ("The quantizer layer", quantizer, True),
    "quantizer_kinds": ("Layers of other kinds", kinds, False),
    "prior": ("The prior", prior, False),
    "sampling": ("Sampling", sampling, True),
    "limit": ("Distance to the limit", limit, True),
    "accelerator": ("Another machine", accelerator, False),
}
COMMANDS = {"quantizer_kinds": "quantizer.py --kinds"}  # where a table's script has another name


def made_with(rows):
    """What the rows say about machine and versions, each part once."""
    parts = {part: None for row in rows for part in row.get("made_with", "").split("; ") if part}
    return f" ({', '.join(parts)})" if parts else ""


def page(source):
    """The page: under each heading of its source what it says there, and what the benchmark found; no heading without its table."""
    head, *parts = source.split("\n## ")
    told = {part.partition("\n")[0].strip(): part.partition("\n")[2] for part in parts}
    text = head.rstrip() + "\n\n"
    for name, (title, section, needed) in SECTIONS.items():
        if needed or (RESULTS / f"{name}.csv").exists():
            rows = read(RESULTS / f"{name}.csv")
            with book_style():
                text += f"## {title}\n{told[title]}\n{section(rows)}"
            text += f"Measured with `.venv/bin/python benchmarks/{COMMANDS.get(name, f'{name}.py')}`" + made_with(rows) + ".\n\n"
    return text
