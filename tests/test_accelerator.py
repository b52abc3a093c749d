"""The script for machines with an accelerator: its table, its clock, its comparisons, and all of it at tiny sizes on what there is."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from project import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import accelerator  # noqa: E402
import measure  # noqa: E402

SCRIPT = ROOT / "benchmarks" / "accelerator.py"
HEAD = {"machine": "a fast one", "backend": "jax", "versions": "keras 3"}
COLUMNS = ["machine", "backend", "versions", "what", "value", "unit", "note"]


def noted(path):
    """What the table says of each step."""
    return {row["what"].removeprefix("step "): row["note"] for row in measure.read(path) if row["what"].startswith("step ")}


def test_a_figure_is_kept_at_once_and_those_of_others_stay(tmp_path, capsys):
    report = accelerator.Report(tmp_path / "table.csv", HEAD)
    accelerator.Report(report.out, HEAD | {"machine": "a slow one"}).add("speed", 1.0, "m/s", "slow")
    assert report.note("speed") is None
    report.add("speed", 123.456, "m/s", "first")
    report.add("speed", 234.567, "m/s", "second")
    report.add("not tried", "", "s", "one device")
    rows = measure.read(report.out)
    assert [list(row) for row in rows] == [COLUMNS] * 3
    assert [(row["machine"], row["value"], row["note"]) for row in rows] == [
        ("a slow one", "1", "slow"), ("a fast one", "234.6", "second"), ("a fast one", "", "one device")]
    assert report.note("speed") == "second"
    assert accelerator.Report(report.out, HEAD | {"versions": "keras 4"}).note("speed") is None, "a new version is measured anew"
    assert capsys.readouterr().out.splitlines()[-2:] == ["  speed: 234.6 m/s (second)", "  not tried: (one device)"]


def pair():
    """Codes of vectors by NumPy, with a charge that moves some of them."""
    random = np.random.default_rng(0)
    vectors, embeddings = random.standard_normal((20, 7, 7, 4)).astype("float32"), random.standard_normal((16, 4)).astype("float32")
    charge = np.linspace(0, 1, 16)
    costs = np.square(vectors[..., None, :] - embeddings).sum(axis=-1) + charge
    return {"codes": costs.argmin(axis=-1), "vectors": vectors, "embeddings": embeddings, "charge": charge}, costs


def test_a_planted_difference_of_codes_is_found():
    right, costs = pair()
    assert accelerator.differing(right, right) == (0, 0.0, 0)
    order, moved = np.argsort(costs, axis=-1), right["codes"].copy()
    moved[3, 2, 1], moved[11, 0, 6] = order[3, 2, 1, 1], order[11, 0, 6, 1]
    gaps = [costs[place][order[place][1]] / costs[place][order[place][0]] - 1 for place in ((3, 2, 1), (11, 0, 6))]
    count, gap, neither = accelerator.differing(right | {"codes": moved}, right)
    assert (count, neither) == (2, 0) and gap == pytest.approx(max(gaps), rel=1e-4)
    moved[5, 5, 5] = order[5, 5, 5, 7]
    assert accelerator.differing(right | {"codes": moved}, right)[::2] == (3, 1)


@pytest.mark.parametrize("machine, runs", [("processor: one", 2), ("a fast one", 3)])
def test_codes_are_compared_with_the_processors(tmp_path, machine, runs):
    """One other run, or two with an accelerator, of which one is at full precision; what is planted in all of them stands in the table."""
    right, asked = pair()[0], []

    def child(name, path, limit, **environment):
        asked.append(environment)
        np.savez(path, **right | {"codes": right["codes"] + (np.arange(49).reshape(7, 7) == 5) * (environment != accelerator.HIDDEN)})

    report = accelerator.Report(tmp_path / "table.csv", HEAD | {"machine": machine})
    accelerator.codes(report, accelerator.FULL, 60, child)
    assert asked == [accelerator.HIDDEN, {}, accelerator.PRECISE][:runs]
    rows = measure.read(report.out)
    assert [(row["value"], row["unit"]) for row in rows] == [("20", "of 980")] * (runs - 1) and "relatively" in rows[0]["note"]


def test_what_fails_in_the_contract_is_tried_at_full_precision(tmp_path, monkeypatch):
    told = iter(["collected 9 items / 5 deselected / 4 selected\ntests/a.py::test_one[x, y] PASSED [ 25%]\n"
                 "tests/a.py::test_two[x, y] FAILED\ntests/a.py::test_three ERROR\nFAILED tests/a.py::test_two[x, y] - PASSED\n",
                 "tests/a.py::test_two[x, y] PASSED\n"])
    asked = []
    monkeypatch.setattr(accelerator, "run", lambda limit, *arguments, **options: [asked.append((arguments, options)), next(told)][1])
    report = accelerator.Report(tmp_path / "table.csv", HEAD)
    accelerator.contract(report, accelerator.TINY, 60, None)
    assert [(row["value"], row["note"]) for row in measure.read(report.out)] == [
        ("1", "of 4"), ("2", "two[x, y], three"), ("0", "of those 2")]
    assert asked[1][0][-2:] == ("tests/a.py::test_two[x, y]", "tests/a.py::test_three")
    assert asked[1][1].items() >= accelerator.PRECISE.items()


def test_a_process_is_stopped_when_its_time_is_up():
    with pytest.raises(TimeoutError, match="^begun\n$"):
        accelerator.run(3, "-c", "import time; print('begun'); time.sleep(60)")
    with pytest.raises(RuntimeError, match="^too few digits$"):
        accelerator.run(60, "-c", "import sys; print('begun'); sys.exit('too few digits')")
    with pytest.raises(RuntimeError, match="^exit status 3$"):
        accelerator.run(60, "-c", "import os; os._exit(3)")
    assert accelerator.run(60, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], end='.')", **accelerator.HIDDEN) == "."


def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    """A step that is done is not run again; one that failed, was stopped or was skipped is."""
    out, ends, ran = tmp_path / "table.csv", {"training": TimeoutError("…"), "quantizer": RuntimeError("no memory")}, []

    def run(limit, *arguments, **options):
        name = arguments[arguments.index("--child") + 1]
        if name == "device":
            return f"A warning.\n{json.dumps(HEAD)}\n"
        ran.append((name, limit))
        if name in ends:
            raise ends[name]
        return ""

    monkeypatch.setattr(accelerator, "run", run)
    steps = ["--steps", "ema", "training", "quantizer", "sampling"]
    given = ["--out", str(out), "--seconds", "600", *steps]
    assert accelerator.main(given) == 1
    assert noted(out) == {"ema": "done", "training": "stopped: its time was up", "quantizer": "failed: no memory", "sampling": "done"}
    shares = [accelerator.STEPS[name] for name, _ in ran]
    assert [limit for _, limit in ran] == pytest.approx([600 * share / sum(shares[place:]) for place, share in enumerate(shares)], rel=0.01)
    ran.clear()
    ends.clear()
    assert accelerator.main(given) == 0
    assert [name for name, _ in ran] == ["training", "quantizer"] and set(noted(out).values()) == {"done"}
    assert "ema is in the table." in capsys.readouterr().out
    other = tmp_path / "other.csv"
    assert accelerator.main(["--out", str(other), "--seconds", "1", *steps]) == 0
    assert set(noted(other).values()) == {"skipped: no time was left"} and len(noted(other)) == 4 and len(ran) == 2


def test_tiny_sizes_need_a_table_of_their_own(capsys):
    with pytest.raises(SystemExit):
        accelerator.main(["--tiny"])
    assert "--tiny needs --out" in capsys.readouterr().err


def test_a_sample_of_digits_is_refused(tmp_path):
    environment = os.environ | {"VQVAE_TUTORIAL_MNIST": str(ROOT / "vqvae_tutorial" / "data" / "mnist_sample.npz")}
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "table.csv")]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 1 and ran.stderr.startswith("This needs 60,000 training digits, and there are"), ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_all_of_it_at_tiny_sizes(tmp_path):
    out = tmp_path / "tiny.csv"
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 and "Written to tiny.csv." in ran.stdout, ran.stdout + ran.stderr
    rows = {row["what"]: row for row in measure.read(out)}
    assert {row["note"] for what, row in rows.items() if what.startswith("step ")} == {"done"}, ran.stdout
    assert all(row["machine"].endswith("; tiny sizes") and "keras 3" in row["versions"] for row in rows.values())
    assert int(rows["contract tests passed"]["value"]) >= 6 and rows["contract tests failed"]["value"] == "0"
    if rows["step codes"]["machine"].startswith("processor"):
        row = rows["codes that are not the processor's"]
        assert (row["value"], row["unit"]) == ("0", "of 4,900")
    assert 0 < float(rows["training, test MSE"]["value"]) < 0.2 and rows["training"]["note"] == "after 1 of 1 epochs"
    assert any(what.endswith(("TensorFlow", "JAX", ", PyTorch")) and float(row["value"]) > 0 for what, row in rows.items())
    assert float(rows["sampling, 4 digits at once"]["value"]) >= float(rows["sampling and decoding, 4 digits at once"]["value"]) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.csv"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.stdout.count("is in the table.") == len(accelerator.STEPS)
