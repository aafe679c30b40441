"""What can be known about a dataset before training on it: is it solvable, fast, repeatable, and does guessing pay."""

from rgtrain.problems.audit.auditing import NUM_STEPS, audit_datasets
from rgtrain.problems.audit.report import Audit, DatasetAudit, read_audit, write_audit

__all__ = ["NUM_STEPS", "Audit", "DatasetAudit", "audit_datasets", "read_audit", "write_audit"]
