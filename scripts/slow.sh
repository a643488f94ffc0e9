#!/usr/bin/env bash
# The slow test set: what takes too long for every change. Release build, about 45 minutes, two cores.
#
#   scripts/slow.sh              all parts, one after the other
#   scripts/slow.sh PART...      only these
#
# Parts:
#   kills         10,000 faults against agents: kills, several at once, stops, scribbled memory
#   supervisors   500 kills of the supervisor, and kills and stops of its gateway
#   soak          20 minutes with a fault every second
#   races         two million sleep and wake races per way of waiting
#
# Every part prints its seed and a table; the first promise that breaks ends the run with 1.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

if [[ "${1-}" == -h || "${1-}" == --help ]]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
fi
for part in "$@"; do
    case "$part" in
        kills | supervisors | soak | races) ;;
        *)
            echo "slow.sh: unknown part \"$part\"; kills, supervisors, soak and races are known" >&2
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
    "$swarm" chaos --for 40m --count 10000 --rate 25 --fault kill --fault kill-many --fault stop --fault scribble
fi
if wanted supervisors "$@"; then
    heading "supervisors"
    "$swarm" chaos --for 40m --count 500 --rate 5 --fault supervisor --fault gateway
fi
if wanted soak "$@"; then
    heading "soak"
    "$swarm" chaos --for 20m --rate 1
fi
if wanted races "$@"; then
    heading "races"
    AI_SWARM_RACES=2000000 cargo test --release --locked -p ai_swarm --lib doorbell -- --nocapture
fi
printf '\nall fine after %s s\n' "$SECONDS"
