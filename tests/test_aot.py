"""Collectives in compiled text, bounds, chips and messages; and real compilations, if the compilers are installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_runs import environment, small_config

from hir_jax import config as configs
from hir_jax.aot import __main__ as aot
from hir_jax.aot import chips, compiling, hlo, programs
from hir_jax.aot.programs import Work, device_bytes
from hir_jax.model import attention, counting, decoder
from hir_jax.model.config import MATRICES, ModelConfig
from hir_jax.model.files.published import Outline, outline
from hir_jax.parallel import mesh as meshes
from hir_jax.sampler.sample import Sampling
from hir_jax.types import InputError

ROOT = Path(__file__).parents[1]

# A module such as XLA prints: a loop of 28 trips around a gather, one of unknown trips around it, an asynchronous pair
TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: bf16[8,128]) -> bf16[8,512] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %inner = bf16[8,512]{1,0} broadcast(%p), dimensions={0,1}
}

%inner_body (t: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %t = (s32[], bf16[64,128]{1,0}) parameter(0)
  %x = bf16[8,128]{1,0} slice(%t), slice={[0:8], [0:128]}
  %gathered = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %out = (s32[], bf16[64,128]{1,0}) tuple(%t, %gathered)
}

%condition (t: (s32[], bf16[64,128])) -> pred[] {
  %t = (s32[], bf16[64,128]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%t, %t), direction=LT
}

%outer_body (t: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %t = (s32[], bf16[64,128]{1,0}) parameter(0)
  ROOT %while.1 = (s32[], bf16[64,128]{1,0}) while(%t), condition=%condition, body=%inner_body, backend_config={"known_trip_count":{"n":"28"},"x":1}
}

ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  %start = (f32[256]{0}, f32[1024]{0}) all-gather-start(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %done = f32[1024]{0} all-gather-done(%start)
  %wide = bf16[8,512]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %reduced = f32[1024]{0} all-reduce(%done), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %while.2 = (s32[], bf16[64,128]{1,0}) while(%x), condition=%condition, body=%outer_body
  ROOT %result = f32[1024]{0} copy(%reduced)
}
"""  # noqa: E501


def test_collectives_with_their_loops():
    found = {(c.kind, c.loops): c for c in hlo.collectives(TEXT, 8)}
    assert set(found) == {("all-gather", (None, 28)), ("all-gather", ()), ("all-reduce", ())}
    inner = found["all-gather", (None, 28)]
    assert inner.devices == 8 and inner.result == hlo.Shape("bf16", (64, 128))
    assert inner.bytes == 64 * 128 * 2 * 7 / 8  # a ring: everybody sends all parts but one
    assert found["all-gather", ()].bytes == 1024 * 4 * 3 / 4  # of the result, not of the operand beside it
    assert found["all-reduce", ()].bytes == 2 * 1024 * 4 * 1 / 2


def test_what_tpus_say_of_loops_and_groups():
    """TPUs: the trips of a scan are in its condition, groups are axes of a mesh, and an attribute may take several lines."""
    tpu = TEXT.replace(', backend_config={"known_trip_count":{"n":"28"},"x":1}', "")
    tpu = tpu.replace("condition=%condition, body=%inner_body", "condition=%counted, body=%inner_body")
    tpu = tpu.replace("[1,8]<=[8]", "mesh['axis_0'=2,'axis_1'=4] {'axis_1'}")
    tpu = tpu.replace(
        "  %gathered", '  %k = f32[8] custom-call(%t), attributes={x="{\n"block": 1\n}}, metadata={}\n  %gathered'
    )
    tpu += """
%counted (t: (s32[], bf16[64,128])) -> pred[] {
  %t = (s32[]{:T(128)}, bf16[64,128]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %n = s32[]{:T(128)} constant(36)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}
"""
    inner = next(c for c in hlo.collectives(tpu, 8) if c.loops)
    assert inner.loops == (None, 36) and inner.devices == 4


def test_totals_take_the_trips_that_the_text_does_not_say():
    totals = hlo.by_kind(hlo.collectives(TEXT, 8), [5])
    assert totals["all-gather"]["count"] == 5 * 28 + 1
    assert totals["all-gather"]["bytes"] == 5 * 28 * 64 * 128 * 2 * 7 / 8 + 3072
    assert totals["all-reduce"] == {"count": 1, "bytes": 4096}
    assert hlo.by_kind(hlo.collectives(TEXT, 8), [])["all-gather"]["count"] == 29


def buffers(text: str) -> set[hlo.Shape]:
    """The distinct result shapes of a module's operations, without those inside a fusion, which are never in memory."""
    computations, _ = hlo._computations(text)
    operations = [o for each in computations.values() for o in each]
    fused = {name for o in operations if o.kind == "fusion" for name, _ in hlo._called(o, computations)}
    kept = [each for name, each in computations.items() if name not in fused]
    return {shape for each in kept for o in each for shape in hlo.shapes(o.result)}


def test_buffers_leave_out_what_a_fusion_keeps_to_itself():
    found = buffers(TEXT.replace("bf16[8,512]{1,0} broadcast", "bf16[7,7]{1,0} broadcast"))
    assert hlo.Shape("bf16", (8, 512)) in found and hlo.Shape("bf16", (7, 7)) not in found


def test_a_program_that_xla_made(tmp_path):
    """A psum in a jax.lax.scan on eight virtual devices, in its own process, is found with the trips of the scan."""
    code = """
import jax, jax.numpy as jnp, json
from hir_jax.aot import hlo
mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
P = jax.sharding.PartitionSpec
def f(x):
    def body(c, _):
        return jax.lax.psum(c, "d") * 0.5, None
    return jax.lax.scan(body, x, None, length=7)[0]
g = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False))
text = g.lower(jax.ShapeDtypeStruct((64, 16), jnp.float32)).compile().as_text()
print(json.dumps([list(c) for c in hlo.collectives(text, 8)]))
"""
    run = subprocess.run([sys.executable, "-c", code], env=environment(8), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == [["all-reduce", ["f32", [8, 16]], 8, 2 * 512 * 7 / 8, [7]]]


def test_bounds_worked_by_hand():
    chip = chips.Chip(
        "made up", flops_per_s=100.0, hbm_bytes=1.0, hbm_bytes_per_s=10.0, link_bytes_per_s=5.0, source=""
    )
    least = compiling.bound(Work(flops=300.0, computed=400.0, read=30.0), sent=10.0, chip=chip)
    assert least == (4.0, 3.0, 2.0) and least.seconds == 4.0 and least.limit == "computing"
    least = compiling.bound(Work(flops=300.0, computed=400.0, read=30.0), sent=25.0, chip=chip)
    assert least.limit == "communicating" and least.seconds == 5.0


def read_step_by_step(functions, splash: bool) -> int:
    """Counts the columns that a device reads, one step after the other, while all its rows get their longest responses."""
    config, ways = functions.config, functions.sampler_mesh.shape["data"]
    prompts, longest = config.data.batch_prompts // ways, config.rollout.max_response
    rows, slots = prompts * functions.settings.first_samples, functions.settings.slots() // ways

    def wide(columns):
        return -(-columns // 128) * 128 if splash else columns

    def touched(columns, end, count):
        if not splash:
            return columns
        block = max(b for b in (128, 256, 512) if columns % b == 0)
        return block * len({(end - i) % columns // block for i in range(count)})

    prompt, total, waiting, running = wide(config.data.max_prompt), 0, rows, []  # of a row that runs: its tokens
    for step in range(10_000):
        while waiting and len(running) < (slots or rows):
            waiting, running = waiting - 1, [*running, 1]
        if not running:
            return total
        for count in running:
            width = min(w for w in (*functions.settings.rollout_sampling.widths, longest) if count < w)
            own = wide(longest - 1 if slots else width)
            total += touched(own, step % own, count) + (prompt if slots else 0)
        total += 0 if slots else prompts * prompt
        running = [count + 1 for count in running if count + 1 < longest]


@pytest.mark.parametrize("attention", ["splash", "plain"])
@pytest.mark.parametrize(
    ("longest", "slots", "widths"),
    [(300, 0, ()), (600, 0, (100, 300, 513)), (131, 4, ()), (400, 6, ()), (258, 2, ()), (2, 64, ())],
    ids=["all", "buckets", "two-waves", "ring-of-three", "ring-of-257", "more-slots-than-rows"],
)
def test_what_sampling_reads_is_what_is_read_step_by_step(attention, longest, slots, widths):
    config = configs.defaults()
    config.data.batch_prompts, config.data.max_prompt, config.rollout.max_response = 4, 70, longest
    model = ModelConfig("llama", 97, 16, 32, 2, 4, 2, 4, attention=attention)
    functions = SimpleNamespace(
        config=config, sampler_mesh=jax.sharding.AbstractMesh((2, 1, 2), meshes.AXES),
        settings=SimpleNamespace(
            sampler_model=model, first_samples=3, kv_ways=2, slots=lambda *_: slots,
            rollout_sampling=Sampling(longest, (0,), 0, widths=widths),
        ),
    )  # fmt: skip
    work, steps = programs._sample_work(functions)
    columns = read_step_by_step(functions, attention == "splash")
    assert steps == (-(-6 // min(6, slots // 2 or 6))) * (longest - 1)
    assert work.read == steps * counting.weight_bytes(model) / 2 + columns * counting.cache_bytes(model) / 2


def test_the_report_has_the_documented_fields(monkeypatch):
    """Compiles for this CPU as if it were a chip with 1 GB, so that no compiler of another platform is needed."""
    config = small_config(model__checkpoint="tiny")
    chip = chips.Chip("made up", 1e12, 1e9, 1e11, 1e10, "no source")
    model = ModelConfig("llama", 97, 32, 64, 1, 2, 1, 16)
    monkeypatch.setattr(aot, "find_outline", lambda name: Outline(model, (1,), 0))
    monkeypatch.setattr(chips, "parse", lambda name: chips.Topology(chip, "cpu", (1,)))
    monkeypatch.setattr(chips, "devices", lambda topology: jax.devices()[:1])
    found = json.loads(json.dumps(aot.report(config, "cpu:1", layers=0, only="sample,learn,update", text="")))
    assert found["fits"] and not found["advice"] and found["parameters"] > 97 * 32
    assert found["command"].startswith("python ") and found["commit"] and found["date"] and found["versions"]["jax"]
    assert list(found["functions"]) == ["sample", "learn", "update"]
    for name, one in found["functions"].items():
        fields = {"compile_seconds", "hbm", "fits", "collectives", "loops", "part"}
        if name != "learn":  # it is compiled for its memory, and its parts for their bounds
            fields |= {"flops", "read_bytes", "bound", "limit", "mfu_bound"}
        assert set(one) == fields and one["part"] == (name == "update")
        hbm = one["hbm"]
        assert hbm["used"] == sum(hbm[k] for k in ("arguments", "outputs", "temporaries", "resident"))
        assert hbm["free"] == 1e9 - hbm["used"] and not one["collectives"]
        if bound := one.get("bound"):
            assert bound["seconds"] == max(bound[k] for k in ("computing", "reading", "communicating"))
            assert bound["seconds"] == bound[one["limit"]] and one["flops"] > 0 and one["mfu_bound"] > 0
            assert bound["reading"] == one["read_bytes"] / 1e11 > 0
    bounds = [one["bound"]["seconds"] for one in found["functions"].values() if "bound" in one]
    assert found["step_seconds_bound"] == pytest.approx(sum(bounds))
    rows = aot.table(found["functions"]).splitlines()
    assert rows[1].endswith("%") and not rows[2].endswith("%")  # of sampling, and of `learn`


def test_what_the_compiler_says_of_too_large_a_program():
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.25G of 15.75G hbm. Exceeded by 1.5G."
    assert compiling.refused_bytes(message, 5) == 17.25 * 2**30
    message = (
        "RESOURCE_EXHAUSTED: ... the total memory required for HLO temporaries (39.47G) exceeds available HBM (15.75G)."
    )
    assert compiling.refused_bytes(message, 5) == 39.47 * 2**30 + 5
    assert compiling.refused_bytes("RESOURCE_EXHAUSTED: something else", 5) is None


def test_bytes_of_a_device():
    mesh = jax.sharding.AbstractMesh((4, 2), ("a", "b"))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    tree = [
        jax.ShapeDtypeStruct((8, 6), np.float32, sharding=split),
        jax.ShapeDtypeStruct((3,), jax.numpy.bfloat16, sharding=whole),
    ]
    assert device_bytes(tree) == 2 * 3 * 4 + 3 * 2


def test_topologies():
    assert chips.parse("v5p:2x2x2").count == 8 and chips.parse("h100:8").platform == "cuda"
    assert chips.parse("v6e:4x4").chip.hbm_bytes == 32e9
    for name in ("v9:2x2", "v5e", "v5e:4xx4", "h100:0", "v5e:4x-1"):
        with pytest.raises(InputError, match=r"give CHIP:SIZES.*known chips: v5e"):
            chips.parse(name)
    for name, words in (("v5e:8", "v5e has 2 dimensions"), ("h100:2x4", "h100 has 1 dimension$")):
        with pytest.raises(InputError, match=words):
            chips.parse(name)


@pytest.mark.parametrize("name", ["v5e:4x4", "h100:8"])
def test_without_the_compilers(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"needs the package .*: pip install -r requirements-aot\.txt"):
        chips.devices(chips.parse(name))


def test_advice_names_by_how_much_and_the_settings():
    config = configs.defaults()
    found = {
        "sample": {"fits": False, "hbm": {"free": -2.5e9}},
        "logprobs": {"fits": True, "hbm": {"free": 1.0}},
        "update": {"fits": False, "hbm": {"arguments": 3}},
    }
    sample, update = compiling.advice(config, found, split_heads=False)
    assert sample.startswith("sample exceeds the memory by 2.5 GB a device") and "divides the key heads" in sample
    for words in (
        "rollout.cache_bytes",
        "rollout.slots",
        "rollout.tensor",
        "mesh.fsdp",
        "param_dtype=bfloat16",
        "kl=0",
    ):
        assert words in sample
    for words in ("micro_batch_tokens", "remat=full", "does not say"):
        assert words in update


def test_the_table_of_files(tmp_path):
    with pytest.raises(InputError, match=r"no \.json files there"):
        aot.collected(tmp_path)
    sample = {"flops": 1e9, "hbm": {"used": 9.96e9}, "bound": {"seconds": 2.5}}
    select = {"flops": 0, "hbm": {"used": 3e9}, "bound": {"seconds": 0.25}}
    part = {"flops": 1e9, "hbm": {"used": 20e9}, "bound": {"seconds": 1.5}, "part": True}  # its memory does not count
    one = {
        "checkpoint": "meta/Llama", "devices": 16, "chip": {"name": "TPU v5e", "hbm_bytes": 16e9}, "topology": "v5e:4x4",
        "fits": True, "config": {"lora.rank": 8}, "functions": {"sample": sample, "select": select, "update": part},
        "date": "2026-11-23T01:02:03Z",
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(one))
    row = aot.collected(tmp_path).splitlines()[-1]
    assert row == "| Llama, LoRA 8 | 16 TPU v5e (v5e:4x4) | yes | 10.0 | 16 | 4.25 | 2.50 + 1.50 | AOT, 2026-11-23 |"
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(InputError, match=r"b\.json: not a file of --output"):
        aot.collected(tmp_path)


def need_compiler(topology: str) -> None:
    """Skips the test where the compiler of the topology's chips is not installed."""
    package = "libtpu" if topology.startswith("v") else "jax_cuda13_plugin"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed ({chips.INSTALL})")


def compile_for(config: str, topology: str, *arguments: str) -> dict:
    """The report of `python -m hir_jax.aot`."""
    need_compiler(topology)
    command = [sys.executable, "-m", "hir_jax.aot", f"--config={ROOT}/configs/{config}.py", f"--topology={topology}"]
    run = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_learning_gathers_a_layer_at_a_time_and_never_makes_all_logits(tmp_path):
    """Qwen3-4B on 16 v6e with the paper's batch: the collectives and buffers that XLA made of the shardings. No function of a
    step gathers a whole stack of weights; to bring them to the sampler, none gathers more than a device's own part of one."""
    found = compile_for("qwen3_4b_hir", "v6e:4x4", f"--text={tmp_path}")
    assert (
        found["fits"]
        and found["layers"] == 36
        and {"reshard", "sample", "learn", "logprobs", "update"} <= set(found["functions"])
    )
    model = outline("Qwen/Qwen3-4B-Instruct-2507").config
    stacked = min(np.prod(decoder.matrix_shape(model, name)) for name in MATRICES)
    words, batch_columns = (model.vocab_size, model.vocab_size // 16), 16 * 6144
    for name in found["functions"]:
        gathers = [c for c in hlo.collectives((tmp_path / f"{name}.txt").read_text(), 16) if c.kind == "all-gather"]
        own = np.prod(decoder.matrix_shape(model, "gate")) // 8  # a device's part, with 8 devices to share the heads
        assert max((np.prod(c.result.sizes) for c in gathers), default=0) <= (own if name == "reshard" else stacked - 1)
    for name in ("logprobs", "update"):
        text = (tmp_path / f"{name}.txt").read_text()
        gathers = [c for c in hlo.collectives(text, 16) if c.kind == "all-gather"]
        assert any(None in c.loops and c.loops[-1] == 36 for c in gathers)  # a layer's, in the loop over layers
        assert max(np.prod(c.result.sizes) for c in gathers) < stacked
        wide = [s for s in buffers(text) if any(n in words for n in s.sizes)]
        logits = [s for s in wide if s.dtype == "f32" and s.sizes[-1] in words]
        assert logits  # those of a chunk, words split among all devices
        for shape in wide:
            rows = np.prod(shape.sizes) // max(n for n in shape.sizes if n in words)
            assert rows <= batch_columns // 4, shape


@pytest.mark.slow
@pytest.mark.parametrize("head_size", [64, 128, 256])
def test_attention_and_its_gradients_compile_for_a_gpu(head_size):
    """Packed rows of the paper's length in bfloat16. An H100 refuses kernels that want too much shared memory."""
    need_compiler("h100:1")
    mesh = jax.sharding.Mesh(np.array(chips.devices(chips.parse("h100:1"))), ("rows",))
    placed = jax.NamedSharding(mesh, jax.P())
    q, k, segments = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=placed)
        for shape, dtype in (
            ((1, 6144, 8, head_size), "bfloat16"),
            ((1, 2, 6144, head_size), "bfloat16"),
            ((1, 6144), "int32"),
        )
    )

    def total(q, k, v, segments):
        return attention.causal("triton", segments, 6144, decoder.no_shard)(q, k, v).astype("float32").sum()

    with jax.set_mesh(mesh), attention.for_absent_devices():
        compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(q, k, k, segments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 6144**2 * 2  # no scores of all heads in memory


@pytest.mark.slow
def test_a_config_that_does_not_fit_says_what_would_help():
    """Sixteen v5e and 2,048 prompts a step, with no limit to the cache."""
    overrides = "--config.data.batch_prompts=2048", "--config.rollout.cache_bytes=0"
    found = compile_for("llama32_3b_hir", "v5e:4x4", "--functions=sample", "--layers=2", *overrides)
    assert not found["fits"] and found["functions"]["sample"]["hbm"]["free"] < 0
    assert "sample exceeds the memory by" in found["advice"][0] and "rollout.cache_bytes" in found["advice"][0]
