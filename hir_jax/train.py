"""The main program: HiR, its baselines without replay, and supervised fitting.

    python -m hir_jax.train --config=configs/X.py --workdir=DIR [--config.key=value ...]
        [--checks=FILE ...] [--coordinator=HOST:PORT --processes=N --process=I]

The same command again continues a run that was stopped, from its last committed checkpoint. Several processes, each with its
devices, make one run; DIR is one that all of them see.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.logging import RichHandler

from hir_jax import config as configs
from hir_jax import pathflags, paths
from hir_jax.checks import user
from hir_jax.checks.device.conditions import encode
from hir_jax.data import dataset
from hir_jax.engine import Engine
from hir_jax.eval.accuracy import accuracies, by_source, control_of_step
from hir_jax.eval.verifiers import deciders_of, open_configured
from hir_jax.export import write_model
from hir_jax.hir.methods import METHODS
from hir_jax.parallel import mesh as meshes
from hir_jax.parallel import processes
from hir_jax.rollouts import Clock, SharedVerifier, roll_out, roll_out_dynamic
from hir_jax.run import files, samples
from hir_jax.run.checkpoints import Checkpoints
from hir_jax.run.lock import held
from hir_jax.run.memory import keep_freed_memory
from hir_jax.run.progress import Compilations, RunProgress, StepProfile, show_replay, use_compilation_cache
from hir_jax.run.report import write_report
from hir_jax.types import InputError, TrainBatch

log = logging.getLogger(__name__)

# Metrics that are finite if the log-probs of a step are: the trainer's, and the sampler's
_OF_LOG_PROBS = ("nll", "policy_entropy")
# A run ends after this many steps in a row without an update because of gradients that are not finite. A single one does no harm.
_MOST_SKIPPED = 3


class DivergedError(InputError):
    """The policy's log-probs are not finite, or its gradients were not for several steps. The message names the step and the last
    good checkpoint."""


class Run:
    """The host side of a run: files, checkpoints, progress, and the wish to stop. Of several processes the first writes."""

    def __init__(self, config, workdir: Path, stack: ExitStack):
        self.config, self.workdir, self._stack = config, workdir, stack
        processes.same(configs.flatten(config), "the config", "start all processes with the same flags")
        fresh = processes.agree(self._claim)
        self.console = Console(quiet=not processes.first())
        self.engine = Engine(config)
        wanted = deciders_of(config.constraints)
        self.data = dataset.load(config, self.engine.backbone.frame, self.engine.backbone.end_id, wanted)
        rows = itertools.chain(self.data.rows, self.data.heldout)
        self.verifier = open_configured(stack, config.constraints, (row.instruction for row in rows))
        self.conditions, self.on_device = self._conditions()
        if fresh:
            processes.agree(self._write_config)
        written = files.read_config(workdir)
        processes.same(written, f"{workdir}/config.json", "give all processes a directory that they share")
        self.checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", config.checkpoint_keep))
        self.compilations = Compilations()
        self.stopping = False
        self._skipped = self._idle = 0  # updates so far, and steps in a row, that were skipped
        if jax.process_count() == 1:  # of several jax hears the signal: all have to stop after the same step
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, self._stop))

    def _claim(self) -> bool:
        """Takes the directory; whether the run is a new one. Raises RunError where it belongs to another."""
        self.lock = self._stack.enter_context(held(self.workdir))
        old, config = files.read_config(self.workdir), configs.flatten(self.config)
        files.refuse_other_config(self.workdir, configs.changed_keys(old, config) if old else [])
        if old is None:
            files.refuse_foreign(self.workdir)
        return old is None

    def _conditions(self):
        """(the training rows' constraints in the device's form or None, whether whole steps can run on the device)."""
        config = self.config
        if not config.constraints.on_device or not METHODS[config.method].samples:
            return None, False
        constraints = [row.instruction.constraints for row in self.data.rows]
        found = encode(constraints, self.data.shapes.constraints)
        share = found.decidable.sum() / found.present.sum()
        resamples = self.engine.settings.replays and config.replay.fill == "resample"
        whole = share == 1 and not resamples and not config.rollout.dynamic_rounds
        log.info("on-device checks decide %.0f%% of the constraints; one function a step: %s", 100 * share, whole)
        return found, whole

    def _write_config(self) -> None:
        files.write_atomically(self.workdir / "config.json", configs.to_json(self.config))

    def _stop(self, *_) -> None:
        self.stopping = True

    def restore_or_init(self):
        """(state, parameters of the reference policy) of the last committed step, or of step 0. The second is None without a
        reference policy, and with LoRA, whose frozen model is the reference."""
        engine, latest = self.engine, processes.agree(self.checkpoints.latest)
        keeps_reference = engine.settings.keeps_reference
        initial = engine.load_params() if latest is None or keeps_reference else None
        if latest is None:
            state = engine.init_state(initial)
        else:
            state, meta = self.checkpoints.restore(latest, engine.abstract_state)
            engine.refuse_other_base(meta)
            self._skipped = int(state.skipped)
            before, now = (", ".join(f"{k} {v}" for k, v in m.items()) for m in (meta["mesh"], engine.mesh.shape))
            moved = f"; it ran on a mesh of {before} and goes on with {now}" if before != now else ""
            self.say(f"resuming {self.workdir} from step {latest}{moved}")
        processes.agree(self._write_config)  # keys outside the trajectory may be new
        if processes.first():
            self.files = self._stack.enter_context(
                files.RunFiles(self.workdir, latest or 0, fresh=latest is None, **self._boards())
            )
        self.progress = self._stack.enter_context(RunProgress(self.console, self.config.total_steps, latest or 0))
        return (
            state,
            initial if keeps_reference and not engine.lora else None,
        )  # LoRA: the frozen model is the reference

    def _boards(self) -> dict:
        g = self.config.logging
        return {"tensorboard": g.tensorboard, "wandb": g.wandb, "config": configs.flatten(self.config)}

    def say(self, text: str) -> None:
        """One line on the terminal, never cut: it may hold a path that is to be copied."""
        self.console.print(text, soft_wrap=True, markup=False)

    def due(self, every: int, step: int) -> bool:
        return every > 0 and (step % every == 0 or step == self.config.total_steps)

    def evaluate(self, params, step: int) -> dict[str, float]:
        """Accuracy on the held-out instructions at `eval_temperature`, and the control beside it, where they are due."""
        if not self.data.heldout or not self.due(self.config.eval_every, step):
            return {}
        params = self.engine.policy(params)
        texts = self.engine.backbone.answers(
            self.engine.respond(params, self.data.heldout, self.config.eval_temperature)
        )
        instructions, control = [row.instruction for row in self.data.heldout], self.config.constraints.control
        found = accuracies(SharedVerifier(self.verifier), instructions, texts, control=control)
        return {f"heldout_{name}": value for name, value in found.items()}

    def judge_usage(self) -> dict[str, float]:
        """Requests to the judge so far, and their cost."""
        judge = self.verifier.deciders.get("judge")
        used = processes.total(dataclasses.asdict(judge.usage)) if judge else {}
        return {f"judge_{name}": value for name, value in used.items()}

    def observe(self, step: int, rows, rollout, verdicts, replays, shown) -> None:
        """Logs what is not a scalar: kept.jsonl, histograms, texts."""
        if not processes.first():
            return
        self.files.kept(step, samples.kept_by_type(self.engine, rows, verdicts, replays))
        if self.due(self.config.logging.distributions_every, step):
            self.files.distributions(step, samples.distributions(rollout, verdicts, replays), shown)

    def record(self, step: int, metrics, clock: Clock, tokens: int, replays=()) -> None:
        """One line of metrics.jsonl, the sampled replays, TensorBoard and the terminal."""
        if not processes.first():
            return
        self.lock.check()
        total = sum(clock.seconds.values())
        metrics = metrics | clock.seconds | {"seconds/step": total, "tokens_per_s": tokens / max(total, 1e-9)}
        metrics |= {"seconds/compiling": self.compilations.take_seconds()}
        self.files.replays(step, replays)
        self.files.metrics(step, metrics)
        if self.config.logging.show_replays:
            for row in replays:
                show_replay(self.console, step, row)
        self.progress.step(step, metrics)

    def stops_after(self, step: int) -> bool:
        """Whether SIGTERM has come, so that the run is saved and ends after this step."""
        return self.stopping or self.checkpoints.reached_preemption(step)

    def refuse_broken(self, step: int, metrics) -> None:
        """DivergedError where a step's log-probs are not finite, or no update of the last few steps was made."""
        if not all(math.isfinite(metrics.get(name, 0.0)) for name in _OF_LOG_PROBS):
            self.refuse_diverged(step)
        skipped, self._skipped = metrics["updates_skipped"] - self._skipped, metrics["updates_skipped"]
        self._idle = self._idle + 1 if skipped >= self.engine.settings.learner.mini_batches else 0
        if self._idle >= _MOST_SKIPPED:
            self.refuse_diverged(step, f"the gradients of {_MOST_SKIPPED} steps in a row are not finite")

    def refuse_diverged(self, step: int, what: str = "the policy's log-probs are not finite") -> NoReturn:
        """DivergedError in all processes. All checkpoints are good: `save` writes no other policy."""
        self.checkpoints.wait()
        latest = processes.agree(self.checkpoints.latest)
        where = f"{self.checkpoints.directory / str(latest)}" if latest is not None else "none"
        raise DivergedError(
            f"step {step}: {what}, so the run ends here. Last good checkpoint: {where}. "
            "Start another --workdir with a smaller config.learner.learning_rate, or see what grew in "
            f"{self.workdir / 'metrics.jsonl'}"
        )

    def save(self, step: int, state) -> None:
        """Saves a state whose policy gives finite log-probs on the prompts of its step. DivergedError for another."""
        prompts = self.engine.prompts([self.data.rows[i] for i in self.data.indices(step - 1)], self.data.shapes)
        if not self.engine.is_finite(self.engine.policy(state.params), prompts):
            self.refuse_diverged(step)
        if processes.first():
            self.files.put_up()  # a resume from this step keeps its rows
        meta = {"step": step, "mesh": dict(self.engine.mesh.shape), "config": configs.flatten(self.config)}
        self.checkpoints.save(step, state, meta | self.engine.base)

    def export(self, params) -> None:
        """Writes DIR/model, for transformers; replaces one that an earlier end of this run, or a save that was cut off, left."""
        params = meshes.for_first_host(self.engine.mesh, self.engine.policy(params))
        if not processes.first():
            return
        model = self.workdir / "model"
        for old in (model, model.with_name("model.unfinished")):
            paths.remove(old)
        write_model(self.engine, params, model)
        self.say(f"trained weights, for transformers: {model}")

    def write_report(self) -> None:
        """Writes DIR/report.html; a failure is only logged."""
        if not processes.first():
            return
        self.files.put_up()
        path = self.workdir / "report.html"
        try:
            for note in write_report(path, {self.workdir.resolve().name: [self.workdir]}):
                log.warning("%s", note)
        except (InputError, OSError, *paths.failures()) as error:
            log.warning("no report page: %s", error)
        else:
            self.say(f"report: {path}")


def given_prompts(run: Run, indices):
    """(rows, PromptBatch, conditions or None) of training rows."""
    rows = [run.data.rows[i] for i in indices]
    conditions = jax.tree.map(lambda x: x[indices], run.conditions)
    return rows, run.engine.prompts(rows, run.data.shapes), conditions


def dynamic_batches(run: Run, step: int) -> list[np.ndarray]:
    """i64[N] each: the step's own training rows, and the others that dynamic sampling may draw; a function of the step."""
    own, config = run.data.indices(step), run.config
    further = config.rollout.dynamic_rounds
    return [own, *dataset.other_rows(len(run.data.rows), own, further, (config.seed, step, 1))]


def policy_step(run: Run, state, ref_params, step: int, clock: Clock):
    """Sample, check, learn: (state, metrics, sampled tokens, replays to show)."""
    engine, rounds, drawn = run.engine, 0, []
    rows, prompts, conditions = given_prompts(run, run.data.indices(step))
    clock.lap("data")
    if run.on_device:
        state, learned, *seen = engine.whole_step(state, ref_params, prompts, conditions, step)
        replays, rollout, verdicts = seen
        clock.lap("step_on_device")
    else:
        params = engine.policy(state.params)
        if run.config.rollout.dynamic_rounds:
            how = dynamic_batches(run, step), partial(given_prompts, run), step, clock
            indices, rollout, verdicts, drawn = roll_out_dynamic(engine, run.verifier, params, *how)
            rows, prompts, conditions = given_prompts(run, indices)
        else:
            rollout, verdicts, rounds = roll_out(engine, run.verifier, params, rows, prompts, step, clock, conditions)
        del params  # the state is donated
        state, learned, replays = engine.learn(state, ref_params, prompts, rollout, verdicts, rounds, step)
        clock.lap("learn")
    drawn = drawn or [(prompts, rollout)]
    metrics = samples.rollout_metrics(engine, rollout, verdicts, replays, rounds) | run.judge_usage()
    metrics |= samples.sampling_metrics(engine, drawn)
    control = None
    if run.config.constraints.control:
        clock.lap("report")
        control = control_of_step(engine, run.verifier, rows, rollout, verdicts, step, conditions)
        metrics |= control.figures()
        clock.lap("control")
    metrics |= by_source([row.instruction for row in rows], verdicts, control)
    shown = list(samples.replay_rows(engine, rows, rollout, verdicts, replays, run.config.logging.replays_per_step))
    run.observe(step + 1, rows, rollout, verdicts, replays, shown)
    clock.lap("report")
    return state, metrics | learned, sum(int(rollout.mask.sum()) for _, rollout in drawn), shown


def sft_batch(run: Run, indices) -> TrainBatch:
    """Instruction/response pairs as a NumPy TrainBatch; the response's end token is trained on."""
    engine, data = run.engine, run.data
    rows = [data.rows[i] for i in indices]
    prompts = engine.prompts(rows, data.shapes)
    columns = engine.config.rollout.max_response
    responses = np.full((len(rows), columns), engine.settings.pad_id, np.int32)
    mask = np.zeros((len(rows), columns), bool)
    for b, i in enumerate(indices):
        responses[b, : len(data.responses[i])] = data.responses[i]
        mask[b, : len(data.responses[i])] = True
    zeros = np.zeros(mask.shape, np.float32)
    ones = np.ones(len(rows), np.float32)
    return TrainBatch(
        np.concatenate([prompts.tokens, responses], axis=1), prompts.length, mask, zeros, zeros, np.ones_like(zeros), ones, ones,
        group=np.arange(len(rows), dtype=np.int32), is_replay=np.zeros(len(rows), bool),
    )  # fmt: skip


def sft_step(run: Run, state, step: int, clock: Clock):
    """One step of supervised fitting, with the results of `policy_step`."""
    batch = sft_batch(run, run.data.indices(step))
    clock.lap("data")
    state, metrics = run.engine.update(state, batch)
    clock.lap("update")
    return state, metrics, int(batch.response_mask.sum()), []


def train(config, workdir: Path, make_run: type[Run] = Run) -> None:
    """Runs or continues the run in `workdir` to `config.total_steps`."""
    with ExitStack() as stack:
        run = make_run(config, workdir, stack)
        state, ref_params = run.restore_or_init()
        first = int(state.step)
        if first == 0:
            clock = Clock()
            found = run.evaluate(state.params, 0)
            clock.lap("evaluate")
            run.record(0, found, clock, 0)
        profile = stack.enter_context(StepProfile(config.logging.profile_steps, workdir / "profile"))
        for step in range(first, config.total_steps):
            profile.begin(step + 1)
            clock = Clock()
            if not METHODS[config.method].samples:
                state, metrics, tokens, replays = sft_step(run, state, step, clock)
            else:
                state, metrics, tokens, replays = policy_step(run, state, ref_params, step, clock)
            done = step + 1
            metrics |= run.evaluate(state.params, done)
            clock.lap("evaluate")
            run.record(done, metrics, clock, tokens, replays)
            profile.end(done)
            run.refuse_broken(done, metrics)
            stops = run.stops_after(done)
            if stops or run.due(config.checkpoint_every, done):
                run.save(done, state)
            if stops:
                run.checkpoints.wait()
                run.say(f"stopped by SIGTERM after step {done}; the same command resumes")
                return
        run.checkpoints.wait()
        if config.save_model:
            run.export(state.params)
        run.say(str(run.compilations))
        run.write_report()
        run.say(f"metrics: {workdir / 'metrics.jsonl'}   replays: {workdir / 'replays.jsonl'}")


def main(argv) -> None:
    del argv
    user.load_all(flags.FLAGS.checks)
    config = flags.FLAGS.config
    configs.check(config)
    keep_freed_memory()
    for noisy in ("orbax", "absl", "jax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with processes.joined(preemption=True):
        level = logging.INFO if processes.first() else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", handlers=[RichHandler(show_path=False)], force=True)
        use_compilation_cache(config.compilation_cache)
        train(config, paths.at(flags.FLAGS.workdir))


def cli() -> None:
    configs.define_flags()
    pathflags.define("workdir", None, "The run's directory.")
    user.define_flag()
    processes.define_flags()
    flags.mark_flags_as_required(["config", "workdir"])
    configs.run_program(main, __doc__)


if __name__ == "__main__":
    cli()
