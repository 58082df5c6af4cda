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

# The kernel that is meant: test (ours), debug and kcsan (ours), stock, and for measuring
# bench (ours), bench-stock (what ours is compared with). Sets OUT, TREE.
pick_flavour() {
	FLAVOUR=${1:-${FLAVOUR:-test}}
	[[ -z ${STOCK:-} || $FLAVOUR == bench* ]] || FLAVOUR=stock
	case $FLAVOUR in
	test)	TREE=$SRC  OUT=$WORK/build ;;
	debug|kcsan)
		TREE=$SRC  OUT=$WORK/build-$FLAVOUR ;;
	check)	TREE=$SRC  OUT=$WORK/build-check ;;
	stock)	TREE=$BASE OUT=$STOCK_BUILD ;;
	bench)	TREE=$SRC  OUT=$WORK/build-bench ;;
	bench-stock)
		TREE=$BASE OUT=$STOCK_BUILD-bench
		if [[ -n ${BENCH_AGAINST:-} ]]; then
			TREE=$(realpath "$BENCH_AGAINST")
			OUT=$WORK/build-bench-$(key_of "$TREE")
		fi ;;
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

core_objects() { kernel_files | sed -n 's,^\(mm/[a-z_]*\)\.c$,\1.o,p'; }

# Exports for modules of any licence: the inline put_page() reaches them.
OPEN_EXPORTS=(devmap_managed_key __put_devmap_managed_folio_refs)

our_exports() {		# by the objects in OUT
	local o

	core_objects | while read -r o; do
		[[ ! -e $OUT/$o ]] || nm "$OUT/$o"
	done | sed -n 's/.* __export_symbol_//p' | sort
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

# What makes it another machine's kernel: arguments for make.
CROSS=()

# make in the kernel tree, with the compiler cache and nothing of ours around. The
# cache takes what a file depends on from the compiler: else it runs the
# preprocessor by itself first, which makes a cold build half as long again.
kmake() {
	env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u KSRC -u ARCH -u O \
		CCACHE_DIR="${CCACHE_DIR:-$ROOT/ccache}" CCACHE_BASEDIR="$ROOT" \
		CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1 \
		CCACHE_MAXSIZE="${CCACHE_MAXSIZE:-5G}" \
		KBUILD_BUILD_TIMESTAMP="@${SOURCE_DATE_EPOCH:-0}" \
		KBUILD_BUILD_USER=hmm KBUILD_BUILD_HOST=hmm \
		make -C "$TREE" O="$OUT" CC="ccache gcc" HOSTCC="ccache gcc" "${CROSS[@]}" "$@"
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

put_text() {		# stdin to $1, if it differs
	local new=$1.new

	cat > "$new"
	if cmp -s "$new" "$1"; then rm -f "$new"; else mv "$new" "$1"; fi
}

# ---- a configuration from fragments, and a build with a display ----

fragments=()

our_symbols() {		# Kconfig symbols that only our tree knows
	{
		kernel_files | grep '/Kconfig' | (cd "$REPO" && xargs -r cat)
		series | while read -r p; do sed -n 's/^+//p' "$REPO/patches/$p"; done
	} | sed -n 's/^config \(.*\)/CONFIG_\1/p'
}

# Every line of the fragments must hold: a symbol that was dropped in silence
# is a test that does not run.
verify_config() {
	local lost ours

	lost=$(grep -hE '^CONFIG_[A-Z0-9_]+=' "$OUT/fragment" | sort -u |
		grep -v '=n$' | comm -23 - <(sort -u "$OUT/.config")) || true
	if [[ $FLAVOUR == *stock && -n $lost ]]; then
		ours=$(our_symbols)
		lost=$(grep -vE "^($(paste -sd'|' <<<"$ours"))=" <<<"$lost") || true
	fi
	[[ -z $lost ]] || die "the configuration lost:"$'\n'"$lost"
}

# The last value of a symbol in the fragments is the one that counts.
merge_fragments() {
	awk '{ key = "" }
	     match($0, /CONFIG_[A-Za-z0-9_]+/) && /^(# )?CONFIG_/ {
		key = substr($0, RSTART, RLENGTH); line[key] = $0
		if (!(key in seen)) { seen[key]; order[++n] = key } }
	     END { for (i = 1; i <= n; i++) print line[order[i]] }' "${fragments[@]}"
}

configure() {
	local stamp

	mkdir -p "$OUT"
	merge_fragments | put_text "$OUT/fragment"
	stamp=$({ cat "$OUT/fragment"; gcc --version; echo "$TREE"
		  find "$TREE/mm" "$TREE/lib" "$TREE/drivers/gpu/drm" -name 'Kconfig*' |
			sort | xargs cat; } | sha256sum)
	[[ ! -e $OUT/.config || $(cat "$OUT/config.id" 2>/dev/null) != "$stamp" ]] ||
		return 0
	step "configuring ($FLAVOUR)"
	kmake -s KCONFIG_ALLCONFIG="$OUT/fragment" allnoconfig
	verify_config
	echo "$stamp" > "$OUT/config.id"
}

# kbuild, with a count instead of its lines; warnings and errors are shown
kbuild() {		# label, make arguments
	local label=$1 total=$2

	shift 2
	kmake -j"$(nproc)" "$@" 2>&1 |
		progress "$label" --total "$total" --log "$OUT/make.log" \
			--match '^  (CC|AS|LD|AR|HOSTCC|HOSTLD|OBJCOPY|GEN)\b.* ' \
			--drop '^(make(\[[0-9]+\])?: (Enter|Leav|Nothing|Target|.* is up to date|\*\*\* (\[|Waiting))|  [A-Z0-9_-]+ |$|Kernel: )'
}
