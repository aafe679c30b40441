"""Audit datasets before training: are they solvable, fast and reproducible, and does a guess pay?"""

from rgtrain.problems.audit.audit_result import Audit, DatasetAudit, read_audit, write_audit
from rgtrain.problems.audit.auditing import NUM_STEPS, audit_datasets

__all__ = ["NUM_STEPS", "Audit", "DatasetAudit", "audit_datasets", "read_audit", "write_audit"]
