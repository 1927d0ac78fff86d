"""Trains or generates in forked processes that can be killed: lines of JSON in and out.

Importing torch and diffusers takes seconds, forking milliseconds. This process opens no table and
starts no thread before it forks, so its children are as good as new ones.

A job is {"world": processes, "root": path, "config": TrainConfig, "kill_after": seconds or null,
"kill_at": step or null, "stop_at": step or null, "blind": step or null, "trace": folder or null},
or {"world", "root", "generate": GenerateJob}; the answer is the list of exit codes. Every process
appends to `trace/RANK.jsonl` what each step trained on. With "busy" a process leaves the
others while its threads wait for Python's lock to free what was just collected. Processes that take
over five minutes say where they are and are killed.
"""

import contextlib
import faulthandler
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import torch
from accelerate import Accelerator

from ambient_omni.generation.config import GenerateJob
from ambient_omni.generation.job import generate
from ambient_omni.training import checkpoints
from ambient_omni.training.config import TrainConfig
from ambient_omni.training.saving import Saver
from ambient_omni.training.trainer import Trainer, TrainingStopped, train
from schemas.errors import CheckpointRefused
from schemas.root import Root

TIME_LIMIT_SEC = 300


def traced(folder, rank):
    """Write down every step before it is taken."""
    ordinary = Trainer._step

    def step(self, batch):
        noise = hashlib.sha256(batch.fresh.numpy().tobytes()).hexdigest()
        seen = [list(batch.sample_ids), [value.hex() for value in batch.sigma.tolist()], noise]
        with (folder / f"{rank}.jsonl").open("a") as file:
            file.write(json.dumps([self._done.step, *seen]) + "\n")
        ordinary(self, batch)

    Trainer._step = step


def signalled(at, number):
    """Send the process and its workers a signal before a step."""
    ordinary = Trainer._step

    def step(self, batch):
        if self._done.step == at:
            os.killpg(0, number)
        ordinary(self, batch)

    Trainer._step = step


def blinded(since):
    """Hide checkpoints that are there, from a step on, as a stale view of a folder does."""
    hidden, ordinary = set(), Saver.resume

    def resume(self, *parts):
        known = checkpoints.steps(self._run.checkpoints)
        hidden.update(path for path in known if checkpoints.step_of(path) >= since)
        found = ordinary(self, *parts)
        hidden.clear()
        return found

    listed, read = checkpoints.steps, checkpoints.load

    def load(path, expect=None):
        if path in hidden:
            raise CheckpointRefused(f"{path.name} is not to be seen from here")
        return read(path, expect)

    checkpoints.steps = lambda folder: [path for path in listed(folder) if path not in hidden]
    checkpoints.load, Saver.resume = load, resume


def busy():
    """Leave the other processes while threads have much to free that they and others collected."""
    ordinary = Accelerator.end_training

    def end_training(self):
        sys.setswitchinterval(60)
        for _ in range(300):
            parts = [torch.zeros(4) for _ in range(self.num_processes)]
            torch.distributed.all_gather(parts, torch.ones(4), async_op=True)
        ordinary(self)

    Accelerator.end_training = end_training


def run(job, rank, port):
    if job["world"] > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(job["world"]),
            "LOCAL_WORLD_SIZE": str(job["world"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    if job.get("busy"):
        busy()
    root = Root.open(Path(job["root"]))
    if "generate" in job:
        generate(root, GenerateJob.model_validate(job["generate"]), show=False)
        return
    if job["trace"]:
        traced(Path(job["trace"]), rank)
    if job["kill_at"] is not None:
        signalled(job["kill_at"], signal.SIGKILL)
    if job["stop_at"] is not None and rank == job["world"] - 1:
        signalled(job["stop_at"], signal.SIGTERM)
    if job["blind"] is not None and rank == job["world"] - 1:
        blinded(job["blind"])
    train(root, TrainConfig.model_validate(job["config"]), show=False)


def fork(job, rank, port):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        run(job, rank, port)
        code = 0
    except TrainingStopped:
        code = 130
    except BaseException:  # noqa: BLE001 - a forked child must never return into the loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def answer(job):
    port = free_port()
    children = [fork(job, rank, port) for rank in range(job["world"])]
    if job.get("kill_after") is not None:
        time.sleep(job["kill_after"])
        for child in children:
            os.kill(child, signal.SIGKILL)
    return wait(children)


def wait(children):
    late = threading.Timer(TIME_LIMIT_SEC, end, [children])
    late.start()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    late.cancel()
    # The next job forks from a process of one thread again.
    late.join()
    return codes


def end(children):
    for number in (signal.SIGUSR1, signal.SIGKILL):
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        time.sleep(1)


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
