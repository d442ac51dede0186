#!/usr/bin/env bash
# Run on each worker by `tpu_vm.py setup`, in the home directory, after the checkout was unpacked over ~/hir_jax:
#     setup_worker.sh COMMIT PYTHON [HOST:/SHARE]
# makes ~/hir_jax/.venv with that Python version, requirements and jax[tpu]; mounts the NFS share at ~/hir_jax/runs (the one of the
# setup before, if none is given); gives systemd the unit hir_jax, which mounts the share and continues the run whenever the machine
# boots. Running it again changes only what is out of date. At the end it writes COMMIT to .launch/ready.
set -euo pipefail
commit=$1
python_version=$2
share=${3-}
cd ~/hir_jax

# Remove files that the checkout before this one had and this one lacks: Python could still import them.
mkdir -p .launch runs
tar -tzf ~/hir_jax.tar.gz | { grep -v '/$' || true; } | sort > .launch/files.new
if [ -f .launch/files ]; then
    comm -23 .launch/files .launch/files.new | xargs -r -d '\n' rm -f --
fi
mv .launch/files.new .launch/files

# apt-get waits for the updates that Ubuntu itself makes after the first boot.
install() {
    sudo apt-get -o DPkg::Lock::Timeout=600 update -q && sudo apt-get -o DPkg::Lock::Timeout=600 install -q -y "$1"
}

if [ -n "$share" ]; then
    command -v mount.nfs > /dev/null || install nfs-common
    # nolock: the server would keep the locks of a node that is gone. The run's own lock is a lease then (hir_jax/run/lock.py).
    mount="mountpoint -q $PWD/runs || { mount -t nfs -o hard,nolock $share $PWD/runs && chown $(id -u):$(id -g) $PWD/runs; }"
    if [ -f .launch/mount.sh ] && [ "$(cat .launch/mount.sh)" != "$mount" ] && mountpoint -q runs; then
        sudo umount "$PWD/runs" # another share
    fi
    printf '%s\n' "$mount" > .launch/mount.sh
fi
[ ! -f .launch/mount.sh ] || sudo bash "$PWD/.launch/mount.sh"

# A run with code checkers needs bubblewrap, and says so; others do without.
command -v bwrap > /dev/null || install bubblewrap || echo "note: no bubblewrap: a run with code checkers will not start"

# The images' own Python (3.10 on Ubuntu 22.04) is too old for jax, so uv installs a newer one. --target: pip may not change the
# packages of the system's own Python.
[ -x ~/.local/uv/bin/uv ] || python3 -m pip install --quiet --target ~/.local/uv uv==0.13.9
export PATH=~/.local/uv/bin:$PATH
case "$(.venv/bin/python --version 2> /dev/null || true)" in
    "Python $python_version."*) ;;
    *) rm -rf .venv && uv venv --quiet --python "$python_version" .venv ;;
esac
export VIRTUAL_ENV=$PWD/.venv
uv pip install --quiet -r requirements.txt 'jax[tpu]'   # of the version that requirements.txt pins
uv pip install --quiet --no-deps -r requirements-data.txt
.venv/bin/python -c 'import sys, jax; print("Python", sys.version.split()[0], "jax", jax.__version__)'

# The keeper (worker.py) is the unit's main process and alone gets SIGTERM when the machine goes down (KillMode): it hands it on
# once, so that the program saves. It is started again when it fails or was killed, as where the share could not be mounted yet.
cat > .launch/hir_jax.service << UNIT
[Unit]
Description=Keeper of the hir_jax run
Wants=network-online.target
After=network-online.target remote-fs.target
StartLimitIntervalSec=0

[Service]
Type=exec
User=$(id -un)
WorkingDirectory=$PWD
ExecStartPre=+/bin/bash -c '! [ -f .launch/mount.sh ] || /bin/bash .launch/mount.sh'
ExecStart=$PWD/.venv/bin/python launch/worker.py keep
Restart=on-failure
RestartSec=30
KillMode=mixed
TimeoutStartSec=300
TimeoutStopSec=300
OOMPolicy=continue
LimitMEMLOCK=infinity
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
UNIT
sudo cp .launch/hir_jax.service /etc/systemd/system/hir_jax.service
sudo systemctl daemon-reload
sudo systemctl enable --quiet hir_jax
echo "$commit" > .launch/ready
