"""Benchmarks that a judge scores: CFBench, FollowBench, ComplexBench, InFoBench, under their names on the command line.

Each module has the published metrics as pure functions of verdicts, the reader of its prompts and of judges' replies, and
its questions to a judge, in our own words. `python -m hir_jax.judged` is the program.
"""

from hir_jax.judged import cfbench, complexbench, followbench, infobench

JUDGED = {
    "cfbench": cfbench.BENCHMARK,
    "followbench": followbench.BENCHMARKS["en"],
    "followbench_zh": followbench.BENCHMARKS["zh"],
    "complexbench": complexbench.BENCHMARKS["zh"],
    "complexbench_en": complexbench.BENCHMARKS["en"],
    "infobench": infobench.BENCHMARK,
}
