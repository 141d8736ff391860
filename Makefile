# runvm: `make help` says what there is. Everything runs under the distribution's Python, never another one on PATH.
PYTHON ?= /usr/bin/python3
PREFIX ?= /usr/local
DESTDIR ?=
TESTFLAGS ?=
# qemu or uml (User Mode Linux): what the tests' virtual machines run on
HYPERVISOR ?=
export HYPERVISOR
FLAGS ?=

SBINDIR = $(PREFIX)/sbin
LIBDIR = $(PREFIX)/lib/runvm
MANDIR = $(PREFIX)/share/man/man8
COMPLETIONDIR = $(PREFIX)/share/bash-completion/completions
UNITDIR = $(PREFIX)/lib/systemd/system
DOCDIR = $(PREFIX)/share/doc/runvm

SOURCES := $(shell find src/runvm -name '*.py')
VENV = .venv
BIN = $(VENV)/bin
RUN = PYTHONPATH=src PYTHONDONTWRITEBYTECODE=1 $(PYTHON)

.DELETE_ON_ERROR:
.PHONY: all docs help deps test-deps image image-other kernel demo test test-kvm test-arm64 bench bench-check unit lint format install uninstall deb wheel clean FORCE

all: build/package/.done build/runvm build/runvm.8 build/runvm.bash build/runvm@.service  ## build: bytecode, manual page, completion

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 20

# --- build. The paths in it depend on PREFIX, so another PREFIX builds anew.

build/prefix: FORCE
	@mkdir -p build
	@echo '$(PREFIX) $(LIBDIR)' | cmp -s - $@ || echo '$(PREFIX) $(LIBDIR)' > $@

build/package/.done: $(SOURCES) build/prefix
	rm -rf build/package
	mkdir -p build/package
	cp -r --preserve=timestamps src/runvm build/package/runvm
	find build/package -name __pycache__ -prune -exec rm -rf {} +
	chmod -R u=rwX,go=rX build/package
	$(PYTHON) -m compileall -q -s build/package -p $(LIBDIR) build/package/runvm
	touch $@

build/runvm: packaging/runvm.in build/prefix
	sed 's|@LIBDIR@|$(LIBDIR)|' $< > $@
	chmod 755 $@

build/runvm@.service: packaging/systemd/runvm@.service build/prefix
	sed 's|@SBINDIR@|$(SBINDIR)|' $< > $@

build/runvm.8: $(SOURCES) build/prefix
	$(RUN) -m runvm help --man > $@

build/runvm.bash: $(SOURCES) build/prefix
	$(RUN) -m runvm help --completion > $@

clean:  ## remove what was built, and the virtual environment of the tests
	rm -rf build dist src/runvm.egg-info $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# --- install. The package is put beside the old one and then takes its place: a command finds the one or the other.

install: all  ## install to PREFIX (/usr/local), below DESTDIR
	install -d $(addprefix $(DESTDIR),$(SBINDIR) $(LIBDIR) $(MANDIR) $(COMPLETIONDIR) $(UNITDIR) $(DOCDIR))
	rm -rf $(DESTDIR)$(LIBDIR)/new $(DESTDIR)$(LIBDIR)/old
	cp -r --preserve=timestamps build/package/runvm $(DESTDIR)$(LIBDIR)/new
	chmod -R u=rwX,go=rX $(DESTDIR)$(LIBDIR)/new
	if [ -e $(DESTDIR)$(LIBDIR)/runvm ]; then mv $(DESTDIR)$(LIBDIR)/runvm $(DESTDIR)$(LIBDIR)/old; fi
	mv $(DESTDIR)$(LIBDIR)/new $(DESTDIR)$(LIBDIR)/runvm
	rm -rf $(DESTDIR)$(LIBDIR)/old
	install -m 755 build/runvm $(DESTDIR)$(SBINDIR)/runvm
	install -m 644 build/runvm.8 $(DESTDIR)$(MANDIR)/runvm.8
	install -m 644 build/runvm.bash $(DESTDIR)$(COMPLETIONDIR)/runvm
	install -m 644 build/runvm@.service $(DESTDIR)$(UNITDIR)/runvm@.service
	install -m 644 packaging/config.toml.example LICENSE $(DESTDIR)$(DOCDIR)

uninstall:  ## remove what install put there
	rm -f $(addprefix $(DESTDIR),$(SBINDIR)/runvm $(MANDIR)/runvm.8 $(COMPLETIONDIR)/runvm $(UNITDIR)/runvm@.service)
	rm -rf $(DESTDIR)$(LIBDIR) $(DESTDIR)$(DOCDIR)
	@for left in /etc/runvm /var/lib/runvm /run/runvm; do \
	    if [ -e $(DESTDIR)$$left ]; then echo "left, since it holds what you or containers made: $(DESTDIR)$$left"; fi; done

wheel: $(BIN)/.done  ## build the wheel and the sdist in dist/
	$(BIN)/python -m build --no-isolation --outdir dist

deb:  ## build dist/runvm_VERSION_all.deb, for Debian 12 and later
	packaging/deb/build

# --- the machine

deps:  ## install the packages that runvm needs (apt, root)
	packaging/deps/install run

test-deps: deps  ## install the packages that the tests need besides
	packaging/deps/install test

image:  ## build the guest image, if it isn't built
	$(RUN) -m runvm image build

OTHER_ARCH = $(if $(filter aarch64,$(shell uname -m)),amd64,arm64)

image-other:  ## the same for containers of another architecture than this host's
	$(RUN) -m runvm image build --arch $(OTHER_ARCH)

DATA_DIR ?= /var/lib/runvm

kernel:  ## build the guest's kernel for User Mode Linux from the distribution's sources, if it isn't built; minutes
	packaging/kernel/build $(DATA_DIR)

demo:  ## on a bare Debian 12, as root: install all, run a container in a VM, say what happened
	packaging/demo $(PREFIX)

# --- tests

$(BIN)/.done: packaging/deps/python-test.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r $<
	touch $@

test: test-deps $(BIN)/.done image image-other  ## all tests, as root, an hour and a half; TESTFLAGS="-m 'not slow'": half of that, "-k lifecycle": some; RUNTIME=runc proves them on runc
	$(BIN)/pytest $(TESTFLAGS)

test-kvm: test-deps $(BIN)/.done image  ## the tests that want KVM, on an emulated host where it works: 20 minutes; TESTFLAGS="-m short": 8
	$(BIN)/pytest -v tests/kvm $(TESTFLAGS)

test-arm64: test-deps $(BIN)/.done image-other  ## the unit tests and a handful of others on an emulated arm64 host; three quarters of an hour
	$(BIN)/pytest -v --arm64-host tests/unit tests/arm64 $(TESTFLAGS)

unit: $(BIN)/.done  ## the tests that need neither root nor a VM: seconds
	$(BIN)/pytest -q tests/unit $(TESTFLAGS)

# --- the benchmark: it measures this checkout, compiled and laid out as installed

BENCH = PYTHONPATH=src:tests:. $(BIN)/python -m bench

$(BIN)/.bench: packaging/deps/python-bench.txt $(BIN)/.done
	$(BIN)/pip install --quiet --disable-pip-version-check -r $<
	touch $@

bench: $(BIN)/.bench  ## measure all and write docs/benchmarks.md, some 15 minutes, as root; FLAGS="start" or another family: that one only
	packaging/deps/install run test bench
	$(MAKE) --no-print-directory --silent install PREFIX=$(CURDIR)/build/bench DESTDIR=
	build/bench/sbin/runvm image build
	$(BENCH) run --docs --library build/bench/lib/runvm $(FLAGS)

bench-check: $(BIN)/.bench  ## is the last run worse than the documented one? FLAGS="OLD.json NEW.json --tolerance 0.15"
	$(BENCH) check $(FLAGS)

docs:  ## write the pages that are made from the code: docs/protocol.md
	packaging/protocol-page > docs/protocol.md

lint: $(BIN)/.done  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(BIN)/.done  ## let ruff lay the code out
	$(BIN)/ruff format
