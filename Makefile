# The template's own verbs; a generated project has setup, demo, test and lint too. `make` alone says what there is.
.DEFAULT_GOAL := help
.PHONY: help demo new bake test lint golden soak hundred-million bench gpu record format clean named in_place uv

# uv runs everything; where it is not installed, a copy is put into .uv/. The bake, two folders down, uses the same one.
UV ?= $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
# Another project's environment is not ours.
unexport VIRTUAL_ENV

NAME := lightning-shards-demo
BAKE := build/$(NAME)
UV_THERE = $(if $(filter .uv/bin/uv,$(UV)),../../.uv/bin/uv,$(UV))
IN_BAKE = $(MAKE) --no-print-directory -C $(BAKE) UV='$(UV_THERE)'
# The tools, and the tools with the engine beside them, which the tests run in place.
RUN = "$(UV)" run --quiet
RUN_ENGINE = $(RUN) --group engine
# The processes that tests start would compile torch and Lightning anew each time, where Python may write no bytecode.
RUN_COMPILED = UV_COMPILE_BYTECODE=1 $(RUN_ENGINE)
PROJECT := {{cookiecutter.project_slug}}
OUT := ..
CODE := hooks tests tools $(wildcard benchmarks)
# How many processes share the tests; each of their files is one process's. Two more than two cores: many tests wait.
PROCESSES := 4

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: bake  ## bake a project with the default answers, train it on its sample images, report
	@trap : INT; $(IN_BAKE) demo || { status=$$?; echo "The project is in $(BAKE)/: cd there first."; exit $$status; }
	@command -v uv >/dev/null || echo "To call uv yourself: export PATH=\"$$PWD/.uv/bin:\$$PATH\""
	@echo "The project is in $(BAKE)/: cd there, or answer the questions for one of your own (README.md)."
	@echo "Its report, for a browser: $$(ls -t $(BAKE)/runs/*/report.html | head -n 1)"

# The project remembers where it came from: the clone's origin, if that has this version, else this folder.
new: | uv  ## answer the questions and get a project of your own beside this folder (or in OUT=folder)
	@out="$(OUT)"; case "$$out" in '~'|'~'/*) out="$$HOME$${out#?}";; esac; \
	export TEMPLATE_COMMIT="$$(git rev-parse --verify --quiet HEAD 2>/dev/null)" TEMPLATE_SOURCE="$$PWD"; \
	if [ -n "$$(git branch --remotes --contains HEAD 2>/dev/null)" ]; then TEMPLATE_SOURCE="$$(git remote get-url origin)"; fi; \
	$(RUN) python tools/new.py "$$out" $(ANSWERS)

bake: | uv  ## bake a project with the default answers into build/
	@$(RUN) python tools/bake.py $(BAKE)

test: | uv  ## every test: of the engine in place, of the template, and of the projects it makes
	@$(RUN_COMPILED) pytest --numprocesses $(PROCESSES)

# All that mypy looks at shares one cache, and the bake what is installed here: torch and Lightning are read once.
lint: export MYPY_CACHE_DIR = $(CURDIR)/.mypy_cache
lint: bake in_place  ## format, lint, types and who imports whom: of the template's own code, of the engine and of a bake
	@$(RUN_ENGINE) ruff format --check $(CODE) '$(PROJECT)/engine'
	@$(RUN_ENGINE) ruff check $(CODE) '$(PROJECT)/engine'
	@$(RUN_ENGINE) mypy --config-file '$(PROJECT)/engine/pyproject.toml' '$(PROJECT)/engine/src'
	@$(RUN_ENGINE) mypy --config-file '$(PROJECT)/engine/pyproject.toml' '$(PROJECT)'/engine/*.py
	@$(RUN_ENGINE) mypy $(CODE)
	@$(RUN_ENGINE) lint-imports --no-logo '$(PROJECT)/engine/pyproject.toml'
	@PYTHONPATH=src $(RUN_ENGINE) $(MAKE) --no-print-directory -C $(BAKE) UV=../../tools/installed lint

golden: in_place  ## train the short run anew whose loss curve a test compares: for a change of learning that is meant
	@PYTHONPATH=tests $(RUN_COMPILED) python -m engine.golden_run

soak: in_place  ## 100 random kills and resumes of the engine; the figures go into build/soak.json
	@PYTHONPATH=tests $(RUN_COMPILED) python -m engine.soak --chains 100 --seed 0 --json build/soak.json

hundred-million:  ## 100 million samples once through the loader, killed and resumed; build/hundred_million.json
	@$(RUN_COMPILED) python benchmarks/hundred_million.py --json build/hundred_million.json $(HUNDRED)

BENCH_ENV := build/bench
# BENCH="detection ..." and BENCH="mixture ..." are benchmarks of their own, in the template's environment.
BENCH_OWN := $(filter detection mixture,$(firstword $(BENCH)))
ifneq ($(BENCH_OWN),)
bench: in_place
	@$(RUN_COMPILED) --with scikit-image python benchmarks/$(BENCH_OWN).py --json build/$(BENCH_OWN).json $(filter-out $(BENCH_OWN),$(BENCH))
else
bench: bake $(BENCH_ENV)/ready  ## this loader beside others on the same images; BENCH="--help" says what can be chosen
	@cd $(BAKE) && ../../$(BENCH_ENV)/bin/python ../../benchmarks/loaders.py --json ../loaders.json $(BENCH)
endif

# FFCV comes as source and needs Debian's g++ pkg-config libopencv-dev libturbojpeg0-dev; without it, the rest is compared.
$(BENCH_ENV)/ready: benchmarks/requirements.txt | bake uv
	@"$(UV)" venv --quiet --clear --python 3.11 $(BENCH_ENV)
	@"$(UV)" pip install --quiet --compile-bytecode --python $(BENCH_ENV) -r $(BAKE)/pyproject.toml -r benchmarks/requirements.txt
	@"$(UV)" pip install --quiet --compile-bytecode --python $(BENCH_ENV) --no-build-isolation --no-deps ffcv || echo "FFCV could not be built" >&2
	@touch $@

# The project's own environment, with the photographs; other loaders take part where `make bench` has set them up.
PEERS = $(if $(wildcard $(BENCH_ENV)/ready),--peers ../../$(BENCH_ENV)/bin/python)
# Beside the project's own environment: for the photographs, and for the engine's tests.
GPU_NEEDS := scikit-image,cookiecutter,hypothesis,pytest-xdist,moto[server],s3fs,onnx,onnxruntime
gpu: bake  ## what only an NVIDIA GPU can tell, in under 10 minutes; GPU="--help" says what can be chosen
	@$(IN_BAKE) setup
	@cd $(BAKE) && "$(UV_THERE)" run --quiet --with '$(GPU_NEEDS)' python ../../benchmarks/gpu.py --json ../gpu.json $(PEERS) $(GPU)

# A record goes into its config's folder; the table in docs/records.md is made from all of them.
SEEDS := 0 1 2
record: named bake  ## what an accuracy costs: CONFIG=records/NAME/config.yaml with several SEEDS="0 1 2"
	@$(IN_BAKE) setup
	@config="$$(realpath "$(CONFIG)")"; extra="$$(grep -oE -m 1 'timm/|optimizer: lamb' "$$config" | sed 's/.*/--extra timm/')"; \
	cd $(BAKE) && "$(UV_THERE)" run --quiet $$extra python ../../benchmarks/record.py --config "$$config" --seeds $(SEEDS)

format: | uv  ## put the code in order: the template's own, the engine and the team's package
	@$(RUN) ruff check --fix-only --quiet $(CODE) '$(PROJECT)/engine'
	@$(RUN) ruff format $(CODE) '$(PROJECT)/engine'
	@$(RUN) ruff format --isolated --no-cache --line-length 120 --target-version py311 '$(PROJECT)/src'
	@$(RUN) python tools/how_to_index.py '$(PROJECT)/engine/docs/how-to'

clean:  ## remove environments, caches and what lies in build/; the project there stays, with its data and runs
	@rm -rf .venv .uv uv.lock .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name '$(NAME)' ! -name '$(NAME).*' -exec rm -rf {} +; fi
	@if [ -f $(BAKE)/Makefile ]; then $(IN_BAKE) clean && echo "$(BAKE) stays, with its data and runs: remove it if nobody needs it."; fi

named:
	@test -f "$(CONFIG)" || { echo "name the config: make record CONFIG=records/NAME/config.yaml" >&2; exit 2; }

in_place: | uv  # the default project as the engine's tests see it
	@$(RUN_ENGINE) python tests/engine/in_place.py

uv:  # may lie in a folder with a space, so it is no target by its own name
	@command -v "$(UV)" >/dev/null || $(MAKE) --no-print-directory .uv/bin/uv

.uv/bin/uv:
	@command -v python3 >/dev/null || { echo "python3 is missing: install Python 3.11 or newer." >&2; exit 2; }
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' \
	  || { echo "python3 is too old: install Python 3.11 or newer." >&2; exit 2; }
	@python3 -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "python3 has no venv: install it (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 2; }
	@echo "uv is not installed: putting a copy into .uv/"
	@python3 -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv \
	  || { echo "uv could not be fetched: see above, or install it by hand and run make again." >&2; exit 1; }
