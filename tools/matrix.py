# SPDX-License-Identifier: Apache-2.0
"""Builds and tests the package with each supported torch and torch_npu, and prints a table.

    python tools/matrix.py [VERSION[:PYTHON] ...] [--keep] [--pytest OPTIONS]
    python tools/matrix.py --aarch64 [--whole] VERSION

For each version: an environment of its own and a copy of the checkout in build/matrix/VERSION, and the build with torch
and torch_npu. Then the core suite without torch_npu, and the NPU suite with it on the simulated Ascend runtime; both
without the tests marked `slow`. The folder is deleted afterwards, since an environment with PyTorch's CUDA packages takes
7 GB; --keep leaves it, and a kept one is used again. The logs stay in build/matrix/logs.

The compiler is g++-11 where it is installed, else g++; a warning is an error.

--aarch64 cross-compiles, and runs under qemu-user the same core suite and a part of the NPU suite, in about half an hour.
Its environment is kept in build/matrix/aarch64.
"""

import argparse
import re
import sys
import time
from pathlib import Path

from environments import NPU_NOT_RUN, VERSIONS, Aarch64, Environment

IGNORED = (
    "ascend_sim/test_operators.py",  # the operators of CANN that the newest torch_npu calls
    "npu/test_queue_modes.py",  # other files once more
    "test_benchmarks.py",  # tabulate and matplotlib
    "test_transformers.py",  # transformers
)
# NIXL is not emulated, nor are the programs that the other two start.
NOT_EMULATED = [
    "--ignore=tests/remote",
    "--deselect=tests/test_library.py::test_loads_without_python",
    "--deselect=tests/test_build.py::test_no_torch",
]
# Of the NPU suite, which takes hours under emulation, what depends on the processor or on the libraries: loading, how
# the two libraries reach memory of host and device, threads and streams, errors of allocators and the runtime.
EMULATED_NPU = [
    f"tests/npu/test_{name}.py"
    for name in ("loading", "npu_report", "directions", "streams", "calls", "out_of_memory", "timeouts")
]


def run_tests(environment: Environment, options: list[str], env: dict[str, str] | None = None) -> str:
    """Runs the tests that suit every version; returns the counts and the time."""
    deselected = [f"--ignore=tests/{path}" for path in IGNORED]
    if isinstance(environment, Aarch64):
        deselected += NOT_EMULATED
    began = time.monotonic()
    pytest = (environment.python, "-m", "pytest", "-m", "not slow", *deselected, *options)
    lines = environment.run(*pytest, env=env, check=False).strip().splitlines()
    seconds = round(time.monotonic() - began)
    for line in lines:
        if line.startswith(("FAILED ", "ERROR ")):
            print(line, file=sys.stderr, flush=True)
    # The line of the counts. torch_npu may print more when the process ends.
    last = next((line for line in reversed(lines) if re.search(r"\d+ (passed|failed|error).* in ", line)), lines[-1])
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", last)}
    if not counts:
        return f"failed: {last}"
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return f"{counts.get('passed', 0)} passed, {failed} failed, {seconds // 60}:{seconds % 60:02}"


def suites(environment: Environment, options: list[str], npu_options: list[str]) -> tuple[str, str]:
    """The results of both suites, or in their place what failed before."""
    core = ""
    environment.log.unlink(missing_ok=True)
    try:
        environment.make()
        environment.copy_checkout()
        environment.build()
        environment.show_npu(False)
        core = run_tests(environment, options)
        if environment.torch in NPU_NOT_RUN:
            return core, f"not run: {NPU_NOT_RUN[environment.torch]}"
        environment.show_npu(True)
        return core, run_tests(environment, npu_options, environment.build_runtime())
    except RuntimeError as error:
        return core or f"{error}", f"{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION[:PYTHON]")
    parser.add_argument("--aarch64", action="store_true", help="cross-compiled and emulated")
    parser.add_argument("--whole", action="store_true", help="with --aarch64: the whole NPU suite, which takes hours")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    parser.add_argument("--pytest", default="", help="options for pytest")
    arguments = parser.parse_args()
    print("| torch, torch_npu | Python, compiler | core suite | NPU suite |\n| --- | --- | --- | --- |", flush=True)
    options = arguments.pytest.split()
    npu_files = EMULATED_NPU if arguments.aarch64 and not arguments.whole else []
    good = True
    for name in arguments.versions or VERSIONS:
        torch, _, python = name.partition(":")
        kind = Aarch64 if arguments.aarch64 else Environment
        environment = kind(torch, python)
        results = suites(environment, options, options + npu_files)
        good = good and all(" 0 failed" in result or result.startswith("not run: ") for result in results)
        label = f"{torch}, aarch64" if arguments.aarch64 else torch
        tools = f"{environment.python_version}, {Path(environment.compiler).name}"
        print(f"| {label} | {tools} | {' | '.join(results)} |", flush=True)
        if not arguments.keep:
            environment.remove()
    sys.exit(not good)


if __name__ == "__main__":
    main()
