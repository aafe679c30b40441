"""A Slurm job of one machine: `srun` starts the nodes' commands as processes of this machine."""

import os
import shlex
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sbatch"
# Both log their words. Options of srun are written as --name=value in the script.
_SRUN = """\
#!/usr/bin/env bash
echo "srun $*" >>{log}
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
_SCONTROL = """\
#!/usr/bin/env bash
echo "scontrol $*" >>{log}
case "$1 $2" in
    "show hostnames") printf '%s\\n' {names} ;;
    "show job") echo "JobId=$3 JobState={state} Reason=None" ;;
esac
"""


def slurm_environment(folder: Path, *, num_nodes: int, job: int, state: str = "RUNNING") -> dict[str, str]:
    """Return the environment of a job's script with stubs of srun and scontrol, which log their words.

    Args:
        folder: An empty folder for the two programs and their log, `calls`.
        num_nodes: The job's number of nodes, which are called node1, node2 and so on.
        job: The job's number.
        state: The state that `scontrol show job` shows.
    """
    folder.mkdir()
    names = [f"node{i + 1}" for i in range(num_nodes)]
    values = {"log": shlex.quote(str(folder / "calls")), "names": shlex.join(names), "state": state}
    for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL)):
        program = folder / name
        program.write_text(text.format(**values))
        program.chmod(0o755)
    (folder / "calls").touch()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RAY_"))}
    return inherited | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NUM_NODES": str(num_nodes),
        "SLURM_JOB_NODELIST": f"node[1-{num_nodes}]",
    }
