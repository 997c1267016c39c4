# Start with `make demo`, then `make test`. Each target installs its requirements.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
TEST_WORKERS ?= 3
APP_ARGS ?=
BIN := $(VENV)/bin
# Each worker gets consecutive tests, and takes over some of another's when it has none left.
PYTEST = $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
CHECKED := configs data_pipelines launch zse_jax tests

# Huge pages for large buffers: small networks train faster on a CPU (glibc only).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo app test test-fast lint format lock clean

help:  ## Show the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(DEV)  ## Create .venv with all requirements to run and test the project
	@echo "Installed in $(VENV). To use it: source $(BIN)/activate"

demo: $(RUNTIME)  ## Train on doodles, evaluate, write demo/report.html
	$(BIN)/python -m zse_jax.main --config=configs/demo.py --workdir=demo
	$(BIN)/python -m zse_jax.evaluate --checkpoint=demo --pictures=demo/pictures --report=demo/report.html

app: $(RUNTIME)  ## Draw and search: PHOTOS=DIR, or doodles (trains the demo first if needed)
ifdef PHOTOS
	$(BIN)/python -m zse_jax.gallery.app --photos="$(PHOTOS)" $(APP_ARGS)
else
	@test -d demo/checkpoints || $(MAKE) demo
	$(BIN)/python -m zse_jax.gallery.demo --checkpoint=demo $(APP_ARGS)
endif

test: $(DEV)  ## Run all tests
	$(PYTEST) $(PYTEST_ARGS)

test-fast: TEST_WORKERS := 2
test-fast: $(DEV)  ## Run the fast tests
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

lint: $(DEV)  ## Check style, format and types
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

format: $(DEV)  ## Format the code
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

lock: $(DEV)  ## Update the pinned requirements (LOCK_ARGS=--upgrade: newest versions)
	$(BIN)/uv pip compile --quiet --universal --no-annotate --custom-compile-command "make lock" \
	    $(LOCK_ARGS) pyproject.toml --output-file requirements.txt
	$(BIN)/uv pip compile --quiet --universal --no-annotate --custom-compile-command "make lock" \
	    $(LOCK_ARGS) --group dev --constraint requirements.txt --output-file requirements-dev.txt
	{ echo "-r requirements.txt"; cat requirements-dev.txt; } > requirements-dev.tmp
	mv requirements-dev.tmp requirements-dev.txt

clean:  ## Remove caches; keep .venv, demo/ and all workdirs
	rm -rf .cache .hypothesis build *.egg-info
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))" 2>/dev/null || { \
	    echo "zse_jax needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is not one:" \
	        "$$($(PYTHON) --version 2>&1 | head -n 1). Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)

# The package itself is installed as well, so that scripts anywhere can import it.
$(RUNTIME): requirements.txt pyproject.toml | $(BIN)/pip
	@echo "Installing requirements.txt into $(VENV): 3.2 GB on disk, which takes minutes, on a slow network"
	@echo "many. An interrupted installation is resumed by the same command."
	@$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	@echo "Installing requirements-dev.txt into $(VENV): another 0.6 GB"
	@$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@
