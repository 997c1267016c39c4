#!/usr/bin/env bash
# A Cloud TPU slice of any size, from nothing to nothing. Needs gcloud, logged in.
#
#   launch/tpu_vm.sh create                      # the machines
#   launch/tpu_vm.sh install                     # this checkout and its requirements, on all workers
#   launch/tpu_vm.sh run --config=configs/sketchy.py --workdir=gs://BUCKET/sketchy
#   launch/tpu_vm.sh log                         # what worker 0 says; Ctrl-C leaves the run alone
#   launch/tpu_vm.sh stop                        # tells the run to save and leave
#   launch/tpu_vm.sh resume --config=... --workdir=...   # after a preemption: create, install, run
#   launch/tpu_vm.sh delete
#
# Set NAME, ZONE, TYPE, VERSION and PROJECT in the environment; SPOT=1 asks for a spot slice.
# --dry-run as first argument prints the commands and runs nothing. The workdir must be a bucket:
# all workers write to it. A run that is told to leave saves first, and is started again there.
set -euo pipefail

DRY_RUN=0
if [[ ${1:-} == --dry-run ]]; then
    DRY_RUN=1
    shift
fi
NAME=${NAME:-zse-jax}
ZONE=${ZONE:-us-central2-b}
TYPE=${TYPE:-v4-8}
VERSION=${VERSION:-tpu-ubuntu2204-base}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say_or_do() {
    if [[ $DRY_RUN == 1 ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

tpu() {
    local verb=$1
    shift
    local flags=(--zone="$ZONE")
    [[ -z ${PROJECT:-} ]] || flags+=(--project="$PROJECT")
    say_or_do gcloud compute tpus tpu-vm "$verb" "$@" "${flags[@]}"
}

on_all_workers() { tpu ssh "$NAME" --worker=all --command="$1"; }

create() {
    local flags=(--accelerator-type="$TYPE" --version="$VERSION")
    [[ ${SPOT:-0} != 1 ]] || flags+=(--spot)
    tpu create "$NAME" "${flags[@]}"
}

install() {
    local archive
    archive=$(mktemp -d)/zse_jax.tar.gz
    say_or_do tar -C "$HERE" --exclude=.venv --exclude=.git --exclude=.cache --exclude=runs \
        -czf "$archive" .
    tpu scp "$archive" "$NAME:zse_jax.tar.gz" --worker=all
    on_all_workers "mkdir -p zse_jax && tar -C zse_jax -xzf zse_jax.tar.gz && cd zse_jax && \
python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && \
.venv/bin/pip install -q \"jax[tpu]==\$(sed -n 's/^jax==//p' requirements.txt)\""
}

run() {
    local arguments
    printf -v arguments '%q ' "$@"
    # jax finds the other workers by itself. Detached: the run outlives this connection, and
    # local.sh starts it again after exit code 75.
    on_all_workers "cd zse_jax && { RESTARTS=${RESTARTS:-50} nohup launch/local.sh $arguments \
> run.log 2>&1 < /dev/null & echo \$! > run.pid; }"
}

case ${1:-} in
    create | install | run)
        "$@"
        ;;
    resume) # a preempted slice is gone, and has to be deleted before a new one gets its name
        shift
        tpu delete "$NAME" --quiet || true
        create
        install
        run "$@"
        ;;
    log)
        tpu ssh "$NAME" --worker=0 --command="tail -n 50 -F zse_jax/run.log"
        ;;
    stop)
        on_all_workers "pkill -TERM --pidfile zse_jax/run.pid"
        ;;
    delete)
        tpu delete "$NAME" --quiet
        ;;
    *)
        sed -n '2,14s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
