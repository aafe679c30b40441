"""Unpack the embedded default model: python utils/prepare_model.py OUTPUT_DIR"""

import sys
from pathlib import Path

from rgtrain.errors import exit_on_config_error
from rgtrain.models.embedded_model import prepare_embedded_model

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with exit_on_config_error():
        print(prepare_embedded_model(Path(sys.argv[1])))
