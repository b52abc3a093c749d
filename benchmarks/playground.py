"""What the playground costs a reader: bytes before it works, milliseconds of a stroke and of a dream, on this machine and slowed down.

`python benchmarks/playground.py [--repeats 20]` wants a Chromium. Bytes are those of the site's files, compressed by gzip as its host
sends them. A stroke is encode and decode; a dream draws 49 codes, without the pictures in between. Times are medians; "slowed" is what
the browser's own throttling makes of them, six times slower.
"""
import argparse
import gzip
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "book"), str(HERE)]

from measure import made_with, options, says_who, write  # noqa: E402
from pdf import FLAGS, chromium  # noqa: E402

from vqvae_tutorial.playground import asset, mnist_playground  # noqa: E402

SCRIPTS = ("engine.js", "playground.js", "playground.css")
SLOWER = 6
TIME = """async ({calls}) => {
    const {model, prior} = document.querySelector(".vqvae-playground").playground, noise = vqvaeEngine.gumbel(0);
    const codes = [...document.querySelector(".vqvae-playground").playground.codes], K = model.codebook.shape[0];
    const picture = model.decode(codes);
    const median = (action, count) => {
        const times = Array.from({length: count}, () => { const start = performance.now(); action(); return performance.now() - start; });
        return times.sort((a, b) => a - b)[count >> 1];
    };
    const stroke = () => model.decode(model.encode(picture)), dream = () => [...prior.sample(3, () => noise(K, 1))];
    stroke(), dream();
    return {stroke: median(stroke, calls), dream: median(dream, calls)};
}"""


def kilobytes(text):
    """A file's size as it is sent, in kB."""
    return len(gzip.compress(text.encode(), 9)) / 1000


def times(page, repeats):
    """Median milliseconds of a stroke and a dream."""
    return page.evaluate(TIME, {"calls": repeats})


def main(arguments=None):
    from playwright.sync_api import sync_playwright

    chosen = options(argparse.ArgumentParser(description=__doc__.splitlines()[0]), "playground", arguments, repeats=20)
    if chromium() is None:
        raise SystemExit("This needs a Chromium, and there is none here; CHROMIUM=/path/to/chromium names one.")
    shown = mnist_playground()
    files = shown.files()
    model = sum(map(kilobytes, [*map(asset, SCRIPTS), files["mnist_model.js"]]))
    row = {"first_stroke_kb": model, "first_dream_kb": model + kilobytes(files["mnist_prior.js"])}
    with sync_playwright() as control, tempfile.TemporaryDirectory() as folder:
        shown.save(path := Path(folder) / "page.html")
        browser = control.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        page = browser.new_page()
        page.goto(path.as_uri())
        page.get_by_label("show bits").check()  # which loads the prior
        page.wait_for_selector(".vp-reading p")
        page.wait_for_timeout(1000)
        for name, rate in (("", 1), ("_slowed", SLOWER)):
            page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": rate})
            row |= {f"{what}{name}_ms": value for what, value in times(page, chosen.repeats).items()}
        browser.close()
    print(f"before the first stroke {row['first_stroke_kb']:.0f} kB, before the first dream {row['first_dream_kb']:.0f} kB\n"
          f"a stroke {row['stroke_ms']:.1f} ms, a dream {row['dream_ms']:.0f} ms; {SLOWER} times slower: "
          f"{row['stroke_slowed_ms']:.0f} ms, {row['dream_slowed_ms']:.0f} ms")
    if chosen.out:
        write(chosen.out, [row | {"made_with": made_with("keras", "playwright")}], ["made_with"])
    print(says_who(chosen.out))


if __name__ == "__main__":
    main()
