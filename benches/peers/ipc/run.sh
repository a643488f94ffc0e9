#!/usr/bin/env bash
# Builds and runs the comparison of messages; prints one table. See ../README.md.
#
#   benches/peers/ipc/run.sh           a minute or two
#   benches/peers/ipc/run.sh --quick   some seconds
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
exec cargo run --release --locked --quiet --manifest-path "$here/Cargo.toml" -- "$@"
