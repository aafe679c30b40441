"""The garbage collector runs rarely during a start, and as before afterwards."""

import gc

from rgtrain.machine import garbage_collection
from rgtrain.machine.garbage_collection import collect_as_usual, collect_rarely, ignore_existing_objects


def test_the_collector_runs_rarely_until_the_start_is_over():
    # Not those of this process, which other tests change.
    usual = garbage_collection._USUAL
    try:
        collect_rarely()
        # It still runs, so that cyclic garbage cannot fill the memory.
        assert gc.isenabled() and gc.get_threshold() > (100 * usual[0], *usual[1:])
        num_ignored = gc.get_freeze_count()
        collect_as_usual()
        assert gc.get_threshold() == usual and gc.get_freeze_count() > num_ignored
    finally:
        gc.unfreeze()
        gc.set_threshold(*usual)


def test_existing_objects_are_left_out_of_later_collections():
    existing = [[] for _ in range(1000)]
    try:
        num_ignored = gc.get_freeze_count()
        ignore_existing_objects()
        assert gc.get_freeze_count() >= num_ignored + len(existing)
    finally:
        gc.unfreeze()
