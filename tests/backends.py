"""Run the tests and the chapters on each of Keras's backends: `python tests/backends.py [--only jax,torch] [--no-chapters] [for pytest]`.

JAX, PyTorch and vector-quantize-pytorch go into an environment of their own, .venv/backends, which sees all that is in .venv; no
other command needs them. `--torch` says which PyTorch, in pip's words; where to get a build for CPUs alone, PyTorch's page says, and
pip's own variables (PIP_EXTRA_INDEX_URL) take it.
"""
import argparse
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv" / "backends"
NEEDS = {"tensorflow": [], "jax": ["jax"], "torch": ["torch", "vector-quantize-pytorch"]}
TOOLS = {f"test_{name}.py" for name in ("project", "results", "site", "style", "community", "wheel")}  # no backend's matter
TENSORFLOWS = "tensorflow"  # the directive of a chapter's cells that show TensorFlow itself, such as its GradientTape


def environment(requirements):
    """The Python of an environment that sees all of .venv and adds what is required, made where it is not there yet."""
    python = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(FOLDER)], check=True)
    base, own = (sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder}) for folder in (sys.prefix, str(FOLDER)))
    Path(own, "base.pth").write_text(f"import site; site.addsitedir({base!r})\n", encoding="utf-8")
    if requirements:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], check=True)
    return str(python)


def run_chapters(backend):
    """Runs every chapter at the small budget, as `nbdev_test` does; on other backends without the cells that are TensorFlow's own."""
    from fastcore.parallel import num_cpus, parallel
    from nbdev.test import test_nb

    names = sorted((ROOT / "nbs").glob("[!_]*.ipynb"))
    flags = ["notest"] + [TENSORFLOWS] * (backend != TENSORFLOWS)
    ran = parallel(test_nb, names, skip_flags=flags, do_print=True, basepath=ROOT, n_workers=min(num_cpus(), 4), pause=0.01)
    return 0 if all(passed for passed, _ in ran) else 1


def run(python, backend, arguments, chapters):
    """Runs tests and chapters on a backend; gives whether all went well."""
    settings = os.environ | {"KERAS_BACKEND": backend}
    spread = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder", "-q"]
    commands = {"pytest": ["-m", "pytest", *spread, *arguments]}
    commands |= {"chapters": [__file__, "--chapters-here", backend]} if chapters else {}
    failed = []
    for name, command in commands.items():
        print(f"{backend}: {name}", flush=True)
        if subprocess.run([python, *command], cwd=ROOT, env=settings).returncode:
            failed.append(name)
    print(f"{backend}: {' and '.join(failed)} failed" if failed else f"{backend}: all went well", flush=True)
    return not failed


def main():
    parser = argparse.ArgumentParser(description="Run tests and chapters on each of Keras's backends; other arguments go to pytest.")
    parser.add_argument("--only", default=",".join(NEEDS), help=f"which backends, of {', '.join(NEEDS)} (default: all)")
    parser.add_argument("--torch", default="torch", help="the PyTorch to install, such as torch==2.9.1")
    parser.add_argument("--no-chapters", dest="chapters", action="store_false", help="only pytest")
    parser.add_argument("--chapters-here", metavar="BACKEND", help=argparse.SUPPRESS)
    options, arguments = parser.parse_known_args()
    if options.chapters_here:
        return run_chapters(options.chapters_here)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(NEEDS):
        parser.error(f"no such backend: {', '.join(unknown)}; there is {', '.join(NEEDS)}")
    library = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if path.name not in TOOLS]
    needs = [options.torch if need == "torch" else need for backend in chosen for need in NEEDS[backend]]
    python = environment(needs)
    return 0 if all([run(python, backend, arguments or ["--combinations", *library], options.chapters) for backend in chosen]) else 1


if __name__ == "__main__":
    sys.exit(main())
