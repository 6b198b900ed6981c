# make all: environment and the whole experiment of config.yaml. make test: environment and tests.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
EXPERIMENT ?= demo

.PHONY: all paper-small install install-test test test-slow test-slurm lint schema sync workspace lock bench install-bench clean

all: install
	$(BIN)/snakemake --cores $(CORES) all

# The paper's experiment, scaled down: docs/reproduction.md. The judge is a llama.cpp server on loopback that lives as long
# as the run. DATA is a folder with alpaca/ and alpaca_eval/; configs/paper-small.yaml names ../shared/data.
DATA ?=
FILES = train: {path: $(DATA)/alpaca/alpaca_bins.jsonl}, tasks: {path: $(DATA)/alpaca/kmeans_100.json}, \
	eval: {path: ["$(DATA)/alpaca_eval/*.json"]}
PAPER_SMALL = --configfile configs/paper.yaml configs/paper-small.yaml $(if $(DATA),--config 'data={$(FILES)}')
JUDGE := resources/models/smollm2-135m-instruct-e0c7ec0a5e16.gguf

paper-small: install-test
	$(BIN)/snakemake $(JUDGE) --cores $(CORES) --quiet progress rules $(PAPER_SMALL)
	$(BIN)/python -m icprobe.llama_server $(JUDGE) --port 8089 -- $(BIN)/snakemake --cores $(CORES) all $(PAPER_SMALL)
	cat results/paper-small/smollm2-135m-instruct/tables/win_rates.md

install: $(VENV)/.installed

# PyTorch first and pinned: pip then takes a CPU build where one is offered (an index or a --find-links folder of yours)
# and nothing later replaces it.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[slurm]'
	touch $@

install-test: $(VENV)/.installed-test

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[slurm,executors,test]'
	touch $@

# Tests in as many processes as cores, each with one thread; a file stays in one process.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile

test: install-test
	$(TESTS) -m "not slow and not slurm"

# Jobs that are killed in the middle, and the like.
test-slow: install-test
	$(TESTS) -m slow

# On a real Slurm of one node, which is installed (Debian, root), started and taken away again.
test-slurm: install-test
	tests/slurm/run env OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slurm

lint: install-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/lint-imports

# The JSON schema and docs/configuration.md, from the models in src/icprobe/sections.py and sources.py.
schema: install
	$(BIN)/python -m icprobe.schema

sync: install
	$(BIN)/python -m icprobe.syncing sync results/$(EXPERIMENT)

workspace: install
	$(BIN)/python -m icprobe.syncing workspace --experiment $(EXPERIMENT)

lock:
	$(BIN)/pip freeze --exclude-editable | sed 's/ @ .*//; s/+cpu$$//' | grep -viE '^(nvidia|triton)' > constraints.txt

# Side by side with the peers, in an environment of their own: they come without their requirements, some of which would
# replace PyTorch. ARGUMENTS="--only icp --repeats 5" and the like; `--list` names the comparisons.
BENCH := .venv-bench
ARGUMENTS ?=

bench: install-bench
	$(BENCH)/bin/python -m benchmarks.run $(ARGUMENTS)

install-bench: $(BENCH)/.installed

$(BENCH)/.installed: benchmarks/peers.txt benchmarks/requirements.txt pyproject.toml constraints.txt
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BENCH)/bin/pip install --quiet --constraint constraints.txt torch==2.13.0 --requirement benchmarks/requirements.txt
	$(BENCH)/bin/pip install --quiet --no-deps --requirement benchmarks/peers.txt
	$(BENCH)/bin/pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf results logs resources/models .snakemake
