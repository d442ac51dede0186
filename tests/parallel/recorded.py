"""`hir_jax.train` as it is, which also writes down what it sampled and selected, and how many rows it checked itself.

    python tests/parallel/recorded.py RECORD.npz STEPS --config=... --workdir=...

The record holds the first STEPS steps. With the environment variable FAILS it gives up, with that message, when it first
checks rows.
"""

import os
import runpy
import sys

import numpy as np

from hir_jax.checks.verifier import Verifier
from hir_jax.engine import Engine
from hir_jax.types import InputError

path, steps = sys.argv[1], int(sys.argv[2])
seen, checked = {}, []
learn, verify = Engine.learn, Verifier.verify


def recorded_learn(self, state, ref_params, prompts, rollout, verdicts, rounds, step):
    state, metrics, replays = learn(self, state, ref_params, prompts, rollout, verdicts, rounds, step)
    if step < steps:
        found = {
            "tokens": rollout.tokens, "mask": rollout.mask, **verdicts._asdict(), "row": replays.row, "valid": replays.valid,
        }  # fmt: skip
        seen.update({f"{step}/{name}": np.asarray(x) for name, x in found.items()})
    if step == steps - 1:
        np.savez(path, checked=sum(checked), **seen)
    return state, metrics, replays


def counted_verify(self, rows, width, **how):
    checked.append(len(rows))
    if "FAILS" in os.environ:
        raise InputError(os.environ["FAILS"])
    return verify(self, rows, width, **how)


Engine.learn, Verifier.verify = recorded_learn, counted_verify
sys.argv = ["hir_jax.train", *sys.argv[3:]]
runpy.run_module("hir_jax.train", run_name="__main__", alter_sys=True)
