# Everything a person or CI runs. `make` alone says what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# For `make test`, `make sim` and `make demo`: what else to pass on, e.g. TEST_ARGS="-k fence".
TEST_ARGS ?=
TEST_WORKERS ?= 3
DEMO_ARGS ?=
BENCH_ARGS ?=
SIM_ARGS ?=
SEEDS ?= 2000
FIRST_SEED ?= 1
CHAOS_ARGS ?=
# How often `make chaos` loses a region and wins it back: 20 to 60 s each. CYCLES=0 leaves it out.
CYCLES ?= 100
CYCLES_SEED ?= 0

# What mypy checks: every top-level package there is.
PACKAGES := $(patsubst %/__init__.py,%,$(wildcard $(addsuffix /__init__.py,\
	meshkit fencing replicator coordinator cli chaos bench scripts)))
PROTOS := $(wildcard meshkit/store/etcd_pb/*.proto replicator/wire/*.proto)

.DEFAULT_GOAL := help
.PHONY: help venv demo test check format bench sim sim-seeds chaos proto docs figures golden lock clean

help: ## Say what there is.
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(INSTALLED) ## Make .venv with MeshKit and everything to develop it, at pinned versions.

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: venv ## Three regions, live writes, a planned failover and back. Under a minute.
	$(BIN)/mesh demo $(DEMO_ARGS)

# Most tests wait for leases and processes most of their time, so files run beside each other; whole
# meshes of real processes run alone, since what they claim holds only while processes get their time.
test: venv ## Unit, model, contract and integration tests; says what was skipped and why.
	$(BIN)/python -m pytest -ra -m "not chaos and not e2e" -n $(TEST_WORKERS) --dist loadfile $(TEST_ARGS)
	$(BIN)/python -m pytest -ra --durations=12 -m "e2e and not chaos" $(TEST_ARGS) || [ $$? -eq 5 ]

check: venv ## What CI runs before the tests: format, lint, types, layers, tidiness, documents.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_tidy.py tests/test_docs.py tests/test_commands.py tests/meshkit/test_golden.py

format: venv ## Format the code and apply the fixes that are safe.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: venv ## Run the benchmarks; they print ratios against a peer or a measured ceiling.
	@test -f bench/__main__.py || { echo "bench: there are no benchmarks yet"; exit 1; }
	$(BIN)/python -m bench $(BENCH_ARGS)

sim: sim-seeds ## The whole mesh in virtual time, SEEDS=2000 FIRST_SEED=1; then seeded random programs.
	MESH_PROGRAMS=5000 $(BIN)/python -m pytest -ra tests/model tests/mesh tests/replicator/test_streams_random.py \
		tests/replicator/test_thousand_programs.py \
		tests/fencing/test_chain.py $(SIM_ARGS)

# What CI runs of it: of the other half `make test` runs 1,000 programs.
sim-seeds: venv
	$(BIN)/python -m chaos.sim --seeds $(SEEDS) --first-seed $(FIRST_SEED)

chaos: venv ## Kill real processes at every step boundary and judge histories; CYCLES=100 lost regions.
	MESH_CYCLES=$(CYCLES) MESH_CYCLES_SEED=$(CYCLES_SEED) $(BIN)/python -m pytest -ra -m chaos $(CHAOS_ARGS)

proto: venv ## Generate the protobuf modules from the .proto files beside them.
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. $(PROTOS)

docs: venv ## Generate docs/keyspace.md, docs/cli.md and whatever else code can say itself.
	$(BIN)/python -m scripts.generate_docs
	$(BIN)/python -m coordinator.failover.diagram planned/1 > docs/machines/planned.md
	$(BIN)/python -m coordinator.failover.diagram emergency/1 > docs/machines/emergency.md
	$(BIN)/python -m coordinator.rejoin.diagram > docs/machines/rejoin.md

figures: venv ## Draw docs/figures/*.svg and write docs/benchmarks.md from what `make bench` last wrote.
	$(BIN)/python -m bench.page

golden: venv ## Write a golden sample for each stored record; review the difference.
	$(BIN)/python -m scripts.golden --write

lock: venv ## Pin what .venv holds now into constraints.txt.
	$(BIN)/python -m scripts.lock

clean: ## Remove what was built; .venv stays.
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
