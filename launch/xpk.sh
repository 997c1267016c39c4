#!/usr/bin/env bash
# A GKE cluster of TPU slices, with xpk (pip install xpk): one workload, restarted after preemption.
#
#   CLUSTER=name TYPE=v5litepod-16 SLICES=1 launch/xpk.sh [--dry-run] --config=configs/sketchy.py \
#       --workdir=gs://BUCKET/sketchy
#
# IMAGE is the image of launch/Dockerfile with --build-arg DEVICE=tpu, in a registry that GKE can
# access.
set -euo pipefail

DRY_RUN=0
if [[ ${1:-} == --dry-run ]]; then
    DRY_RUN=1
    shift
fi
if [[ $# -eq 0 ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
printf -v arguments '%q ' "$@"
command=(
    xpk workload create
    --cluster "${CLUSTER:?the name of the cluster}"
    --workload "${WORKLOAD:-zse-jax}"
    --tpu-type "${TYPE:-v5litepod-16}"
    --num-slices "${SLICES:-1}"
    --docker-image "${IMAGE:?the image that launch/Dockerfile builds}"
    # The same command resumes from the last checkpoint.
    --max-restarts "${RESTARTS:-20}"
    --restart-on-exit-codes 75 # by default, xpk restarts only after 42 and 127 to 255
    --termination-grace-period-seconds 120 # time to save
    --command "python -u -m zse_jax.main $arguments"
)
[[ -z ${ZONE:-} ]] || command+=(--zone "$ZONE")
[[ -z ${PROJECT:-} ]] || command+=(--project "$PROJECT")
if [[ $DRY_RUN == 1 ]]; then
    printf '%q ' "${command[@]}"
    echo
else
    "${command[@]}"
fi
