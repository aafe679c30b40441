"""The pre-commit hooks, the workflow and the files about the project name only commands and files that exist."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.doc_commands import check_shell
from support.links import tracked_files

import rgtrain
from rgtrain.paths import PROJECT_ROOT

HOOKS_FILE = PROJECT_ROOT / ".pre-commit-config.yaml"
WORKFLOWS = sorted((PROJECT_ROOT / ".github" / "workflows").glob("*.yml"))
TRACKED = sorted(str(path.relative_to(PROJECT_ROOT)) for path in tracked_files())


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


HOOKS = [hook for repository in read(HOOKS_FILE)["repos"] for hook in repository["hooks"]]
JOBS = {f"{path.stem}-{name}": job for path in WORKFLOWS for name, job in read(path)["jobs"].items()}
PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]


def test_hooks_are_local():
    assert [repository["repo"] for repository in read(HOOKS_FILE)["repos"]] == ["local"]
    assert len({hook["id"] for hook in HOOKS}) == len(HOOKS)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_the_command_of_a_hook_exists(hook):
    program = hook["entry"].split()[0]
    if hook["language"] == "python":
        # Its program comes with a pinned package.
        assert all(re.fullmatch(r"[\w-]+==[\w.]+", package) for package in hook["additional_dependencies"])
        assert any(package.startswith(program) for package in hook["additional_dependencies"])
    else:
        assert hook["language"] == "system"
        assert program.startswith(".venv/bin/")
        assert (PROJECT_ROOT / program).exists()
    check_shell(hook["entry"])


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if "files" in hook], ids=lambda hook: hook["id"])
def test_a_hook_concerns_some_file(hook):
    assert any(re.search(hook["files"], name) for name in TRACKED)


def test_hooks_cover_the_quick_checks():
    entries = " ".join(hook["entry"] for hook in HOOKS)
    for check in ("ruff check", "ruff format", "mypy", "prose.py", "links.py", "shellcheck"):
        assert check in entries


@pytest.mark.parametrize("job", JOBS.values(), ids=list(JOBS))
def test_the_commands_of_a_job_exist(job):
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs
    for run in runs:
        check_shell(run)


@pytest.mark.parametrize("job", JOBS.values(), ids=list(JOBS))
def test_the_actions_of_a_job_have_a_version_and_few_rights(job):
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)
    assert job["timeout-minutes"] <= 120
    assert "permissions" not in job
    for step in job["steps"]:
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    # YAML 1.1 reads the key `on` as true.
    assert set(workflow[True]) == {"push", "pull_request"}


def test_the_tests_run_on_every_python_that_the_project_allows():
    versions = next(job["strategy"]["matrix"]["python"] for job in JOBS.values() if "strategy" in job)
    lowest, highest = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert versions == [f"3.{minor}" for minor in range(int(lowest), int(highest))]


def test_issue_forms_ask_for_the_provenance():
    form = read(PROJECT_ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.yml")
    identifiers = [field["id"] for field in form["body"]]
    assert len(set(identifiers)) == len(identifiers)
    assert "provenance" in identifiers


def test_the_licence_is_apache_2_whole():
    text = (PROJECT_ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License\n                           Version 2.0, January 2004")
    for number in range(1, 10):
        assert f"\n   {number}. " in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_file_that_the_notice_names_exists():
    notice = (PROJECT_ROOT / "NOTICE").read_text()
    patterns = re.findall(r"^    (\S+)", notice, flags=re.MULTILINE)
    assert len(patterns) > 15
    for pattern in patterns:
        assert any(Path(name).match(pattern) or name.startswith(pattern) for name in TRACKED), pattern


def test_every_experiment_of_the_paper_is_in_the_notice():
    notice = re.findall(r"^    (\S+)", (PROJECT_ROOT / "NOTICE").read_text(), flags=re.MULTILINE)
    mentions = subprocess.run(
        ["git", "grep", "-l", "-E", "arXiv 2505.24760", "--", "configs", "evaluation"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert mentions
    for name in mentions:
        assert any(Path(name).match(pattern) or name.startswith(pattern) for pattern in notice), name


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = read(PROJECT_ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == rgtrain.__version__
    assert citation["license"] == "Apache-2.0"
    if "authors" in PROJECT:
        assert citation["authors"] == PROJECT["authors"]
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2505.24760"
    assert len(paper["authors"]) == 7


def test_the_changelog_names_this_version():
    assert rgtrain.__version__ in (PROJECT_ROOT / "CHANGELOG.md").read_text()
