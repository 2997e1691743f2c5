# `make` alone prints the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup setup-cross native-macos launcher dist formula resolve floors run test parity clients home-assistant lab bench pictures sim fuzz attack chaos each-fault crowd clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST) | sort

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) launchd/supported.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Where there is no compiler this says so, and every step is safe.
$(BIN)/.native: $(BIN)/.installed $(wildcard engine/exoengine/native/*.py engine/exoengine/native/*.cpp engine/exoengine/native/*.h)
	@$(BIN)/python -m exoengine.native build --cache engine/exoengine/native/prebuilt || true
	@touch $@

# A package that went missing since is not seen by the stamp alone.
.PHONY: complete
complete: $(BIN)/.installed
	@$(BIN)/python -P -m exoengine.installed || { rm -f $(BIN)/.installed && $(MAKE) --no-print-directory $(BIN)/.installed; }

setup: complete $(BIN)/.native ## create .venv, install everything into it, build the native group

setup-cross: setup ## also what cross-compiles for macOS and checks the result (ziglang, lief)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,cross]'

launcher: setup-cross ## cross-compile the launcher of exod.app; the same source gives the same bytes
	$(BIN)/python -m launchd.app.build

dist: setup ## build the wheel and the sdist into dist/
	$(BIN)/python -m hatchling build

formula: dist ## a Homebrew formula of the sdist, dist/exod.rb (brew style was not run on it)
	$(BIN)/python -m launchd.formula dist/exod-*.tar.gz >dist/exod.rb

native-macos: setup-cross ## build the native group against MLX's macOS wheel and check its symbols there
	$(BIN)/python -m tests.engine.native.macos build/native-macos

resolve: setup-cross ## resolve all dependencies for macOS 14, 15, 26 and Python 3.11 to 3.14, wheels only
	$(BIN)/python -m tests.platform.mac.resolve

# Without what uses few of the dependencies and takes longest: lab and simulation (ours alone), and engine/generate
# (MLX and mlx-lm, whose floors are the versions that `make test` pins).
floors: setup-cross ## the test suite with the oldest versions that pyproject.toml allows, without lab, sim, generate
	rm -rf build/floors
	mkdir -p build
	$(BIN)/python -m venv build/floors
	$(BIN)/uv pip install --quiet --python build/floors/bin/python --resolution lowest-direct --editable '.[dev,cross]'
	build/floors/bin/pytest --ignore=tests/lab --ignore=tests/sim --ignore=tests/engine/generate

run: setup ## one node in the foreground, with the demo model and an MQTT broker
	@exec $(BIN)/python -P -m exod run --demo

test: setup ## ruff, mypy --strict and the test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
# On Linux, and beside it for the names that Python has on Linux alone.
	$(BIN)/mypy --platform darwin --no-warn-unreachable --cache-dir .mypy_cache/darwin & mac=$$!; \
		$(BIN)/mypy; here=$$?; wait $$mac && exit $$here
# Two workers; tests/conftest.py says which files run beside which.
	$(BIN)/pytest -n 2

home-assistant: setup-cross ## Home Assistant in build/home-assistant, whose own schemas judge what MQTT publishes for it
	$(PYTHON) -m venv build/home-assistant
	$(BIN)/uv pip install --quiet --python build/home-assistant/bin/python homeassistant==2024.3.3 paho-mqtt==1.6.1

pictures: setup ## (Linux, root) the pictures of the manual, from the pages of real nodes in the lab: docs/pictures
	$(BIN)/python -m tests.pictures

parity: setup ## every architecture that mlx-lm can divide, as a tensor group of two ranks, of four, and two by two
	PARITY=all $(BIN)/pytest tests/engine/model/test_tensor_architectures.py

clients: setup-cross ## other projects' clients in build/clients, which tests/clients runs unmodified
	$(PYTHON) -m venv build/clients
	$(BIN)/uv pip install --quiet --python build/clients/bin/python --requirement tests/clients/requirements.txt

lab: setup ## (Linux, root) two hosts in network namespaces, with a live status view
	@exec $(BIN)/python -m tests.lab

bench: setup ## benchmarks: ratios measured side by side in one run
	$(BIN)/python -m tests.bench

sim: setup ## 10,000 simulated scenarios of the mesh, 10,000 with the engine, and 1,000 each with faults that stay
	$(BIN)/python -m tests.sim --scenarios 10000
	$(BIN)/python -m tests.sim --joint --scenarios 10000
	$(BIN)/python -m tests.sim --fixed --scenarios 1000
	$(BIN)/python -m tests.sim --joint --fixed --scenarios 1000

fuzz: setup ## a million mutated inputs to everything that reads strangers' bytes: make fuzz INPUTS=1000000 SEED=1
	$(BIN)/python -m tests.fuzz $(if $(INPUTS),--inputs $(INPUTS)) $(if $(SEED),--seed $(SEED))

attack: setup ## a node of this machine under a mixed attack while two clients stream: make attack MINUTES=10
	$(BIN)/python -m tests.attack $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

chaos: setup ## (Linux, root) random faults over running answers: make chaos FAULTS=200 MINUTES=30 SEED=1 PARALLEL=tensor
	$(BIN)/python -m tests.lab.chaos $(if $(FAULTS),--faults $(FAULTS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(PARALLEL),--parallel $(PARALLEL))

each-fault: setup ## (Linux, root) every fault once, each over a running answer: make each-fault PARALLEL=tensor TRANSPORT=tcp
	$(BIN)/python -m tests.lab.each_fault $(if $(PARALLEL),--parallel $(PARALLEL)) $(if $(TRANSPORT),--transport $(TRANSPORT))

crowd: setup ## (Linux, root) 64 clients with 500 requests of all kinds while things break: make crowd FAULTS=30 SEED=1
	$(BIN)/python -m tests.lab.crowd $(if $(FAULTS),--faults $(FAULTS)) $(if $(SEED),--seed $(SEED))

clean: ## remove .venv and caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis

include mlx_patches/checks.mk
