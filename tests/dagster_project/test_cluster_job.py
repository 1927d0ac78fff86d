"""Trainings as jobs of a cluster, with scripts in the place of sbatch, scancel and kubectl."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dagster_project.cluster_job import job_name
from dagster_project.operations.config import LaunchConfig
from dagster_project.operations.launch import TrainerFailed, TrainerProcess

MANIFEST = Path(__file__).parents[2] / "deploy" / "kubernetes" / "train-job.yaml"

# As `sbatch --wait --parsable`: says the job's number at once, ends when the job does and with its
# code. The job is nobody's child: it lives on when sbatch is killed.
SBATCH = """#!/bin/bash
cd {folder}
for word in "$@"; do case $word in --wrap=*) script=${{word#--wrap=}};; esac; done
printf '%s\\n' "$*" > sbatch.words
(setsid bash -c "$script" > job.out 2>&1; echo $? > job.code.tmp; mv job.code.tmp job.code) & disown
echo '4711;cluster'
exec 1>&-
while [ ! -e job.code ]; do sleep 0.05; done
exit $(cat job.code)
"""
# Signals the processes of the job, as `scancel --signal=TERM --full`; without it, ends them.
SCANCEL = """#!/bin/bash
cd {folder}
echo "$*" >> scancel.words
number=KILL; case "$*" in *--signal=TERM*) number=TERM;; esac
pid=$(cat job.pid); kill -$number -- -$pid
"""
# Jobs are folders; `create` starts the container's command with the manifest's own environment.
KUBECTL = """#!{python}
import json, os, pathlib, signal, subprocess, sys, time
home = pathlib.Path({folder!r}); words = sys.argv[1:]
with (home / 'kubectl.words').open('a') as file: file.write(' '.join(words) + chr(10))
if words[0] == '--namespace': words = words[2:]
verb, rest = words[0], words[1:]
state = home / 'job.json'
if verb == 'create':
    job = json.load(sys.stdin)
    if state.exists(): sys.exit('Error from server (AlreadyExists): jobs already exists')
    container = job['spec']['template']['spec']['containers'][0]
    env = {{'PATH': os.environ['PATH']}} | {{e['name']: e['value'] for e in container['env']}}
    runner = 'import subprocess,sys,pathlib;p=subprocess.Popen(sys.argv[2:],stdout=open(sys.argv[1]+"/job.out","w"),stderr=subprocess.STDOUT);pathlib.Path(sys.argv[1]+"/job.pid").write_text(str(p.pid));c=p.wait();pathlib.Path(sys.argv[1]+"/job.code").write_text(str(c))'
    subprocess.Popen([sys.executable, '-c', runner, str(home), *container['command']], env=env, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state.write_text(json.dumps(job))
elif verb == 'get':
    if not state.exists(): sys.exit(0)
    job, code = json.loads(state.read_text()), home / 'job.code'
    ended = code.exists() and code.read_text()
    if rest[0] == 'job':
        if ended: job['status'] = {{'conditions': [{{'type': 'Complete' if ended == '0' else 'Failed', 'status': 'True'}}]}}
        print(json.dumps(job))
    else:
        print(json.dumps({{'items': [{{'status': {{'containerStatuses': [{{'state': {{'terminated': {{'exitCode': int(ended)}}}}}}]}}}}]}}))
elif verb == 'logs':
    print((home / 'job.out').read_text(), end='')
elif verb == 'delete':
    if not state.exists(): sys.exit(0)
    try:
        pid = int((home / 'job.pid').read_text())
        os.kill(pid, signal.SIGTERM)
        while not (home / 'job.code').exists(): time.sleep(0.05)
    except (ProcessLookupError, FileNotFoundError): pass
    for name in ('job.json', 'job.code', 'job.pid'): (home / name).unlink(missing_ok=True)
"""  # noqa: E501 - a script
# What a trainer does: writes metrics, saves when it is asked to stop.
TRAINER = """
import json, os, pathlib, signal, sys, time
home = pathlib.Path({folder!r})
(home / 'job.pid').write_text(str(os.getpgrp())) if {slurm} else None
folder = pathlib.Path(sys.argv[sys.argv.index('--config') + 1]).parents[1]
(folder / 'environment').write_text(os.environ.get('DAGSTER_PIPES_CONTEXT', 'none'))
signal.signal(signal.SIGTERM, lambda *_: ((folder / 'saved').touch(), sys.exit(130)))
for step in range({steps}):
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write(json.dumps({{'step': step, 'images': 8 * step, 'loss': 1.5}}) + '\\n')
    time.sleep(0.05)
print('error: the GPU fell off') if {code} else None
sys.exit({code})
"""


@pytest.fixture(params=["slurm", "kubernetes"])
def cluster(request, tmp_path, monkeypatch, root):
    """`cluster(steps=.., code=..)`: a trainer that is launched as a job of a cluster."""
    home = tmp_path / "cluster"
    home.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL), ("kubectl", KUBECTL)):
        (home / name).write_text(text.format(folder=str(home), python=sys.executable))
        (home / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    repository = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", repository)
    options = {
        "slurm": ("slurm", "--sbatch=--gres=gpu:4"),
        "kubernetes": ("kubernetes", "--manifest", str(MANIFEST), "--namespace", "images"),
    }[request.param]
    made = []

    def make(steps=3, code=0):
        script = home / "trainer.py"
        slurm = request.param == "slurm"
        script.write_text(TRAINER.format(folder=str(home), steps=steps, code=code, slurm=slurm))
        run = root.runs / "0a1b2c"
        run.mkdir(parents=True, exist_ok=True)
        module = (sys.executable, "-m", "dagster_project.cluster_job")
        words = (*module, *options, "--", sys.executable, str(script), "{command}")
        launch = LaunchConfig(kind="template", template=words, stop_seconds=20)
        made.append(TrainerProcess(root, run, "arm", {"seed": 0}, launch))
        made[-1].home = home
        made[-1].kind = request.param
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_a_job_is_followed_to_its_end_and_its_node_knows_where_to_report(cluster):
    one = cluster(steps=3)
    one.start({"DAGSTER_PIPES_CONTEXT": "here"})
    seen = [step.metrics["step"] for step in one.follow()]
    assert seen == [0, 1, 2]
    assert (one.folder / "environment").read_text() == "here"
    words = (one.home / ("sbatch.words" if one.kind == "slurm" else "kubectl.words")).read_text()
    assert "ambient-omni-0a1b2c" in words
    assert ("--gres=gpu:4" if one.kind == "slurm" else "--namespace images") in words


def test_a_job_that_fails_says_why(cluster):
    one = cluster(steps=1, code=3)
    one.start()
    with pytest.raises(TrainerFailed, match="code 3") as failure:
        list(one.follow())
    if one.kind == "kubernetes":  # Slurm keeps what a job says in a file of its own
        assert "the GPU fell off" in str(failure.value)


def test_a_job_that_is_stopped_saves_first(cluster):
    one = cluster(steps=2000)
    one.start()
    give_up = time.monotonic() + 30
    while not (one.folder / "metrics.jsonl").exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    began = time.monotonic()
    one.stop()
    assert not one.is_alive()
    assert (one.folder / "saved").exists()
    assert time.monotonic() - began < one.launch.stop_seconds  # it was asked, not killed


def test_a_cluster_that_refuses_is_quoted(cluster):
    one = cluster()
    program = {"slurm": "sbatch", "kubernetes": "kubectl"}[one.kind]
    (one.home / program).write_text("#!/bin/sh\necho 'Forbidden: no quota' >&2\nexit 1\n")
    one.start()
    with pytest.raises(TrainerFailed, match=r"took no job|no quota"):
        list(one.follow())
    assert one.exit_code == 2


def test_a_job_of_kubernetes_that_still_runs_is_found_again(cluster):
    one = cluster(steps=60)
    if one.kind == "slurm":
        pytest.skip("a second job of Slurm is refused by the run's lock")
    one.start()
    give_up = time.monotonic() + 30
    while not (one.home / "job.pid").exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    pid = json.loads((one.folder / "launch" / "process.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)  # who followed it is gone, the job is not
    one._child.wait()
    again = cluster(steps=60)
    assert again.start()
    list(again.follow())
    assert (one.home / "kubectl.words").read_text().count("create") == 1


def test_the_manifest_is_whole_and_asks_for_what_a_trainer_needs():
    spec = yaml.safe_load(MANIFEST.read_text())["spec"]
    assert spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    mounts = {mount["name"] for c in pod["containers"] for mount in c["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert pod["terminationGracePeriodSeconds"] >= 45


def test_no_command_is_refused():
    words = [sys.executable, "-m", "dagster_project.cluster_job", "slurm"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no command" in done.stdout


def test_a_name_is_the_runs_and_one_that_clusters_take():
    assert job_name(["python", "--config", "/r/runs/0A_1b/launch/config.json"]) == (
        "ambient-omni-0a-1b"
    )
    assert job_name(["python"]) == "ambient-omni-run"
