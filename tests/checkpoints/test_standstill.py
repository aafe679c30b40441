"""An export that waits says where."""

import threading
from contextlib import contextmanager

from rgtrain.checkpoints.export import export
from rgtrain.checkpoints.shards.mapped_file import MappedFile


def test_an_export_whose_file_system_does_not_answer_says_where_it_waits(step, tmp_path, monkeypatch, caplog):
    answered = threading.Event()
    read = MappedFile.rows

    @contextmanager
    def slow(self, name, *where):
        # The disk answers once the export has reported that it waits.
        if name == "lm_head.weight":
            while "tensor 'lm_head.weight'" not in caplog.text and not answered.wait(0.05):
                pass
            answered.set()
        with read(self, name, *where) as rows:
            yield rows

    monkeypatch.setattr(MappedFile, "rows", slow)
    monkeypatch.setattr("rgtrain.checkpoints.standstill.REPORT_AFTER_S", 0.1)
    export(step, tmp_path / "out")
    assert "s at tensor 'lm_head.weight': does its file system answer?" in caplog.text
