"""Shell completion of `rgtrain`: commands by name, a training's words by Hydra."""

import os
import shlex
import sys
from collections.abc import Collection, Sequence

_LINE = "COMP_LINE"


def complete(arguments: Sequence[str], *, commands: Collection[str]) -> None:
    """Answer `rgtrain --shell-completion ARGUMENTS`.

    Args:
        arguments: `install=SHELL` and `uninstall=SHELL` print commands for the shell to evaluate. The shell then calls
            `query=SHELL` with the line so far in the environment variable COMP_LINE.
        commands: The names of the commands.
    """
    from rgtrain.commands.train_command import run_hydra

    words = ["--shell-completion", *arguments]
    if arguments and arguments[0].startswith("query="):
        line = os.environ.get(_LINE, "")
        program, _, rest = line.partition(" ")
        command, space, rest = rest.lstrip().partition(" ")
        if not space:
            print(" ".join(name for name in commands if name.startswith(command)))
            return
        if command != "train":
            # The shell then completes names of files.
            return
        options, rest = _config_name(rest)
        os.environ[_LINE] = f"{program} {rest}"
        words += options
    # Hydra names the program by its first word.
    sys.argv[1:] = words
    run_hydra(words)


def _config_name(line: str) -> tuple[list[str], str]:
    """Take `--config-name NAME` out of a line, so that Hydra completes words of that experiment."""
    words = line.split(" ")
    for option in ("--config-name", "-cn"):
        # The last word is still being written.
        if option in words[:-2]:
            at = words.index(option)
            return [option, shlex.quote(words[at + 1])], " ".join(words[:at] + words[at + 2 :])
    return [], line
