#!/usr/bin/env bash
# One machine: whatever devices it has. Starts the run again when it asks for it (exit code 75),
# and goes on from the last checkpoint when this script itself is started again.
#
#   launch/local.sh --config=configs/demo.py
#   PROCESSES=2 RESTARTS=5 launch/local.sh --config=configs/sketchy.py --workdir=runs/sketchy
set -euo pipefail

if [[ $# -eq 0 || $1 == --help ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    exit 0
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
[[ -x $PYTHON ]] || PYTHON=$(command -v python3)

# Large buffers in huge pages: small networks train faster on a CPU (glibc only).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

exec "$PYTHON" launch/processes.py -n "${PROCESSES:-1}" --restarts="${RESTARTS:-3}" -- "$@"
