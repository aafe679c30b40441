"""An export without progress reports the tensor that it is reading."""

import threading
from contextlib import contextmanager

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.mapped_file import MappedFile


def test_an_export_warns_if_its_file_system_does_not_respond(step, tmp_path, monkeypatch, caplog):
    responded = threading.Event()
    read = MappedFile.rows

    @contextmanager
    def slow(self, name, *arguments):
        # The disk responds once the export has logged its warning.
        if name == "lm_head.weight":
            while "tensor 'lm_head.weight'" not in caplog.text and not responded.wait(0.05):
                pass
            responded.set()
        with read(self, name, *arguments) as rows:
            yield rows

    monkeypatch.setattr(MappedFile, "rows", slow)
    monkeypatch.setattr("rgtrain.checkpoints.standstill.REPORT_AFTER_S", 0.1)
    export(step, tmp_path / "out")
    assert "s at tensor 'lm_head.weight'; check whether its file system responds" in caplog.text
