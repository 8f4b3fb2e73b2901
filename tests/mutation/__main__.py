# SPDX-License-Identifier: Apache-2.0
"""Puts the code wrong, one mutant after the other, and sees whether a test fails: `make mutate`.

Works in the checkout it is in, which must have no changes. Takes about half a minute for each mutant of C++, which is
compiled. Interrupted, it puts the file back; killed, it does not.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from mutants import CORE, NPU, PYTHON

ROOT = Path(__file__).parents[2]
CPP_PROGRAM = "test_library.py::test_loads_without_python"  # passes what Python cannot
OPS = [f"test_{name}.py" for name in ("refusals", "op_arguments", "copy_cache", "same_cache", "torch_semantics")]
OPS += [f"test_{name}.py" for name in ("copy_cache_batch", "copies_argument", "properties")]
TYPES = ["test_cache.py", "test_cache_keys.py", "test_config.py", "test_datadist.py"]
NPU_TESTS = [f"npu/test_{name}.py" for name in ("commands", "batch_commands", "directions", "streams")]  # those first
# The mutants, the environment, and the tests that are to find them.
SUITES = {
    "core": (
        CORE,
        ".venv",
        [
            *OPS,
            "test_compile_batch.py",
            "test_compile.py",
            "manager",
            CPP_PROGRAM,
        ],
    ),
    "npu": (NPU, ".venv-npu", [*NPU_TESTS, "npu", *OPS]),
    "python": (PYTHON, ".venv", [*TYPES, "manager", "test_refusals.py", "test_status.py"]),
}


def run(command: list[str], env: dict[str, str]) -> bool:
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
    return done.returncode == 0


def survives(mutant: tuple[str, str, str], venv: str, tests: list[str]) -> str:
    """What became of a mutant: a word and, if no test failed, one that is seen."""
    file, old, new = mutant
    path, python = ROOT / file, str(ROOT / venv / "bin" / "python")
    env = {**os.environ, "PATH": f"{ROOT / venv / 'bin'}:{os.environ['PATH']}"}
    if venv == ".venv-npu":
        env["LD_LIBRARY_PATH"] = str(ROOT / "tests" / "ascend_sim" / "build")
    text = path.read_text()
    if text.count(old) != 1:
        return f"NOT APPLIED: found {text.count(old)} times"
    path.write_text(text.replace(old, new))
    try:
        built = path.suffix == ".py" or run([python, "setup.py", "--quiet", "build_ext", "--inplace"], env)
        if not built:
            return "NOT BUILT"
        command = [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
        return "SURVIVED" if run(command, env) else "found"
    except subprocess.TimeoutExpired:
        return "found (by the time it took)"
    finally:
        path.write_text(text)


def main() -> None:
    if not run(["git", "diff", "--quiet"], dict(os.environ)):
        sys.exit("the checkout has changes, which would be taken for part of the mutants")
    suites = sys.argv[1:] or list(SUITES)
    bad = 0
    for name in suites:
        mutants, venv, tests = SUITES[name]
        found = 0
        for index, mutant in enumerate(mutants):
            begin = time.monotonic()
            outcome = survives(mutant, venv, tests)
            found += outcome.startswith("found")
            print(f"{name} {index}: {outcome}, {time.monotonic() - begin:.0f} s: {mutant}", flush=True)
        print(f"{name}: {found} of {len(mutants)} found", flush=True)
        bad += len(mutants) - found
    for venv in {SUITES[name][1] for name in suites}:
        run([str(ROOT / venv / "bin" / "python"), "setup.py", "--quiet", "build_ext", "--inplace"], dict(os.environ))
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
