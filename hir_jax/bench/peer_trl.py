"""TRL's GRPOTrainer on the same weights, prompts and lengths, step by step in turn with ours.

Settings that both sides have are set as the config says, all others are TRL's defaults; the report holds those that matter.
Measured twice: with gradient checkpointing, which is TRL's default, and without.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hir_jax.bench.session import Session
from hir_jax.bench.sizes import Sizes
from hir_jax.data.templates import render
from hir_jax.model.files import hf

if TYPE_CHECKING:
    from hir_jax.bench.grpo import Step

MICRO_BATCH = 8  # TRL's default
_REPORTED = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size",
    "num_generations", "num_iterations", "max_completion_length", "generation_kwargs", "temperature", "top_p", "top_k",
    "repetition_penalty", "beta", "epsilon", "loss_type", "scale_rewards", "importance_sampling_level",
    "mask_truncated_completions", "learning_rate", "lr_scheduler_type", "weight_decay", "adam_beta1", "adam_beta2",
    "max_grad_norm", "optim", "gradient_checkpointing", "bf16", "use_vllm", "model_init_kwargs", "shuffle_dataset",
)  # fmt: skip


def _settings(ours: Step, sizes: Sizes, directory: Path, checkpointing: bool) -> dict:
    """Keyword arguments of GRPOConfig."""
    config, learner, rows = ours.engine.config, ours.engine.config.learner, sizes.rows
    size = next(n for n in range(min(MICRO_BATCH, rows), 0, -1) if rows % n == 0)
    return {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": rows // size,
        "num_generations": sizes.samples, "num_iterations": 1, "max_completion_length": sizes.new_tokens,
        # the end token is never drawn, so that every response has all its tokens
        "generation_kwargs": {"min_new_tokens": sizes.new_tokens},
        "temperature": config.rollout.temperature, "beta": learner.kl, "epsilon": learner.clip_low,
        "epsilon_high": learner.clip_high, "learning_rate": learner.learning_rate, "lr_scheduler_type": "constant",
        "weight_decay": learner.weight_decay, "adam_beta1": learner.beta1, "adam_beta2": learner.beta2,
        "max_grad_norm": learner.max_grad_norm, "gradient_checkpointing": checkpointing,
        "model_init_kwargs": {"dtype": config.model.param_dtype},
        "bf16": config.model.compute_dtype == "bfloat16", "use_cpu": ours.engine.mesh.devices.flat[0].platform == "cpu",
        "max_steps": 1 + sizes.rounds, "seed": config.seed, "output_dir": str(directory / "run"),
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip


def _prompts(ours: Step, tokenizer) -> list[list[dict[str, str]]]:
    """The same prompts as conversations. RuntimeError if they would become other tokens."""
    found = [[{"role": "user", "content": render(row.instruction)}] for row in ours.rows]
    encoded = tokenizer.apply_chat_template(found, add_generation_prompt=True, tokenize=True, return_dict=True)
    for row, ids in zip(ours.rows, encoded["input_ids"], strict=True):
        if list(ids) != row.tokens:
            raise RuntimeError(f"{row.instruction.source}: TRL would train on other tokens than we do")
    return found


def _variant(ours: Step, session: Session, one_round: Callable, directory: Path, checkpointing: bool) -> dict:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    laps, lengths, rows = [], [], session.sizes.rows

    def reward(completion_ids, **_):
        lengths.append(sum(map(len, completion_ids)))
        return [float(ids[0] % 2) for ids in completion_ids]

    class InTurn(TrainerCallback):
        """Before each step of TRL's but the first (its warm-up), one of each of ours."""

        def on_step_begin(self, args, state, control, **_):
            self.ours = one_round() if state.global_step else None
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            if self.ours:
                lap = self.ours | {"peer": time.perf_counter() - self.start}
                laps.append(session.took(f"grpo, {checkpointing=}", lap))

    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    args = GRPOConfig(**_settings(ours, session.sizes, directory, checkpointing))
    trainer = GRPOTrainer(
        model=str(directory / "model"), reward_funcs=reward, args=args, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": _prompts(ours, tokenizer)}), callbacks=[InTurn()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # stdout is for the figures
    trainer.train()
    if set(lengths) != {ours.tokens}:
        raise RuntimeError(f"TRL drew {sorted(set(lengths))} tokens a step instead of {ours.tokens}")
    settings = {name: getattr(args, name) for name in _REPORTED}
    settings = {k: v if isinstance(v, int | float | str | dict | None) else str(v) for k, v in settings.items()}
    settings |= {"attention": trainer.model.config._attn_implementation, "torch_threads": torch.get_num_threads()}
    return {"laps": laps, "sampled_sequences": rows, "trained_sequences": rows, "settings": settings}


def measure(ours: Step, session: Session, one_round: Callable[[], dict[str, float]]) -> dict[str, dict]:
    """Figures by variant, each after a warm-up step and `rounds` steps in turn with `one_round` of ours. Its `laps` are the
    seconds of each round: ours by method, and "peer"."""
    found, backbone = {}, ours.engine.backbone
    for checkpointing in (True, False):
        with tempfile.TemporaryDirectory() as name:
            directory, name = Path(name), f"gradient_checkpointing={checkpointing}"
            hf.save(directory / "model", ours.engine.model, ours.params, backbone.tokenizer, backbone.stop_ids)
            found[name] = _variant(ours, session, one_round, directory, checkpointing)
        gc.collect()
    return found
