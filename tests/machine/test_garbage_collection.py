"""The garbage collector runs rarely during a start, and as before afterwards."""

import gc

from rgtrain.machine.garbage_collection import collect_as_usual, collect_rarely


def test_the_collector_runs_rarely_until_the_start_is_over():
    usual = gc.get_threshold()
    try:
        collect_rarely()
        # It still runs, so that cyclic garbage cannot fill the memory.
        assert gc.isenabled() and gc.get_threshold() > (100 * usual[0], *usual[1:])
        collect_as_usual()
        assert gc.get_threshold() == usual
    finally:
        gc.unfreeze()
        gc.set_threshold(*usual)
