from support.unsound_datasets import PAYING

from rgtrain.problems.soundness import committed_audit
from rgtrain.reporting.audit_table import audit_table


def test_the_table_has_a_row_per_dataset_and_names_those_that_are_refused():
    table = audit_table(committed_audit())
    rows = {line.split()[0] for line in table.split("\n\n")[0].splitlines()[2:]}
    assert rows == set(committed_audit().datasets)
    for name in PAYING:
        assert f"\nrefused: {name}: the constant answer" in table
