"""Run a script until it has parsed its arguments: python tests/support/parse_only.py SCRIPT [ARG ...].

The script's own parser reads the arguments, and their values are printed as JSON. Then the process ends. It ends early
if the script acts before that.
"""

import argparse
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Exit codes of a script that acts before it has parsed its arguments, and of one that has no parser.
ACTED, NO_PARSER = 8, 9
_FILE_EVENTS = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "shutil.")
_PROJECT = Path(__file__).resolve().parents[2]


def _end_after(parse: Callable[..., argparse.Namespace]) -> Callable[..., None]:
    def parse_and_end(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        print(json.dumps(vars(parse(self, args, namespace)), default=str), flush=True)
        os._exit(0)

    return parse_and_end


def _refuse(event: str, arguments: tuple) -> None:
    """End the process if it changes files of the project or of the current folder, or starts Python or a shell."""
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event.startswith(_FILE_EVENTS):
        # Imported libraries may write caches elsewhere.
        path = Path(os.fsdecode(arguments[0])).absolute() if isinstance(arguments[0], str | bytes | Path) else Path("/")
        acts = path.is_relative_to(_PROJECT) or path.is_relative_to(Path.cwd())
    else:
        starts = event in {"subprocess.Popen", "os.system", "os.posix_spawn"} or event.startswith("os.exec")
        acts = starts and any(name in str(arguments[:2]) for name in ("python", "bash", sys.executable))
    if acts:
        print(f"{event} {arguments[0]!r} before the arguments are parsed", file=sys.stderr, flush=True)
        os._exit(ACTED)


def main() -> None:
    """Run the script in argv with its arguments."""
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(script).parent)
    sys.dont_write_bytecode = True
    for name in ("parse_args", "parse_intermixed_args"):
        setattr(argparse.ArgumentParser, name, _end_after(getattr(argparse.ArgumentParser, name)))
    sys.addaudithook(_refuse)
    runpy.run_path(script, run_name="__main__")
    os._exit(NO_PARSER)


if __name__ == "__main__":
    main()
