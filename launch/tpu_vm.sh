#!/usr/bin/env bash
# Creates, uses and deletes a Cloud TPU slice of any size. Requires gcloud with a login.
#
#   launch/tpu_vm.sh create                      # create the machines
#   launch/tpu_vm.sh install                     # copy this checkout and install it on all workers
#   launch/tpu_vm.sh run --config=configs/sketchy.py --workdir=gs://BUCKET/sketchy
#   launch/tpu_vm.sh log                         # output of worker 0; Ctrl-C does not stop the run
#   launch/tpu_vm.sh stop                        # make the run save and exit
#   launch/tpu_vm.sh resume --config=... --workdir=...   # after a preemption: create, install, run
#   launch/tpu_vm.sh delete
#
# Set NAME, ZONE, TYPE, VERSION and PROJECT in the environment; SPOT=1 requests a spot slice.
# --dry-run as first argument only prints the commands. The workdir must be a bucket, because all
# workers write to it. A preempted run saves first and is then restarted.
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

run_or_print() {
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
    run_or_print gcloud compute tpus tpu-vm "$verb" "$@" "${flags[@]}"
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
    run_or_print tar -C "$HERE" --exclude=.venv --exclude=.git --exclude=.cache --exclude=runs \
        -czf "$archive" .
    tpu scp "$archive" "$NAME:zse_jax.tar.gz" --worker=all
    on_all_workers "mkdir -p zse_jax && tar -C zse_jax -xzf zse_jax.tar.gz && cd zse_jax && \
python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && \
.venv/bin/pip install -q \"jax[tpu]\" -c requirements.txt"
}

run() {
    local arguments
    printf -v arguments '%q ' "$@"
    # jax finds the other workers automatically. The run is detached and survives this connection;
    # local.sh restarts it after exit code 75.
    on_all_workers "cd zse_jax && { RESTARTS=${RESTARTS:-50} nohup launch/local.sh $arguments \
> run.log 2>&1 < /dev/null & echo \$! > run.pid; }"
}

case ${1:-} in
    create | install | run)
        "$@"
        ;;
    resume) # a preempted slice must be deleted before a new one can use its name
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
