"""Run the chapters at full size and keep what they show: `python book/reproduce.py [--force] [notebook …]`.

Every chapter runs in a fresh kernel, in reading order. A notebook is written only when all of it has succeeded, together
with a hash of the code that made its outputs, the versions it ran with and the time it took; `--check` lists the
notebooks whose code has changed since.
A pass that was stopped goes on with the chapter it was at (and a training that was stopped, with the epoch it was at:
the chapters keep their check-points in nbs/runs/).
"""
import argparse
import ast
import base64
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

from project import ROOT, chapters, split_directives
from results import FIGURES, printed

sys.path += [str(ROOT), str(ROOT / "benchmarks")]
from measure import load_all_clothes, load_all_speech, load_digits, load_people  # noqa: E402

RUNS = ROOT / "nbs" / "runs"
STATE = RUNS / "reproduce.json"
KEY = "vqvae_tutorial"
PICTURE = ROOT / "book" / "static" / "digits.png"
WIDGETS = "application/vnd.jupyter.widget-state+json"
MADE_WITH = ("tensorflow", "keras", "numpy", "matplotlib", "ipywidgets")


def runs(cell):
    """Whether a cell is code that a full run executes."""
    return cell["cell_type"] == "code" and "eval: false" not in split_directives("".join(cell["source"]))[0]


def cores():
    """How many cores TensorFlow computes with: all, or as many as it has been given threads."""
    return int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0) or os.cpu_count()


def meaning(source):
    """What a cell does: its syntax tree, which knows no line breaks, comments or docstrings; its text where magics forbid parsing."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source.strip()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return written(tree)


def written(node):
    """A syntax tree as text. What is empty is left out, so that fields which newer versions of Python have added do not count."""
    if isinstance(node, ast.AST):
        fields = [f"{name}={written(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"[{', '.join(map(written, node))}]" if isinstance(node, list) else repr(node)


def outputs_hash(notebook):
    """The hash of what a full run executes. Directives only say how a cell is shown, so they do not count."""
    sources = [meaning(split_directives("".join(cell["source"]))[1]) for cell in notebook["cells"] if runs(cell)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def stale(notebooks=None):
    """The notebooks whose outputs were made by other code than they hold now, or never by a full run."""
    found = [(path, read(path)) for path in (chapters() if notebooks is None else notebooks)]
    return [path for path, notebook in found
            if notebook["metadata"].get(KEY, {}).get("outputs_hash") != outputs_hash(notebook)]


def settle_widgets(notebook):
    """Number the widgets in the order they were made, so that two runs give the same bytes."""
    state = notebook["metadata"].get("widgets", {}).get(WIDGETS, {}).get("state", {})
    names = {old: f"{number:032x}" for number, old in enumerate(state, start=1)}
    if not names:
        return notebook
    pattern = re.compile("|".join(map(re.escape, names)))
    return json.loads(pattern.sub(lambda match: names[match[0]], json.dumps(notebook)))


def clean(notebook):
    """The notebook's text as `nbdev_clean` leaves it."""
    import nbformat
    from execnb.nbio import nb2str
    from nbdev.clean import clean_nb
    from nbdev.config import get_config

    config = get_config(path=ROOT)
    notebook = json.loads(nbformat.writes(nbformat.reads(json.dumps(notebook), as_version=4)))  # text as lists of lines
    clean_nb(notebook, allowed_metadata_keys=config.get("allowed_metadata_keys").split(),
             allowed_cell_metadata_keys=config.get("allowed_cell_metadata_keys").split(), clean_ids=config.clean_ids)
    return nb2str(notebook)


def export():
    """Write the package's modules from the notebooks."""
    from nbdev.doclinks import nbdev_export

    here = os.getcwd()
    os.chdir(ROOT)
    try:
        nbdev_export()
    finally:
        os.chdir(here)


def leave_out_scripts(data):
    """A playground's scripts and weights are megabytes that the site serves itself; its place is kept."""
    if "vqvae-playground" in (html := data.get("text/html", "")):
        data["text/html"] = re.sub(r"<(script|style)>.*?</\1>\n?", "", html, flags=re.S)


def execute(notebook, progress=lambda done, count: None):
    """Run a notebook's cells in a fresh kernel of this Python; gives the notebook with its new outputs."""
    import nbformat
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from nbclient import NotebookClient

    count = len(notebook["cells"])

    class Chapter(NotebookClient):
        async def async_execute_cell(self, cell, cell_index, **options):
            progress(cell_index, count)
            if cell.cell_type == "code" and not runs(cell):
                cell.outputs, cell.execution_count = [], None
                return cell
            return await super().async_execute_cell(cell, cell_index, **options)

    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(**get_kernel_dict())  # this Python, whatever kernel the machine knows as "python3"
    environment = {key: value for key, value in os.environ.items() if key not in ("IN_TEST", "MPLBACKEND")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "VQVAE_TUTORIAL_PRETRAINED": str(ROOT / KEY / "pretrained"),
    }
    notebook = nbformat.reads(json.dumps(notebook), as_version=4)
    notebook.metadata.pop("widgets", None)
    client = Chapter(notebook, km=manager, timeout=None, startup_timeout=300, coalesce_streams=True, record_timing=False,
                     extra_arguments=["--log-level=CRITICAL"])
    client.owns_km = True  # so that the kernel ends with the chapter
    try:
        client.execute(cwd=str(ROOT / "nbs"), env=environment)
    except Exception as error:
        if hasattr(client, "_async_cleanup_kernel_future"):  # nbclient's answer to Ctrl-C is to end the kernel
            raise KeyboardInterrupt from error
        raise
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                leave_out_scripts(output.get("data", {}))
    return settle_widgets(json.loads(json.dumps(notebook)))


def keep(path, made, code, facts):
    """Put the outputs that were made into the notebook, which may have got new prose, but no new code, meanwhile.

    `facts` of the run go into its metadata, beside the hash of the code; the page about the results shows them.
    """
    notebook = read(path)
    if outputs_hash(notebook) != code:
        aside = RUNS / f"{path.stem}.outputs.json"
        aside.write_text(json.dumps(made), encoding="utf-8")
        raise RuntimeError(f"{path.name}: its code was changed while it ran, so its outputs were not kept there but in {aside}. "
                           "Run it again.")
    before = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    after = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    for old, new in zip([cell for cell in before if runs(cell)], [cell for cell in after if runs(cell)], strict=True):
        old["outputs"] = new["outputs"]
    for cell in before:
        if not runs(cell):
            cell["outputs"] = []
    notebook["metadata"].pop("widgets", None)
    if "widgets" in made["metadata"]:
        notebook["metadata"]["widgets"] = made["metadata"]["widgets"]
    notebook["metadata"][KEY] = {"outputs_hash": code} | facts
    whole = RUNS / f"{path.stem}.{os.getpid()}.part"
    whole.write_text(clean(notebook), encoding="utf-8")
    os.replace(whole, path)


def keep_picture(notebook):
    """Keep the first picture of the index for the README, which cannot show a notebook's output."""
    pictures = [output["data"]["image/png"] for cell in notebook["cells"] for output in cell.get("outputs", [])
                if "image/png" in output.get("data", {})]
    PICTURE.write_bytes(base64.b64decode("".join(pictures[0])))


def finished(names):
    """What a stopped pass over the same notebooks has finished: name and hash of the code that ran."""
    if not STATE.exists():
        return {}
    state = read(STATE)
    return state["finished"] if state["pass"] == names else {}


def reproduce(notebooks, force=False):
    """Run the notebooks one after another."""
    RUNS.mkdir(parents=True, exist_ok=True)
    names = [path.name for path in notebooks]
    done = {} if force else finished(names)
    wide = max(map(len, names))
    versions = {"python": platform.python_version()} | {name: version(name) for name in MADE_WITH}
    if kept := sorted(folder.name for folder in RUNS.iterdir() if folder.is_dir()):
        print(f"Trainings in nbs/runs go on where they stand: {', '.join(kept)}. Delete the folder to train anew.", flush=True)
    export()
    for number, path in enumerate(notebooks):
        notebook = read(path)
        code = outputs_hash(notebook)
        label = f"{path.name:{wide}}"
        if done.get(path.name) == code:
            print(f"{label}  done before", flush=True)
            continue
        done = {name: hash for name, hash in done.items() if name in names[:number]}  # what follows builds on this chapter
        start = time.monotonic()

        def progress(position, count, label=label):
            if sys.stdout.isatty():
                print(f"\r{label}  cell {position + 1} of {count}", end="", flush=True)

        print(f"{label}  …", end="" if sys.stdout.isatty() else "\n", flush=True)
        made = execute(notebook, progress)
        if lost := [what for what, pattern in FIGURES.get(path.stem, {}).items() if not re.search(pattern, printed(path, made), re.M)]:
            raise RuntimeError(f"{path.name} no longer prints {'; '.join(lost)}, which the page of results shows. Install what the chapter "
                               "does without (JAX, for chapter 92), or correct book/results.py.")
        seconds = time.monotonic() - start
        # An earlier run may have done a part of the work where trainings were kept; then the time says nothing.
        keep(path, made, code, {"versions": versions} | ({} if kept else {"minutes": math.ceil(seconds / 60), "cores": cores()}))
        if path.stem == "index":
            keep_picture(made)
        done[path.name] = code
        if len(names) > 1:
            STATE.write_text(json.dumps({"pass": names, "finished": done}, indent=1), encoding="utf-8")
        minutes, seconds = divmod(round(seconds), 60)
        print(f"\r{label}  {len(notebook['cells'])} cells in {minutes}:{seconds:02}".ljust(shutil.get_terminal_size().columns - 1),
              flush=True)
        export()
    if len(names) > 1:
        STATE.unlink(missing_ok=True)
    if notebooks == chapters():
        shutil.rmtree(RUNS)  # so that the next pass trains anew


def main():
    parser = argparse.ArgumentParser(description="Run the chapters at full size and keep their outputs.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all, in reading order")
    parser.add_argument("--force", action="store_true", help="run again what a stopped pass has finished")
    parser.add_argument("--check", action="store_true", help="run nothing; list the notebooks whose outputs are older than their code")
    arguments = parser.parse_args()
    notebooks = [path.resolve() for path in arguments.notebooks] or chapters()
    if missing := [str(path) for path in notebooks if not path.exists()]:
        parser.error("no such notebook: " + ", ".join(missing))
    if not notebooks:
        parser.error("_toc.yml names no notebook that exists")
    if arguments.check:
        old = stale(notebooks)
        for path in old:
            print(f"{path.name}: its outputs are older than its code; run `make reproduce`")
        return 1 if old else 0
    load_digits()
    loaders = {"load_speech()": load_all_speech, "load_fashion_mnist()": load_all_clothes, "load_spoken_digits()": load_people}
    for call, load in loaders.items():
        if any(call in path.read_text(encoding="utf-8") for path in notebooks):
            load()
    try:
        reproduce(notebooks, arguments.force)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"\n{type(error).__name__}: {error}\nNothing of this chapter was written; those before it were.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
