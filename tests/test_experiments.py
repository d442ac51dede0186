"""The runner on a very small model: base fits, resuming after an interruption, skipping, tuning, failures."""

import json
import os
import re
import shlex
import threading
from types import SimpleNamespace

import pytest
from small_runs import CONFIG, ROOT, SMALL

from experiments import report, run
from experiments.suites import SUITES
from hir_jax import config as configs
from hir_jax.types import InputError

# a base fit and runs of one step on four prompts; the model's shape must be that of the base
CHANGES = SMALL | {"total_steps": 1, "eval_every": 1, "save_model": False}
for key in ("method", "model.checkpoint", "checkpoint_every", "save_model"):
    CHANGES.pop(key)
OVERRIDES = [f"--config.{key}={value}" for key, value in CHANGES.items()]


def programs(monkeypatch, start):
    """Makes the runner start its programs by `start(command, ...)`; calls of git stay real."""
    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=start))


@pytest.mark.parametrize("name", SUITES)
def test_every_variant_is_a_config_that_can_run(name, tmp_path):
    for job in run.jobs(name, CONFIG, tmp_path, list(SUITES[name].variants), [0], {}, {}):
        for one in (job, job.after):
            config = configs.load_file(one.config)
            config.update_from_flattened_dict(one.overrides)
            try:
                configs.check(config)
            except configs.ConfigError as error:
                pytest.fail(f"{one.directory}: {error}")
    variants, against = SUITES[name].variants, SUITES[name].against or {}
    assert len({run.slug(label) for label in variants}) == len(variants)
    assert all("method" in overrides for overrides in variants.values())
    for label, other in against.items():  # two methods at one setting
        assert variants[label] | {"method": variants[other]["method"]} == variants[other] != variants[label]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Two variants and one seed from a checkpoint that a first run made.

    Takes long because the runner starts five programs one after the other; the tests below protect that it starts what is missing
    and nothing else.
    """
    root = tmp_path_factory.mktemp("suite")
    base = root / "base_run"
    sft = SMALL | {"method": "sft", "total_steps": 1, "rollout.max_response": 48}
    job = run.Job(base, sft, CONFIG, 1, evaluates=False)
    assert job.run({}) == "" and (base / "model").is_dir()
    command = ["scope", f"--config={CONFIG}", f"--workdir={root}", "--seeds=1", "--only=batch,group", *OVERRIDES]
    command.append(f"--config.model.checkpoint={base / 'model'}")
    run.main(command)
    return root, command


def test_runs_are_finished_and_reported(started):
    root, _ = started
    for label in ("batch", "group"):
        directory = root / "scope" / label / "seed-0"
        assert [row["step"] for row in run.read_metrics(directory)] == [0, 1]
        flat = json.loads((directory / "config.json").read_text())
        assert flat["replay.scope"] == label and flat["seed"] == 0
        assert len(list(directory.glob("evaluations/*/summary.json"))) == 1
    shown = report.write(root, root / "report", 0.2)
    assert re.search(r"\| batch \| 1 \|.*\n\| group \| 1 \|", shown)


def test_the_commands_are_noted_and_reported(started):
    root, command = started
    run.note_command(root / "scope", command)  # the same day: no second line
    (line,) = (root / "scope" / run.COMMANDS).read_text().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d, commit [0-9a-z-]+, jax [\d.]+: python -m experiments\.run scope --config=", line)
    assert line.endswith(shlex.join(command)) and f"\n    {line}\n" in report.write(root, root / "report", 0.2)
    run.note_command(root / "scope", ["scope", "--config=a b"])
    assert (root / "scope" / run.COMMANDS).read_text().endswith("scope '--config=a b'\n")


def test_what_is_done_is_skipped_and_what_was_lost_is_done_again(started, capsys, monkeypatch):
    root, command = started
    (root / "scope" / "group" / "seed-0" / "evaluations" / "heldout-step-1-t1-n8" / "summary.json").unlink()
    asked = []
    real = run.subprocess.run
    programs(monkeypatch, lambda c, **k: asked.append(c) or real(c, **k))
    run.main(command)
    assert [c[2] for c in asked] == ["hir_jax.evaluate"]
    assert "1 of 2 runs are done" in capsys.readouterr().out


def test_a_run_killed_between_its_last_metrics_and_what_it_keeps_is_not_done(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    job, base = (run.Job(tmp_path, {"save_model": saved}, CONFIG, 3) for saved in (False, True))
    assert not job.trained() and job.commands()[0][0] == "hir_jax.train"
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert job.trained() and not base.trained()
    (tmp_path / "model").mkdir()
    assert base.trained()


def test_a_run_that_fails_is_named_and_the_others_go_on(started, tmp_path, monkeypatch):
    _, command = started

    def fails_for_group(c, **k):
        code = int(any("/group/" in a for a in c))
        return type("Done", (), {"returncode": code})()

    programs(monkeypatch, fails_for_group)
    command = [a if not a.startswith("--workdir") else f"--workdir={tmp_path}" for a in command]
    with pytest.raises(SystemExit, match=r"group/seed-0: hir_jax\.train ended with status 1; see .*log\.txt"):
        run.main(command)
    assert (tmp_path / "scope" / "batch" / "seed-0").is_dir()


def test_tuning_takes_the_rate_with_the_largest_area(tmp_path, monkeypatch):
    """With made-up runs: batch learns best at the middle rate and small KL weight, group at the highest rate and large weight."""
    best = {"batch": (3e-4, 0.001), "group": (9e-4, 0.03)}

    asked = {}

    def pretend(c, **k):
        workdir = next(a.split("=", 1)[1] for a in c if a.startswith("--workdir"))
        if "/base/" in workdir:
            steps = configs.load_file(f"{CONFIG}:sft").total_steps
            with open(f"{workdir}/metrics.jsonl", "w") as file:
                file.write(json.dumps({"step": steps}) + "\n")
            os.mkdir(f"{workdir}/model")
            return type("Done", (), {"returncode": 0})()
        rate, kl = (float(next(a.split("=")[1] for a in c if key in a)) for key in (run.RATE, run.KL))
        label = workdir.split("/")[-2]
        assert (rate, kl) not in asked.setdefault((label, workdir[-1]), [])
        asked[label, workdir[-1]].append((rate, kl))
        height = 0.5 if (rate, kl) == best[label] else 0.1 + rate / 100
        rows = [{"step": 0, "heldout_following": 0.0}, {"step": 60, "samples": 128, "heldout_following": height}]
        with open(f"{workdir}/metrics.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        os.makedirs(f"{workdir}/checkpoints/60")
        return type("Done", (), {"returncode": 0})()

    programs(monkeypatch, pretend)
    monkeypatch.setattr(run, "TUNED", tmp_path / "none.json")
    command = ["scope", f"--config={CONFIG}", f"--workdir={tmp_path}", "--only=batch,group", "--tune"]
    run.main([*command, "--config.learner.learning_rate=3e-4", "--config.total_steps=60"])
    chosen = run.chosen("scope", CONFIG, tmp_path)
    assert chosen == {label: {run.RATE: rate, run.KL: kl} for label, (rate, kl) in best.items()}
    assert set(asked["batch", "1"]) == {(1e-4, 0.001), (3e-4, 0.001), (9e-4, 0.001)} | {
        (rate, 0.03)
        for rate in (1e-4, 3e-4, 9e-4, 2.7e-3)  # the best at the edge: one more
    }
    assert set(asked["group", "2"]) == {(rate, kl) for rate in (1e-4, 3e-4, 9e-4, 2.7e-3) for kl in run.KLS}
    seeds = {path.name for path in tmp_path.glob("tuning/*/scope/*/seed-*")}
    assert seeds == {f"seed-{seed}" for seed in run.TUNING_SEEDS}
    planned = run.jobs("scope", CONFIG, tmp_path, ["batch", "even"], [0], chosen, {})
    assert planned[0].overrides.items() >= chosen["batch"].items()
    assert run.RATE not in planned[1].overrides
    given = run.jobs("scope", CONFIG, tmp_path, ["batch"], [0], chosen, {run.KL: "0.5"})[0].overrides
    assert given[run.KL] == "0.5" and given[run.RATE] == 3e-4


def test_a_method_without_a_kl_is_tuned_with_one_weight(tmp_path, monkeypatch):
    asked = set()

    def note(todo, parallel):
        asked.update((job.overrides["method"], job.overrides[run.KL]) for job in todo)
        return ["that is all"]

    monkeypatch.setattr(run, "run_all", note)
    with pytest.raises(SystemExit, match="that is all"):
        run.main(["reward_signal", f"--config={CONFIG}", f"--workdir={tmp_path}", "--tune", "--only=hir,rft,dpo"])
    assert asked == {("hir", 0.001), ("hir", 0.03), ("rft", 0.001), ("dpo", 0.001)}


def test_variants_share_base_models_or_have_their_own(tmp_path):
    labels = list(SUITES["difficulty"].variants)
    planned = run.jobs("difficulty", CONFIG, tmp_path, labels, [0, 1], {}, {})
    bases = {job.after.directory: job.after for job in planned}
    assert len(planned) == 2 * len(labels) and len(bases) == 2 * len(labels) / 2  # hir and ilr of a seed share one
    fit = configs.flatten(configs.load_file(f"{CONFIG}:sft"))
    for job in planned:
        noise = float(job.directory.parent.name.split("-")[1])
        assert (fit | job.after.overrides)["data.label_noise"] == noise
        assert job.after.overrides["seed"] == job.overrides["seed"]
        assert (job.after.directory.parent.name == "default") == (noise == fit["data.label_noise"])  # other suites' too
        assert job.overrides["model.checkpoint"] == str(job.after.directory / "model")
        assert not any("label_noise" in key for key in job.overrides)
    unseen = run.jobs("difficulty", CONFIG, tmp_path, labels, [0], {}, {run.UNSEEN: "punctuation:no_comma"})
    assert all(job.after.overrides[run.UNSEEN] == job.overrides[run.UNSEEN] for job in unseen)
    assert not {job.after.directory for job in unseen} & set(bases)
    assert planned[0].overrides["checkpoint_every"] == planned[0].total_steps  # a large model keeps the config's
    (large,) = run.jobs("scope", CONFIG, tmp_path, ["batch"], [0], {}, {"model.checkpoint": "somewhere"})
    assert "checkpoint_every" not in large.overrides
    with pytest.raises(InputError, match=r"difficulty, hir-0\.5: asks for a base model of its own"):
        run.jobs("difficulty", CONFIG, tmp_path, labels, [0], {}, {"model.checkpoint": "somewhere"})


def test_a_failed_base_model_starts_none_of_its_variants(tmp_path, monkeypatch):
    asked = []
    programs(monkeypatch, lambda c, **k: asked.append(c) or type("Done", (), {"returncode": 1})())
    errors = run.run_all(run.jobs("scope", CONFIG, tmp_path, ["batch", "group"], [0], {}, {}), 2)
    assert len(asked) == 1 and len(errors) == 3
    assert "ended with status 1" in errors[0] and "its base model" in errors[1] and "scope/batch" in "".join(errors)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinities")
def test_parallel_jobs_share_the_cores(tmp_path, monkeypatch):
    cores, seen = sorted(os.sched_getaffinity(0)), []
    both = threading.Barrier(2, timeout=60)

    def pretend(c, env, **k):
        seen.append((frozenset(os.sched_getaffinity(0)), env["CUDA_VISIBLE_DEVICES"]))
        both.wait()
        return type("Done", (), {"returncode": 1})()

    programs(monkeypatch, pretend)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    labels, start = ["batch", "group", "even"], {"model.checkpoint": "somewhere"}
    run.run_all(run.jobs("scope", CONFIG, tmp_path, [*labels, "batch"], [0], {}, start), 2)
    assert sorted(gpu for _, gpu in seen) == ["3", "3", "5", "5"] and run.usual_jobs(fits=False) == 2
    if len(cores) > 1:
        halves = {frozenset(cores[0::2]), frozenset(cores[1::2])}
        assert {mask for mask, _ in seen} == halves
    assert sorted(os.sched_getaffinity(0)) == cores
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run.usual_jobs(fits=False) == 1 and run.usual_jobs(fits=True) in (1, len(cores))


def test_seeds_by_number_or_by_name(tmp_path, monkeypatch, capsys):
    found = []
    monkeypatch.setattr(
        run, "run_all", lambda todo, parallel: found.append([job.overrides["seed"] for job in todo]) or []
    )
    command = ["scope", f"--config={CONFIG}", f"--workdir={tmp_path}", "--only=batch"]
    for seeds in ([], ["--seeds=2"], ["--seeds=1001,1002"], ["--seeds=7,"]):
        run.main([*command, *seeds])
    assert found == [[0, 1, 2, 3, 4], [0, 1], [1001, 1002], [7]]
    with pytest.raises(SystemExit):
        run.main([*command, "--seeds=few"])
    assert "invalid seeds value: 'few'" in capsys.readouterr().err


def test_a_run_that_another_suite_has_made_is_linked(started, capsys):
    """The first variant of most suites is HiR as it is in the config."""
    root, command = started
    command = ["schedule", *command[1:3], "--seeds=1", "--only=exponential", *command[5:]]
    run.main(command)
    link = root / "schedule" / "exponential" / "seed-0"
    assert link.is_symlink() and link.resolve() == (root / "scope" / "batch" / "seed-0").resolve()
    assert "the same run as" in capsys.readouterr().out
    assert report.gather(root / "schedule")["runs"]["exponential"] == report.gather(root / "scope")["runs"]["batch"]


def test_what_was_tuned_for_a_method_serves_other_suites(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    hir, ilr, group = {run.RATE: 1e-4, run.KL: 0.03}, {run.RATE: 9e-4}, {run.RATE: 5e-5}
    name = "configs/tiny_hir.py"
    path.write_text(json.dumps({name: {"reward_signal": {"hir": hir, "ilr": ilr}, "scope": {"group": group}}}))
    monkeypatch.setattr(run, "TUNED", path)
    for file in (f"{ROOT / name}:hard", os.path.relpath(ROOT / name), f"./{os.path.relpath(ROOT / name)}"):
        assert run.chosen("scope", file, tmp_path) == {"batch": hir, "group": group, "even": hir}
    assert run.chosen("selection", CONFIG, tmp_path)["none"] == ilr
    assert run.chosen("selection", "configs/smollm2_135m_hir.py", tmp_path) == {}
    (tmp_path / "scope").mkdir()
    (tmp_path / "scope" / "tuned.json").write_text(json.dumps({"chosen": {"even": ilr}}))
    assert run.chosen("scope", CONFIG, tmp_path) == {"batch": hir, "group": group, "even": ilr}


def test_a_variant_may_have_a_length_of_its_own(tmp_path):
    short, usual = run.jobs("rivals", CONFIG, tmp_path, ["dynamic", "ilr"], [0], {}, {})
    steps = configs.load_file(CONFIG).total_steps
    assert short.total_steps == short.overrides["total_steps"] == short.overrides["checkpoint_every"] < steps
    assert usual.total_steps == steps and "total_steps" not in usual.overrides


@pytest.mark.parametrize(
    ("file", "fit", "directory"),
    [
        (CONFIG, "sft", "default"),
        (f"{CONFIG}:easy", "sft", "default"),
        (f"{CONFIG}:hard", "hard_sft", "hard_sft/default"),
    ],
)
def test_a_base_model_is_fitted_by_the_variants_own_fit_where_there_is_one(file, fit, directory, tmp_path):
    (job,) = run.jobs("scope", file, tmp_path, ["batch"], [3], {}, {})
    assert job.after.config == f"{CONFIG}:{fit}"
    assert job.after.directory == tmp_path / "base" / directory / "seed-3"
    assert job.overrides["model.checkpoint"] == str(job.after.directory / "model")


def test_more_constraints_than_the_tiny_texts_have_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "run_all", lambda todo, parallel: [])
    run.main(["constraints", f"--config={CONFIG}", f"--workdir={tmp_path}"])
    assert "at most 9 constraints: hir-10, ilr-10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--only=batch,gruop"], "no variant 'gruop'"), (["--confg.seed=1"], "unknown argument '--confg")],
)
def test_mistyped_arguments_are_named(tmp_path, arguments, words, capsys):
    with pytest.raises(SystemExit):
        run.main(["scope", f"--config={CONFIG}", f"--workdir={tmp_path}", *arguments])
    assert words in capsys.readouterr().err
