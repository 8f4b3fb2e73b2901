# SPDX-License-Identifier: Apache-2.0
"""Puts mistakes into the C++ code, one at a time, and reports those that no test finds: `make mutate`.

The tables of mutants map a file to code that occurs in it once, and that code to its replacements: a check that is
always true, a bound moved by one, swapped arguments, a step left out. White space in the code matches any white space.
test_mutants.py checks that each mutant still applies.

Works in the checkout it is in, which must have no uncommitted changes. Each mutant is compiled, which takes about half
a minute. After Ctrl-C the file is restored; after a kill it is not.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from core_mutants import CORE
from npu_mutants import NPU

ROOT = Path(__file__).parents[2]
OPS = [f"test_{name}.py" for name in ("refusals", "op_arguments", "copy_cache", "same_cache", "torch_semantics")]
OPS += [f"test_{name}.py" for name in ("copy_cache_batch", "copies_argument", "properties")]
MORE = ["test_compile_batch.py", "test_compile.py", "manager", "test_library.py::test_loads_without_python"]
FIRST = [f"npu/test_{name}.py" for name in ("commands", "batch_commands", "directions", "streams")]
# The mutants, their environment, and the tests that must find them, those first that find most.
SUITES = {"core": (CORE, ".venv", [*OPS, *MORE]), "npu": (NPU, ".venv-npu", [*FIRST, "npu", *OPS])}


def mutate(text: str, old: str, new: str) -> str:
    """The text with one piece of code replaced, which must occur in it once."""
    mutated, count = re.subn(r"\s+".join(map(re.escape, old.split())), lambda _: new, text)
    if count != 1:
        raise ValueError(f"occurs {count} times: {old}")
    return mutated


def run(command: list[str], env: dict[str, str]) -> bool:
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
    return done.returncode == 0


def build(venv: str, env: dict[str, str]) -> bool:
    return run([str(ROOT / venv / "bin" / "python"), "setup.py", "--quiet", "build_ext", "--inplace"], env)


def outcome(path: Path, old: str, new: str, venv: str, tests: list[str]) -> str:
    """Whether a test finds the mutant."""
    env = {**os.environ, "PATH": f"{ROOT / venv / 'bin'}:{os.environ['PATH']}"}
    if venv == ".venv-npu":
        env["LD_LIBRARY_PATH"] = str(ROOT / "tests" / "ascend_sim" / "build")
    text = path.read_text()
    path.write_text(mutate(text, old, new))
    try:
        if not build(venv, env):
            return "NOT BUILT"
        pytest = [str(ROOT / venv / "bin" / "python"), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        return "SURVIVED" if run([*pytest, *(f"tests/{test}" for test in tests)], env) else "found"
    except subprocess.TimeoutExpired:
        return "found (timeout)"
    finally:
        path.write_text(text)


def main() -> None:
    if not run(["git", "diff", "--quiet"], dict(os.environ)):
        sys.exit("the checkout has uncommitted changes, which every mutant would include")
    alive = 0
    for name in sys.argv[1:] or SUITES:
        table, venv, tests = SUITES[name]
        mutants = [(file, old, new) for file, codes in table.items() for old, news in codes.items() for new in news]
        found = 0
        for file, old, new in mutants:
            begin = time.monotonic()
            result = outcome(ROOT / file, old, new, venv, tests)
            found += result.startswith("found")
            print(f"{name}: {result}, {time.monotonic() - begin:.0f} s: {file}: {old!r} -> {new!r}", flush=True)
        print(f"{name}: {found} of {len(mutants)} found", flush=True)
        alive += len(mutants) - found
        build(venv, dict(os.environ))
    sys.exit(alive > 0)


if __name__ == "__main__":
    main()
