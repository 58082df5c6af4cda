# SPDX-License-Identifier: GPL-2.0
# The map: make help

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERBS := run test shell kunit selftest debug stress models check consumers exports bench profile docs build where stock relock clean

.PHONY: help $(VERBS)

help: ## this list
	@echo 'Device memory and HMM for Linux 6.12. Fresh Debian 12 or 13, as root: make run'
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18
	@echo
	@echo '  KSRC=path     another v6.12.y tree or tarball   STOCK=1   the untouched base, for where, shell, test'
	@echo '  KERNEL=debug|kcsan, PREEMPT=none|full, SCENARIO=regexp   less of make stress;'
	@echo '                STOCK=1 make stress: the base and ours, side by side'
	@echo '  ROWS=regexp   rows of the benchmark           PAIRS=n  pairs of boots that are timed'
	@echo '  BENCH_AGAINST=tree  instead of the base       ACCEPT=1 keep the last run in bench/results'
	@echo '  HMM_BUILD=dir where everything is built         ACCEL=kvm if your machine can'

run: ## boot; a process gives data to the device and gets it back changed
test: ## all tests: KUnit, our selftests, the base's own tests
shell: ## boot to a shell, modules loaded, tools on PATH; or commands from stdin
kunit: ## the KUnit suites alone
selftest: ## our selftests alone
debug: ## all tests on a kernel with lockdep, KASAN and other checks
stress: ## TIME=seconds SEED=n: many at once, on kernels that look for races
models: ## the protocols, by a model checker: all states of small models
check: ## the base lock, style and static checks
consumers: ## build all users in the tree of what we export; no new warning
exports: ## what we export, for whom, and who uses it
bench: ## what it costs, against the untouched base: table, plots, HTML
profile: ## ROW=name: the functions in which a row of the benchmark is
docs: ## the guide for driver authors, as HTML; its path is printed
build: ## kernel, modules, test programs and initramfs
where: ## source=, build=, image=, modules= of what is built
stock: ## build the untouched base with the same configuration
relock: ## accept the base as it is into scripts/base.lock
clean: ## remove what this clone built (ALL=1: the base and the cache too)

$(VERBS):
	@scripts/hmm $@
