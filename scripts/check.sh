#!/usr/bin/env bash
# The door: what must hold before anything is merged. CI goes through it too.
#
#   scripts/check.sh                 format, lints, tests, docs
#   scripts/check.sh --fast          format, lints, unit tests only
#   scripts/check.sh --skip STAGE    leave out format, lints, tests or docs; may be repeated
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

fast=false
skipped=" "
while (($#)); do
    case "$1" in
        --fast) fast=true ;;
        --skip)
            case "${2-}" in
                format | lints | tests | docs) skipped+="$2 " ;;
                *)
                    echo "error: --skip needs one of format, lints, tests, docs; found \"${2-}\"" >&2
                    exit 2
                    ;;
            esac
            shift
            ;;
        -h | --help)
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *)
            echo "error: unknown word \"$1\"; --fast, --skip STAGE and --help are known" >&2
            exit 2
            ;;
    esac
    shift
done

stage() {
    local name=$1 began=$SECONDS
    shift
    if [[ "$skipped" == *" $name "* ]]; then
        printf '\n== %s: left out\n' "$name"
        return
    fi
    printf '\n== %s: %s\n' "$name" "$*"
    if ! "$@"; then
        printf '\n== %s: FAILED after %s s\n' "$name" "$((SECONDS - began))" >&2
        exit 1
    fi
    printf '== %s: fine, %s s\n' "$name" "$((SECONDS - began))"
}

stage format cargo fmt --check
stage lints cargo clippy --all-targets --locked -- -D warnings
if $fast; then
    stage tests cargo test --locked -p ai_swarm --lib
else
    stage tests cargo test --locked
    stage docs env RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --locked
fi
printf '\nall fine after %s s\n' "$SECONDS"
