"""Unpack the embedded default model: python utils/prepare_model.py OUTPUT_DIR"""

import sys
from pathlib import Path

from rgtrain.errors import input_errors_told
from rgtrain.models.embedded_model import prepare_embedded_model

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with input_errors_told():
        print(prepare_embedded_model(Path(sys.argv[1])))
