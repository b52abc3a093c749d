# `make` alone lists what there is. Everything runs in .venv, which the first call makes.
SHELL := /bin/sh
PY := .venv/bin/python
QUICK := $(addprefix tests/test_,style.py checks.py quantization.py results.py callbacks.py plotting.py)
SPREAD := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -q --durations=15
export TF_CPP_MIN_LOG_LEVEL ?= 2
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help book serve check test test-all test-colab test-oldest test-newest test-backends links reproduce study bench export wheel clean moved

help:
	@echo 'make book         build the book from the committed outputs (and its PDF, where there is a Chromium), and say where to open it'
	@echo 'make serve        build the book and serve it on a free port of this machine'
	@echo 'make check        a first look, within a minute: lint, outputs older than their code, style, and the fastest tests'
	@echo 'make test         run every cell of every notebook (small budget), and the tests'
	@echo 'make test-all     the same with what is slow, all combinations, and every page of the site at three widths in both themes'
	@echo 'make test-colab   run the wheel, every chapter and the library tests with the versions of Google Colab'
	@echo 'make test-oldest  the same with the oldest versions that settings.ini allows, on the oldest Python there is'
	@echo 'make test-newest  the same with the newest versions'
	@echo 'make test-backends  run chapters and library tests on TensorFlow, JAX and PyTorch (BACKENDS=jax,torch chooses; half an hour)'
	@echo 'make links        ask for every address that the book links to (wants the internet)'
	@echo 'make reproduce    run every chapter at full size and keep outputs and weights (hours; goes on where it was stopped)'
	@echo 'make study        train models over K and D, priors over the same codes, and quantizers at equal bits (hours; goes on where it was stopped)'
	@echo 'make bench        measure time, memory and quality beside others, for the page "How it compares" (hours, most of them for the time to quality)'
	@echo 'make export       write the package from the notebooks, and clean the notebooks'
	@echo 'make wheel        build the pip package into dist/'
	@echo 'make clean        remove what was built (not .venv, fetched scripts, or stopped runs)'
	@echo 'The first call installs into .venv; PYTHON=… chooses the Python for that (python3 otherwise).'

# The environment follows the files that say what is in it, and the folder it was made in.
ifneq ($(shell cat .venv/installed 2>/dev/null),$(shell pwd))
.venv/installed: moved
endif
.venv/installed: settings.ini setup.py pyproject.toml
	@sh book/setup.sh $(if $(PYTHON),"$(PYTHON)")

book: .venv/installed
	@$(PY) book/build.py

serve: .venv/installed
	@$(PY) book/build.py --serve

check: .venv/installed
	@$(PY) -m ruff check .
	@$(PY) book/reproduce.py --check
	@$(PY) -m pytest $(SPREAD) $(QUICK)

test test-all: .venv/installed
	@status=0; \
	$(PY) -c 'from nbdev.test import nbdev_test; nbdev_test(do_print=True, timing=True)' || status=1; \
	$(PY) book/build.py || status=1; \
	$(PY) -m pytest $(SPREAD) $(if $(filter test-all,$@),--all) $(PYTEST) || status=1; \
	exit $$status

test-colab test-oldest test-newest: wheel
	@$(PY) tests/compat.py $(@:test-%=%) $(if $(PYTHON),--python "$(PYTHON)")

test-backends: .venv/installed
	@$(PY) tests/backends.py $(if $(BACKENDS),--only $(BACKENDS)) $(if $(TORCH),--torch "$(TORCH)") $(PYTEST)

links: .venv/installed
	@$(PY) -c 'from jupyter_book.cli.main import main; main()' build . --builder linkcheck --path-output _build/links -q

reproduce: .venv/installed
	@$(PY) book/reproduce.py

study: .venv/installed
	@$(PY) benchmarks/grid.py
	@$(PY) benchmarks/rate_distortion.py --published
	@$(PY) benchmarks/priors.py
	@$(PY) benchmarks/prior_ablation.py
	@$(PY) benchmarks/equal_bits.py
	@$(PY) benchmarks/equal_bits.py --large

bench: .venv/installed
	@for name in quantizer prior sampling limit time_to_quality playground; do $(PY) benchmarks/$$name.py || exit 1; done
	@$(PY) benchmarks/quantizer.py --kinds

export: .venv/installed
	@$(PY) -c 'from nbdev.doclinks import nbdev_export; nbdev_export()'
	@$(PY) -c 'from nbdev.clean import nbdev_clean; nbdev_clean()'

wheel: .venv/installed
	@rm -rf build dist
	@$(PY) -m build --wheel --no-isolation --outdir dist . >/dev/null
	@ls -l dist

clean:
	rm -rf _build build dist .compat *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
