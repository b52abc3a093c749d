"""The tables of the study of K and D, and the commands that make them."""
import csv
import subprocess
import sys
import time

import numpy as np
import pytest
from project import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
RESULTS = ROOT / "vqvae_tutorial" / "results"


def read(path):
    return np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8"))


def whole(name, wanted):
    """The table, if the study has finished it."""
    table = read(RESULTS / name)
    if len(table) < wanted:
        pytest.skip(f"the study is not finished: {name} has {len(table)} of {wanted} rows; `make study` goes on with it")
    return table


@pytest.fixture(scope="module")
def grid():
    return whole("grid.csv", 32)


@pytest.fixture(scope="module")
def curve():
    """The rows of the rate–distortion table that are points of our own curve, by K."""
    table = whole("rate_distortion.csv", 10)
    return np.sort(table[np.char.startswith(table["model"], "K = ")], order="K")


@pytest.fixture(scope="module")
def example():
    table = whole("rate_distortion.csv", 10)
    return table[(table["model"] == "example") & (table["prior"] == "small")][0]


def test_grid_has_every_model_once(grid):
    pairs = {(row["K"], row["D"]) for row in grid}
    assert len(grid) == len(pairs) >= 30
    assert pairs == {(K, D) for K in set(grid["K"]) for D in set(grid["D"])}
    assert {8, 1024} <= set(grid["K"]) and {2, 64} <= set(grid["D"])


def test_all_models_were_trained_equally_long(grid, curve):
    assert len(set(zip(grid["digits"], grid["epochs"]))) == 1
    assert len(set(zip(curve["vqvae_epochs"], curve["prior_epochs"]))) == 1


@pytest.mark.parametrize("name", ["grid.csv", "rate_distortion.csv"])
def test_numbers_are_possible(name):
    table = read(RESULTS / name)
    assert ((table["mse"] > 0) & (table["mse"] < 0.05)).all()
    assert ((table["usage"] >= 1) & (table["usage"] <= table["K"])).all()
    assert ((table["perplexity"] >= 1) & (table["perplexity"] <= table["usage"] * 1.0001)).all()
    np.testing.assert_allclose(table["zero_order_bits"], 49 * np.log2(table["perplexity"]), rtol=1e-3)
    np.testing.assert_allclose(table["max_bits"], 49 * np.log2(table["K"]), rtol=1e-5)


def test_more_codes_draw_better(grid):
    for size in set(grid["D"]):
        rows = np.sort(grid[grid["D"] == size], order="K")
        assert (np.diff(rows["max_bits"]) > 0).all()
        assert rows["mse"][-1] < rows["mse"][0]


def test_digits_of_the_grid_belong_to_it(grid):
    with np.load(RESULTS / "grid_digits.npz", allow_pickle=False) as archive:
        assert archive["digits"].shape == (10, 28, 28) and archive["digits"].dtype == np.uint8
        for K in set(grid["K"]):
            codes, drawn = archive[f"codes_{K}"], archive[f"drawn_{K}"]
            assert codes.shape == (10, 7, 7) and codes.max() < K
            assert drawn.shape == (10, 28, 28) and drawn.dtype == np.uint8
            assert np.mean((drawn / 255 - archive["digits"] / 255) ** 2) < 0.05


def test_what_a_prior_knows_saves_bits(curve, example):
    assert len(curve) >= 6
    for row in [*curve, example]:
        assert 0 < row["prior_bits"] < row["position_bits"] < row["zero_order_bits"] <= row["max_bits"]
        assert row["frechet_drawn"] < row["frechet"]


def test_the_curve_falls(curve):
    order = np.argsort(curve["prior_bits"])
    assert (np.diff(curve["K"][order]) > 0).all() and (np.diff(curve["mse"][order]) < 0).all()


def test_samples_of_the_curve(curve):
    with np.load(RESULTS / "rate_distortion_digits.npz", allow_pickle=False) as archive:
        for K in curve["K"]:
            assert archive[f"sampled_{K}"].shape == (10, 28, 28) and archive[f"sampled_{K}"].dtype == np.uint8


def test_fewer_bits_than_the_example_at_its_error(curve, example):
    order = np.argsort(curve["mse"])
    mse, bits = np.log(curve["mse"][order]), curve["prior_bits"][order]
    for error in (0.0042, example["mse"]):
        assert mse[0] < np.log(error) < mse[-1], "the curve does not reach this error"
        assert np.interp(np.log(error), mse, bits) < example["prior_bits"]


def test_even_use_is_dear(curve):
    """Neither the uncharged nor the revived codebook beats the curve, which charges codes for their bits."""
    table = read(RESULTS / "rate_distortion.csv")
    order = np.argsort(curve["mse"])
    for name in ("uncharged", "revived"):
        row = table[table["model"] == name][0]
        assert row["prior_bits"] > np.interp(np.log(row["mse"]), np.log(curve["mse"][order]), curve["prior_bits"][order])


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_code_is_charged_for_its_bits(weight):
    from vqvae_tutorial.rate import EntropyConstrainedQuantizer

    random = np.random.default_rng(0)
    vectors = random.laplace(size=(4, 7, 7, 3)).astype("float32")
    quantizer = EntropyConstrainedQuantizer(8, rate_weight=weight, seed=0)
    assert quantizer.revival_threshold == 0
    quantizer.adapt(vectors)
    for _ in range(100):
        quantizer(vectors, training=True)
    distances = np.square(vectors[..., None, :] - np.asarray(quantizer.embeddings)).sum(axis=-1)
    share = np.asarray(quantizer.ema_frequency.value) / 8
    cost = distances + weight * float(quantizer.mean_distance.value) * -np.log2(share)
    codes = np.asarray(quantizer.encode(vectors))
    np.testing.assert_array_equal(codes, cost.argmin(axis=-1))
    assert (codes == distances.argmin(axis=-1)).all() == (weight == 0), "the charge changes some choices"


def test_the_charge_does_not_depend_on_scale_and_survives_files(tmp_path):
    import keras

    from vqvae_tutorial.rate import EntropyConstrainedQuantizer

    vectors, chosen = np.random.default_rng(0).laplace(size=(4, 7, 7, 3)).astype("float32"), []
    for scale in (1, 64):  # a power of two: the same roundings
        quantizer = EntropyConstrainedQuantizer(8, rate_weight=0.5, seed=0)
        quantizer.adapt(scale * vectors)
        for _ in range(100):
            quantizer(scale * vectors, training=True)
        chosen.append(np.asarray(quantizer.encode(scale * vectors)))
    np.testing.assert_array_equal(*chosen)
    model = keras.Sequential([keras.Input((7, 7, 3)), quantizer])
    model.save(tmp_path / "charged.keras")
    again = keras.saving.load_model(tmp_path / "charged.keras").layers[-1]
    assert again.get_config() == quantizer.get_config() and again.rate_weight == 0.5
    np.testing.assert_array_equal(np.asarray(again.encode(64 * vectors)), chosen[1])


def test_what_is_not_finite_leaves_the_charge_as_it_was():
    from vqvae_tutorial.rate import EntropyConstrainedQuantizer

    vectors = np.random.default_rng(0).laplace(size=(4, 7, 7, 3)).astype("float32")
    quantizer = EntropyConstrainedQuantizer(8, seed=0)
    quantizer.adapt(vectors)
    quantizer(vectors, training=True)
    before = float(quantizer.mean_distance.value)
    quantizer(np.where(vectors > 2, np.nan, vectors).astype("float32"), training=True)
    assert float(quantizer.mean_distance.value) == before > 0
    quantizer.trainable = False
    quantizer(10 * vectors, training=True)
    assert float(quantizer.mean_distance.value) == before


def test_a_negative_price_is_refused():
    from vqvae_tutorial.rate import EntropyConstrainedQuantizer

    with pytest.raises(ValueError, match=r"`rate_weight` must not be negative. Received: -1"):
        EntropyConstrainedQuantizer(8, rate_weight=-1)


def test_strokes_are_dearer_than_the_curve():
    """K-means on patches, under the same prior: at its bits the curve leaves less of the error."""
    table = read(RESULTS / "rate_distortion.csv")
    ours = np.sort(table[np.char.startswith(table["model"], "K = ")], order="prior_bits")
    strokes = table[np.char.startswith(table["model"], "strokes")]
    assert len(strokes) >= 1
    for row in strokes:
        assert ours["prior_bits"][0] < row["prior_bits"] < ours["prior_bits"][-1] or row["prior_bits"] < ours["prior_bits"][0]
        assert np.interp(row["prior_bits"], ours["prior_bits"], np.log(ours["mse"])) < np.log(row["mse"])


def test_recipes_have_the_columns_that_the_chapter_reads():
    table = read(RESULTS / "recipes.csv")
    assert table.dtype.names == ("recipe", "seed", "usage", "mse", "perplexity", "bits", "accuracy", "frechet", "frechet_drawn")
    assert len({(row["recipe"], row["seed"]) for row in table}) == len(table)
    assert ((table["mse"] > 0) & (table["mse"] < 0.05)).all() and ((table["accuracy"] > 0) & (table["accuracy"] <= 1)).all()
    assert (table["perplexity"] <= table["usage"] * 1.0001).all() and ((table["frechet"] > 0) & (table["frechet_drawn"] > 0)).all()


def test_the_pair_that_ships_is_a_good_bargain():
    """What chapter 7 promises of it: little error, few bits, samples that are read as asked and are nearly as real as reconstructions."""
    from vqvae_tutorial.presets import PRIOR_EPOCHS, VQVAE_EPOCHS, build_mnist

    table = read(RESULTS / "recipes.csv")
    recipe = f"λ = {build_mnist()[0].quantizer.rate_weight}: {VQVAE_EPOCHS} + {PRIOR_EPOCHS} epochs"
    best = next(row for row in table if row["recipe"] == recipe and row["seed"] == 0)
    assert best["mse"] <= 0.0026 and best["bits"] <= 86 and best["accuracy"] >= 0.98
    assert best["frechet"] <= 1.5 * best["frechet_drawn"]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_killed_grid_goes_on(tmp_path, capsys):
    import grid

    out = tmp_path / "grid.csv"
    command = subprocess.Popen([sys.executable, str(ROOT / "benchmarks" / "grid.py"), "--quick", "--out", str(out)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(3000):
            if out.exists() or command.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        command.kill()
        command.wait()
    kept = rows(out)
    assert 1 <= len(kept) and all(None not in row.values() for row in kept)
    assert grid.main(["--quick", "--out", str(out)]) == 0
    assert f"{len(kept)} of 4 models are in" in capsys.readouterr().out
    finished = rows(out)
    assert len(finished) == 4 and all(row in finished for row in kept)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".part")) == ["grid.csv", "grid_digits.npz"]
    before = out.read_bytes()
    assert grid.main(["--quick", "--out", str(out)]) == 0 and out.read_bytes() == before


def test_a_table_of_other_settings_is_refused(tmp_path):
    import grid

    out = tmp_path / "grid.csv"
    table = grid.Table(out, ["K", "mse", "epochs"], 1, {"epochs": 3})
    for K, mse in ((16, 0.25), (8, 1 / 3)):
        table.add({"K": K, "mse": mse, "epochs": 3})
    assert out.read_text() == "K,mse,epochs\n8,0.333333,3\n16,0.25,3\n"
    again = grid.Table(out, ["K", "mse", "epochs"], 1, {"epochs": 3})
    assert (8,) in again and (32,) not in again
    with pytest.raises(SystemExit, match="other settings"):
        grid.Table(out, ["K", "mse", "epochs"], 1, {"epochs": 4})


# Priors over the same codes


def test_each_change_of_the_prior_was_measured_with_three_seeds():
    import prior_ablation

    table = whole("prior_ablation.csv", 3 * len(prior_ablation.VARIANTS))
    assert [(str(row["variant"]), row["seed"]) for row in table] == [(name, seed) for name in prior_ablation.VARIANTS for seed in range(3)]
    assert set(table["maps"]) == {prior_ablation.FULL["maps"]} and set(table["epochs"]) == {prior_ablation.FULL["epochs"]}
    bits = [table[table["variant"] == name]["test_bits"].mean() for name in prior_ablation.VARIANTS]
    assert bits[0] > bits[-1] + np.log2(10)  # more than the label is worth


@pytest.mark.slow
def test_the_ablation_goes_on_where_it_was_stopped(tmp_path):
    out = tmp_path / "quick.csv"
    command = [sys.executable, ROOT / "benchmarks" / "prior_ablation.py", "--quick", "--seeds", "1", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:-1]) + "\n")
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 and "6 of 7 priors are in" in ran.stdout and out.read_text().splitlines()[:-1] == lines[:-1]
    assert read(out).dtype.names == read(RESULTS / "prior_ablation.csv").dtype.names


def test_priors_were_trained_alike_from_several_seeds():
    table = read(RESULTS / "priors.csv")
    assert len({(row["maps"], row["epochs"], row["drawn"]) for row in table}) == 1
    kinds = {(str(row["prior"]), int(row["steps"])) for row in table}
    assert {name for name, _ in kinds} == {"zero order", "by place", "ungated PixelCNN", "PixelCNN", "transformer", "MaskGIT"}
    for kind in kinds:
        rows = [row for row in table if (row["prior"], row["steps"]) == kind]
        assert len({row["seed"] for row in rows}) == len(rows) >= 3, kind
    assert (table["bits"] > 0).all() and (table["frechet"] > 0).all()
    told = ~np.isin(table["prior"], ["zero order", "ungated PixelCNN"])
    assert ((table["read_right"][told] > 0.1) & (table["read_right"][told] <= 1)).all() and np.isnan(table["read_right"][~told]).all()


def test_what_chapter_12_reads_from_the_table_of_priors():
    table = read(RESULTS / "priors.csv")
    mean = {(name, steps): table[(table["prior"] == name) & (table["steps"] == steps)]["bits"].mean()
            for name, steps in set(zip(table["prior"].tolist(), table["steps"].tolist()))}
    assert mean["by place", 49] < 0.9 * mean["zero order", 49]
    assert mean["transformer", 49] < 0.75 * mean["by place", 49] and mean["PixelCNN", 49] < mean["ungated PixelCNN", 49] - np.log2(10)
    assert mean["MaskGIT", 12] < mean["MaskGIT", 8] < mean["MaskGIT", 4] < mean["by place", 49]


def test_what_each_prior_costs():
    costs = {(str(row["prior"]), int(row["steps"])): row for row in read(RESULTS / "priors_costs.csv")}
    assert {name for name, _ in costs} == {"ungated PixelCNN", "PixelCNN", "transformer", "MaskGIT"}
    counted = {key: int(row["multiplications"]) for key, row in costs.items()}
    assert 12 * counted["MaskGIT", 4] == 6 * counted["MaskGIT", 8] == 4 * counted["MaskGIT", 12]
    assert 8 * counted["transformer", 49] == counted["MaskGIT", 8]  # one network
    assert counted["PixelCNN", 49] == 49 * (8 * ((2 * 3 + 1 * 2) * 64 * 128 + 128 * 128 + 64 * 64) + 64 * 128)
    assert costs["ungated PixelCNN", 49]["drawing"] > 5 * costs["PixelCNN", 49]["drawing"]
    assert costs["MaskGIT", 4]["drawing"] < costs["MaskGIT", 8]["drawing"] < costs["MaskGIT", 12]["drawing"]


def test_time_and_memory_by_grid():
    table = {(str(row["prior"]), int(row["side"])): row for row in read(RESULTS / "priors_grids.csv")}
    for side in (7, 14, 28, 56):  # a cache of rows grows with the side, one of places with the places
        assert table["transformer", side]["cache_bytes"] == 4 * (2 * 3 * 96 * side**2 + 1)
        assert table["MaskGIT", side]["cache_bytes"] == 4 * side**2
    assert table["PixelCNN", 56]["cache_bytes"] < 10 * table["PixelCNN", 7]["cache_bytes"]
    seconds = {key: row["seconds"] for key, row in table.items()}
    assert seconds["PixelCNN whole", 7] > 15 * seconds["PixelCNN", 7] and seconds["transformer whole", 7] > 8 * seconds["transformer", 7]
    assert seconds["MaskGIT one by one", 7] > 4 * seconds["MaskGIT", 7]
    assert seconds["MaskGIT", 56] < seconds["transformer", 56]


@pytest.mark.slow
def test_the_study_of_priors_goes_on_where_it_was_stopped(tmp_path, capsys):
    import priors

    out = tmp_path / "quick.csv"
    options = ["--quick", "--seeds", "1", "--out", str(out), "--runs", str(tmp_path)]
    ran = subprocess.run([sys.executable, ROOT / "benchmarks" / "priors.py", *options], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    table = read(out)
    assert list(table.dtype.names) == list(read(RESULTS / "priors.csv").dtype.names) and len(table) == 8
    grids = read(out.with_name("quick_grids.csv"))
    assert list(grids.dtype.names) == list(read(RESULTS / "priors_grids.csv").dtype.names) and len(grids) == 12
    costs = read(out.with_name("quick_costs.csv"))
    assert list(costs.dtype.names) == list(read(RESULTS / "priors_costs.csv").dtype.names) and len(costs) == 6
    files = [out, *map(out.with_name, ("quick_grids.csv", "quick_costs.csv"))]
    before = [path.read_bytes() for path in files]
    assert priors.main(options) == 0 and "6 of 6 priors are in" in capsys.readouterr().out
    assert [path.read_bytes() for path in files] == before


# Quantizers at equal bits


@pytest.fixture(scope="module")
def equal():
    return whole("equal_bits.csv", 72)


@pytest.fixture
def few(monkeypatch):
    """The study with two quantizers, one of which has several codes a place, and one size of large codebooks."""
    import equal_bits

    for table, names in {"QUANTIZERS": ("FSQ 8 · 4 · 4", "residual 5 · 5 · 5"), "LARGE": ("EMA revived", "BSQ")}.items():
        monkeypatch.setattr(equal_bits, table, {name: getattr(equal_bits, table)[name] for name in names})
    return equal_bits


def test_quantizers_were_trained_alike_from_three_seeds(equal):
    import equal_bits

    assert {(row["data"], row["quantizer"], row["seed"]) for row in equal} == {
        (data, name, seed) for data in equal_bits.DATA for name in equal_bits.QUANTIZERS for seed in range(3)}
    assert len(equal) == 2 * 3 * len(equal_bits.QUANTIZERS) and len(equal_bits.QUANTIZERS) >= 10
    assert len({(row["images"], row["epochs"], row["prior_epochs"]) for row in equal}) == 1


def test_their_codes_have_equal_bits():
    import equal_bits

    for _, make in equal_bits.QUANTIZERS.values():
        quantizer = make()
        number = quantizer.num_codes ** len(equal_bits.radix(quantizer))
        assert abs(49 * np.log2(number) / 343 - 1) < 0.01, quantizer
        codes = np.random.default_rng(0).integers(0, number, (5, 7, 7))
        parts = equal_bits.parted(codes, quantizer)
        assert parts.max() < quantizer.num_codes and np.array_equal(equal_bits.joined(parts, quantizer), codes)


def test_numbers_of_the_study_are_possible(equal):
    assert ((equal["used"] <= 128) & (equal["perplexity"] <= equal["used"])).all()
    assert (equal["prior_bits"] < equal["place_bits"]).all() and (equal["place_bits"] < 343 + 1).all()
    assert ((equal["mse"] > 0) & (equal["mse"] < 0.05) & (equal["frechet"] > 0)).all()
    assert ((equal["read_right"] > 0.1) & (equal["read_right"] <= 1)).all()


def test_large_codebooks():
    table = whole("equal_bits_large.csv", 21)
    assert {int(K) for K in table["K"]} == {1024, 8192, 65_536} and len(table) == 21
    row = {(int(row["K"]), str(row["quantizer"])): row for row in table}
    for name in ("gradient", "EMA revived", "cosine", "SimVQ"):  # a table of codes takes time in proportion; a grid does not
        assert row[65_536, name]["seconds"] > 10 * row[1024, name]["seconds"], name
    for name in ("FSQ", "LFQ", "BSQ"):
        assert row[65_536, name]["seconds"] < 3 * row[1024, name]["seconds"], name
    assert ((table["perplexity"] <= table["used"]) & (table["used"] <= table["K"])).all()


@pytest.mark.slow
def test_the_study_at_equal_bits_goes_on_where_it_was_stopped(few, tmp_path, capsys):
    out = tmp_path / "quick.csv"
    options = ["--quick", "--data", "digits", "--seeds", "1", "--out", str(out)]
    assert few.main(options) == 0
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(read(out)) == 2 and list(read(out).dtype.names) == list(read(RESULTS / "equal_bits.csv").dtype.names)
    out.write_text("".join(lines[:-1]), encoding="utf-8")
    assert few.main(options) == 0 and "1 of 2 models are in" in capsys.readouterr().out
    np.testing.assert_allclose(read(out)[1]["mse"], float(lines[-1].split(",")[3]), rtol=1e-3)  # the same model again
    assert few.main(["--quick", "--large", "--out", str(out)]) == 0
    large = read(out.with_name("quick_large.csv"))
    assert set(large["quantizer"]) == {"EMA revived", "BSQ"} and (large["K"] == 256).all()
    assert list(large.dtype.names) == list(read(RESULTS / "equal_bits_large.csv").dtype.names)


def test_what_chapter_9_reads_from_the_study(equal):
    def mean(data, column):
        return {str(name): equal[(equal["data"] == data) & (equal["quantizer"] == name)][column].mean() for name in set(equal["quantizer"])}

    errors, bits = mean("digits", "mse"), mean("digits", "prior_bits")
    six = sorted(errors, key=errors.get)[:6]
    assert set(six[:2]) == {"FSQ 5 · 5 · 5", "FSQ 8 · 4 · 4"} and min(six, key=bits.get) == "product 5 · 5 · 5"
    assert 1.1 * errors["FSQ 8 · 4 · 4"] < errors["product 5 · 5 · 5"]  # fewer bits, but not the smallest error
    assert 1.2 * errors["EMA revived"] < errors["EMA rotation"]
    assert max(mean("digits", "frechet"), key=mean("digits", "frechet").get) == "EMA rotation"
    assert sorted(bits, key=bits.get)[:2] == ["charged λ = 0.1", "LFQ 7 bits"]
    errors, bits = mean("clothes", "mse"), mean("clothes", "prior_bits")
    five = sorted(errors.values())[:5]
    assert five[-1] < 1.03 * five[0] < 1.03 * errors["product 5 · 5 · 5"] and max(bits, key=bits.get) == "residual 5 · 5 · 5"
    place = mean("digits", "place_bits")
    assert place["residual 5 · 5 · 5"] < 0.8 * place["cosine"] and mean("digits", "prior_bits")["residual 5 · 5 · 5"] > 0.95 * (
        mean("digits", "prior_bits")["cosine"])
    large = {(int(row["K"]), str(row["quantizer"])): row for row in read(RESULTS / "equal_bits_large.csv")}
    assert large[65_536, "gradient"]["used"] < 2 * large[1024, "gradient"]["used"]
    assert sorted((row["mse"], name) for (K, name), row in large.items() if K == 65_536)[0][1] == "FSQ"
