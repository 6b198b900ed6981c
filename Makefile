# make all: environment and the whole experiment of config.yaml. make test: environment and tests.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11) and "icprobe needs Python 3.11 or later; name one: make PYTHON=python3.12")
# nproc counts the threads that OpenMP may have instead, where these are set.
CORES ?= $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || sysctl -n hw.ncpu)
# Of `make sync` (default: demo) and `make workspace` (default: that of the configuration).
EXPERIMENT ?=
# What is laid over config.yaml, for `make workspace`.
CONFIGFILE ?=

.PHONY: all tiny paper-small install install-test test test-slow test-models test-slurm test-bounds test-lowest test-highest lint check-release dist schema docs notebook sync workspace lock bench install-bench clean clean-all

all: install
	$(BIN)/snakemake --cores $(CORES) all

# The whole DAG on a random model and a few rows.
tiny: install
	$(BIN)/snakemake --cores $(CORES) --configfile configs/tiny.yaml --quiet progress rules -- all
	test -s results/tiny/report.html

# The paper's experiment, scaled down: docs/reproduction.md. The judge is a llama.cpp server on loopback that lives as long
# as the run. DATA is a folder with alpaca/ and alpaca_eval/; configs/paper-small.yaml names ../shared/data.
DATA ?=
FILES = train: {path: $(DATA)/alpaca/alpaca_bins.jsonl}, tasks: {path: $(DATA)/alpaca/kmeans_100.json}, \
	eval: {path: ["$(DATA)/alpaca_eval/*.json"]}
PAPER_SMALL = --configfile configs/paper.yaml configs/paper-small.yaml $(if $(DATA),--config 'data={$(FILES)}')
JUDGE := resources/models/smollm2-135m-instruct-e0c7ec0a5e16.gguf

paper-small: install-test
	$(BIN)/snakemake $(JUDGE) --cores $(CORES) --quiet progress rules $(PAPER_SMALL)
	$(BIN)/python -m icprobe.evaluation.judges.server $(JUDGE) --port 8089 -- $(BIN)/snakemake --cores $(CORES) all $(PAPER_SMALL)
	cat results/paper-small/smollm2-135m-instruct/tables/win_rates.md

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt envs/icprobe.post-deploy.sh
	@echo "Installing icprobe into $(VENV): 2 to 6 minutes, most of them for PyTorch"
	test -x $(BIN)/python || { $(PYTHON) -c '$(NEW_ENOUGH)' && $(PYTHON) -m venv $(VENV); }
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -e envs/icprobe.post-deploy.sh
	touch $@

install-test: $(VENV)/.installed-test

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[slurm,executors,test]'
	touch $@

# Tests in as many processes as cores, each with one thread; a file stays in one process. Those that take longest come first
# (tests/conftest.py), which pytest-xdist would reorder by the number of their tests.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder

test: install-test
	$(TESTS) -m "not slow and not models and not slurm"

# Jobs that are killed in the middle, and the like.
test-slow: install-test
	$(TESTS) -m slow

# Every causal type of transformers, against the page that says what can be used: after a change of the engine or of
# transformers. `make test-slow` takes two of each sort.
test-models: install-test
	$(TESTS) -m "slow or models" tests/test_every_model.py

# On a real Slurm of one node, which is installed (Debian, root), started and taken away again.
test-slurm: install-test
	tests/slurm/run env OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slurm

# The tiny DAG, and tests of what leans on other libraries most, with the lowest and the highest versions of these that
# pyproject.toml allows; each in an environment of its own.
LEANING := tests/test_network.py tests/test_finetuning.py tests/test_invocations.py tests/test_modules.py
BOUNDS ?= lowest highest
UPGRADE_lowest := only-if-needed
UPGRADE_highest := eager

test-bounds: $(addprefix test-,$(BOUNDS))

test-lowest test-highest: test-%:
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	$(PYTHON) .ci/bounds.py $* > .venv-$*/bounds.txt
	.venv-$*/bin/python -m pip install --quiet --constraint .venv-$*/bounds.txt torch==2.13.0
	.venv-$*/bin/python -m pip install --quiet --constraint .venv-$*/bounds.txt --upgrade --upgrade-strategy $(UPGRADE_$*) \
		--editable '.[slurm,test]'
	.venv-$*/bin/python -m pip freeze | grep -E "^($$(sed -n '1s/^# //p' .venv-$*/bounds.txt))=="
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -m "not slow and not slurm" $(LEANING)
	PATH="$(CURDIR)/.venv-$*/bin:$$PATH" snakemake --cores $(CORES) --configfile configs/tiny.yaml --config experiment=tiny-$* \
		--forceall --quiet progress rules -- all

lint: install-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile rules workflow/Snakefile
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/hadolint Containerfile

# A release is a tag vX.Y.Z at which all files say that version; TAG=v0.2.0.
check-release:
	$(PYTHON) .ci/check_release.py "$(TAG)"

# The wheel and the source archive, in dist/.
dist:
	$(PYTHON) -m venv build/packaging
	build/packaging/bin/pip install --quiet --constraint constraints.txt build
	rm -rf dist
	build/packaging/bin/python -m build

# The JSON schema and docs/configuration.md, from the models in src/icprobe/config/sections.py and sources.py.
schema: install
	$(BIN)/python -m icprobe.config.schema

# The pages as a site in build/site, which needs no network; links that lead nowhere are errors.
DOCS := .venv-docs

docs: $(DOCS)/.installed
	$(DOCS)/bin/python docs/build_site.py

$(DOCS)/.installed: pyproject.toml
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], \
		sep="\n")' > $(DOCS)/requirements.txt
	$(DOCS)/bin/pip install --quiet --requirement $(DOCS)/requirements.txt
	touch $@

sync: install
	$(BIN)/python -m icprobe.tracking.syncing sync results/$(or $(EXPERIMENT),demo)

workspace: install
	$(BIN)/python -m icprobe.tracking.syncing workspace --configfile config.yaml $(CONFIGFILE) \
		$(if $(EXPERIMENT),--experiment $(EXPERIMENT))

# docs/notebooks/first-look.ipynb, executed again in its place; SmolLM2 is prepared in ~/.cache/icprobe the first time.
notebook: install
	$(BIN)/pip install --quiet --editable '.[notebook]'
	$(BIN)/python docs/notebooks/execute.py

lock:
	$(BIN)/pip freeze --exclude-editable | sed 's/ @ .*//; s/+cpu$$//' | grep -viE '^(nvidia|triton)' > constraints.txt
	digest=$$($(BIN)/python -c 'import hashlib; print(hashlib.sha256(open("constraints.txt", "rb").read()).hexdigest())') && \
		sed "s/^# constraints.txt: .*/# constraints.txt: $$digest/" envs/icprobe.yaml > envs/.new && mv envs/.new envs/icprobe.yaml

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

# What no computation brings back stays: judges' answers, which were paid for, and W&B runs, which may not be uploaded.
clean:
	@if ls -d results/*/.cache results/*/wandb 2>/dev/null; then echo 'These stay: answers of judges, trainings of the retrain bank, W&B runs. (A run uploads' \
		'files from their places: `make sync` before `make clean`.) `make clean-all` removes them, too.'; fi
	test ! -d results || find results -mindepth 2 -maxdepth 2 ! -name .cache ! -name wandb -exec rm -rf {} +
	rm -rf logs resources/models .snakemake

clean-all:
	rm -rf results logs resources/models .snakemake
