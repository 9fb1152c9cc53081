# All tasks of developers and CI, in a new clone, with only Python 3.11-3.13 and make: no root, no account.
# `make` lists the targets. This file also works with GNU make 3.81, which macOS ships.

# `make PYTHON=/path/to/python3.12` selects an interpreter, VENV=/big/disk/venv another folder for the environment.
VENV ?= .venv
DEMO_JOB := examples/demo.yaml
DEMO_OUTPUT := runs/demo

# All tests of a file run in the same process. PARALLEL= runs all files in one process.
PARALLEL ?= --numprocesses=auto --maxprocesses=4 --dist=loadfile

BIN := $(VENV)/bin
READY := $(VENV)/.tailorpo-ready
UV_VERSIONS := uv>=0.9,<1

export UV_PROJECT_ENVIRONMENT := $(VENV)
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-cluster test soak lint format generate bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## Install the locked packages into .venv; does nothing while the lock stays the same

demo: $(READY) ## Align the shipped model on this machine, then show the report
	$(BIN)/tailorpo run $(DEMO_JOB) --output $(DEMO_OUTPUT)
	@sh -euc "$$SHOW" show "$(CURDIR)/$(DEMO_OUTPUT)/report.html"

demo-cluster: $(READY) ## The same on a Kubernetes cluster of this machine, with the chart, S3 and Prometheus; REAL=1 as root: in containers
	$(BIN)/python -m tools.demo_cluster $(if $(REAL),--real) $(DEMO_ARGS)
	@sh -euc "$$SHOW" show "$(CURDIR)/runs/demo-cluster/index.html"

# Taken from make's command line only, never from the environment, so that no test uses a developer's own cluster.
ifeq ($(origin KUBECONFIG),command line)
export TAILORPO_TEST_KUBECONFIG := $(KUBECONFIG)
endif

test: $(READY) ## Run all tests except the long ones; T="tests/trainer/spec -k label" passes arguments to pytest
	$(BIN)/pytest $(if $(T),,$(PARALLEL)) $(PYTEST_ARGS) $(T)

soak: $(READY) ## Run only the long tests
	$(BIN)/pytest -m soak $(PYTEST_ARGS) $(T)

lint: $(READY) ## Check style, types and that folders import downward only
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

generate: $(READY) ## Generate files from the models: the definition, the dashboards, the chart, manifests and pages; builds Helm once
	$(BIN)/python -m tailorpo_trainer.document.reference > docs/reference.md
	$(BIN)/python -m tools.reason_tables
	$(BIN)/python -m tools.dashboards
	$(BIN)/python -m tools.rule_tables
	$(BIN)/python -m tools.chart

bench: $(READY) ## Measure the loop against a plain one, and the operator with many jobs; BENCH_ARGS passes arguments
	$(BIN)/python -m benchmarks $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.operator.scale
	$(BIN)/python -m benchmarks.operator.takeover

clean: ## Remove the environment and the tools' caches; keeps runs/
	rm -rf "$(VENV)" build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The stamp is inside the environment, so both are removed together. It is outdated when the lock or pyproject changes.
$(READY): uv.lock pyproject.toml
	@sh -euc "$$SET_UP"
	@touch "$@"

# Finds a Python. Uses uv from PATH or from the project's cache folder, or installs it there once. Then syncs.
define SET_UP
fail() { echo "tailorpo: $$*" >&2; exit 1; }

fits() { "$$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
python=
for name in $${PYTHON:-python3 python3.13 python3.12 python3.11}; do
  if fits "$$name"; then python=$$("$$name" -c 'import sys; print(sys.executable)'); break; fi
done
[ -n "$$python" ] || fail "needs Python 3.11, 3.12 or 3.13, and $${PYTHON:-python3} is" \
  "$$("$${PYTHON:-python3}" --version 2>/dev/null || echo missing); install one, or name it: make setup PYTHON=/path/to/python3.12"

# When uv runs inside the project, it checks its own version against `required-version` of pyproject.toml.
reads_lock() { "$$1" python find --offline --no-python-downloads "$$python" >/dev/null 2>&1; }
kept=$${XDG_CACHE_HOME:-$$HOME/.cache}/tailorpo/uv
if command -v uv >/dev/null && reads_lock uv; then uv=uv
elif reads_lock "$$kept"; then uv=$$kept
else
  echo "Installing uv into $${kept%/*} ..."
  mkdir -p "$${kept%/*}"
  work=$$(mktemp -d "$${kept%/*}/install.XXXXXX")
  trap 'rm -rf "$$work"' EXIT
  pip="-m pip --disable-pip-version-check --quiet install"
  if "$$python" -c 'import ensurepip' 2>/dev/null && "$$python" -m venv "$$work"; then
    "$$work/bin/python" $$pip '$(UV_VERSIONS)' || fail "pip could not install uv: is a package index reachable?"
  elif "$$python" -m pip --version >/dev/null 2>&1; then
    "$$python" $$pip --target "$$work" '$(UV_VERSIONS)' || fail "pip could not install uv: is a package index reachable?"
  else
    fail "$$python has neither venv (ensurepip) nor pip, and there is no uv >= 0.9 on PATH; install one of them"
  fi
  mv -f "$$work/bin/uv" "$$kept"
  uv=$$kept
fi

[ -x "$(BIN)/python" ] || echo "Installing the locked environment into $(VENV): once, several GB ..."
"$$uv" sync --locked --all-extras --python "$$python" --no-python-downloads
endef
export SET_UP

# A browser opens only if standard output is a terminal on a desktop.
define SHOW
echo "Report: $$1"
[ -t 1 ] || exit 0
if [ "$$(uname)" = Darwin ]; then open "$$1"
elif [ -n "$${DISPLAY:-$${WAYLAND_DISPLAY:-}}" ] && command -v xdg-open >/dev/null; then xdg-open "$$1" >/dev/null 2>&1 || true
fi
endef
export SHOW
