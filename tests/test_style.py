"""Chapters are pleasant to read: lines fit the page, cells the eye, a figure comes soon, and the time stated is time enough.

`python tests/test_style.py` prints the table of words, lines and minutes.
"""
import base64
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book"))
from nbdev_directives import HEADING, is_answer, read  # noqa: E402
from project import chapters, notebook, split_directives  # noqa: E402

WIDTH, HEIGHT, FIGURE = 96, 40, 12  # characters of a line, lines of a cell, and cells until the first figure, at most
WORDS, LINES = 200, 25  # that are read in a minute
NUMBERS = {word: number for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split())} | {
    "twenty": 20, "twenty-five": 25, "thirty": 30, "thirty-five": 35, "forty": 40, "forty-five": 45, "fifty": 50, "sixty": 60}
INDEX, *CHAPTERS = chapters()


class Cell(NamedTuple):
    """A cell as the book shows it; `code` and `text` are empty where it shows none."""

    number: int
    text: str
    code: list
    figure: bool


def shown(path, answers=False):
    """The cells of a chapter that a reader meets: not the hidden ones, nor answers unless asked for. Folded code counts as none."""
    section = ""
    for number, cell in enumerate(notebook(path)["cells"]):
        directives, source = split_directives("".join(cell["source"]))
        if cell["cell_type"] == "markdown":
            section = [section, *HEADING.findall(source)][-1]
            yield Cell(number, source, [], False)
        elif (answers or not is_answer(directives, section)) and not any(re.match("hide|default_exp", name) for name in directives):
            folded = {"code-fold: true", "echo: false"} & set(directives)
            mimes = {mime for output in cell.get("outputs", []) for mime in output.get("data", {})}
            pictured = any(directive.startswith("fig-alt:") for directive in directives)
            pictured |= "vqvae-playground" in str(cell.get("outputs", []))
            yield Cell(number, "", [] if folded else source.rstrip().splitlines(), pictured or "image/png" in mimes)


def words(text):
    """How many words of running text: a formula, an address or a piece of code is one; the list of references is not read."""
    text = re.sub(r"^## References.*?(?=^## |\Z)", "", text, flags=re.M | re.S)
    text = re.sub(r"\$\$.+?\$\$|\$.+?\$|`[^`]+`|\]\([^)]*\)", " x ", text, flags=re.S)
    return len(re.findall(r"[^\W_](?:[\w'’.,-]*[^\W_])?", text))


def minutes(path):
    """The minutes of reading that the box at the head of a chapter states; None where there is no box."""
    box = next((match for cell in shown(path) if (match := re.search(r"\*\*Time\*\*\W*(?:about )?([\w-]+) minutes", cell.text))), None)
    return box and (int(box[1]) if box[1].isdigit() else NUMBERS[box[1].lower()])


def table():
    """For each chapter its name, the words and code lines that it shows, and the minutes it states."""
    for path in CHAPTERS:
        cells = list(shown(path))
        yield path.stem, sum(words(cell.text) for cell in cells), sum(len(list(filter(str.strip, c.code))) for c in cells), minutes(path)


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_lines_fit_the_page(path):
    long = [f"{path.name}, cell {cell.number}, line {number} ({len(line)} characters): {line}"
            for cell in shown(path, answers=True) for number, line in enumerate(cell.code, start=1) if len(line) > WIDTH]
    assert not long, f"{len(long)} visible lines of code are longer than {WIDTH} characters:\n" + "\n".join(long)


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_legends_can_be_read_on_a_dark_page(path):
    """In the committed pictures of cells that add a legend, which stands lowest: no letter is black."""
    for number, cell in enumerate(notebook(path)["cells"]):
        if cell["cell_type"] != "code" or "legend(" not in "".join(cell["source"]):
            continue
        for picture in [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]:
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode("".join(picture)))).convert("RGBA"))[-45:]
            ink = pixels[pixels[..., 3] > 200][:, :3]
            assert len(ink) and (ink.max(axis=-1) > 60).all(), f"{path.name}, cell {number}: black letters"


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_cells_fit_the_eye(path):
    tall = [f"{path.name}, cell {cell.number} ({len(cell.code)} lines): {cell.code[0]}"
            for cell in shown(path) if len(cell.code) > HEIGHT]
    assert not tall, f"{len(tall)} visible cells of code are taller than {HEIGHT} lines:\n" + "\n".join(tall)


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_figure_comes_soon(path):
    before, first = next(((count, cell.number) for count, cell in enumerate(shown(path)) if cell.figure), (None, None))
    assert before is not None, f"{path.name} shows no figure"
    assert before < FIGURE, f"{path.name}: the first figure is in cell {first}, after {before} cells that are shown; expected < {FIGURE}"


@pytest.mark.parametrize("stem, said, lines, stated", list(table()), ids=[path.stem for path in CHAPTERS])
def test_the_time_stated_is_enough(stem, said, lines, stated):
    assert stated, f"{stem}.ipynb, the box at its head: expected '**Time** … minutes'"
    assert said <= WORDS * stated and lines <= LINES * stated, (
        f"{stem}.ipynb states {stated} minutes for {said} words and {lines} lines of code, which need "
        f"{max(-(-said // WORDS), -(-lines // LINES))}")


def test_the_first_page_states_the_same_times():
    rows = re.findall(r"\]\((\w+)\.ipynb\).*\| (\d+) \|$", "\n".join(cell.text for cell in shown(INDEX)), re.M)
    assert [stem for stem, _ in rows] == [path.stem for path in CHAPTERS if path.stem[0] != "9"], "every chapter, in order"
    assert [(stem, int(time)) for stem, time in rows] == [(path.stem, minutes(path)) for path in CHAPTERS if path.stem[0] != "9"]


def test_the_first_page_adds_up():
    text = "\n".join(cell.text for cell in shown(INDEX))
    total = sum(int(time) for time in re.findall(r"\.ipynb\).*\| (\d+) \|$", text, re.M))
    assert (stated := re.search(r"(\w+(?: and a half)?) hours?", text)), "expected the hours that the book takes"
    whole, half = re.match(r"(\w+)( and a half)?", stated[1]).groups()
    assert abs(60 * NUMBERS[whole] + 30 * bool(half) - total) <= 15, f"the chapters take {total / 60:.1f} hours"


def test_answers_are_folded_whole():
    import nbformat

    sources = ["#| code-fold: true\n1", "## Exercises\n\n**1.**", "#| solution\n1", "#| code-fold: true\n#| fig-alt: \"Ten\"\n1", "1",
               "## What comes next", "#| code-fold: true\n1"]
    made = [nbformat.v4.new_markdown_cell(source) if source[:2] == "##" else nbformat.v4.new_code_cell(source) for source in sources]
    cells = read(nbformat.writes(nbformat.v4.new_notebook(cells=made))).cells
    assert [cell.metadata.get("tags") for cell in cells] == [["hide-input"], None, ["hide-cell"], ["hide-cell"], [], None, ["hide-input"]]
    assert [cell.metadata.get("mystnb", {}).get("code_prompt_show") for cell in cells[2:4]] == ["Show the answer"] * 2
    assert cells[2].source == "1" and cells[3].metadata.mystnb["image"]["alt"] == "Ten"


if __name__ == "__main__":
    print(f"{'chapter':24}  words  lines  minutes  needed")
    for stem, said, lines, stated in table():
        print(f"{stem:24}  {said:5}  {lines:5}  {stated or '-':>7}  {max(-(-said // WORDS), -(-lines // LINES)):6}")
