# The README's commands, and targets for developers.
PYTHON ?= python3
# Pinned versions: constraints.txt has the newest that were tested, constraints-lowest.txt the oldest (Python 3.10).
CONSTRAINTS ?= constraints.txt
# The CPU build of torch where the package index serves it under this version; see the README for CUDA.
TORCH ?= $(shell grep '^torch==' $(CONSTRAINTS))
VENV := .venv
BIN := $(VENV)/bin
# CONSTRAINTS pins every package except torch, which TORCH pins.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile \
	--constraint $(VENV)/constraints.txt
# Two workers with one thread each: the models in the tests are tiny.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
SELECTED := not slurm and not extended
# Tests start hundreds of processes, which all import the same modules: their compiled form is kept.
unexport PYTHONDONTWRITEBYTECODE
# Without an advertisement that Material for MkDocs prints at each start.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
MODEL := launcher_scripts/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: install base-model quickstart quickstart-ia3 figures test test-all run-tests test-versions lint docs docs-reference format lock

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@echo "[1/3] making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@grep -v '^torch==' $(CONSTRAINTS) > $(VENV)/constraints.txt
	@echo "[2/3] installing $(TORCH)"
	@$(PIP_INSTALL) "$(TORCH)"
	@echo "[3/3] installing nemo-adapter-launcher and its dependencies (about two minutes)"
	@$(PIP_INSTALL) --editable ".[dev]"
# pip would compile on one core; files that are templates do not compile
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

base-model: $(MODEL)

$(MODEL): | install
	@$(BIN)/python launcher_scripts/fetch_base_model.py

quickstart: install base-model
	@$(BIN)/python main.py --config-name quickstart

quickstart-ia3: install base-model
	@$(BIN)/python main.py --config-name quickstart_ia3

# Updates the README's table from the results of both quickstarts.
figures: install
	@$(BIN)/python benchmarks/quickstart_figures.py

test: install lint run-tests

# With the tests that `make test` leaves out to stay quick; CONTRIBUTING.md lists them.
test-all: SELECTED := not slurm
test-all: test

# Tests with the real base model are skipped when it cannot be fetched. Those with a Slurm mostly wait: they run beside
# the others, and their output comes last.
run-tests: install
	-@$(MAKE) --no-print-directory base-model
	@output=$$(mktemp) && trap 'rm -f "$$output"' EXIT; status=0; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/integration > "$$output" 2>&1 & slurm=$$!; \
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "$(SELECTED)" || status=$$?; \
	wait $$slurm || status=$$?; cat "$$output"; exit $$status

# The tests of what the engine computes with other versions of torch and transformers: OPTIONS=--help tells more.
test-versions:
	@$(PYTHON) -m tests.environments $(OPTIONS)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@site=$$(mktemp -d) && trap 'rm -rf "$$site"' EXIT && $(MKDOCS) build --strict --quiet --site-dir "$$site"

# The documentation at http://127.0.0.1:8000, rebuilt when a page changes.
docs: install
	@$(MKDOCS) serve

# Rewrites docs/keys.md from the schema and conf/, and the tables of docs/sizes.md from the estimate at launch.
docs-reference: install
	@$(BIN)/python docs/tools/keys.py
	@$(BIN)/python docs/tools/sizes.py
	@$(BIN)/python docs/tools/nvidia.py

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Rewrites constraints.txt from the newest versions that pyproject.toml allows.
lock:
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/pip install --quiet "$(TORCH)"
	@.venv-lock/bin/pip install --quiet ".[dev]"
	@echo '# The whole environment, as tested. Rewritten by `make lock`.' > constraints.txt
	@.venv-lock/bin/pip freeze --exclude nemo-adapter-launcher | sed 's/+cpu$$//' >> constraints.txt
	@rm -rf .venv-lock
