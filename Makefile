# cni-py. `make` alone lists the targets; what they make goes into build/.
PREFIX ?= /opt
DESTDIR ?=
REPLACE ?=
UNITS ?=
# an archive of `make bundle` to install, instead of this checkout with the system's Python
BUNDLE ?=
# amd64 or arm64, for make bundle and make image; both otherwise
ARCH ?=
# arguments for pytest: make test TESTS="tests/unit -k ranges"
TESTS ?=
# processes for pytest: tests wait more than they compute, so more than there are cores; a selection starts none
WORKERS ?= $(if $(TESTS),0,8)
# arguments of integration/kernel/run.py: make test-kernel KERNEL="uml integration/kernel/test_bridge_vlan.py"
KERNEL ?=
BENCH ?=
# pages whose output make docs prints again; all of them otherwise: make docs PAGES=docs/lessons/01-one-add.md
PAGES ?=
SCALE ?=
# programs of Kubernetes that the caller built: make test-kubernetes K8S_BIN=DIR
K8S_BIN ?=
# with e2e.test in K8S_BIN: the conformance suites that run (K8S_SUITES= for none), and a directory of images for them
K8S_SUITES ?= sig-network
K8S_IMAGES ?=

TOOLS := build/venv/bin
SOURCES := conftest.py cni_py tests integration bin/cni-plugin bin/cni-py bin/cni-agent bin/flanneld
INSTALL := $(TOOLS)/python integration/install

# else pytest would rewrite the assertions of every test file again, in each of its processes, in every run
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-long test-kernel test-kubernetes check fmt bench scale bundle image install uninstall system-packages runtime dev lock wheel clean

help:  ## this list
	@echo 'cni-py: the flannel CNI suite in Python'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## */  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24
	@echo
	@echo '  PREFIX=$(PREFIX)  DESTDIR=  REPLACE=1 (replace other plugins; they are kept)  UNITS=0 (leave systemd alone)  BUNDLE=FILE  PYTHON=/path/to/python3'

demo:  ## two nodes, a pod each, a ping across VXLAN; in namespaces of its own (as root)
	@integration/system-packages run
	@$(MAKE) --no-print-directory --silent install PREFIX=$(CURDIR)/build/demo DESTDIR= REPLACE= >/dev/null
	@integration/demo build/demo

test:  ## everything, with what it needs installed (as root; otherwise much is skipped)
	@integration/system-packages test || [ "$$CI" != true ]
	@integration/prepare dev
	@$(INSTALL) install --prefix build/test >/dev/null
	@TEST_BIN_DIR=$(CURDIR)/build/test/cni/bin $(TOOLS)/python -m pytest -n $(WORKERS) --dist=worksteal $(TESTS) </dev/null

test-long:  ## the same, with ten times as many kills and faults
	@integration/system-packages hosts
	@$(MAKE) --no-print-directory test TESTS='--longer 10 $(TESTS)' WORKERS='$(WORKERS)'

test-kernel:  ## what the kernel here may lack (bridge VLANs, ipip, wireguard …), in user-mode Linux and in qemu (as root)
	@integration/system-packages kernel
	@integration/prepare dev
	@$(INSTALL) install --prefix build/test >/dev/null
	@integration/kernel/prepare
	@$(TOOLS)/python -m integration.bundle tree --arch amd64
	@$(TOOLS)/python integration/kernel/run.py $(KERNEL)
	@$(if $(KERNEL),true,TEST_KERNEL=1 $(TOOLS)/python -m pytest -n 0 integration/bundle/test_arm64_machine.py)

test-kubernetes:  ## the manifest and flanneld with Kubernetes' own programs, and its suites: K8S_BIN=DIR with kube-apiserver (as root)
	@[ -x '$(K8S_BIN)/kube-apiserver' ] || { echo 'make test-kubernetes K8S_BIN=DIR: there is no kube-apiserver in it' >&2; exit 2; }
	@integration/system-packages test
	@integration/prepare dev
	@$(INSTALL) install --prefix build/test >/dev/null
	@K8S_BIN='$(abspath $(K8S_BIN))' K8S_SUITES='$(K8S_SUITES)' $(if $(K8S_IMAGES),K8S_IMAGES='$(abspath $(K8S_IMAGES))') TEST_BIN_DIR=$(CURDIR)/build/test/cni/bin $(TOOLS)/python -m pytest -n 0 integration/kubernetes $(TESTS) </dev/null

check: dev  ## formatting, lint, types, layers, words
	@$(TOOLS)/ruff format --check $(SOURCES)
	@$(TOOLS)/ruff check $(SOURCES)
	@$(TOOLS)/mypy
	@$(TOOLS)/python -m pytest -q tests/layers
	@$(TOOLS)/python integration/words
	@$(TOOLS)/python integration/generate --check

generate: dev  ## what is derived: netlink tables, schemas, the manifest, parts of docs/, man pages, completion
	@$(TOOLS)/python integration/generate

fmt: dev  ## format the sources and fix what ruff can fix
	@$(TOOLS)/ruff format $(SOURCES)
	@$(TOOLS)/ruff check --fix $(SOURCES)

docs:  ## build/site: docs/ as a site, after its output was printed again (as root; otherwise as it is)
	@integration/system-packages run
	@integration/prepare dev
	@integration/prepare docs
	@[ "$$(id -u)" != 0 ] || $(TOOLS)/python integration/docs/refresh.py $(PAGES)
	@integration/docs/build-site

bench:  ## side by side with the Go plugins: medians and ratios (as root)
	@integration/system-packages test
	@$(MAKE) --no-print-directory --silent install PREFIX=$(CURDIR)/build/bench DESTDIR= REPLACE= >/dev/null
	@integration/prepare dev
	@$(TOOLS)/python integration/bench --bin-dir build/bench/cni/bin $(BENCH)

scale:  ## flanneld with 100, 1,000 and 5,000 peers: times, memory, and a plot (as root)
	@integration/system-packages test
	@integration/prepare dev
	@$(TOOLS)/python integration/scale $(SCALE)

bundle: runtime  ## dist/cni-py-VERSION-linux-ARCH.tar.xz: everything for a node without Python, for amd64 and arm64
	@integration/system-packages bundle
	@$(TOOLS)/python -m integration.bundle bundle $(if $(ARCH),--arch $(ARCH))

image: runtime  ## dist/cni-py-VERSION-ARCH.oci.tar: the same as an OCI image
	@integration/system-packages bundle
	@$(TOOLS)/python -m integration.bundle image $(if $(ARCH),--arch $(ARCH))

install: $(if $(BUNDLE),,runtime)  ## into PREFIX (default /opt): cni/bin, bin, cni-py; BUNDLE=FILE: from an archive
	@$(if $(BUNDLE),integration/bundle/install-archive '$(abspath $(BUNDLE))',$(INSTALL)) install --prefix '$(PREFIX)' $(if $(DESTDIR),--destdir '$(DESTDIR)') $(if $(filter 1 yes true,$(REPLACE)),--replace) \
		$(if $(filter 0 no false,$(UNITS)),--no-units)

uninstall:  ## remove what install created, and restore what it replaced
	@if [ -x '$(DESTDIR)$(PREFIX)/cni-py/install' ] && [ -z '$(DESTDIR)' ]; then uninstall='$(PREFIX)/cni-py/install'; \
	else uninstall="$$(integration/find-python) integration/install"; fi; $$uninstall uninstall --prefix '$(PREFIX)' $(if $(DESTDIR),--destdir '$(DESTDIR)')

system-packages:  ## the packages that all of this needs (apt-get, as root)
	@integration/system-packages test

runtime:
	@integration/prepare runtime

dev:
	@integration/prepare dev

lock:  ## resolve the dependencies again and write the lock files (requires uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra flanneld pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header integration/bundle/requirements.in -o integration/bundle/requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header integration/docs/requirements.in -o integration/docs/requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -c requirements.lock --extra flanneld --extra dev pyproject.toml -o requirements-dev.lock

wheel: runtime  ## dist/cni_py-VERSION-py3-none-any.whl
	@$(TOOLS)/python -m pip --disable-pip-version-check wheel -q --no-deps --wheel-dir dist .

clean:  ## remove build/ and dist/
	rm -rf build dist
