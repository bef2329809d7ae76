# Targets a user needs: demo, test. For developers: lint, e2e, soak, bench, shim, lock, clean.
# Everything is installed into .venv from requirements-dev.lock (hash-checked); Debian packages by apt-get when root.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
# Debian's own where it is new enough: the image has it too, and it is built with profiles, as not every other is.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>&- && echo /usr/bin/python3 || echo python3)
# Tests run side by side, each file on one of so many workers.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PYTEST = $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile
PROTOS := $(wildcard proto/*.proto)
GENERATED := weft_rpc/.generated
# Network namespaces and nftables need root: re-executed through sudo once when the caller is not root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=CI,PATH)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint unit functional e2e helm soak bench shim proto lock clean

help:
	@echo "make demo    a cluster of network namespaces with real daemons, and its connectivity matrix"
	@echo "make test    lint, unit, property and functional tests (make lint, unit, functional: one of them)"
	@echo "make e2e     the tests on a real Kubernetes cluster (builds Kubernetes and the image the first time)"
	@echo "make helm    helm, for the chart's tests"
	@echo "make soak    the long-running counts        make bench   measurements against floor and peers"

install: $(VENV)/.installed $(GENERATED)

$(VENV)/.installed: requirements-dev.lock pyproject.toml .ci/install-packages
	.ci/install-packages build test
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Weft needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

proto: $(GENERATED)

$(GENERATED): $(PROTOS) $(VENV)/.installed
	mkdir -p weft_rpc
	$(BIN)/python -m grpc_tools.protoc -Iweft_rpc=proto --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS:proto/%=weft_rpc/%)
	touch weft_rpc/__init__.py weft_rpc/py.typed $@

shim: build/weft

build/weft: $(wildcard shim/*.c shim/*.h) shim/Makefile
	.ci/install-packages build
	$(MAKE) --no-print-directory -C shim OUT=$(CURDIR)/build

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: install shim
	$(AS_ROOT) $(BIN)/weft-lab demo

test: install shim lint
	$(AS_ROOT) $(PYTEST) -m "not soak and not e2e"

unit: install shim
	$(PYTEST) -m "not root and not soak and not e2e" tests/unit tests/property

functional: install shim
	$(AS_ROOT) $(PYTEST) -m "not soak and not e2e" tests/functional

e2e: install shim
	.ci/install-packages e2e
	$(AS_ROOT) $(BIN)/python -m tests.e2e.cluster.prepare
	$(AS_ROOT) $(BIN)/pytest -m e2e tests/e2e

# Where the tests look for it; they are skipped without helm.
helm:
	cd / && PATH=$$PATH:/usr/local/go/bin GOBIN=$${XDG_CACHE_HOME:-$$HOME/.cache}/weft-e2e/helm CGO_ENABLED=0 \
		go install helm.sh/helm/v3/cmd/helm@v3.16.4

soak: install shim
	$(AS_ROOT) $(BIN)/pytest -m soak tests

bench: install shim
	.ci/install-packages bench e2e
	$(AS_ROOT) $(BIN)/python -m bench

# Needs uv, which is not part of the lock: it makes the lock.
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links -q requirements.in -o requirements.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links -q -c requirements.lock requirements-dev.in -o requirements-dev.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links -q -c requirements-dev.lock requirements-build.in -o requirements-build.lock

clean:
	rm -rf build dist weft_rpc .mypy_cache .ruff_cache .pytest_cache .hypothesis $(VENV)
