"""Run the wheel and every chapter with other people's versions: `python tests/compat.py colab|oldest|newest`.

    colab   Google Colab's versions, from constraints/colab.txt
    oldest  the oldest versions that settings.ini allows, on the oldest Python
    newest  the newest versions there are, on the newest Python

The environment is made anew in `.compat/`. It gets the wheel in `dist/` as a reader would install it, and must keep every version
that it had; then every chapter runs in a kernel there at the small budget, alone in an empty folder, and the library's tests.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
from project import chapters, settings, split_directives  # noqa: E402

SETTINGS = settings()
COLAB = ROOT / "tests" / "constraints" / "colab.txt"
TOOLS = ["ipykernel", "pytest", "pyyaml", "scikit-learn", "scipy"]  # for the kernel and the tests
PROBE = "import ensurepip, venv, sys; print('%d.%d.%d' % sys.version_info[:3])"


def pythons():
    """The versions of Python that settings.ini allows, oldest first."""
    low, high = (int(SETTINGS[key].partition(".")[2]) for key in ("min_python", "max_python"))
    return [f"3.{minor}" for minor in range(low, high + 1)]


TARGETS = {  # the Pythons to try, best first, and what to install
    "colab": (pythons()[::-1], ["--requirement", str(COLAB)]),
    "oldest": (pythons(), TOOLS + SETTINGS["requirements"].replace(">=", "==").split()),
    "newest": (pythons()[::-1], ["--upgrade", *TOOLS, *SETTINGS["requirements"].split()]),
}


def version(python):
    """The version of a Python that can make environments, such as "3.13.0"; None where there is none."""
    try:
        return subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def find_python(wanted):
    """The first Python of this machine with a wanted version, in the path or in pyenv's folder; else the one that runs this."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for name in wanted:
        for python in [f"python{name}", *sorted(map(str, pyenv.glob(f"{name}.*/bin/python")))]:
            if (version(python) or "").startswith(f"{name}."):
                return python
    return sys.executable


def run(*command, **options):
    """What a command printed; raises with all of it when the command fails."""
    ran = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
                         errors="replace", **options)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{ran.stdout}")
    return ran.stdout


def frozen(python):
    """Every package of an environment with its version."""
    freeze = run(python, "-m", "pip", "freeze", "--all", "--disable-pip-version-check").splitlines()
    return {line for line in freeze if "==" in line or " @ " in line}  # pip's warnings aside


def changes(before, after):
    """What an environment has no longer, and what it has besides the package itself that it had not."""
    new = {line for line in after - before if not line.startswith(SETTINGS["lib_name"])}
    return sorted({f"-{line}" for line in before - after} | {f"+{line}" for line in new})


def bare():
    """This process's variables without those that lead to the checkout or steer Jupyter and Matplotlib."""
    leading = ("PYTHON", "JUPYTER", "MPL", "IPYTHON", "VIRTUAL_ENV", "VQVAE_TUTORIAL_PRETRAINED", "IN_TEST")
    return {key: value for key, value in os.environ.items() if not key.startswith(leading)} | {"PYTHONNOUSERSITE": "1"}


def run_chapter(path, python, folder):
    """Run a notebook's cells in a kernel of an environment, and check that its first cell found nothing to install."""
    import nbformat
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    notebook.cells = [cell for cell in notebook.cells if "eval: false" not in split_directives(cell.source)[0]]
    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(argv=[str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python")
    client = NotebookClient(notebook, km=manager, timeout=1800, startup_timeout=300, extra_arguments=["--log-level=CRITICAL"])
    client.owns_km = True  # so that the kernel ends with the chapter
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            client.execute(cwd=folder, env=bare() | {"IN_TEST": "1"}, stderr=log)
        except Exception as error:
            if hasattr(client, "_async_cleanup_kernel_future"):  # nbclient's answer to Ctrl-C is to end the kernel
                raise KeyboardInterrupt from error
            if isinstance(error, DeadKernelError):
                log.seek(0)
                raise RuntimeError(f"{''.join(log.readlines()[:40])}\nthe kernel crashed") from None
            raise
    first = next(cell for cell in notebook.cells if "%pip install" in cell.source)
    if first.outputs:
        raise RuntimeError(f"its first cell did not leave the environment alone: {first.outputs}")
    return f"{len(notebook.cells)} cells ran"


def run_tests(python, folder):
    """Run the tests of the package's modules, and its contract, against the installed package."""
    files = [ROOT / "tests" / f"test_{path.stem}.py" for path in (ROOT / SETTINGS["lib_path"]).glob("[!_]*.py")]
    files += [ROOT / "tests" / "contract" / f"test_{name}.py" for name in ("quantizers", "vqvae", "priors")]
    report = Path(folder) / "tests.xml"
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT,
               "--combinations", f"--junitxml={report}", *sorted(path for path in files if path.exists())]
    ran = subprocess.run(list(map(str, command)), cwd=folder, env=bare())
    if not report.exists():
        raise RuntimeError(f"pytest crashed with exit code {ran.returncode}; see above")
    suite = xml.parse(report).getroot().find("testsuite").attrib
    told = ", ".join(f"{suite[name]} {name}" for name in ("tests", "failures", "errors", "skipped"))
    if ran.returncode:
        raise RuntimeError(f"{told}; see above")
    return told


class Report:
    """What was checked, how it went, and how long it took; printed as it happens, and at the end as a table."""

    def __init__(self):
        self.rows = []

    def check(self, name, action, *arguments):
        """Do one thing, and go on whether it fails or not."""
        start = time.monotonic()
        print(f"{name} …", flush=True)
        try:
            result, fine = action(*arguments), True
        except Exception as error:
            result, fine = f"{type(error).__name__}: {error}", False
            print(result, flush=True)
        minutes, seconds = divmod(round(time.monotonic() - start), 60)
        summary = result.strip().splitlines()[-1] if result.strip() else ""
        self.rows.append((name, "ok" if fine else "FAILED", f"{minutes}:{seconds:02}", summary[:100]))
        print("  ".join(self.rows[-1][1:]), flush=True)
        return fine

    def table(self):
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        return "\n".join("  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in self.rows)


def compare(target, python, wheel, notebooks):
    """Make the environment, install the wheel, run everything there; gives the number of failures."""
    wanted, packages = TARGETS[target]
    python = python or find_python(wanted)
    has = version(python)
    if has is None:
        raise RuntimeError(f"{python} cannot make an environment: it was not found, does not run, or lacks venv")
    note = f"{target}: Python {has}"
    if not has.startswith(f"{wanted[0]}."):
        note += f" (wanted {wanted[0]}, which this machine does not have)"
    print(note, flush=True)
    folder, report = ROOT / ".compat" / target, Report()
    inside = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    had = set()

    def environment():
        run(python, "-m", "venv", "--clear", folder)
        run(inside, "-m", "pip", "install", *packages)
        had.update(frozen(inside))
        direct = {"fastcore", "tensorflow", "keras", "numpy", "matplotlib", "ipywidgets", "ipython", "ipykernel"}
        return ", ".join(sorted(line for line in had if line.partition("==")[0] in direct))

    def unchanged():
        if different := changes(had, frozen(inside)):
            raise RuntimeError(f"{len(different)} changed: {', '.join(different)}")
        return f"0 of {len(had)} packages changed"

    def install():
        run(inside, "-m", "pip", "install", wheel, env=bare(), cwd=folder)
        where = run(inside, "-c", f"import {SETTINGS['lib_path']} as package; print(package.__file__)", env=bare(), cwd=folder)
        if folder not in Path(where.strip()).parents:
            raise RuntimeError(f"the package comes from {where}, not from the wheel")
        return unchanged()

    if report.check("environment", environment) and report.check("wheel", install):
        for path in notebooks:
            with tempfile.TemporaryDirectory() as empty:
                report.check(path.stem, run_chapter, path, inside, empty)
        report.check("after the chapters", unchanged)
        with tempfile.TemporaryDirectory() as empty:
            report.check("library tests", run_tests, inside, empty)
    failures = [row for row in report.rows if row[1] == "FAILED"]
    print(f"\n{note}\n{report.table()}\n{len(failures)} of {len(report.rows)} failed" if failures else
          f"\n{note}\n{report.table()}\nAll {len(report.rows)} went well.", flush=True)
    return len(failures)


def main():
    parser = argparse.ArgumentParser(description="Run the wheel and every chapter with other people's versions.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all, in reading order")
    parser.add_argument("--python", help="the Python to use; default: the one the target asks for, where the machine has it")
    arguments = parser.parse_args()
    wheels = list((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        parser.error(f"expected one wheel in dist/, found {len(wheels)}; run `make wheel` first")
    notebooks = [path.resolve() for path in arguments.notebooks] or chapters()
    try:
        return 1 if compare(arguments.target, arguments.python, wheels[0], notebooks) else 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
