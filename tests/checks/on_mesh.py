"""Verdicts on eight virtual devices, for test_device.py.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/checks/on_mesh.py OUT.npz
"""

import sys

import jax
import numpy as np

from hir_jax.checks.device import verify as device
from hir_jax.checks.device.conditions import encode
from hir_jax.data.generate.tiny import lexicon
from hir_jax.parallel import mesh as meshes
from hir_jax.types import Constraint

ROWS = (
    [Constraint("keywords:existence", {"keywords": ["river", "garden"]}), Constraint("punctuation:no_comma")],
    [Constraint("detectable_format:title"), Constraint("combination:two_responses"), Constraint("language:none")],
    [Constraint("length_constraints:number_words", {"num_words": 9, "relation": "less than"})],
    [Constraint("startend:end_checker", {"end_phrase": "Good night."}), Constraint("startend:quotation")],
)
WIDTH = 320


def run(mesh: tuple[int, int, int], devices) -> tuple[dict[str, np.ndarray], str]:
    """Verdicts of four responses to each of eight prompts, and the compiled program."""
    tokenizer = lexicon.build_tokenizer()
    table = device.token_bytes(tokenizer, len(tokenizer))
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, len(tokenizer), (32, 24)).astype(np.int32)
    mask = np.arange(24) < rng.integers(0, 25, 32)[:, None]
    mesh = meshes.make_mesh(*mesh, devices=devices)
    conditions, tokens, mask = meshes.put_rows(mesh, (encode(ROWS * 2, 3), tokens, mask))
    table = jax.device_put(table, meshes.replicated(mesh))
    verify = jax.jit(device.verify, static_argnames="width", out_shardings=meshes.rows(mesh))
    compiled = verify.lower(table, conditions, tokens, mask, width=WIDTH).compile()
    return jax.device_get(compiled(table, conditions, tokens, mask))._asdict(), compiled.as_text()


if __name__ == "__main__":
    verdicts, program = run((2, 2, 2), jax.devices())
    np.savez(sys.argv[1], program=np.array(program), **verdicts)
