# SPDX-License-Identifier: Apache-2.0
"""``python -m llm_datadist_torch``: a report of the installation, ``verify`` and ``bench``.

If the package cannot be imported, this module does not run: the text of the ImportError gives the reason and the versions.
"""

import argparse
import sys

from ._native import report as _report
from .bench import command as bench
from .verify import command as verify


def main() -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_datadist_torch",
        description="Without a command: prints versions, libraries, devices and kernels, and runs a copy on each device.",
    )
    commands = parser.add_subparsers(dest="command", title="commands")
    subparsers = {}
    for name, command in (("verify", verify), ("bench", bench)):
        subparsers[name] = commands.add_parser(name, help=command.DESCRIPTION, description=command.DESCRIPTION)
        command.add_arguments(subparsers[name])
    args = parser.parse_args()
    if args.command is None:
        return _report.main()
    return {"verify": verify.main, "bench": bench.main}[args.command](subparsers[args.command], args)


if __name__ == "__main__":
    sys.exit(main())
