"""Checkpoints: states are restored bit for bit, errors name a broken checkpoint, later updates do not change a save."""

import gc
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hir_jax.parallel import mesh as meshes
from hir_jax.run.checkpoints import CheckpointError, Checkpoints, _reason
from hir_jax.types import TrainState


@pytest.fixture(scope="module")
def sharding():
    return meshes.replicated(meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1]))


def make_state(sharding, step, size=64):
    """A state whose numbers depend on the step and include non-finite and denormal ones."""
    values = np.random.default_rng(step).normal(size=(size, size)).astype(np.float32)
    values.flat[:4] = np.nan, np.inf, 1e-45, -0.0
    params = {"layers": {"q": values}, "norm": np.arange(4, dtype=jnp.bfloat16)}
    moments = (jax.tree.map(np.square, params), {"count": np.int32(step)})
    return jax.device_put(TrainState(np.int32(step), params, moments, np.int32(step // 2)), sharding)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.sharding == b.sharding
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_what_is_saved_comes_back_bit_for_bit(tmp_path, sharding):
    state = make_state(sharding, 3)
    with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
        assert saved.latest() is None
        saved.save(3, state, {"step": 3, "config": {"seed": 1}})
    with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
        assert saved.latest() == 3
        found, meta = saved.restore(3, abstract(state))
    assert_same_bits(found, state)
    assert meta == {"step": 3, "config": {"seed": 1}}


class StateWithoutBuffer(NamedTuple):
    """A TrainState as it was before it could have a buffer."""

    step: Any
    params: Any
    opt_state: Any
    skipped: Any


def test_a_checkpoint_from_before_there_was_a_buffer_comes_back(tmp_path, sharding):
    """Written as it was then; and what is written now without a buffer can be read in its form."""
    state = make_state(sharding, 3)
    assert state.buffer is None
    older, step = StateWithoutBuffer(*state[:4]), tmp_path / "checkpoints"
    with ocp.CheckpointManager(step) as manager:
        args = {"state": ocp.args.StandardSave(older), "meta": ocp.args.JsonSave({"step": 3})}
        manager.save(3, args=ocp.args.Composite(**args))
    with Checkpoints(step, keep=2) as saved:
        found, meta = saved.restore(3, abstract(state))
    assert_same_bits(found, state)
    assert meta == {"step": 3}
    with Checkpoints(step) as saved:
        found, _ = saved.restore_params(3, abstract(state.params))
    assert_same_bits(found, state.params)
    with Checkpoints(step, keep=2) as saved:
        saved.save(4, state, {})
    with ocp.CheckpointManager(step) as manager:
        found = manager.restore(4, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract(older))))["state"]
    assert_same_bits(found, older)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_without_a_buffer_is_refused_where_one_is_wanted(tmp_path, sharding):
    state = make_state(sharding, 4)
    with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
        saved.save(4, state, {})
        saved.wait()
        with pytest.raises(CheckpointError, match="cannot be read"):
            saved.restore(4, abstract(state._replace(buffer=state.params)))
    gc.collect()


def test_state_may_be_donated_right_after_save(tmp_path, sharding):
    """The next update writes into the same buffers while the files are still being written."""
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 7, s), donate_argnums=0)
    state = make_state(sharding, 1, size=1024)
    expected = make_state(sharding, 1, size=1024)
    with Checkpoints(tmp_path / "checkpoints", keep=5) as saved:
        for step in range(1, 4):
            saved.save(step, state, {})
            before = state.params["layers"]["q"]
            state = advance(state)
            assert before.is_deleted()
        found, _ = saved.restore(1, abstract(expected))
        assert_same_bits(found, expected)
        found, _ = saved.restore(3, abstract(expected))
        assert_same_bits(found, state)


def test_newest_are_kept_and_a_step_is_saved_once(tmp_path, sharding):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
        for step in (2, 4, 6):
            saved.save(step, make_state(sharding, step), {"time": "first"})
            saved.wait()
        saved.save(6, make_state(sharding, 6), {"time": "second"})
        saved.wait()
        assert saved.restore(6, abstract(make_state(sharding, 6)))[1] == {"time": "first"}
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]


def test_a_save_that_was_cut_off_does_not_count(tmp_path, sharding):
    """A kill in the middle of a save leaves a directory with a temporary name."""
    with Checkpoints(tmp_path / "checkpoints", keep=3) as saved:
        saved.save(1, make_state(sharding, 1), {})
    whole = tmp_path / "checkpoints" / "1"
    partial = whole.with_name("2.orbax-checkpoint-tmp")
    (partial / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    (partial / "state.orbax-checkpoint-tmp" / "manifest.ocdbt").write_bytes(b"half")
    with Checkpoints(tmp_path / "checkpoints", keep=3) as saved:
        assert saved.latest() == 1
        saved.save(2, make_state(sharding, 2), {})
    with Checkpoints(tmp_path / "checkpoints", keep=3) as saved:
        assert_same_bits(saved.restore(2, abstract(make_state(sharding, 2)))[0], make_state(sharding, 2))


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def break_state(step):
    for path in (step / "state").rglob("*"):
        if path.is_file():
            cut_in_half(path)


def lose_data(step):
    for path in (step / "state").rglob("d/*"):
        path.unlink()


def lose_state(step):
    for path in sorted((step / "state").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (step / "state").rmdir()


def break_meta(step):
    for path in (step / "meta").rglob("*"):
        if path.is_file():
            path.write_text('{"step": ')


# Orbax leaves abandoned reads to the garbage collector.
gives_up_reading = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@gives_up_reading
@pytest.mark.parametrize("damage", [break_state, lose_data, lose_state, break_meta])
def test_a_broken_checkpoint_is_named(tmp_path, sharding, damage):
    state = make_state(sharding, 4)
    with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
        saved.save(4, state, {"step": 4})
    damage(tmp_path / "checkpoints" / "4")
    with Checkpoints(tmp_path / "checkpoints", keep=2) as saved, pytest.raises(CheckpointError) as caught:
        saved.restore(4, abstract(state))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'checkpoints' / '4'}: cannot be read (")
    assert "\n" not in message
    gc.collect()


@gives_up_reading
def test_a_state_of_another_shape_is_refused(tmp_path, sharding):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
        saved.save(4, make_state(sharding, 4), {})
        saved.wait()
        with pytest.raises(CheckpointError, match="cannot be read"):
            saved.restore(4, abstract(make_state(sharding, 4, size=32)))
        with pytest.raises(CheckpointError, match="cannot be read"):
            saved.restore(
                4, abstract(make_state(sharding, 4))._replace(params={"other": abstract(make_state(sharding, 4)).step})
            )
    gc.collect()


SAVED_AFTER_ALL = """
import sys
import jax
from test_checkpoints import Checkpoints, make_state, meshes
sharding = meshes.replicated(meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1]))
with Checkpoints(sys.argv[1], keep=2) as saved:
    assert saved.latest() is None
    saved.save(1, make_state(sharding, 1), {"step": 1})
"""


@pytest.mark.parametrize("size", [600, 20_000])  # the metadata, the arrays
def test_a_full_disk_is_one_message(tmp_path, sharding, size, capfd, caplog):
    """Writes beyond `size` bytes of a file fail as on a full disk, except for the errno."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(CheckpointError) as caught, Checkpoints(tmp_path / "checkpoints", keep=2) as saved:
            saved.save(1, make_state(sharding, 1, size=200), {"step": 1})
            saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    wrong = f"{tmp_path}/checkpoints: a checkpoint cannot be written: File too large; the same command resumes from the last one"
    assert str(caught.value) == wrong
    assert capfd.readouterr().err == "" and not [one for one in caplog.records if one.levelno >= logging.ERROR]
    # a restart is a new process; here threads of the failed save may still be running
    done = subprocess.run(
        [sys.executable, "-c", SAVED_AFTER_ALL, str(tmp_path / "checkpoints")],
        cwd=Path(__file__).parent, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Checkpoints(tmp_path / "checkpoints") as saved:
        assert saved.latest() == 1


def test_words_of_a_full_disk():
    """In the words of tensorstore and of Python."""
    message = (
        "RESOURCE_EXHAUSTED: Error writing \"q\": Failed to write 4424 bytes to file 4: No space [os_error_code='28']"
    )
    assert _reason(ValueError(message)) == _reason(OSError(28, "whatever")) == "No space left on device"
