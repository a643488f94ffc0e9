#!/usr/bin/env bash
# Runs the unit tests of shared memory and messaging under ThreadSanitizer, with the stable toolchain.
#
#   scripts/tsan.sh              src/shm, src/messaging and src/os/futex.rs
#   scripts/tsan.sh FILTER...    only the tests whose names contain one of these
#
# What it can show: a plain load or store that another thread can meet, in what these tests really did. All shared
# words are atomics, so there must be none; what is looked for is a slip: a slice over shared bytes, a private field
# that two threads reach, a buffer handed on too early.
# What it cannot show: wrong orderings among atomics (tests/loom does that, in every interleaving), anything between
# processes, anything that did not happen this time. It does not follow fences: plain data handed over by a fence
# alone would be reported although it is sound; we have none. The standard library is not instrumented (that needs its
# sources and a nightly toolchain): its hand-overs are named in scripts/tsan.supp, and of its locks only the inlined
# part is seen, so tests hand data from thread to thread through channels.
#
# First a program with a race must be found out, so that a pass means something. Builds into target/tsan.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

if [[ "${1-}" == -h || "${1-}" == --help ]]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi

host=$(rustc -vV | sed -n 's/^host: //p')
runtime=$(rustc --print sysroot)/lib/rustlib/$host/lib
if ! compgen -G "$runtime/librustc*_rt.tsan.a" >/dev/null; then
    echo "tsan.sh: this toolchain has no ThreadSanitizer runtime in $runtime; nothing was checked" >&2
    exit 3
fi

# The flags are unstable ones; the compiler is the one that everything else is built with.
export RUSTC_BOOTSTRAP=1
flags=(-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer)
target=$PWD/target/tsan
mkdir -p "$target"

cat >"$target/racy.rs" <<'RACY'
static mut SHARED: u64 = 0;
fn main() {
    let other = std::thread::spawn(|| for i in 0..1000 { unsafe { (&raw mut SHARED).write_volatile(i) } });
    for i in 0..1000 { unsafe { (&raw mut SHARED).write_volatile(i) } }
    other.join().unwrap();
}
RACY
rustc --edition 2024 -O "${flags[@]}" --target "$host" -o "$target/racy" "$target/racy.rs"
# No pipe: grep would end at the first match and leave the program a broken one.
found=$(TSAN_OPTIONS=exitcode=0 "$target/racy" 2>&1)
if [[ "$found" != *"WARNING: ThreadSanitizer: data race"* ]]; then
    echo "tsan.sh: a program with a race passed; ThreadSanitizer does not work here" >&2
    exit 3
fi
echo "tsan.sh: a program with a race was found out"

filters=("$@")
((${#filters[@]})) || filters=(shm:: messaging:: os::futex)
export RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR=$target
export TSAN_OPTIONS="suppressions=$PWD/scripts/tsan.supp exitcode=66 ${TSAN_OPTIONS-}"
binary=$(cargo test --locked -p ai_swarm --lib --target "$host" --no-run --message-format json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)

# Each test in a process of its own: mappings come and go by system calls that TSan does not see, so an address that
# two tests used one after the other would look like a race.
mapfile -t tests < <("$binary" --list --format terse "${filters[@]}" | sed -n 's/: test$//p')
echo "tsan.sh: ${#tests[@]} tests"
failed=()
for test in "${tests[@]}"; do
    if ! "$binary" --exact "$test" >"$target/report" 2>&1; then
        failed+=("$test")
        cat "$target/report" >&2
    fi
done
if ((${#tests[@]} == 0 || ${#failed[@]})); then
    printf 'tsan.sh: FAILED: %s\n' "${failed[@]:-no test has such a name}" >&2
    exit 1
fi
echo "tsan.sh: no race"
