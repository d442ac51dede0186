"""The script inside the sandbox: checks one response and ends. It is not imported by the package.

`code.Cage` starts it under bubblewrap, by path, with access to the standard library only. The request is JSON on standard
input: limits, source, function, instruction, response. The answer is written to a copy of standard output that the checked
code is not told of: "true", "false", or a reason and a detail. Whatever the code prints goes to /dev/null. The code shares
this interpreter, so it can forge its own verdict, but no other.
"""

import json
import os
import re
import resource
import sys

_LONGEST_DETAIL = 500  # characters


def _limit(seconds: int, memory_bytes: int) -> None:
    for limit, amount in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),  # also for files in memory (memfd)
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (amount, amount))


def _verdict(source: str, function: str, instruction: str, response: str) -> str:
    # Published checkers expect `re` to be imported.
    namespace = {"__name__": "checker", "re": re}
    try:
        program = compile(source, "<checker>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"refused the source is not Python: {error}"
    try:
        exec(program, namespace)
        check = namespace.get(function)
        if not callable(check):
            return f"refused the source defines no function {function!r}"
        takes_one = getattr(getattr(check, "__code__", None), "co_argcount", 2) == 1
        result = check(response) if takes_one else check(instruction, response)
    except BaseException as error:  # including SystemExit and KeyboardInterrupt
        return f"raised {type(error).__name__}: {error}"
    if type(result) is not bool:
        return f"nonsense a bool is wanted, but {function} returned {type(result).__name__}"
    return "true" if result else "false"


def main() -> None:
    request = json.load(sys.stdin)
    answer, null = os.dup(1), os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    _limit(request.pop("seconds"), request.pop("memory_bytes"))
    reply = _verdict(**request)[:_LONGEST_DETAIL]
    os.write(answer, reply.encode(errors="replace"))
    os._exit(0)  # skips exit handlers that the code may have registered


if __name__ == "__main__":
    main()
