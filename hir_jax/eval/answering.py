"""Answers a benchmark with a run's model, scores the answers by rules, and writes both into the run's directory."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from hir_jax.checks import registry
from hir_jax.data.segments import Encoded, encode
from hir_jax.engine import Engine
from hir_jax.eval.accuracy import shuffled
from hir_jax.eval.benchmarks import BENCHMARKS, PlainText, RuleBenchmark
from hir_jax.eval.judged.base import JudgedBenchmark, as_instructions
from hir_jax.eval.responses import Response, response_rows
from hir_jax.eval.scoring import Score, output_row, per_prompt, score_responses
from hir_jax.eval.statistics import bootstrap, repetition
from hir_jax.eval.verifiers import deciders_of, open_configured
from hir_jax.hir import following
from hir_jax.parallel import processes
from hir_jax.rollouts import SharedVerifier, no_verdicts
from hir_jax.run import files
from hir_jax.run.checkpoints import Checkpoints, step_of
from hir_jax.textfiles import read_text
from hir_jax.types import InputError, Instruction, Rollout

CONTROLS = (SHUFFLE, TASK) = ("shuffle", "task")


class Request(NamedTuple):
    """Which benchmark a run answers, and how."""

    benchmark: str
    prompts: str | None = None
    limit: int | None = None
    temperature: float = 0.0
    samples: int = 1
    control: str = SHUFFLE  # one of CONTROLS

    @property
    def entry(self) -> RuleBenchmark | JudgedBenchmark | PlainText:
        return BENCHMARKS[self.benchmark]

    def directory(self, step: int) -> str:
        """A name that differs for each way to ask, so that none replaces the files of another."""
        decoding = f"-t{self.temperature:g}-n{self.samples}" if self.temperature or self.samples > 1 else ""
        limited = "" if self.limit is None else f"-first-{self.limit}"
        text = f"-{Path(self.prompts).stem}" if isinstance(self.entry, PlainText) else ""
        control = "-task" if self.control == TASK else ""
        return f"{self.benchmark}{text}-step-{step}{decoding}{limited}{control}"

    def refuse_contradictions(self) -> None:
        """InputError for flags that contradict each other."""
        if not (self.temperature >= 0):
            raise InputError(f"--temperature={self.temperature}: it must not be negative (0 is greedy)")
        if self.samples > 1 and not self.temperature:
            raise InputError(f"--samples={self.samples} at temperature 0 are all the same: give --temperature")
        if self.samples > 1 and isinstance(self.entry, JudgedBenchmark):
            raise InputError(f"--samples={self.samples}: {self.benchmark} is scored by one response to each prompt")
        if self.control == TASK and not isinstance(self.entry, RuleBenchmark):
            raise InputError(f"--control=task: {self.benchmark} holds no constraints that are checked here")


class Evaluation(NamedTuple):
    """A run's model and the request that it answers; `label` names the run on the terminal."""

    engine: Engine
    params: Any
    request: Request
    console: Console
    label: str

    def respond(self, rows: Sequence[Encoded], label: str = "") -> tuple[Rollout, list[Response]]:
        """`samples` responses to each row in turn, with a progress bar."""
        how = self.request.temperature, self.request.samples
        with Progress(console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(f"{self.request.benchmark}, {self.label}{label}", total=len(rows))
            rollout = self.engine.respond(self.params, rows, *how, lambda done: progress.update(task, completed=done))
        asked = [row.instruction for row in rows for _ in range(self.request.samples)]
        texts = self.engine.backbone.answers(rollout)
        return rollout, [Response(q, y, q.source) for q, y in zip(asked, texts, strict=True)]


def restored_params(engine: Engine, workdir: Path, step: int | None = None):
    """(parameters, step) of `step_of`: a checkpoint's, or at step 0 those of the model that the run starts from."""
    found = step_of(workdir, step)
    if found == 0:
        return engine.load_params(), 0
    with Checkpoints(workdir / "checkpoints") as saved:
        trained, meta = saved.restore_params(found, engine.abstract_state.params)
    engine.refuse_other_base(meta)
    return engine.policy(trained), found


def evaluate_run(config, workdir: Path, request: Request, step: int | None = None) -> tuple[dict[str, Any], Path]:
    """Answers, scores and writes (in the first process): the summary with its step, and the directory of the files."""
    request.refuse_contradictions()
    console = Console(stderr=True, quiet=not processes.first())
    is_text = isinstance(request.entry, PlainText)
    if is_text:
        config = config.copy_and_resolve_references()
        config.rollout.temperature = 1.0  # at which the log-probs are taken
    engine = Engine(config)
    params, step = restored_params(engine, workdir, step)
    if step == 0:
        model = config.model.checkpoint or "random"
        console.print(f"{workdir}, step 0: the model that the run starts from ({model})", soft_wrap=True, markup=False)
    evaluation = Evaluation(engine, params, request, console, f"{workdir.name}, step {step}")
    summary, written = (_perplexity if is_text else _answers)(evaluation)
    summary |= {"step": step}
    out = workdir / "evaluations" / request.directory(step)
    if processes.first():
        for name, rows in written.items():
            files.write_jsonl(out / f"{name}.jsonl", rows)
        files.write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
        console.print(f"written: {out}", soft_wrap=True, markup=False)
    return summary, out


# ---- instructions


def _answers(evaluation: Evaluation):
    """(summary, files to write: name -> rows) of responses to instructions."""
    engine, request, config = evaluation.engine, evaluation.request, evaluation.engine.config
    benchmark, instructions = request.entry, _instructions(config, request, evaluation.console)
    if request.control == TASK:
        _refuse_verbatim(instructions)
    rows = [encode(engine.backbone.frame, instruction, roles=False) for instruction in instructions]
    if isinstance(benchmark, RuleBenchmark) and benchmark.of_config:  # as in training: what is too long is left out
        rows = [row for row in rows if row.longest <= config.data.max_prompt]
    rollout, responses = evaluation.respond(rows)
    written = {"responses": response_rows(benchmark.id, responses)}
    if isinstance(benchmark, JudgedBenchmark):
        return _of_rollout(rollout), written
    summary, figures, more = _scored(evaluation, [row.instruction for row in rows], responses)
    # NaN: the prompt has no such figure
    intervals = {name: bootstrap(some) for name, x in figures.items() if len(some := x[~np.isnan(x)])}
    prompts = [
        {"key": key, "prompt": prompt} | {name: float(x[i]) for name, x in figures.items() if not np.isnan(x[i])}
        for i, (key, prompt) in enumerate({str(one.instruction.key): one.row.prompt for one in responses}.items())
    ]
    return summary | _of_rollout(rollout) | {"intervals": intervals}, written | more | {"prompts": prompts}


def _scored(evaluation: Evaluation, instructions: Sequence[Instruction], responses: Sequence[Response]):
    """(summary, figures by prompt with those of the control, files to write) of responses, by the benchmark's rules."""
    asked, benchmark = [one.instruction for one in responses], evaluation.request.entry
    with ExitStack() as stack:
        verifier = SharedVerifier(open_configured(stack, evaluation.engine.config.constraints, instructions))
        scores, summary = score_responses(benchmark, responses, verifier)
        written = {"verdicts": [output_row(benchmark, q, score) for q, score in zip(asked, scores, strict=True)]}
        figures = {name: np.asarray(values, float) for name, values in per_prompt(asked, scores).items()}
        if evaluation.request.control == SHUFFLE:
            control, of_control = _shuffle_control(verifier, instructions, responses, scores)
            summary |= {"overlap": control.overlap, "by_type": control.by_type(instructions)}
        else:
            of_task, answers = _task_control(evaluation, instructions, verifier)
            of_control = of_task | {"following_task": figures["ila"] - of_task["ila_task"]}
            written["task_responses"] = response_rows(benchmark.id, answers)
    return summary, figures | of_control, written


def _instructions(config, request: Request, console: Console) -> list[Instruction]:
    """The benchmark's usable prompts. Why the others are left out is printed on the terminal."""
    benchmark, errors = request.entry, []
    if isinstance(benchmark, RuleBenchmark) and benchmark.of_config:
        instructions = benchmark.of_config(config)
    elif request.prompts is None:
        raise InputError(f"--benchmark={request.benchmark} needs --prompts=FILE")
    elif isinstance(benchmark, JudgedBenchmark):
        instructions = as_instructions(benchmark.read_judged(request.prompts), request.prompts)
    else:
        instructions, errors = benchmark.read(request.prompts)
    enabled = deciders_of(config.constraints)
    usable = [q for q in instructions if not registry.missing_decider(q.constraints, enabled)]
    for error in errors:
        console.print(f"left out: {error}", soft_wrap=True, markup=False)
    if lacking := len(instructions) - len(usable):
        on = ", ".join(sorted(enabled)) or "none"
        console.print(f"left out: {lacking} prompts that need a decider which is off (on: {on})")
    if not usable:
        raise InputError(f"{request.prompts or request.benchmark}: no prompt is left to answer")
    return usable[: request.limit]


def _refuse_verbatim(instructions: Sequence[Instruction]) -> None:
    """InputError for prompts from which their constraints cannot be taken away."""
    if found := [q.source for q in instructions if q.template == "verbatim"]:
        raise InputError(
            f"--control=task: {found[0]}: the prompt's own wording holds its constraints (as in {len(found)} of "
            f"{len(instructions)}), so there is no task without them; give rows with a task and constraints (heldout, unseen, "
            "hir16k), or --control=shuffle"
        )


def _shuffle_control(
    verifier, instructions: Sequence[Instruction], responses: Sequence[Response], scores: Sequence[Score]
):
    """(the control, its figures by prompt): prompts are in the order of `per_prompt`, NaN stands for no figure."""
    own = no_verdicts(len(scores), max(len(score.strict) for score in scores))
    for b, score in enumerate(scores):
        own.satisfied[b, : len(score.strict)], own.known[b, : len(score.known)] = score.strict, score.known
        own.present[b, : len(score.strict)] = True
    texts, keys = [one.text for one in responses], [str(one.instruction.key) for one in responses]
    control = shuffled(verifier, instructions, texts, own)
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    prompt = np.array([places[key] for key in keys])
    figures = following.per_prompt(control.own, control.others, prompt)
    return control, figures | {"distinct": np.bincount(prompt, following.distinct(texts)) / np.bincount(prompt)}


def _task_control(evaluation: Evaluation, instructions: Sequence[Instruction], verifier: SharedVerifier):
    """(ILA and CLA by prompt, responses) of responses to the tasks without their constraints, checked against these."""
    frame = evaluation.engine.backbone.frame
    rows = [encode(frame, dataclasses.replace(q, constraints=()), roles=False) for q in instructions]
    _, answers = evaluation.respond(rows, ", task alone")
    asked = [q for q in instructions for _ in range(evaluation.request.samples)]
    checked = [Response(q, y.text, f"task alone, {q.source}") for q, y in zip(asked, answers, strict=True)]
    scores, _ = score_responses(evaluation.request.entry, checked, verifier)
    found = per_prompt(asked, scores)
    return {f"{name}_task": np.asarray(found[name]) for name in ("ila", "cla")}, answers


def _of_rollout(rollout: Rollout) -> dict[str, float]:
    """Mean length in tokens, share cut at the maximum, entropy in nats a token, and share of repeated 4-grams of tokens."""
    lengths = rollout.mask.sum(-1)
    repeated = [repetition(row[mask].tolist()) for row, mask in zip(rollout.tokens, rollout.mask, strict=True)]
    return {
        "response_tokens": float(lengths.mean()),
        "truncated": float((~rollout.ended).mean()),
        "entropy": float(rollout.entropy.sum() / max(1, lengths.sum())),
        "repetition": float(np.mean(repeated)),
    }


# ---- plain text


def _perplexity(evaluation: Evaluation):
    """(summary, files to write) of plain text: nats per token of each window of max_response tokens, given the token before it.

    The log-probs are at temperature 1, at whichever temperature the run samples. The interval is that of the mean over windows,
    in which a short last one counts as much as the others.
    """
    engine, request = evaluation.engine, evaluation.request
    if request.prompts is None:
        raise InputError("--benchmark=text needs --prompts=FILE, a file of plain text")
    width, size = engine.config.rollout.max_response, engine.config.data.eval_batch
    text = read_text(request.prompts)
    tokens = engine.backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = [tokens[i : i + width + 1] for i in range(0, len(tokens) - 1, width)][: request.limit]
    if not windows:
        raise InputError(f"{request.prompts}: fewer than two tokens of text")
    rows = np.full((-(-len(windows) // size) * size, width + 1), engine.backbone.pad_id, np.int32)
    length = np.zeros(len(rows), int)
    for i, window in enumerate(windows):
        rows[i, : len(window)], length[i] = window, len(window) - 1
    mask = np.arange(width) < length[:, None]
    one = np.ones(size, np.int32)
    parts = [slice(start, start + size) for start in range(0, len(rows), size)]
    logp = [engine.logprobs(evaluation.params, rows[part], one, mask[part]) for part in parts]
    logp, length = np.concatenate(logp)[: len(windows)], length[: len(windows)]
    nats = -logp.sum(-1) / length
    nll = float(-logp.sum() / length.sum())
    summary = {"perplexity": math.exp(nll), "nll": nll, "tokens": int(length.sum()), "windows": len(windows)}
    texts = engine.backbone.tokenizer.batch_decode(windows, clean_up_tokenization_spaces=False)
    prompts = [{"key": str(i), "prompt": y, "nll": float(x)} for i, (y, x) in enumerate(zip(texts, nats, strict=True))]
    return summary | {"intervals": {"nll": bootstrap(nats)}}, {"prompts": prompts}
