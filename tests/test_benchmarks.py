"""The benchmarks run, and what they measured meets the bars that the book speaks of."""
import os
import shutil
import statistics
import subprocess
import sys

import pytest
from project import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import measure  # noqa: E402
import quantizer as layers  # noqa: E402

OURS, ONE_HOT = "ours, TensorFlow", "one-hot, TensorFlow"
SCRIPTS = {"quantizer": ("N", "K", "D", "layer"), "sampling": ("prior", "grid", "digits", "sampler"), "limit": ("what",),
           "time_to_quality": ("model", "seed", "batches"), "prior": ("prior",)}


def committed(name):
    """The rows of a committed table, by what names them; numbers as numbers."""
    return {tuple(row[key] for key in SCRIPTS[name]): row for row in measure.read(measure.RESULTS / f"{name}.csv")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_runs_and_writes_its_table(tmp_path, name):
    out = tmp_path / "quick.csv"
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"KERAS_BACKEND": "tensorflow"}, timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert "Written to quick.csv." in ran.stdout
    rows = measure.read(out)
    assert list(rows[0]) == list(measure.read(measure.RESULTS / f"{name}.csv")[0])
    for row in rows:
        assert all(float(row[column]) > 0 for column in row if column.endswith(("seconds", "second", "share"))), row
        assert "Python 3" in row["made_with"] and "cores" in row["made_with"]
    assert len({tuple(row[key] for key in SCRIPTS[name]) for row in rows}) == len(rows) >= 2
    assert [path.name for path in tmp_path.iterdir()] == ["quick.csv"]


def test_functions_take_turns(monkeypatch):
    """A slow function is called once; the others in turns, after a round that does not count; a median is not moved by one bad turn."""
    clock, order = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def call(name, *lasts):
        lasts = list(lasts)

        def called():
            order.append(name)
            clock[0] += lasts.pop(0)
        return called

    calls = {"A": call("A", 9.0, 1.0, 3.0, 2.0), "B": call("B", 9.0, 4.0, 80.0, 5.0), "slow": call("slow", 21.0)}
    assert measure.turns(calls, 3) == {"A": 2.0, "B": 5.0, "slow": 21.0}
    assert order == ["A", "B", "slow", "A", "B", "A", "B", "A", "B"]


def test_a_table_keeps_the_rows_that_are_not_measured_again(tmp_path):
    path = tmp_path / "table.csv"
    measure.write(path, [{"K": 1, "seconds": 0.123456}, {"K": 2, "seconds": 2.0}], ("K",))
    measure.write(path, [{"K": 2, "seconds": 3.0}], ("K",))
    assert path.read_text(encoding="utf-8") == "K,seconds\n1,0.1235\n2,3\n"


def test_memory_is_counted(monkeypatch):
    """A layer that holds an array more is seen to: the one-hot form at the smallest size that shows."""
    worker = layers.Worker(ONE_HOT, "EMA", 4096, 2048, 4)
    try:
        worker.answer()
        held = worker.ask("memory")
    finally:
        worker.end()
    assert held["step"] >= held["forward"] > 2 * 4 * 4096 * 2048 * 0.9, "the distances and the one-hot matrix, at least"


# The bars


def cells():
    table = committed("quantizer")
    return {cell: {key[3]: row for key, row in table.items() if key[:3] == cell} for cell in {key[:3] for key in table}}


def test_every_cell_was_measured():
    found = cells()
    assert set(found) == {(str(N), str(K), str(D)) for N in layers.VECTORS for K in layers.NUMBERS for D in layers.SIZES}
    assert all({OURS, "ours, JAX", ONE_HOT} <= set(rows) for rows in found.values())


def ratios(column, other, ours=OURS, least=0):
    """How many times as much another layer takes as ours, in each cell with at least so many codes where both were measured."""
    return {cell: float(rows[other][column]) / float(rows[ours][column]) for cell, rows in cells().items()
            if int(cell[1]) >= least and other in rows}


@pytest.mark.parametrize("column", ["forward_seconds", "step_seconds"])
def test_the_one_hot_form_is_never_faster(column):
    slower = {cell: ratio for cell, ratio in ratios(column, ONE_HOT).items() if ratio < 0.9}  # a tenth for noise
    assert slower == {}


def test_training_with_many_codes_is_twice_as_fast_as_one_hot():
    found = ratios("step_seconds", ONE_HOT, least=1024)
    assert len(found) == 12 and statistics.median(found.values()) >= 2 and min(found.values()) >= 1.5, found


def test_many_codes_need_less_memory_than_one_hot():
    assert all(min(ratios(column, ONE_HOT, ours, 1024).values()) > 1 for column in ("forward_megabytes", "step_megabytes")
               for ours in (OURS, "ours, JAX"))


@pytest.mark.parametrize("layer", [OURS, "ours, JAX"])
def test_no_array_of_all_distances_is_made(layer):
    for (N, K, D), rows in cells().items():
        if int(K) == 8192:
            assert float(rows[layer]["step_megabytes"]) < 0.5 * 4 * int(N) * int(K) / 1e6, (N, K, D)


@pytest.mark.parametrize("layer", [OURS, "ours, JAX"])
@pytest.mark.parametrize("column", ["forward_seconds", "step_seconds"])
def test_faster_than_vector_quantize_pytorch_in_most_cells(column, layer):
    found = ratios(column, "vector-quantize-pytorch", layer)
    assert len(found) == 15 and sum(ratio > 1 for ratio in found.values()) > 0.5 * len(found)


@pytest.mark.parametrize(("ours", "faster"), [("ours, JAX", 8), (OURS, 7), ("ours, PyTorch", 6)])
def test_a_training_step_beside_vector_quantize_pytorch_for_each_kind(ours, faster):
    """Where ours is slower, the page says so: on PyTorch for FSQ and SimVQ, on TensorFlow for FSQ, whose step takes about a millisecond."""
    table = {(row["kind"], row["layer"]): float(row["step_seconds"]) for row in measure.read(measure.RESULTS / "quantizer_kinds.csv")}
    assert {kind for kind, _ in table} == set(layers.KINDS)
    found = {kind: table[kind, "vector-quantize-pytorch"] / table[kind, ours] for kind in layers.KINDS}
    assert sum(ratio > 1 for ratio in found.values()) >= faster, found


def test_sampling_a_hundred_digits_beats_the_naive_loop():
    table = committed("sampling")
    loop, cached = (float(table["shipped", "7", "100", sampler]["seconds"]) for sampler in ("loop of predict", "cached"))
    assert loop >= 30 * cached
    assert {"7", "14", "28"} <= {grid for prior, grid, _, _ in table if prior == "untrained"}


def test_the_quality_of_the_example_is_reached_five_times_as_fast():
    found = measure.times_to_quality(measure.read(measure.RESULTS / "time_to_quality.csv"))
    assert set(found) == {"example", "quantizer", "ours"}
    for entry in found.values():
        assert len(entry["mse"]) == 3 and entry["batches"] == [30 * 469] * 3, "three seeds of thirty epochs each"
    example = statistics.median(found["example"]["seconds"])
    assert all(example >= 5 * statistics.median(found[name]["seconds"]) for name in ("quantizer", "ours")), found
    assert max(found["ours"]["mse"]) < min(found["quantizer"]["mse"]) < max(found["quantizer"]["mse"]) < min(found["example"]["mse"])


def test_rates_stay_below_the_limit():
    for row in committed("limit").values():
        assert 0 < float(row["share"]) < 1.1, "no product is faster than a large one, but for noise"
        assert float(row["billions_per_second"]) == pytest.approx(int(row["multiplications"]) / float(row["seconds"]) / 1e9, rel=1e-2)


# The page


SOURCE = "# How it compares\n\nWords.\n" + "".join(f"\n## {title}\n\nWords about it.\n" for title in (
    "Time to quality", "The quantizer layer", "Layers of other kinds", "The prior", "Sampling", "Distance to the limit", "Another machine"))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The module that makes the page, on a copy of the tables."""
    import compare

    monkeypatch.setattr(compare, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare, "RESULTS", tmp_path / "results")
    shutil.copytree(measure.RESULTS, tmp_path / "results")
    return compare


def test_a_section_appears_with_its_table(page):
    for name in ("time_to_quality", "prior"):
        (page.RESULTS / f"{name}.csv").unlink(missing_ok=True)
    text = page.page(SOURCE)
    assert "## Sampling\n\nWords about it.\n" in text and "Time to quality" not in text and "The prior" not in text
    ends = {"ours": (0.006, 0.004), "example": (0.009, 0.005)}
    measure.write(page.RESULTS / "time_to_quality.csv", [
        {"model": model, "seed": seed, "batches": 469 * epoch, "seconds": 10.0 * epoch + seed, "mse": mse}
        for model in ends for seed in (0, 2) for epoch, mse in enumerate(ends[model], start=1)], ("model", "seed", "batches"))
    text = page.page(SOURCE)
    assert "| a larger model | 2 | 21 |  | 2 | 0.00400 | 0.00400 to 0.00400 | not measured yet |" in text
    assert "| the example | 2 | not reached |" in text
    assert {path.stem for path in page.PICTURES.iterdir()} == {"time_to_quality", "quantizer", "sampling", "limit"}


def test_an_error_stands_beside_its_rate(page):
    """The errors of the page about time to quality have their bits, and these are the study's for the same trainings."""
    text = page.page(SOURCE)
    study = {row["model"]: row for row in measure.read(ROOT / "vqvae_tutorial" / "results" / "rate_distortion.csv")}
    for label, model in {"the example": "example", "a larger model": "even use"}.items():
        [line] = [line for line in text.splitlines() if line.startswith(f"| {label} | 3 |")]
        assert line.endswith(f"| {float(study[model]['position_bits']):.0f} (of 1 seed) |")
    rows = measure.read(page.RESULTS / "time_to_quality.csv")
    assert all(row["mse"] == study["example"]["mse"] for row in rows if row["model"] == "example" and row["place_bits"])


def test_another_machine_is_named_with_what_it_did_not_finish(page):
    path = page.RESULTS / "accelerator.csv"
    path.unlink(missing_ok=True)
    assert "Another machine" not in page.page(SOURCE)
    row = {"machine": "processor: a slow one", "backend": "jax", "versions": "Python 3; keras 3", "what": "training", "value": 12.345,
           "unit": "s", "note": "after 2 of 30 epochs"}
    rows = [row, row | {"what": "step training", "note": "stopped: its time was up"}, row | {"what": "step codes", "note": "done"},
            row | {"machine": "2 × a fast one", "backend": "torch", "what": "codes"}]
    measure.write(path, rows, ("machine", "backend", "what"))
    text = page.page(SOURCE).partition("## Another machine")[2]
    assert "**On a processor, and no accelerator**: a slow one; JAX (Python 3, keras 3).\n" in text
    assert "| training | 12.35 | s | after 2 of 30 epochs |\n\nNot measured to its end there: training (stopped: its time was up)." in text
    assert text.index("Not measured") < text.index("**On an accelerator**: 2 × a fast one; PyTorch") and text.count("Not measured") == 1
    assert "`.venv/bin/python benchmarks/accelerator.py`.\n" in text and "step" not in text


def test_layers_are_compared_within_a_framework(page):
    """As long as ours was not measured on PyTorch the page says so; then it compares the two on PyTorch, and nothing across."""
    path = page.RESULTS / "quantizer.csv"
    rows = [row for row in measure.read(path) if row["layer"] != "ours, PyTorch"]
    path.unlink()
    measure.write(path, rows, SCRIPTS["quantizer"])
    assert "Ours on PyTorch is not measured yet" in (text := page.page(SOURCE)) and "one-hot / ours" in text
    measure.write(path, [row | {"layer": "ours, PyTorch", "step_seconds": 1e-9} for row in rows if row["layer"] == OURS],
                  SCRIPTS["quantizer"])
    text = page.page(SOURCE)
    assert "not measured yet, so that" not in text and "vector-quantize-pytorch / ours" in text
    assert "In training, ours on PyTorch is faster than vector-quantize-pytorch in 15 of 15 cells.\n" in text
    assert "ours on JAX is faster than vector-quantize-pytorch" not in text
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in text if not line.startswith('6272,128,16,"ours, PyTorch"')))
    with pytest.raises(ValueError, match="lacks ours, PyTorch"):
        page.page(SOURCE)


@pytest.mark.parametrize("name, lost", [("limit", "PixelCNN, products alone"), ("quantizer", '"ours, JAX"'), ("sampling", "cached")])
def test_a_missing_figure_stops_the_build(page, name, lost):
    path = page.RESULTS / f"{name}.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if lost not in line))
    with pytest.raises((ValueError, KeyError)):
        page.page(SOURCE)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        page.page(SOURCE)
