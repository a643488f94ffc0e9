#!/usr/bin/env bash
# Runs the unit tests of shared memory and messaging under Miri, where a toolchain has it.
#
#   scripts/miri.sh              src/shm and src/messaging
#   scripts/miri.sh FILTER...    only the tests whose names contain one of these
#
# What it can show: undefined behaviour in what these tests do with private memory (`Words::private`): pointers out of
# bounds or of the wrong origin, references that alias, uninitialised bytes, plain data races, and
# some weak-memory outcomes, since it lets relaxed loads see old values.
# What it cannot show: anything with a mapping or a futex between processes. Tests that need memfd, seals, eventfd or a
# named segment are left out by name.
#
# MIRI_TOOLCHAIN names the toolchain (default: nightly). Without Miri the script says so and ends with 3.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

if [[ "${1-}" == -h || "${1-}" == --help ]]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi

toolchain=${MIRI_TOOLCHAIN:-nightly}
if ! cargo "+$toolchain" miri --version >/dev/null 2>&1; then
    echo "miri.sh: toolchain \"$toolchain\" has no Miri (rustup component add miri --toolchain $toolchain);" \
        "nothing was checked" >&2
    exit 3
fi

filters=("$@")
# Of arena and memory the tests on private memory; ring and lossy exercise the slots. The seqlock lies in the board, which has
# a name: loom has it.
((${#filters[@]})) || filters=(
    shm::ring shm::lossy shm::doorbell shm::blocks
    shm::arena::tests::a_block_stays_as_it_is_while_a_reader_holds_it
    shm::arena::tests::a_copy_that_is_still_current_is_whole
    shm::arena::tests::the_arena_agrees_with_a_list
    shm::memory::tests::bytes_are_written_and_read_as_in_a_vector
    messaging::lanes messaging::envelope messaging::meters
)
# Isolation off: the tests read a clock and the environment. Strict provenance: no address becomes a pointer.
export MIRIFLAGS="-Zmiri-strict-provenance -Zmiri-disable-isolation ${MIRIFLAGS-}"
export PROPTEST_CASES="${PROPTEST_CASES:-4}" CARGO_TARGET_DIR=$PWD/target/miri
cargo "+$toolchain" miri test --locked -p ai_swarm --lib -- "${filters[@]}" --skip the_supervisor_hears_every_ring
