# make demo, make test: each makes its own virtual environment first. Works with GNU make 3.81, which is what macOS has.

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PLATFORM := $(shell uname -s | sed 's/Linux/linux/; s/Darwin/macos/')-$(shell uname -m)
LOCK := $(wildcard locks/$(PLATFORM).txt)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

DEMO_DATA ?= examples/data/instructions.jsonl
DEMO_OUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
DEMO_TRAIN_OUT ?= runs/demo-train-$(shell date +%Y%m%d-%H%M%S)
DEMO_TRAIN_HOSTFILE ?= hostfiles/local.json
DIAGNOSIS_OUT ?= runs/diagnosis
DEMO_WORKFLOW_OUT ?= runs/demo-workflow-$(shell date +%Y%m%d-%H%M%S)
SLOW := cluster or testbed
LONGEST := tests/launcher $(patsubst %,tests/cluster/test_%.py,contract faults workflow train_faults) tests/testbed
BENCHMARKS ?= scoring_speed generate_speed noop_throughput coordinator_memory resume_million store_rows state_parts train_one_node \
  train_state_overhead train_recovery train_two_hosts gate_errors verifier_quality retrieval_quality cluster_efficiency

.PHONY: help setup demo demo-train demo-workflow demo-antihallucination test check format protos locks bench bench-diagnosis soak clean

help:
	@echo "make demo        score examples/data with two nodes on this machine; ends with a report"
	@echo "make demo-train  fine-tune on two nodes of this machine, kill a rank on the way; ends with a report"
	@echo "make demo-workflow  take a tiny model through source attribution: seven stages, their gates, a report"
	@echo "make demo-antihallucination  the same through anti-hallucination"
	@echo "make test        every test but the long ones"
	@echo "make check       format, lint, types, import contracts"
	@echo "make soak        the long tests"
	@echo "make bench       the figures of benchmarks/README.md"
	@echo "make bench-diagnosis  faults put into workflows on unseen seeds, diagnosed; some twenty minutes, goes on where it stopped"
	@echo "make protos      generate realign_cluster/rpc/pb from proto/"
	@echo "make locks       resolve locks/*.txt again from pyproject.toml"
	@echo "make clean       remove the virtual environment and caches (never runs/)"

# One environment, made again when the lock or pyproject.toml is newer than it.
setup: $(READY)
	@.ci/openblas

$(READY): pyproject.toml $(LOCK)
	@python=$$(.ci/find-python $(PYTHON)) || exit 1; \
	echo "setup: $$python -> $(VENV)"; \
	"$$python" -m venv --clear $(VENV)
	@echo "setup: installing; the first time this takes a few minutes"
ifeq ($(LOCK),)
	@echo "setup: no lock for $(PLATFORM) in locks/: installing by the ranges of pyproject.toml"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
else
	$(BIN)/python -m pip install --quiet --require-hashes --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
endif
	@touch $(READY)

demo: setup
	$(BIN)/realign-launch --hostfile hostfiles/local.json curate $(DEMO_DATA) \
	  --model examples/tiny-model --score loglik,ifd --keep-if 'scores.ifd.value < 1' --out $(DEMO_OUT)
	@echo
	@echo "Report: $(CURDIR)/$(DEMO_OUT)/report.html"

# About a minute. A rank is killed as kill -9 does; checks that the run went on as if nothing had happened.
demo-train: setup
	$(BIN)/python examples/train_with_a_kill.py --hostfile $(DEMO_TRAIN_HOSTFILE) --out $(DEMO_TRAIN_OUT)

# Some minutes each: really trained on two nodes, judged on entities that no training has seen.
demo-workflow: setup
	$(BIN)/python examples/workflow_demo.py source-attribution --out $(DEMO_WORKFLOW_OUT)

demo-antihallucination: setup
	$(BIN)/python examples/workflow_demo.py antihallucination --out $(DEMO_WORKFLOW_OUT)

# The tests with real daemons mostly wait; each file keeps its own cluster or test bed, so whole files run side by side,
# those that take longest first.
test: setup
	$(BIN)/python -m pytest -q -n 2 -m "not soak and not ($(SLOW))"
	$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder -m "not soak and ($(SLOW))" $(LONGEST) tests

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: setup
	$(BIN)/python -m grpc_tools.protoc -Irealign_cluster/rpc/pb=proto \
	  --python_out=. --pyi_out=. --grpc_python_out=. proto/*.proto

bench: setup
	@for bench in $(BENCHMARKS); do echo "== $$bench"; $(BIN)/python benchmarks/$$bench.py || exit 1; done

bench-diagnosis: setup
	mkdir -p $(DIAGNOSIS_OUT)
	$(BIN)/python benchmarks/diagnosis.py --base $(DIAGNOSIS_OUT)/base --out $(DIAGNOSIS_OUT)/rows.jsonl

soak: setup
	$(BIN)/python -m pytest -m soak --timeout 7200

locks:
	.ci/locks

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
