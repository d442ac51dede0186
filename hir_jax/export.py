"""Writes a run's checkpoint as a directory that transformers (and vLLM, llama.cpp's converter, ...) loads.

    python -m hir_jax.export --workdir=DIR --output=DIR [--step=N] [--dtype=bfloat16] [--shard_gb=5] [--adapter]

Exports the newest step, or --step=N; step 0 is the model that the run started from. The weights are split over this machine's
devices, whatever mesh the run had, and written with configs and tokenizer: in float32 unless --dtype says otherwise, in files
of at most --shard_gb gigabytes (10^9 bytes). Adapters of a LoRA run are merged; --adapter writes only them, for `peft`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from absl import flags

from hir_jax import config as configs
from hir_jax import pathflags, paths
from hir_jax.engine import Engine
from hir_jax.eval.answering import restored_params
from hir_jax.model import decoder
from hir_jax.model.config import COMPUTE_DTYPES
from hir_jax.model.files import hf, peft
from hir_jax.model.files.checkpoint import is_hub_id
from hir_jax.run import files
from hir_jax.run.memory import keep_freed_memory
from hir_jax.types import InputError


def write_model(
    engine: Engine, params: decoder.Params, output: Path, dtype: str = "float32", shard_gb: float = 5.0
) -> None:
    """Writes the whole model `params` (`Engine.policy`) for transformers."""
    source = engine.backbone
    size = int(shard_gb * 1e9)
    hf.save(output, engine.model, params, source.tokenizer, source.stop_ids, dtype, size, source.kept)


def write_adapter(engine: Engine, params: decoder.Params, output: Path, dtype: str = "float32") -> None:
    """Writes the adapters of a LoRA run for peft, with the path or hub id of their base model if that is a Hugging Face model."""
    name = pathflags.expanded(engine.config.model.checkpoint)
    base = str(Path(name).resolve()) if name and Path(name).is_dir() else name
    known = base and (Path(base).is_dir() or is_hub_id(base))
    peft.save(output, params, engine.lora, base if known else None, engine.backbone.tokenizer, dtype)


def export_run(
    workdir: Path, output: Path, step: int | None, *, adapter: bool, dtype: str = "float32", shard_gb: float = 5.0
) -> int:
    """Writes `output` and returns the step. Raises InputError for a run, step or directory that cannot be used."""
    if files.read_config(workdir) is None:
        raise InputError(f"{workdir}: no run, it holds no config.json; give --workdir the directory of one")
    hf.refuse_filled(output)
    config = configs.of_run(workdir)
    if adapter and not (config.lora.rank and step != 0):
        raise InputError(
            f"{workdir}: --adapter needs a LoRA run and a step after 0; leave it out to write the whole model"
        )
    config.mesh.update({"data": 1, "fsdp": -1, "tensor": 1})
    engine = Engine(config)
    params, found = restored_params(engine, workdir, step)
    if adapter:
        write_adapter(engine, params, output, dtype)
    else:
        write_model(engine, params, output, dtype, shard_gb)
    return found


def main(argv) -> None:
    del argv
    args = flags.FLAGS
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax logs through it
    keep_freed_memory()
    output = paths.at(args.output)
    how = {"adapter": args.adapter, "dtype": args.dtype, "shard_gb": args.shard_gb}
    step = export_run(paths.at(args.workdir), output, args.step, **how)
    print(f"step {step} of {args.workdir}, {args.dtype}: {output}")


def cli() -> None:
    pathflags.define("workdir", None, "The run's directory.")
    pathflags.define("output", None, "The directory to write; it must not exist, or must be empty.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; default: the newest; 0: the start.", lower_bound=0)
    flags.DEFINE_enum("dtype", "float32", COMPUTE_DTYPES, "Type of the weights.")
    flags.DEFINE_float("shard_gb", 5.0, "Largest size of a file, in gigabytes.", lower_bound=1e-6)
    flags.DEFINE_bool("adapter", False, "Write a LoRA run's adapters alone, for peft.")
    flags.mark_flags_as_required(["workdir", "output"])
    configs.run_program(main, __doc__)


if __name__ == "__main__":
    cli()
