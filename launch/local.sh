#!/usr/bin/env bash
# One machine, with all its devices. Restarts the run after exit code 75. Run the script again to
# resume from the last checkpoint.
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

# Huge pages for large buffers: small networks train faster on a CPU (glibc only).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

exec "$PYTHON" launch/processes.py -n "${PROCESSES:-1}" --restarts="${RESTARTS:-3}" -- "$@"
