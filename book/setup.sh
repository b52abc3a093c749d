#!/bin/sh
# Make .venv with everything the book and the tests need: `sh book/setup.sh [python]`. Run it again after an interruption.
set -eu
cd "$(dirname "$0")/.."

setting() { sed -n "s/^$1 *= *//p" settings.ini; }
min=$(setting min_python) max=$(setting max_python)
need="Python $min to $max with venv"
help="Install it (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@$max), or name one: make PYTHON=/path/to/python3 …"

# What keeps a command from being the Python we need; nothing when it will do.
fault() {
  command -v "$1" >/dev/null 2>&1 || { echo "$1 was not found"; return; }
  "$1" - "$min" "$max" <<'PYTHON' 2>/dev/null || echo "$1 does not run"
import sys
low, high = [[int(part) for part in text.split(".")] for text in sys.argv[1:]]
here, name = list(sys.version_info[:2]), "%s (Python %s)" % (sys.executable, sys.version.split()[0])
if here < low:
    print(name + " is too old")
elif here > high:
    print(name + " is newer than the book's tools and TensorFlow were tried with")
else:
    try:
        import ensurepip, venv
    except ImportError as error:
        print("%s lacks the module %s (on Debian and Ubuntu: apt install python%d.%d-venv)" % (name, error.name, here[0], here[1]))
PYTHON
}

python=${1:-python3}
why=$(fault "$python")
if [ -n "$why" ] && [ $# -eq 0 ]; then
  for other in python3.13 python3.12 python3.11 python3.10; do
    if [ -z "$(fault "$other")" ]; then python=$other why=; break; fi
  done
fi
if [ -n "$why" ]; then
  echo "The book needs $need, but $why." >&2
  echo "$help" >&2
  exit 1
fi

stamp=.venv/installed
rm -f "$stamp"
if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || [ -n "$(fault .venv/bin/python)" ]; then
  echo "Making .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv
fi
echo "Installing the package and its tools into .venv (a few minutes, once)"
.venv/bin/python -m pip install --disable-pip-version-check --editable '.[dev]' >.venv/install.log 2>&1 || {
  cat .venv/install.log >&2
  echo "The installation stopped. With a network, the same command continues it." >&2
  exit 1
}
pwd > "$stamp"
