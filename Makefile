# make run: set up, then the main job. make test: set up, then all tests. Both reuse .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test lint clean setup

setup: $(READY)

# uv hard-links from its cache, so that a second environment costs seconds. The stamp comes last: a set-up that was
# interrupted starts over.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vtprune needs Python 3.11 or newer; set PYTHON=python3.12, say."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	touch $(READY)

run: setup
	@mkdir -p runs
	$(BIN)/vtprune run --overlay runs/overlay.png

test: setup
	$(BIN)/python -m pytest -n auto

# The type checker reads an installed copy: it cannot follow an editable install's import hook.
lint: setup
	$(BIN)/ruff check .
	rm -rf build/typed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target build/typed .
	MYPYPATH=build/typed $(BIN)/mypy -p vtprune

clean:
	rm -rf $(VENV) build dist runs *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
