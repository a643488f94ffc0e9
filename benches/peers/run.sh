#!/usr/bin/env bash
# Runs this product and its peers side by side and prints one table. See README.md beside this file.
#
#   benches/peers/run.sh                 everything, five rounds
#   benches/peers/run.sh --quick         three rounds, smaller
#   benches/peers/run.sh --only batch    one of batch, noop, cold, others
#
# AI_SWARM_BINARY names the binary to measure, else a release build is made; PYTHON names the interpreter.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)

if ! launcher=$(command -v "${PYTHON:-python3}"); then
    echo "error: ${PYTHON:-python3} is not here; the peers need Python 3.9 or newer" >&2
    exit 3
fi
# The interpreter itself: a launcher in front of it would add its own start-up time to every peer.
python=$("$launcher" -c 'import sys; print(sys.executable)')

scratch=$(mktemp -d "${TMPDIR:-/tmp}/ai_swarm-peers.XXXXXX")
trap 'rm -rf -- "$scratch"' EXIT

if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    "$python" "$here/compare.py" --help
    exit 0
fi

if ! "$python" -c 'import numpy' 2>/dev/null; then
    echo "numpy is missing: making a virtual environment in $scratch and installing it there, for this run only" >&2
    if ! { "$python" -m venv "$scratch/venv" && "$scratch/venv/bin/pip" install --quiet --disable-pip-version-check numpy; } >&2; then
        echo "error: numpy is missing and cannot be installed; install it, or name a Python that has it with PYTHON=" >&2
        exit 3
    fi
    python=$scratch/venv/bin/python
fi

binary=${AI_SWARM_BINARY:-}
if [[ -z "$binary" ]]; then
    echo "building the release binary" >&2
    artifacts=$(cargo build --release --locked --quiet --manifest-path "$root/Cargo.toml" \
        --bin ai_swarm_deploy --message-format json-render-diagnostics)
    binary=$(sed -n 's/.*"executable":"\([^"]*ai_swarm_deploy\)".*/\1/p' <<<"$artifacts" | tail -n 1)
fi
if [[ ! -x "$binary" ]]; then
    echo "error: $binary is not a program; build it with \`cargo build --release\`, or name one with AI_SWARM_BINARY=" >&2
    exit 3
fi

"$python" "$here/compare.py" --binary "$(realpath -- "$binary")" --scratch "$scratch" "$@"
