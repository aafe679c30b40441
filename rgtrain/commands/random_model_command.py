"""The command that makes a randomly initialised model of a known model's shape."""

import argparse
from collections.abc import Sequence

from rgtrain.commands.output_argument import new_folder
from rgtrain.errors import exit_on_config_error
from rgtrain.models.model_shapes import SHAPES

_DESCRIPTION = """\
Make a randomly initialised model of a known model's shape: {program} --like NAME OUT

It serves to measure speed and memory if the model itself is not available. It is in bf16 and has the embedded model's
tokenizer.
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
    parser.add_argument("out", type=new_folder, metavar="OUT", help="a new or empty folder")
    # Not argparse's choices: they suggest nothing.
    parser.add_argument("--like", required=True, metavar="NAME", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=int, metavar="N", help="keep only N layers, for dry runs")
    parser.add_argument(
        "--mean-response-tokens", type=int, metavar="N", help="end responses at random, after N tokens on average"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: %(default)s)")
    options = parser.parse_args(arguments)
    # After the arguments are read: torch and transformers take seconds to import.
    from rgtrain.models.random_models import make_random_model

    with exit_on_config_error():
        folder = make_random_model(
            options.out,
            like=options.like,
            num_layers=options.layers,
            mean_response_tokens=options.mean_response_tokens,
            seed=options.seed,
        )
    print(folder)
