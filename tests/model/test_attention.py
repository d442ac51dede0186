"""The kernels, interpreted on a CPU, against attention written with NumPy; so the plain ones too. Values and gradients."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import interpreted
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import ROOT, environment

from hir_jax.model import attention, decode_attention
from hir_jax.model.decoder import no_shard

# rows, columns, query heads, key heads, head size, window: columns and heads that the kernels have to pad; the usual head sizes
CASES = {
    "padded": (2, 200, 4, 2, 16, 200), "window": (1, 384, 2, 1, 128, 130), "heads of 64": (1, 130, 3, 1, 64, 130),
    "heads of 256": (1, 70, 2, 1, 256, 70),
}  # fmt: skip
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}
GRADIENT_TOLERANCE = {"float32": 2e-4, "bfloat16": 2e-2}  # of the largest number


def make_case(name, dtype="float32"):
    rows, columns, heads, num_kv, size, window = CASES[name]
    rng = np.random.default_rng(3)
    q = rng.standard_normal((rows, columns, heads, size)).astype(dtype)
    k, v = (rng.standard_normal((rows, num_kv, columns, size)).astype(dtype) for _ in range(2))
    segments = np.sort(rng.integers(0, 3, (rows, columns)), axis=1)
    if window < columns:
        segments = np.arange(columns)[None].repeat(rows, 0) // window + 1  # none longer than the window
    return (jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)), segments, window


def by_numpy(q, k, v, segments, prompts=None):
    """In float64, a query at a time."""
    prompts = segments if prompts is None else prompts
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    rows, columns, heads, size = q.shape
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(rows, columns, heads):
        seen = [s for s in range(t + 1) if segments[b, s] in (segments[b, t], prompts[b, t])]
        key = h // (heads // k.shape[1])
        scores = k[b, key, seen] @ q[b, t, h] / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ v[b, key, seen] / weights.sum()
    return out.reshape(rows, columns, -1)


@pytest.fixture(autouse=True)
def on_a_cpu():
    with interpreted.kernels():
        yield


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", ["plain", "splash", "triton"])
def test_all_implementations_are_attention(implementation, case):
    arrays, segments, window = make_case(case)
    attend = attention.causal(implementation, jnp.asarray(segments), window, no_shard)
    np.testing.assert_allclose(attend(*arrays), by_numpy(*arrays, segments), atol=TOLERANCE["float32"])


def test_segments_share_the_columns_of_their_prompt():
    """Two prompts, three segments after them in no order; where an attention cannot share, it says so."""
    arrays, *_ = make_case("padded")
    segments = np.repeat([4, 1, 5, 2, 3, 0], [30, 40, 20, 30, 50, 30])[None].repeat(2, 0)
    prompts = np.array([0, 4, 5, 4, 4, 5])[segments]
    attend = attention.causal("plain", jnp.asarray(segments), 200, no_shard, jnp.asarray(prompts))
    np.testing.assert_allclose(attend(*arrays), by_numpy(*arrays, segments, prompts), atol=TOLERANCE["float32"])
    with pytest.raises(ValueError, match="splash"):
        attention.causal("splash", jnp.asarray(segments), 200, no_shard, jnp.asarray(prompts))


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float32") for case in CASES if case != "window"), ("padded", "bfloat16")]
)
@pytest.mark.parametrize("implementation", ["splash", "triton"])
def test_gradients_are_those_of_the_plain_one_in_float32(implementation, case, dtype):
    arrays, segments, window = make_case(case, dtype)
    ramp = jnp.linspace(0.5, 1.5, arrays[0].size).reshape(*arrays[0].shape[:2], -1)

    def total(implementation, arrays):
        found = attention.causal(implementation, jnp.asarray(segments), window, no_shard)(*arrays)
        return (found.astype(jnp.float32) ** 2 * ramp).sum()

    found = jax.jit(jax.grad(partial(total, implementation)))(arrays)
    wanted = jax.jit(jax.grad(partial(total, "plain")))(jax.tree.map(lambda x: x.astype(jnp.float32), arrays))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        tolerance = GRADIENT_TOLERANCE[dtype] * float(jnp.abs(b).max())
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("implementation", ["splash", "triton"])
def test_bfloat16(implementation):
    arrays, segments, window = make_case("padded", "bfloat16")
    attend = attention.causal(implementation, jnp.asarray(segments), window, no_shard)
    found = attend(*arrays)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), by_numpy(*arrays, segments), atol=TOLERANCE["bfloat16"])


def make_caches(prompts, samples, num_kv, group, columns, ring, size=16):
    rng = np.random.default_rng(5)
    rows = prompts * samples
    q = rng.standard_normal((rows, num_kv, group, size)).astype(np.float32)
    prompt = tuple(rng.standard_normal((prompts, num_kv, columns, size)).astype(np.float32) for _ in range(2))
    own = tuple(rng.standard_normal((rows, num_kv, ring, size)).astype(np.float32) for _ in range(2))
    return q, prompt, own


@pytest.mark.parametrize("implementation", ["plain", "splash"])
@pytest.mark.parametrize(("end", "counts"), [(37, (1, 20, 38, 0)), (5, (300, 6, 384, 130)), (383, (384, 1, 200, 129))])
def test_decoding_attends_to_what_is_filled(implementation, end, counts):
    """Rings of three blocks: counts that start in an earlier block, wrap round the end, fill all; a row with nothing of its
    own. Two rows share a prompt."""
    q, prompt, own = make_caches(2, 2, 2, 2, 256, 384)
    lengths = np.array([256, 3])
    found = decode_attention.attend_one(
        implementation, jnp.asarray(q), prompt, decode_attention.Filled(jnp.int32(255), jnp.asarray(lengths)), own,
        decode_attention.Filled(jnp.int32(end), jnp.asarray(counts)), no_shard,
    )  # fmt: skip
    for b, count in enumerate(counts):
        picked = [(end - i) % 384 for i in range(count)]
        for h in range(2):
            keys, values = (
                np.concatenate([prompt[i][b // 2, h, 256 - lengths[b // 2] :], own[i][b, h, picked]]) for i in (0, 1)
            )
            scores = q[b, h].astype(np.float64) @ keys.T
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            np.testing.assert_allclose(
                found[b, h], weights @ values / weights.sum(-1, keepdims=True), atol=TOLERANCE["float32"]
            )


def test_eight_devices():
    """Rows and key heads split under (2, 2, 2): values and gradients of whole sequences, and one column over caches."""
    command = [sys.executable, str(Path(__file__).with_name("sharded_attention.py"))]
    done = subprocess.run(command, env=environment(8), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert set(differences) == {"splash", "triton", "decoding"} and max(differences.values()) < 1e-5, differences
