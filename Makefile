# Everything that a fresh machine needs is set up by the targets themselves: a virtual environment
# in .venv, and (when root, and only what is missing) Debian's packages.

export PATH := $(PATH):/usr/sbin:/sbin

PYTHON ?= python3
BIN := .venv/bin

DEMO_NEEDS := mke2fs:e2fsprogs e2fsck:e2fsprogs
TEST_NEEDS := $(DEMO_NEEDS) losetup:mount mount:mount qemu-img:qemu-utils qemu-io:qemu-utils \
    qemu-nbd:qemu-utils nbdcopy:libnbd-bin nbdinfo:libnbd-bin nbdsh:python3-libnbd nbdkit:nbdkit \
    nbd-server:nbd-server nbdfuse:libnbd-bin fio:fio strace:strace ip:iproute2 prlimit:util-linux setpriv:util-linux \
    mkfs.ext4:e2fsprogs fstrim:util-linux nsenter:util-linux systemd-analyze:systemd sshd:openssh-server ssh:openssh-client
PROOF_NEEDS := $(TEST_NEEDS) qemu-system-x86_64:qemu-system-x86 busybox:busybox-static \
    debugfs:e2fsprogs '/usr/lib/*/faketime/libfaketime.so.1:libfaketime' \
    '/boot/vmlinuz-*-cloud-amd64:linux-image-cloud-amd64'

.PHONY: help demo test fuzz interpreters proof lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo [DISK=PATH]  migrate a disk between two processes, and prove it"
	@echo "make test              the tests, and a few cases of each proof (6 minutes on two cores)"
	@echo "make proof             the hand-off, by brute force, and what tests take long (over an hour)"
	@echo "make fuzz [SECONDS=S]  feed the product what nobody would write, for S seconds in all (60)"
	@echo "make lint              ruff, mypy, and whether the package installs as it should"
	@echo "make interpreters      the unit tests under other Pythons, with old and new dependencies"
	@echo "make bench [ONLY=CASE] beside nbdcopy, qemu-img, nbdkit, qemu-nbd, nbd-server (over an hour)"
	@echo "make clean             remove what these made"

demo: .venv/package
	@scripts/need $(DEMO_NEEDS)
	@$(BIN)/python scripts/demo.py $(if $(DISK),"$(DISK)")

# Tests run side by side: unit tests on every processor, the others (which wait for half of their
# time) twice as many. What takes longest comes first, so that it is not waited for at the end.
SIDE_BY_SIDE := -n auto --dist worksteal

# Two calls: trial and pytest-twisted both drive the reactor, and must not share a process.
test: .venv/test
	@scripts/need $(TEST_NEEDS)
	PYTHONWARNINGS=error $(BIN)/python -m twisted.trial -j$$(nproc) tests.unit
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/proof tests/faults tests/docs tests/integration \
	    tests/interop

# The model is many small tests; the other proofs are parallel in themselves, and -s shows what they
# count.
proof: export BLOCKMIG_FULL := 1
proof: .venv/test
	@scripts/need $(PROOF_NEEDS)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/faults tests/integration tests/interop \
	    tests/proof/test_model.py
	$(BIN)/python -m pytest -s tests/proof --ignore tests/proof/test_model.py

# TARGETS="server uri ..." takes some of them; SEED=0 takes others each time.
SECONDS := 60
SEED := 1
fuzz: .venv/test .venv/fuzz
	$(BIN)/python -m tests.fuzz $(TARGETS) --seconds $(SECONDS) --seed $(SEED)

# PYTHONS="/opt/python/bin/python3.15 ..." adds to those that are on PATH.
interpreters:
	$(PYTHON) scripts/interpreters.py $(PYTHONS)

lint: .venv/test .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	scripts/check-package

# ONLY="disk tmpfs" takes some cases; `python -m benchmarks --help` names them, and has more options.
bench: .venv/test
	@scripts/need $(TEST_NEEDS)
	-@scripts/need mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS))

clean:
	rm -rf .venv .demo .interpreters build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache \
	    .hypothesis .fuzz _trial_temp* src/twisted/plugins/dropin.cache

.venv/bin/python:
	@echo "making .venv (once)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	    echo "make: $(PYTHON) cannot make a virtual environment: is python3-venv installed?"; \
	    exit 1; } >&2

# The stamps: what is installed in .venv, and since when. (-qq: pip warns of every index that does
# not have a package, though another one has.)
.venv/package: pyproject.toml | .venv/bin/python
	@echo "installing blockmig into .venv"
	@$(BIN)/pip install -qq --disable-pip-version-check -e ".[demo]"
	@touch $@

.venv/test .venv/lint: .venv/%: pyproject.toml .venv/package
	@echo "installing what $* needs into .venv"
	@$(BIN)/pip install -qq --disable-pip-version-check -e ".[$*]"
	@touch $@

# Not every Python has an atheris; to build it would need all of LLVM.
.venv/fuzz: pyproject.toml .venv/package
	@echo "installing what fuzz needs into .venv"
	@$(BIN)/pip install -qq --disable-pip-version-check --only-binary atheris -e ".[fuzz]" \
	    || echo "make: there is no atheris for this Python: inputs will be changed blindly"
	@touch $@
