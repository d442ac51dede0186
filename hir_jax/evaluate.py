"""Evaluates runs: their newest checkpoints, or those of a step, on a benchmark.

    python -m hir_jax.evaluate --workdir=DIR[@STEP],... --benchmark=NAME [--config=configs/X.py] [--prompts=FILE]
        [--limit=N] [--temperature=0.6] [--samples=N] [--control=shuffle|task]
        [--coordinator=HOST:PORT --processes=N --process=I]

Benchmarks: ifeval, ifbench, muldimif, hir16k (`--prompts` is the published file); heldout, the config's held-out instructions;
unseen, instructions of constraint types that the run never trained on (`config.data.unseen_ids`); text, perplexity on the plain
text in `--prompts`, cut into windows; cfbench, followbench, complexbench and infobench (of the published file, too), whose
responses `python -m hir_jax.judged` scores. Without --config each run's own config.json is used. DIR@0 is the model that the run
starts from; with --config DIR need not be there. A directory that is called DIR@STEP, or has commas in its name, comes first.

Greedy by default; with --samples=N each prompt gets N responses and pass@k is estimated without bias. Writes
DIR/evaluations/BENCHMARK-step-S/{responses,verdicts,prompts}.jsonl and summary.json (with 95% bootstrap intervals over prompts)
and prints the summary, last on stdout, as one JSON object. Several workdirs are compared with the first, on the prompts that both
answered: the object then holds `runs` and `differences`, with paired intervals. Prompts that need a judge or a code checker
which the config does not name are left out.

Whether the responses follow their instructions is told by a control (`hir.following`). With --control=shuffle they are
checked against the constraints of eight other prompts each, by the rules alone: `ila_shuffled`, `cla_shuffled`, `following`
(ILA less ila_shuffled), `distinct`, `overlap`, and `by_type`, how often constraints of a type are met by the responses to
prompts that ask for them and, the same constraints, by those to prompts that hold none of their type. That credits whatever
tells the prompts apart, the task too. With --control=task responses to the task without its constraints are checked
against them instead, by whoever decides them: `ila_task`, `cla_task` and `following_task` (ILA less ila_task). Each figure is a
mean over prompts with its interval, and is compared between runs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hir_jax import config as configs
from hir_jax import deciders, pathflags
from hir_jax.checks import registry
from hir_jax.checks.judge.soft import JudgeSettings
from hir_jax.data import dataset
from hir_jax.data.segments import encode
from hir_jax.data.templates import render
from hir_jax.engine import Engine
from hir_jax.eval.accuracy import shuffled
from hir_jax.eval.benchmarks import BENCHMARKS, Benchmark, Response, per_prompt, score_rows
from hir_jax.eval.judged import JUDGED, as_instructions, scored_rows
from hir_jax.eval.statistics import Interval, bootstrap, paired_differences, repetition
from hir_jax.hir import following
from hir_jax.parallel import processes
from hir_jax.rollouts import SharedVerifier
from hir_jax.run import files
from hir_jax.run.checkpoints import Checkpoints, step_of
from hir_jax.run.memory import keep_freed_memory
from hir_jax.run.progress import use_compilation_cache
from hir_jax.textfiles import read_jsonl, read_text
from hir_jax.types import InputError, Instruction, Rollout, Verdicts

OWN = {"heldout": dataset.heldout, "unseen": dataset.unseen}  # instructions that the config makes or names itself
TEXT = "text"
CONTROLS = (SHUFFLE, TASK) = ("shuffle", "task")
_PLAIN = Benchmark(lambda path: ([], []), False, "key")  # strict verdicts, no labels


class Request(NamedTuple):
    """What is asked of a run."""

    benchmark: str
    prompts: str | None = None
    limit: int | None = None
    temperature: float = 0.0
    samples: int = 1
    control: str = SHUFFLE  # one of CONTROLS

    def directory(self, step: int) -> str:
        """One name for each way to ask, so that none replaces the files of another."""
        decoding = f"-t{self.temperature:g}-n{self.samples}" if self.temperature or self.samples > 1 else ""
        limited = "" if self.limit is None else f"-first-{self.limit}"
        text = f"-{Path(self.prompts).stem}" if self.benchmark == TEXT else ""
        control = "-task" if self.control == TASK else ""
        return f"{self.benchmark}{text}-step-{step}{decoding}{limited}{control}"


def restored_params(engine: Engine, workdir: Path, step: int | None = None):
    """(parameters, step) of `step_of`: a checkpoint's, or at step 0 those of the model that the run starts from."""
    found = step_of(workdir, step)
    if found == 0:
        return engine.load_params(), 0
    with Checkpoints(workdir / "checkpoints") as saved:
        trained, meta = saved.restore_params(found, engine.abstract_state.params)
    engine.refuse_other_base(meta)
    return engine.policy(trained), found


def _instructions(config, request: Request, console: Console) -> list[Instruction]:
    """The benchmark's prompts that can be used; what is wrong with the others is said on the terminal."""
    if request.benchmark in OWN:
        instructions, errors = OWN[request.benchmark](config), []
    elif request.prompts is None:
        raise InputError(f"--benchmark={request.benchmark} needs --prompts=FILE")
    elif request.benchmark in JUDGED:
        rows = scored_rows(request.benchmark, request.prompts)
        instructions, errors = as_instructions(rows, request.prompts), []
    else:
        instructions, errors = BENCHMARKS[request.benchmark].read(request.prompts)
    k = config.constraints
    enabled = deciders.enabled(JudgeSettings(**k.judge), k.code_checkers)
    usable = [q for q in instructions if not registry.missing_decider(q.constraints, enabled)]
    for error in errors:
        console.print(f"left out: {error}", soft_wrap=True, markup=False)
    if len(usable) < len(instructions):
        on = ", ".join(sorted(enabled)) or "none"
        console.print(
            f"left out: {len(instructions) - len(usable)} prompts that need a decider which is off (on: {on})"
        )
    if not usable:
        raise InputError(f"{request.prompts or request.benchmark}: no prompt is left to answer")
    return usable[: request.limit]


def _of_responses(rollout: Rollout) -> dict[str, float]:
    """Mean length in tokens, share cut at the maximum, entropy in nats a token, and share of repeated 4-grams of tokens."""
    lengths = rollout.mask.sum(-1)
    repeated = [repetition(row[mask].tolist()) for row, mask in zip(rollout.tokens, rollout.mask, strict=True)]
    return {
        "response_tokens": float(lengths.mean()),
        "truncated": float((~rollout.ended).mean()),
        "entropy": float(rollout.entropy.sum() / max(1, lengths.sum())),
        "repetition": float(np.mean(repeated)),
    }


def _answered(config, engine: Engine, params, request: Request, console: Console, label: str):
    """(summary, files to write: name -> rows) of responses to instructions."""
    instructions = _instructions(config, request, console)
    if request.control == TASK:
        _refuse_verbatim(instructions)
    rows = [encode(engine.backbone.frame, instruction, roles=False) for instruction in instructions]
    if request.benchmark in OWN:  # as in training: what is too long is left out
        rows = [row for row in rows if row.longest <= config.data.max_prompt]
        instructions = [row.instruction for row in rows]
    responding = engine, params, request, console
    rollout = _responses(*responding, rows, label)
    texts, asked = engine.backbone.answers(rollout), [q for q in instructions for _ in range(request.samples)]
    if request.benchmark in JUDGED:
        return _of_responses(rollout), {"responses": _response_rows(JUDGED[request.benchmark].id, asked, texts)}
    benchmark, k = BENCHMARKS.get(request.benchmark, _PLAIN), config.constraints
    with ExitStack() as stack:
        verifier = deciders.open_verifier(
            stack, JudgeSettings(**k.judge), code_checkers=k.code_checkers, workers=k.workers, timeout_seconds=k.timeout_seconds
        )  # fmt: skip
        answers = [Response(q, y, q.source) for q, y in zip(asked, texts, strict=True)]
        verifier = SharedVerifier(verifier)
        scores, summary = score_rows(benchmark, answers, verifier)
        found, written = per_prompt(asked, [score.strict for score in scores]), {}
        if request.control == SHUFFLE:
            figures, more = _shuffle_control(verifier, instructions, asked, texts, scores)
            summary |= more
        else:
            alone = [dataclasses.replace(q, constraints=()) for q in instructions]
            tasks = [encode(engine.backbone.frame, q, roles=False) for q in alone]
            others = engine.backbone.answers(_responses(*responding, tasks, f"{label}, task alone"))
            answers = [Response(q, y, f"task alone, {q.source}") for q, y in zip(asked, others, strict=True)]
            of_task = per_prompt(asked, [score.strict for score in score_rows(benchmark, answers, verifier)[0]])
            figures = {f"{name}_task": np.asarray(of_task[name]) for name in ("ila", "cla")}
            figures["following_task"] = found["ila"] - figures["ila_task"]
            given = [q for q in alone for _ in range(request.samples)]
            written["task_responses"] = _response_rows(benchmark.id, given, others)
        found |= figures
    found = {name: np.asarray(values, float) for name, values in found.items()}  # NaN: the prompt has no such figure
    intervals = {name: bootstrap(some) for name, values in found.items() if len(some := values[~np.isnan(values)])}
    summary |= _of_responses(rollout) | {"intervals": intervals}
    prompts = [
        {"key": key, "prompt": prompt} | {name: float(x[i]) for name, x in found.items() if not np.isnan(x[i])}
        for i, (key, prompt) in enumerate({str(q.key): render(q) for q in asked}.items())
    ]
    written["responses"] = _response_rows(benchmark.id, asked, texts)
    written["verdicts"] = [benchmark.output_row(q, s) for q, s in zip(asked, scores, strict=True)]
    return summary, written | {"prompts": prompts}


def _responses(engine: Engine, params, request: Request, console: Console, rows, label: str) -> Rollout:
    """The responses that are asked for, with a progress bar."""
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{request.benchmark}, {label}", total=len(rows))

        def advance(done):
            progress.update(task, completed=done)

        return engine.respond(params, rows, request.temperature, request.samples, advance)


def _refuse_verbatim(instructions: Sequence[Instruction]) -> None:
    """InputError for prompts from which their constraints cannot be taken away."""
    if found := [q.source for q in instructions if q.template == "verbatim"]:
        raise InputError(
            f"--control=task: {found[0]}: the prompt's own wording holds its constraints (as in {len(found)} of "
            f"{len(instructions)}), so there is no task without them; give rows with a task and constraints (heldout, unseen, "
            "hir16k), or --control=shuffle"
        )


def _shuffle_control(
    verifier: SharedVerifier, instructions: Sequence[Instruction], asked: Sequence[Instruction], texts, scores
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(figures by prompt, in the order of `per_prompt`, NaN where it has none; what else goes into the summary)."""
    shape = len(asked), max(len(q.constraints) for q in asked)
    own = Verdicts(*(np.zeros(shape, bool) for _ in Verdicts._fields))
    for b, score in enumerate(scores):
        own.satisfied[b, : len(score.strict)], own.known[b, : len(score.known)] = score.strict, score.known
        own.present[b, : len(score.strict)] = True
    control = shuffled(verifier, instructions, texts, own)
    places = {key: place for place, key in enumerate(dict.fromkeys(str(q.key) for q in asked))}
    prompt = np.array([places[str(q.key)] for q in asked])
    figures = following.per_prompt(control.own, control.others, prompt)
    figures["distinct"] = np.bincount(prompt, following.distinct(texts)) / np.bincount(prompt)
    return figures, {"overlap": control.overlap, "by_type": control.by_type(instructions)}


def _response_rows(key: str, asked: Sequence[Instruction], texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{key: q.key, "prompt": render(q), "response": y} for q, y in zip(asked, texts, strict=True)]


def _perplexity(config, engine: Engine, params, request: Request):
    """The same of plain text: nats a token of each window of max_response tokens, given the one before it, at temperature 1
    whatever the run samples at. The interval is that of the mean over windows, in which a short last one counts as much."""
    if request.prompts is None:
        raise InputError("--benchmark=text needs --prompts=FILE, a file of plain text")
    width, size = config.rollout.max_response, config.data.eval_batch
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
    logp = np.concatenate([engine.logprobs(params, rows[part], one, mask[part]) for part in parts])[: len(windows)]
    length = length[: len(windows)]
    nats = -logp.sum(-1) / length
    nll = float(-logp.sum() / length.sum())
    summary = {"perplexity": math.exp(nll), "nll": nll, "tokens": int(length.sum()), "windows": len(windows)}
    texts = engine.backbone.tokenizer.batch_decode(windows, clean_up_tokenization_spaces=False)
    prompts = [{"key": str(i), "prompt": y, "nll": float(x)} for i, (y, x) in enumerate(zip(texts, nats, strict=True))]
    return summary | {"intervals": {"nll": bootstrap(nats)}}, {"prompts": prompts}


def evaluate_run(config, workdir: Path, request: Request, step: int | None = None) -> tuple[dict[str, Any], Path]:
    """Samples, scores and writes (in the first process): the summary with its step, and the directory of the files."""
    if not (request.temperature >= 0):
        raise InputError(f"--temperature={request.temperature}: it must not be negative (0 is greedy)")
    if request.samples > 1 and not request.temperature:
        raise InputError(f"--samples={request.samples} at temperature 0 are all the same: give --temperature")
    if request.samples > 1 and request.benchmark in JUDGED:
        raise InputError(f"--samples={request.samples}: {request.benchmark} is scored by one response to each prompt")
    if request.control == TASK and request.benchmark in (TEXT, *JUDGED):
        raise InputError(f"--control=task: {request.benchmark} holds no constraints that are checked here")
    console = Console(stderr=True, quiet=not processes.first())
    if request.benchmark == TEXT:
        config = config.copy_and_resolve_references()
        config.rollout.temperature = 1.0  # that of the log-probs
    engine = Engine(config)
    params, step = restored_params(engine, workdir, step)
    if step == 0:
        model = config.model.checkpoint or "random"
        console.print(f"{workdir}, step 0: the model that the run starts from ({model})", soft_wrap=True, markup=False)
    if request.benchmark == TEXT:
        summary, written = _perplexity(config, engine, params, request)
    else:
        summary, written = _answered(config, engine, params, request, console, f"{workdir.name}, step {step}")
    summary |= {"step": step}
    out = workdir / "evaluations" / request.directory(step)
    if not processes.first():
        return summary, out
    for name, rows in written.items():
        files.write_jsonl(out / f"{name}.jsonl", rows)
    files.write_atomically(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    console.print(f"written: {out}", soft_wrap=True, markup=False)
    return summary, out


def differences(evaluations: dict[str, Path]) -> dict[str, dict[str, Interval]]:
    """Of each evaluation but the first: figure -> [mean difference from the first, low, high], 95%, paired over the prompts that
    both answered."""
    found = {}
    for name, directory in evaluations.items():
        rows = [row for _, row in read_jsonl(directory / "prompts.jsonl")]
        found[name] = {
            (row.pop("key"), row.pop("prompt")): row for row in rows
        }  # keys say little of another config's prompts
    (_, first), *others = found.items()
    compared = {name: paired_differences(first, rows) for name, rows in others}
    for name, figures in compared.items():
        if not figures:
            raise InputError(f"{name}: it answered none of the prompts that {next(iter(found))} did")
    return compared


def _show(runs: dict[str, dict], compared: dict[str, dict], console: Console) -> None:
    first = next(iter(runs))
    table = Table("run", "figure", "mean (95%)", f"difference from {first}")
    for name, summary in runs.items():
        for figure, interval in summary["intervals"].items():
            gap = compared.get(name, {}).get(figure)
            shown = f"{gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})" if gap else ""
            table.add_row(name, figure, str(interval), shown)
    console.print(table)


def _run_of(name: str) -> tuple[Path, int | None]:
    """The workdir and step of DIR or DIR@STEP; a directory of the whole name comes first."""
    directory, _, step = name.rpartition("@")
    if Path(name).is_dir() or not (directory and step.isdecimal()):
        return Path(name), None
    return Path(directory), int(step)


def main(argv) -> None:
    del argv
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax reports through it
    keep_freed_memory()
    with processes.joined(preemption=False):
        evaluate(flags.FLAGS)


def evaluate(args) -> None:
    """What the command line asks for."""
    request = Request(args.benchmark, args.prompts, args.limit, args.temperature, args.samples, args.control)
    runs, directories = {}, {}
    for name in args.workdir:  # before the first is answered, which may take hours
        step_of(*_run_of(name))
    for name in args.workdir:
        workdir, step = _run_of(name)
        config = args.config or configs.of_run(workdir)
        configs.check(config)
        use_compilation_cache(config.compilation_cache)
        runs[name], directories[name] = evaluate_run(config, workdir, request, step)
    if not processes.first():
        return
    if args.benchmark in JUDGED:
        found = ",".join(str(directory / "responses.jsonl") for directory in directories.values())
        flags_given = (f"--benchmark={args.benchmark}", f"--prompts={args.prompts}", f"--responses={found}")
        command = shlex.join(["python", "-m", "hir_jax.judged", *flags_given])
        Console(stderr=True).print(f"to be scored by: {command} ...", soft_wrap=True, markup=False)
    if len(runs) == 1 or args.benchmark in JUDGED:
        print(json.dumps(runs[name] if len(runs) == 1 else {"runs": runs}))
        return
    compared = differences(directories)
    _show(runs, compared, Console(stderr=True))
    print(json.dumps({"runs": runs, "differences": compared}))


def cli() -> None:
    configs.define_flags()
    pathflags.define("prompts", None, "The benchmark's prompts.")
    pathflags.define_list(
        "workdir", None, "Runs: DIR or DIR@STEP, several separated by commas.", lambda name: _run_of(name)[0].is_dir()
    )
    flags.DEFINE_enum(
        "benchmark", "ifeval", [*sorted(BENCHMARKS), *sorted(JUDGED), *OWN, TEXT], "Whose prompts and rules."
    )
    flags.DEFINE_integer("limit", None, "The first N prompts alone.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "0: greedy. The paper's benchmark decoding: 0.6.")
    flags.DEFINE_integer("samples", 1, "Responses to each prompt.", lower_bound=1)
    flags.DEFINE_enum(
        "control", SHUFFLE, CONTROLS, "What tells following from meeting: other prompts, or the task alone."
    )
    processes.define_flags()
    flags.mark_flags_as_required(["workdir"])
    configs.run_program(main, __doc__)


if __name__ == "__main__":
    cli()
