# Targets for users and developers. Every target installs its own requirements first.
PYTHON ?= python3
VENV ?= .venv
SECONDS ?= 0
ARCH ?= $(shell dpkg --print-architecture)
SUITE ?= bookworm
REVISION ?= 1
BIN := $(VENV)/bin
SOAKS := $(shell grep -rl EDGED_SOAK tests --include='test_*.py' | sort)

.PHONY: help demo test test-wide soak vm-test test-others test-newest locks check reference docs picture bench bench-arm deb wheel repo release clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo [SECONDS=10]  a recorded sensor, a broker, edged and a subscriber, live in this terminal'
	@echo 'make test               the tests, with a real broker, some ten minutes on two cores'
	@echo 'make test-wide          tests with emulated ARM and Home Assistant; before a release'
	@echo 'make soak               the long forms of tests: outages, kills, power cuts'
	@echo 'make vm-test            the package in a virtual machine whose power is cut; as root'
	@echo 'make test-others        tests under other Pythons and under tflite-runtime'
	@echo 'make test-newest        tests with the newest Python packages, if any is newer than pinned'
	@echo 'make locks              pin the newest Python packages: packaging/locks'
	@echo 'make check              types, lint, format, and the rules of tests/house: layers, documented keys, links'
	@echo 'make reference          write the generated pages of the manual, docs/reference'
	@echo 'make picture            docs/demo.svg, a recording of the demo'
	@echo 'make docs               the manual as a site in build/site'
	@echo 'make bench              the benchmark table, and build/bench.json'
	@echo 'make bench-arm          instructions of a message and of a start on emulated ARM'
	@echo 'make deb ARCH=arm64 SUITE=bookworm  a Debian package in build/: amd64, arm64 or armhf, for bookworm or trixie'
	@echo 'make wheel              a wheel and an sdist in dist/'
	@echo 'make repo KEY=FINGERPRINT  a signed apt repository of the packages in build/: build/repo'
	@echo 'make release            wheel, sdist and packages, built twice and compared: dist/VERSION'
	@echo 'make clean              remove everything that make has made'

demo: $(VENV)/demo.ready
	@$(BIN)/python demo/demo.py --seconds $(SECONDS)

test: $(VENV)/test.ready
	$(BIN)/pytest -n auto --dist loadfile

test-wide: $(VENV)/wide.ready
	packaging/set-up-home-assistant .venv-home-assistant
	$(BIN)/pytest -n auto --dist loadfile -m wide

soak: $(VENV)/test.ready
	EDGED_SOAK=1 $(BIN)/pytest $(SOAKS)
	EDGED_SOAK=1 $(BIN)/python -m benchmarks.run --rounds 1 --only spool --json build/soak.json

vm-test: $(VENV)/test.ready
	packaging/set-up vm $(VENV)
	EDGED_VM=1 $(BIN)/pytest -s tests/end_to_end/test_vm.py

test-others:
	PYTHON=$(PYTHON) packaging/test-others

test-newest:
	PYTHON=$(PYTHON) packaging/test-newest

locks:
	packaging/lock .venv-lock $(PYTHON)

check: $(VENV)/test.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/house

reference: $(VENV)/test.ready
	$(BIN)/python packaging/reference.py

docs: $(VENV)/docs.ready
	$(BIN)/zensical build --clean --strict

picture: $(VENV)/demo.ready
	$(BIN)/python demo/picture.py docs/demo.svg --seconds 26

bench: $(VENV)/test.ready
	$(BIN)/python -m benchmarks.run --json build/bench.json

bench-arm: $(VENV)/test.ready
	packaging/set-up arm $(VENV)
	$(BIN)/python -m benchmarks.arm --json build/bench-arm.json

deb: $(VENV)/package.ready
	packaging/set-up deb-$(ARCH) $(VENV)
	$(BIN)/python packaging/deb --arch "$(ARCH)" --suite "$(SUITE)" --revision "$(REVISION)"

wheel: $(VENV)/package.ready
	$(BIN)/python -m build --outdir dist

repo:
	$(PYTHON) packaging/repo --key "$(KEY)" $(or $(PACKAGES),build/edged_*.deb)

release: $(VENV)/test.ready
	packaging/set-up deb-armhf $(VENV)
	$(BIN)/python packaging/release

$(VENV)/%.ready: pyproject.toml packaging/set-up $(wildcard packaging/locks/*.txt)
	packaging/set-up $* $(VENV) $(PYTHON)
	touch $@

clean:
	rm -rf $(VENV) .venv-* .cache build dist
