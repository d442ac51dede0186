"""Benchmarks whose questions a judge answers: CFBench, FollowBench, ComplexBench, InFoBench.

Each module has the published metrics as pure functions of verdicts, the readers of its prompts and of judges' replies, and
its questions to a judge, in our own words. `hir_jax.eval.judging` judges a file of responses with them.
"""
