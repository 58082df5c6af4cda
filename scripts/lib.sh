# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034	# the scripts that source this use what it sets
#
# Where things are, and how the scripts talk. Sourced by every script.
#
#   $ROOT/ccache            compiler cache, shared by all clones
#   $ROOT/base/ID/src       an untouched base tree, shared, never written to
#   $ROOT/base/ID/build-KEY what "make stock" builds of it, for one clone
#   $ROOT/NAME-KEY          what belongs to this clone: src, build*, logs
#
# A source and its build folder are neighbours everywhere, so that the compiler
# cache sees the same relative paths, whoever builds.

set -euo pipefail
export LC_ALL=C
export PATH=$PATH:/usr/sbin:/sbin	# depmod, for those who are not root

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
ROOT=$(realpath -m "${HMM_BUILD:-${XDG_CACHE_HOME:-$HOME/.cache}/hmm}")
BASE_SERIES=6.12
DEBIAN_TARBALL=/usr/src/linux-source-$BASE_SERIES.tar.xz
LOCK=$REPO/scripts/base.lock

# The kernel's part of the repository. Everything else is tooling.
KERNEL_DIRS=(mm lib include drivers tools/testing/selftests Documentation)

say()  { printf '%s\n' "$*" >&2; }
step() { printf '>>> %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die()  { printf 'error: %s\n' "$*" >&2; exit 1; }

key_of() { printf '%s\0' "$@" | sha256sum | cut -c1-10; }

# What the base is: sets BASE_KIND, BASE_FROM, BASE (the tree), KEY, WORK.
pick_base() {
	local ksrc=${KSRC:-} id

	BASE_FROM=$(realpath -m "${ksrc:-$DEBIAN_TARBALL}")
	KEY=$(key_of "$REPO" "${ksrc:+$BASE_FROM}")
	WORK=$ROOT/$(basename "$REPO")-$KEY
	SRC=$WORK/src
	LOGS=$WORK/logs

	if [[ -d $BASE_FROM ]]; then
		BASE_KIND=dir
		BASE=$BASE_FROM
		STOCK_BUILD=$WORK/build-stock
	else
		BASE_KIND=tarball
		id=$(basename "$BASE_FROM")
		id=${id%%.tar*}
		[[ ! -e $BASE_FROM ]] ||
			id+=-$(key_of "$(stat -c '%n %s %Y' "$BASE_FROM")")
		BASE=$ROOT/base/$id/src
		STOCK_BUILD=$ROOT/base/$id/build-$KEY
	fi
}

# The kernel that is meant: test (ours), debug (ours), stock. Sets OUT, TREE.
pick_flavour() {
	FLAVOUR=${1:-${FLAVOUR:-test}}
	[[ -z ${STOCK:-} ]] || FLAVOUR=stock
	case $FLAVOUR in
	test)	TREE=$SRC  OUT=$WORK/build ;;
	debug)	TREE=$SRC  OUT=$WORK/build-debug ;;
	check)	TREE=$SRC  OUT=$WORK/build-check ;;
	stock)	TREE=$BASE OUT=$STOCK_BUILD ;;
	*)	die "no such kernel: $FLAVOUR" ;;
	esac
	IMAGE=$OUT/arch/x86/boot/bzImage KO=$OUT/ko INITRD=$OUT/initramfs.cpio
}

tree_version() {
	awk '$1 == "VERSION" { v = $3 } $1 == "PATCHLEVEL" { p = $3 }
	     $1 == "SUBLEVEL" { print v "." p "." $3; exit }' "$1/Makefile"
}

# Files of ours that go into the kernel tree, by their path there.
kernel_files() {
	cd "$REPO"
	if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
		git ls-files -co --exclude-standard -- "${KERNEL_DIRS[@]}"
	else
		find "${KERNEL_DIRS[@]}" -type f 2>/dev/null
	fi | sort -u | while read -r f; do
		[[ ! -f $f ]] || printf '%s\n' "$f"
	done
}

# Patches in the order of the series file.
series() {
	local p

	[[ -f $REPO/patches/series ]] || return 0
	sed 's/#.*//; s/[[:space:]]*$//; /^$/d' "$REPO/patches/series" |
	while read -r p; do
		[[ -f $REPO/patches/$p ]] || die "patches/series names $p, which is missing"
		printf '%s\n' "$p"
	done
}

patched_files() {	# of one patch
	sed -n 's,^+++ b/\([^[:space:]]*\).*,\1,p' "$REPO/patches/$1"
}

# One writer per folder: a second one waits, and says so.
lock_dir() {
	mkdir -p "$1"
	exec 9>"$1/.lock"
	flock -n 9 || { say "waiting for another run in $1"; flock 9; }
}

unlock_dir() { exec 9>&-; }

# make in the kernel tree, with the compiler cache and nothing of ours around
kmake() {
	env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u KSRC -u ARCH -u O \
		CCACHE_DIR="${CCACHE_DIR:-$ROOT/ccache}" CCACHE_BASEDIR="$ROOT" \
		CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE="${CCACHE_MAXSIZE:-5G}" \
		KBUILD_BUILD_TIMESTAMP="@${SOURCE_DATE_EPOCH:-0}" \
		KBUILD_BUILD_USER=hmm KBUILD_BUILD_HOST=hmm \
		make -C "$TREE" O="$OUT" CC="ccache gcc" HOSTCC="ccache gcc" "$@"
}

# A command in a process group of its own, which a signal to us ends as a whole:
# a shell would wait for make, and make for its compilers.
contained() {
	local pid status=0

	set -m
	"$@" <&0 &
	pid=$!
	set +m
	# shellcheck disable=SC2064	# the pid of now
	trap "trap '' INT TERM HUP; kill -TERM -- -$pid 2>/dev/null; wait; exit 130" INT TERM HUP
	wait "$pid" || status=$?
	trap - INT TERM HUP
	return "$status"
}

progress() { "$REPO/scripts/progress.py" "$@"; }
