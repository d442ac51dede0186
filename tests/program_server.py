"""Runs programs of hir_jax as `python -m` does, each in a fork of one process that has imported what is slow to import.

stdin: a JSON list of [module, arguments]; stdout: a JSON list of [exit status, stdout, stderr]. JAX starts no threads
before its first computation, and none happens here before a fork.
"""

import json
import os
import runpy
import signal
import sys
import tempfile
import traceback

import hir_jax.evaluate  # noqa: F401  imports all that is slow in hir_jax.train, too


def become(module: str, arguments: list[str], out: int, err: int) -> None:
    """Runs the program in this process and ends it."""
    signal.alarm(60)  # a program that was to be refused and runs on ends with status -14
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:  # as the interpreter does: text goes to stderr and means status 1
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(module: str, arguments: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            become(module, arguments, out.fileno(), err.fileno())
        _, status = os.waitpid(pid, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return os.waitstatus_to_exitcode(status), *texts


if __name__ == "__main__":
    print(json.dumps([run(*request) for request in json.load(sys.stdin)]))
