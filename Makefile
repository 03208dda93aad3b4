# SPDX-License-Identifier: GPL-3.0-or-later
# Everything a person or a CI machine runs. The first run sets up what is missing (Debian packages, .venv).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(CURDIR)/$(VENV)/bin/python
READY := $(VENV)/.ready
TREE := build/ansible_collections/nvm/fastboot
SCENARIOS := default store

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH):/usr/sbin:/sbin
export LC_ALL := C.UTF-8
# The collection under its own name, for everything that looks it up.
COLLECTIONS := ANSIBLE_COLLECTIONS_PATH=$(CURDIR)/build

##@ Everyday
.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(READY) ## hibernate a virtual machine into non-volatile memory and resume it; KEEP=1 leaves it running
	LAB_PARENT=$$PPID KEEP=$(KEEP) $(PYTHON) -m tests.vm.demo

.PHONY: bench
bench: bench-store ## the store against borg, restic and squashfs; writes docs/benchmarks.md; about 10 minutes

.PHONY: bench-store
bench-store: $(READY)
	@tools/install-packages tools/bench-packages.txt
	$(PYTHON) -m tests.store.bench.store --report $(BENCH)

.PHONY: bench-corpus
bench-corpus: $(READY) ## hibernation images of a virtual machine, which make bench then takes; about 10 minutes
	$(PYTHON) -m tests.vm.corpus

.PHONY: bench-vm
bench-vm: $(READY) ## compressors of hibernation images on NVM; snapshots against hibernation and cold boots; about 40 minutes
	$(PYTHON) -m tests.vm.bench.compression
	$(PYTHON) -m tests.vm.bench.snapshots

# Within an hour, also on a machine of half the speed; what takes longer is in test-more.
.PHONY: test
test: $(READY) ## tests of everything, in lanes side by side, the virtual machines' included
	$(PYTHON) tools/test_lanes.py store:store-test checks:$(LINT_LIST),types,unit,galaxy-import,package then \
	  molecule:$(subst $(space),$(comma),$(SCENARIOS:%=molecule-%)) plain:vm-test-plain vm:vm-test-others

.PHONY: test-more
test-more: $(READY) ## what make test has no time for, but make reach: more machines, every ansible-core; needs root; about four hours
	$(PYTHON) tools/test_lanes.py ansible:ansible-versions,containers,in-place,vm-test-role \
	  boot:vm-test-boot,vm-test-restored,vm-test-swap-file vm:vm-test-configure,vm-test-golden,molecule-memmap,remedies

.PHONY: check
check: $(READY) ## lint, types, unit tests and the shorter tests of the store: a few minutes
	$(PYTHON) tools/test_lanes.py store:store-test-short checks:$(LINT_LIST),types,unit-short,galaxy-import

.PHONY: setup
setup: $(READY) ## install missing Debian packages and make .venv; the other targets do it by themselves

.PHONY: build
build: tree ## the collection as build/nvm-fastboot-VERSION.tar.gz
	rm -f build/nvm-fastboot-*.tar.gz
	ansible-galaxy collection build $(TREE) --output-path build

.PHONY: changelog
changelog: tree ## CHANGELOG.rst of the version in galaxy.yml, out of changelogs/fragments
	cd $(TREE) && $(COLLECTIONS) antsibull-changelog release --update-existing --reload-plugins --refresh-plugins
	cp $(TREE)/CHANGELOG.rst .
	cp $(TREE)/changelogs/changelog.yaml changelogs
	rm -f changelogs/fragments/*.yml

.PHONY: install
install: build ## build the collection and install it for this user
	ansible-galaxy collection install --force --offline build/nvm-fastboot-*.tar.gz

.PHONY: clean
clean: ## remove what was built; .venv and the guests' disk images stay
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .ansible
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

##@ Single checks
LINT := ruff vermin shellcheck ansible-lint changelog-lint docs-lint reuse import-lint layout words
empty :=
comma := ,
space := $(empty) $(empty)
LINT_LIST := $(subst $(space),$(comma),$(LINT))

.PHONY: lint
lint: $(LINT) ## style, licenses, metadata, layers and layout: all single checks of text and code

.PHONY: ruff
ruff: $(READY) ## Python style and mistakes
	ruff check .

.PHONY: vermin
vermin: $(READY) ## nothing in the collection needs more than Python 3.9
	vermin --quiet --target=3.9- --no-tips --violations plugins

.PHONY: shellcheck
shellcheck: $(READY) ## shell scripts
	$(PYTHON) tools/project_files.py | xargs -d '\n' shellcheck -x

.PHONY: ansible-lint
ansible-lint: tree ## roles, playbooks, scenarios and metadata, profile production
	cd $(TREE) && $(COLLECTIONS) ansible-lint --offline galaxy.yml meta roles playbooks molecule

.PHONY: changelog-lint
changelog-lint: $(READY) ## changelog and its fragments; one version everywhere
	antsibull-changelog lint
	antsibull-changelog lint-changelog-yaml changelogs/changelog.yaml
	$(PYTHON) tools/check_version.py

.PHONY: docs-lint
docs-lint: tree ## documentation of modules and roles, as docs.ansible.com renders it
	cd $(TREE) && $(COLLECTIONS) antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs all .

.PHONY: reuse
reuse: $(READY) ## license and copyright of every file
	reuse lint --lines

.PHONY: import-lint
import-lint: tree ## who imports whom: the layers in pyproject.toml
	PYTHONPATH=build lint-imports --no-cache

.PHONY: layout
layout: $(READY) ## no directory with more files than one sees at a glance
	$(PYTHON) tools/check_layout.py

.PHONY: words
words: $(READY) ## words that the project does not use, in what people read
	$(PYTHON) tools/check_words.py

.PHONY: galaxy-import
galaxy-import: build ## what Galaxy says about the built collection; a warning fails
	@mkdir -p build/galaxy-import
	cd build/galaxy-import && GALAXY_IMPORTER_CHECK_REQUIRED_TAGS=true GALAXY_IMPORTER_REQUIRE_V1_OR_GREATER=true \
	  python -m galaxy_importer.main ../nvm-fastboot-*.tar.gz | tee log
	@! grep -E '^(WARNING|ERROR)' build/galaxy-import/log
	@grep -q 'completed successfully' build/galaxy-import/log

.PHONY: package
package: $(READY) ## wheel and sdist of fuse-store, each installed into an empty environment and used
	tools/check-package build/package

.PHONY: types
types: tree ## type checks: strict for the store, the tools and all tests
	cd build && MYPYPATH=. mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache/plugins \
	  -p ansible_collections.nvm.fastboot.plugins
	cd build && MYPYPATH=. mypy --strict --allow-untyped-calls --follow-imports=silent --config-file ../pyproject.toml \
	  --cache-dir ../.mypy_cache/units -p ansible_collections.nvm.fastboot.tests.unit
	mypy --strict --cache-dir .mypy_cache/strict -p fuse_store
	MYPYPATH=tools mypy --strict --cache-dir .mypy_cache/strict -p tests.store -p tests.docs -p tests.vm -p tests.containers -p tests.in_place -p tests.fuzz
	MYPYPATH=tools mypy --strict --cache-dir .mypy_cache/strict tools

.PHONY: unit
unit: $(READY) ## unit tests, and those of the laboratory that start no machine
	$(PYTHON) -m pytest tests/unit tests/vm/lab -q

.PHONY: unit-short
unit-short: $(READY) ## the same without tests that are marked long, such as those that play roles
	$(PYTHON) -m pytest tests/unit tests/vm/lab -q -m "not long"

.PHONY: store-test
store-test: $(READY) ## tests of the store and of what documents show; they mount it, and need /dev/fuse
	$(PYTHON) -m pytest tests/store tests/docs -q -n 4 --dist worksteal

.PHONY: store-test-short
store-test-short: $(READY) ## the same without tests that are marked long, such as those of buckets and of power cuts
	$(PYTHON) -m pytest tests/store tests/docs -q -n 4 --dist worksteal -m "not long"

# A thousand cuts of the power on each filesystem, a thousand histories with an adversary, and a kill at every step: an hour.
.PHONY: power-cuts
power-cuts: $(READY) ## cut the power at a thousand moments on ext4, XFS and btrfs; let an adversary loose on a store
	POWER_CUTS=1000 ADVERSARY_EXAMPLES=1000 EVERY_STEP=1 $(PYTHON) -m pytest tests/store/power tests/store/attacks/test_adversary.py \
	  tests/store/repository/test_s3.py -q -n 2

.PHONY: sanity
sanity: $(READY) ## ansible-test sanity
	$(PYTHON) tools/run_ansible_test.py sanity

.PHONY: units
units: $(READY) ## the unit tests as ansible-test runs them
	$(PYTHON) tools/run_ansible_test.py units

# .venv has 2.19, the newest for Debian 12's Python; make sanity and make units run that one.
OLDER_ANSIBLE := 2.17 2.18
NEWER_ANSIBLE := 2.20 2.21
.PHONY: ansible-versions
ansible-versions: sanity units ## sanity and units with every ansible-core from 2.17 on; about 10 minutes
	$(PYTHON) tools/ansible_versions.py $(OLDER_ANSIBLE) $(NEWER_ANSIBLE)

.PHONY: in-place
in-place: $(READY) ## a process, a virtual machine and worlds of Lisp that go on from a store's mount; needs root; about 2 minutes
	$(PYTHON) -m pytest tests/in_place -v

.PHONY: containers
containers: tree ## twenty containers behind SSH, with Python 3.9 to 3.14, sudo, su and doas; needs root; about 10 minutes
	$(PYTHON) -m pytest tests/containers -v -s

.PHONY: molecule
molecule: $(SCENARIOS:%=molecule-%) molecule-memmap ## all Molecule scenarios; one of them: make molecule-default

.PHONY: molecule-%
molecule-%: tree
	$(COLLECTIONS) LAB_OWNER=$$$$ exec molecule test -s $*

.PHONY: vm-test
vm-test: $(READY) ## tests that start virtual machines
	$(PYTHON) -m pytest tests/vm -v

# The same in parts, which run at once: each has machines of its own.
.PHONY: vm-test-plain vm-test-others
# Of these each test begins with a machine that is not configured.
PLAIN := $(patsubst %,tests/vm/scenarios/test_%.py,snapshot boot_selection safety)
CONFIGURE := $(patsubst %,tests/vm/scenarios/test_%.py,kernels labels power_cut)
GOLDEN := tests/vm/golden
ROLE := tests/vm/fast_boot
vm-test-plain: $(READY)
	VM_TESTS=$@ $(PYTHON) -m pytest $(PLAIN) -v
vm-test-others: $(READY)
	VM_TESTS=$@ $(PYTHON) -m pytest tests/vm $(patsubst %,--ignore=%,tests/vm/lab $(CONFIGURE) $(PLAIN) $(ROLE) $(GOLDEN)) -v

# Not a part of make test: docs/decisions/0161 and 0207.
.PHONY: vm-test-configure
vm-test-configure: $(READY) ## configuring with two kernels, NVDIMMs in sector mode, power cuts meanwhile; about 15 minutes
	VM_TESTS=$@ $(PYTHON) -m pytest $(CONFIGURE) -v

.PHONY: vm-test-golden
vm-test-golden: $(READY) ## a golden image and machines that take their identity; four of them at once; about 25 minutes
	VM_TESTS=$@ $(PYTHON) -m pytest $(GOLDEN) -v -s

.PHONY: vm-test-role
vm-test-role: $(READY) ## the role fast_boot on real boots; about 40 minutes
	VM_TESTS=$@ $(PYTHON) -m pytest $(ROLE) -v

.PHONY: vm-test-restored
vm-test-restored: $(READY) ## more images out of a store: three, one that the kernel compressed, two in slots; about 20 minutes
	VM_TESTS=$@ $(PYTHON) -m pytest tests/vm/restored/by_hand.py -v

.PHONY: reach
reach: $(READY) ## kinds of machines beyond those of make test, each hibernated and resumed (docs/reach.md); about 15 minutes each
	VM_TESTS=$@ $(PYTHON) -m pytest tests/vm/reach/resumed.py tests/vm/reach/refused.py -v

.PHONY: vm-test-swap-file
vm-test-swap-file: $(READY) ## an image of the store, staged in a swap file and resumed from there; about 12 minutes
	VM_TESTS=$@ $(PYTHON) -m pytest tests/vm/reach/staged_file.py -v

.PHONY: remedies
remedies: $(READY) ## each blocker that a machine can be given, and that its remedy removes it; about 25 minutes
	VM_TESTS=$@ $(PYTHON) -m pytest tests/vm/reach/remedies.py -v

.PHONY: vm-test-boot
vm-test-boot: $(READY) ## more of snapshots and of the selection at boot: a day of it, Debian 13 and 14, twenty in a row; about an hour
	VM_TESTS=$@ $(PYTHON) -m pytest tests/vm/boot/a_day.py tests/vm/boot/by_hand.py tests/vm/boot/debian13.py -v

# -- set-up ------------------------------------------------------------------------------------------------------------
.PHONY: tree
tree: $(READY)
	@$(PYTHON) tools/collection_tree.py

build/.packages: tools/debian-packages.txt tools/install-packages
	@tools/install-packages tools/debian-packages.txt
	@mkdir -p build && touch $@

$(READY): requirements-dev.txt pyproject.toml tools/make-venv | build/.packages
	@tools/make-venv $(VENV) requirements-dev.txt
	@touch $@
