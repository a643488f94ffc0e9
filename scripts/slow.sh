#!/usr/bin/env bash
# The slow test set: what takes too long for every change. Release builds but for the disks, about two hours, two cores.
#
#   scripts/slow.sh              all parts, one after the other
#   scripts/slow.sh PART...      only these
#
# Parts:
#   kills         10,000 kills of agents, one or several or all at once
#   agents        3,000 other faults of agents: stops, scribbled memory, no more memory
#   supervisors   500 kills of the supervisor
#   gateways      1,000 kills and stops of the gateway, about half of each
#   soak          20 minutes with two faults of any kind a second
#   disks         a debug build, which has places at which a disk can fail: 10 minutes of bad disks, kills and deaths of the
#                 supervisor
#   writes        every write and every sync of the journal fails once, each in a life of its own
#   spinners      10 minutes of a working swarm among 32 spinners: nobody is taken for hung
#   forecasts     what failures are foretold, on twenty seeds
#   figures       the limits of `bench recovery` and `bench journal`; wants a host that does nothing else
#   races         two million sleep and wake races per way of waiting
#
# Every part prints its seed and a table; the first promise that breaks, or limit that is missed, ends the run with 1.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

if [[ "${1-}" == -h || "${1-}" == --help ]]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi
for part in "$@"; do
    case "$part" in
        kills | agents | supervisors | gateways | soak | disks | writes | spinners | forecasts | figures | races) ;;
        *)
            echo "slow.sh: unknown part \"$part\"; scripts/slow.sh --help names them" >&2
            exit 2
            ;;
    esac
done

wanted() { (($# > 1)) || return 0; local part=$1; shift; [[ " $* " == *" $part "* ]]; }
heading() { printf '\n== %s (at %s s)\n' "$1" "$SECONDS"; }

cargo build --release --locked --bin ai_swarm_deploy
target=$(cargo metadata --format-version 1 --no-deps --locked | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
swarm=$target/release/ai_swarm_deploy

if wanted kills "$@"; then
    heading "kills"
    "$swarm" chaos --for 40m --count 10000 --rate 25 --fault kill --fault kill-many
fi
if wanted agents "$@"; then
    heading "agents"
    "$swarm" chaos --for 40m --count 3000 --rate 10 --fault stop --fault scribble --fault memory
fi
if wanted supervisors "$@"; then
    heading "supervisors"
    "$swarm" chaos --for 40m --count 500 --rate 5 --fault supervisor
    "$swarm" chaos --for 40m --count 200 --rate 5 --fault supervisor --fault kill --durability power
fi
if wanted gateways "$@"; then
    heading "gateways"
    "$swarm" chaos --for 40m --count 1000 --rate 5 --fault gateway
fi
if wanted soak "$@"; then
    heading "soak"
    "$swarm" chaos --for 20m --rate 2
fi
if wanted disks "$@"; then
    heading "disks"
    cargo build --locked --bin ai_swarm_deploy
    "$target/debug/ai_swarm_deploy" chaos --for 10m --rate 2 --fault disk --fault kill --fault supervisor
fi
if wanted writes "$@"; then
    heading "writes"
    AI_SWARM_EVERY_PASS=1 cargo test --locked -p ai_swarm --test swarm -- --nocapture after_a_failed_ what_fails_while_the_journal
fi
if wanted spinners "$@"; then
    heading "spinners"
    AI_SWARM_SPIN_SECONDS=600 cargo test --release --locked -p ai_swarm --test swarm busy_is_not_hung -- --nocapture
fi
if wanted forecasts "$@"; then
    heading "forecasts"
    AI_SWARM_TEST_SEEDS=100..120 cargo test --release --locked -p ai_swarm --lib fault::traces -- --nocapture
fi
if wanted figures "$@"; then
    heading "figures"
    "$swarm" bench recovery --check
    "$swarm" bench journal --check
fi
if wanted races "$@"; then
    heading "races"
    AI_SWARM_RACES=2000000 cargo test --release --locked -p ai_swarm --lib doorbell -- --nocapture
fi
printf '\nall fine after %s s\n' "$SECONDS"
