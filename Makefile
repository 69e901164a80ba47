# make run: set up, then the main job. make test: set up, then all tests. Both reuse .venv.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# uv hard-links packages from its cache: a second environment costs seconds.
INSTALL := $(PY) -m uv pip install --quiet --python $(PY)

.PHONY: run test lint clean setup

setup: $(READY)

# The stamp comes last: a set-up that was interrupted is taken up again. A .venv made by other hands is used if it
# works; one that does not (half made, too old, moved) is made anew. Packages that uv finds half written are replaced.
$(READY): pyproject.toml
	@$(PY) -c '$(NEW_ENOUGH)' 2>/dev/null || { $(PYTHON) -c '$(NEW_ENOUGH)' || \
		{ echo "vtprune needs Python 3.11 or newer: make PYTHON=python3.12, say"; exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV); }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip --upgrade
	@$(PY) -m uv --version >/dev/null 2>&1 || $(PY) -m pip install --quiet --disable-pip-version-check uv
	@echo "installing vtprune and what it needs into $(VENV): up to 6 GB the first time, mostly torch"
	@$(INSTALL) -e '.[dev]' || { echo "once more, replacing every package"; $(INSTALL) --reinstall -e '.[dev]'; }
	@touch $(READY)

run: setup
	@mkdir -p runs
	$(VENV)/bin/vtprune run --overlay runs/overlay.png

test: setup
	$(PY) -m pytest -n auto

# The type checker reads an installed copy: it cannot follow an editable install's import hook.
lint: setup
	$(PY) -m ruff check .
	rm -rf build/typed
	$(INSTALL) --no-deps --target build/typed .
	MYPYPATH=build/typed $(PY) -m mypy -p vtprune

clean:
	rm -rf $(VENV) build dist runs *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
