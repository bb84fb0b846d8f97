# Treasurer. `make` lists the commands. Needs Python >= 3.11 and make, nothing else.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The Python versions that the lock files were tested with come first.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python3.14 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

UV      := .venv-tools/bin/uv
BIN     := .venv/bin
ARGS    ?=
STAMPS  := .stamps

# An environment is installed again when the content of its lock file changes, not when its date does.
digest = $(shell cat $(1) | cksum | tr ' ' '-')
TOOLS_STAMP := $(STAMPS)/tools-$(call digest,requirements/bootstrap.txt)
APP_STAMP   := $(STAMPS)/app-$(call digest,requirements/app.txt pyproject.toml)
DEV_STAMP   := $(STAMPS)/dev-$(call digest,requirements/dev.txt pyproject.toml)
PROXY_STAMP := $(STAMPS)/proxy-$(call digest,requirements/proxy.txt)
# If the tools for development are installed, keep them: `make up` after `make test` must not remove them.
READY_STAMP := $(if $(wildcard $(DEV_STAMP)),$(DEV_STAMP),$(APP_STAMP))

.PHONY: help setup setup-dev demo up test test-quick check format bench overspend overspend-peers chaos lock clean python

help: ## print this
	@echo "Treasurer: the LLM gateway that cannot overspend."
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "More commands: .venv/bin/treasurer --help"

setup: $(READY_STAMP) $(PROXY_STAMP) ## install what is needed (the other commands do it automatically)

setup-dev: $(DEV_STAMP) $(PROXY_STAMP)

demo: setup ## show Treasurer at work: start, spend, be refused, report, stop
	@$(BIN)/treasurer demo $(ARGS)

up: setup ## start everything and stay until Ctrl-C
	@$(BIN)/treasurer up $(ARGS)

test: setup-dev ## run the tests, the quick ones first (ARGS=… goes to pytest; ARGS="-n 0 …": in one process)
	@$(BIN)/python -m pytest -n 3 $(FILE_BY_FILE) $(ARGS)
# Processes, each with separate servers, run one test file at a time, in order. On two cores there are three of them,
# because tests that start servers spend most of their time waiting, and two for the others, which do not wait.
FILE_BY_FILE := --dist loadfile --no-loadscope-reorder

test-quick: setup-dev ## run the tests that start no server, in a minute
	@$(BIN)/python -m pytest -n 2 $(FILE_BY_FILE) -m "not servers" --hypothesis-profile=quick $(NO_SERVERS) $(ARGS)
# In these folders every test starts a server, so they are not even imported.
NO_SERVERS := $(addprefix --ignore=tests/,integration chaos evals)

check: setup-dev ## format, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/basedpyright

format: setup-dev ## format the code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

bench: setup-dev ## measure Treasurer, each figure beside an alternative
	@$(BIN)/python -m benchmarks $(ARGS)

overspend: setup ## try to make a gateway overspend (ARGS="--adapter litellm": another gateway)
	@$(BIN)/python -m benchmarks.overspend $(ARGS)

#: Gateways of other people, which the overspend test compares.
PEERS := ferrogw mlflow
overspend-peers: $(TOOLS_STAMP) $(PEERS:%=.venv-%/.ready) ## install the other gateways of the overspend test (ARGS="--adapter ferrogw", mlflow)
.venv-%/.ready: requirements/%.txt $(TOOLS_STAMP)
	@echo "Installing $* into a separate environment (.venv-$*) …"
	@test -x .venv-$*/bin/python || $(UV) venv -q --python $(PYTHON) .venv-$*
	@$(UV) pip sync -q --python .venv-$*/bin/python --require-hashes $<
	@touch $@

chaos: setup-dev ## kill, pause and cut every part in turn, under load; twelve minutes (ARGS="--seed 1 --only Redis")
	@$(BIN)/python -m tests.chaos $(ARGS)

lock: $(TOOLS_STAMP) ## resolve the lock files anew (ARGS=--upgrade for newer versions)
	@$(UV) pip compile -q $(LOCK) $(ARGS) requirements/bootstrap.in -o requirements/bootstrap.txt
	@$(UV) pip compile -q $(LOCK) $(ARGS) pyproject.toml requirements/app.in --group dev -o requirements/dev.txt
	@$(UV) pip compile -q $(LOCK) $(ARGS) pyproject.toml requirements/app.in -c requirements/dev.txt -o requirements/app.txt
	@$(UV) pip compile -q $(LOCK) $(ARGS) requirements/proxy.in -o requirements/proxy.txt
	@for peer in $(PEERS); do $(UV) pip compile -q $(LOCK) $(ARGS) requirements/$$peer.in -o requirements/$$peer.txt; done
LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url

clean: ## remove environments and caches (the data in .treasurer stays)
	rm -rf .venv .venv-proxy .venv-tools $(PEERS:%=.venv-%) .stamps .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

python:
	@test -n "$(PYTHON)" || { echo "Treasurer needs Python 3.11 or newer, and there is none on the PATH." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Treasurer needs Python 3.11 or newer; $(PYTHON) is older." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }

$(TOOLS_STAMP): | python
	@echo "Installing uv …"
	@$(PYTHON) -m venv --clear .venv-tools
	@.venv-tools/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@mkdir -p $(STAMPS) && rm -f $(STAMPS)/tools-* && touch $@

$(APP_STAMP): $(TOOLS_STAMP)
	$(call fill_app,requirements/app.txt)
	@rm -f $(STAMPS)/app-* $(STAMPS)/dev-* && touch $@

$(DEV_STAMP): $(TOOLS_STAMP)
	$(call fill_app,requirements/dev.txt)
	@echo "Compiling it to byte code, because the tests start hundreds of processes …"
	@$(BIN)/python -m compileall -q -j 0 .venv/lib || true
	@rm -f $(STAMPS)/app-* $(STAMPS)/dev-* && touch $@ $(APP_STAMP)

$(PROXY_STAMP): $(TOOLS_STAMP)
	@echo "Installing LiteLLM Proxy into a separate environment (.venv-proxy) …"
	@test -x .venv-proxy/bin/python || $(UV) venv -q --python $(PYTHON) .venv-proxy
	@$(UV) pip sync --python .venv-proxy/bin/python --require-hashes requirements/proxy.txt
	@echo "Compiling it to byte code, so that it starts and runs faster …"
	@.venv-proxy/bin/python -m compileall -q -j 0 .venv-proxy/lib || true
	@rm -f $(STAMPS)/proxy-* && touch $@

define fill_app
@echo "Installing Treasurer (.venv) …"
@test -x .venv/bin/python || $(UV) venv -q --python $(PYTHON) .venv
@$(UV) pip sync --python .venv/bin/python --require-hashes $(1)
@$(UV) pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
endef
