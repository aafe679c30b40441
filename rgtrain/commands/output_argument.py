"""The type of an argument that names a folder to write."""

import argparse
from pathlib import Path


def new_folder(text: str) -> Path:
    """Return the folder that an argument names.

    Raises:
        argparse.ArgumentTypeError: The name is empty, or begins with a dash and so is a mistyped option.
    """
    if not text or text.startswith("-"):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder's name; write ./{text} if you mean it")
    return Path(text)
