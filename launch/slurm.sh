#!/usr/bin/env bash
# Training on GPU nodes under SLURM. From the repository's root:
#     sbatch [--nodes=2 --partition=... --time=...] launch/slurm.sh --config=configs/X.py --workdir=DIR [--config.key=value ...]
# Arguments are those of `python -m hir_jax.train`; DIR is on a file system that all nodes share. Options given to sbatch override
# the ones below. PYTHON names another interpreter than .venv's.
#
# There is one process a GPU, as jax.distributed expects under SLURM: a process uses the device SLURM_LOCALID alone. Every process
# must therefore see all GPUs of its node: --gpus-per-node, not --gpus-per-task, which hides the others.
#
# SLURM sends SIGTERM to this script two minutes before the time limit, and on pre-emption to the processes or to this script. The
# processes then save a checkpoint and end with 0, and the job goes back into the queue until the run is finished (worker.py says
# when). A run that fails by itself is not queued again.
#SBATCH --job-name=hir_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.txt
set -u

# By default jax takes three quarters of a GPU's memory; a run that fits by `hir_jax.aot` may need nearly all of it (docs/launch.md)
if [ -z "${XLA_CLIENT_MEM_FRACTION:-}${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]; then
    export XLA_CLIENT_MEM_FRACTION=0.95
fi
python=${PYTHON:-.venv/bin/python}
if [ ! -f hir_jax/train.py ]; then
    echo "error: $PWD is not the repository's root: submit from there" >&2
    exit 1
fi

# Hand the signal to the processes through SLURM; without --batch and --full it does not come back to this script. Only once: a
# second signal would end them in the middle of saving.
signals=0
trap 'signals=$((signals + 1)); [ "$signals" -gt 1 ] || scancel --signal=TERM "$SLURM_JOB_ID"' TERM

srun --kill-on-bad-exit=1 --label "$python" -m hir_jax.train "$@" &
step=$!
seen=-1
while [ "$seen" -ne "$signals" ]; do # a trap ends `wait` early: wait again, for the checkpoint
    seen=$signals
    wait "$step"
    status=$?
done
if { [ "$status" -eq 0 ] || [ "$signals" -gt 0 ]; } && ! "$python" launch/worker.py finished -- "$@"; then
    echo "stopped before the end: queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
