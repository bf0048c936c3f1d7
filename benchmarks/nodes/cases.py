"""What a training on two machines must survive, and what must end in one line on both of them."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nodes.cluster import Cluster, wait_until
from nodes.run import (
    CHECKPOINT_EVERY,
    STEPS,
    Started,
    Workplace,
    alignkd,
    deepspeed,
    has_checkpoint,
    new_folder,
    result_of,
    start,
    torchrun,
    wait_for_checkpoint,
)

LIMIT = 600.0  # against hanging, not a measure
NAMES = ("node-a", "node-b")
Figures = dict[str, Any]


class UnexpectedError(AssertionError):
    """What was expected did not happen."""


def expect(condition: object, what: str) -> None:
    """Raises UnexpectedError unless the condition is true."""
    if not condition:
        raise UnexpectedError(what)


def all_ended(started: Started, codes: list[int | None], *lines: str) -> None:
    """Every machine has ended with an error, with no traceback of alignkd, and its last line matches."""
    expect(None not in codes, f"exit codes {codes}: a machine did not end within {LIMIT:.0f} s")
    expect(0 not in codes, f"exit codes {codes}: a machine did not notice")
    expect(not started.has_traceback(), "a process ended with a traceback")
    for line, pattern in zip(started.lines(), lines, strict=True):
        expect(re.search(pattern, line), f"the last line is {line!r}, expected {pattern!r}")


def finish(cluster: Cluster, place: Workplace, folder: Path, name: str = "resumed") -> None:
    """Train to the end on all machines, and compare with the unbroken run on one machine."""
    started = start(cluster.nodes, torchrun(cluster.nodes), folder, name)
    codes = started.ended(LIMIT)
    expect(codes == [0, 0], f"exit codes {codes}: {started.lines()}")
    same_as_unbroken(place, folder)


def same_as_unbroken(place: Workplace, folder: Path) -> None:
    """The student, the adapters and the figures of all steps are those of the unbroken run, to the last bit."""
    for name, ours, expected in zip(
        ("student", "adapters", "figures"), result_of(folder), result_of(place.folder / "unbroken"), strict=True
    ):
        expect(ours == expected, f"the {name} differ from those of the unbroken run on one machine")


def unbroken(place: Workplace) -> Figures:
    """One machine with two processes: what the other cases are compared with."""
    folder = new_folder(place, "unbroken")
    place.config(folder)
    with Cluster(NAMES[0]) as cluster:
        started = start(cluster.nodes, torchrun(cluster.nodes, processes=2), folder, "run")
        codes = started.ended(LIMIT)
    expect(codes == [0], f"exit codes {codes}: {started.lines()}")
    return {"steps": STEPS}


def two_machines(place: Workplace) -> Figures:
    """A run without a fault, with data workers and a status that the other machine asks for meanwhile."""
    folder = new_folder(place, "two_machines")
    place.config(folder, data_workers=1)
    with Cluster(*NAMES) as cluster:
        started = start(cluster.nodes, torchrun(cluster.nodes), folder, "run")
        wait_for_checkpoint(started, folder, CHECKPOINT_EVERY, seconds=LIMIT)
        status = ["python", "-m", "alignkd.pipeline.cli", "train", "--status", "out", "--json"]
        asked = start(cluster.nodes[1:], lambda _: status, folder, "status")
        expect(asked.ended(LIMIT) == [0], "no status from the other machine")
        found = json.loads(asked.texts()[0])
        codes = started.ended(LIMIT)
    expect(codes == [0, 0], f"exit codes {codes}: {started.lines()}")
    expect(found["state"] in ("running", "finished"), f"status {found['state']}")
    expect(found["state"] == "finished" or found["host"] in NAMES, f"host {found['host']}")
    same_as_unbroken(place, folder)
    return {"status": found["state"]}


def killed(place: Workplace) -> Figures:
    """SIGKILL to a process; both machines end, and the run is resumed."""
    folder = new_folder(place, "killed")
    place.config(folder)
    with Cluster(*NAMES) as cluster:
        started = start(cluster.nodes, torchrun(cluster.nodes), folder, "killed")
        wait_for_checkpoint(started, folder, CHECKPOINT_EVERY, seconds=LIMIT)
        process = next(pid for node in cluster.nodes if (pid := node.rank(1)) is not None)
        os.kill(process, signal.SIGKILL)
        began = time.monotonic()
        codes = started.ended(LIMIT)
        seconds = time.monotonic() - began
        expect(None not in codes and 0 not in codes, f"exit codes {codes}")
        expect(not started.has_traceback(), "a process ended with a traceback")
        line = next((line for line in started.lines() if "rank 0 on host" in line), "")
        expect("run the same command again on all machines to resume" in line, f"{started.lines()}")
        expect(has_checkpoint(folder, CHECKPOINT_EVERY) and not has_checkpoint(folder, STEPS), "not in the middle")
        finish(cluster, place, folder)
    return {"seconds_until_all_ended": round(seconds, 1)}


def restarted(place: Workplace) -> Figures:
    """SIGKILL to a process; torchrun starts all processes again, and they resume."""
    folder = new_folder(place, "restarted")
    place.config(folder)
    with Cluster(*NAMES) as cluster:
        started = start(cluster.nodes, torchrun(cluster.nodes, restarts=3), folder, "run")
        wait_for_checkpoint(started, folder, CHECKPOINT_EVERY, seconds=LIMIT)
        os.kill(next(pid for node in cluster.nodes if (pid := node.rank(1)) is not None), signal.SIGKILL)
        codes = started.ended(LIMIT)
    expect(codes == [0, 0], f"exit codes {codes}: {started.lines()}")
    resumed = sum(text.count("resuming at step") for text in started.texts())
    expect(resumed >= 1, "no process has resumed")
    same_as_unbroken(place, folder)
    return {"resumed": resumed}


def cut(place: Workplace) -> Figures:
    """The link between the machines is cut: no process is told, and both must end. One machine resumes the run."""
    folder = new_folder(place, "cut")
    place.config(folder, wait_minutes=0.5)
    with Cluster(*NAMES) as cluster:
        started = start(cluster.nodes, torchrun(cluster.nodes), folder, "cut")
        wait_for_checkpoint(started, folder, CHECKPOINT_EVERY, seconds=LIMIT)
        cluster.cut(cluster.nodes[1])
        began = time.monotonic()
        ranks = [(node, number) for node in cluster.nodes for number in range(2)]
        wait_until(lambda: all(node.rank(number) is None for node, number in ranks), "the end of all", seconds=LIMIT)
        seconds = time.monotonic() - began
        for command in started.commands:  # torchrun itself may wait for the other one until TCP gives up
            command.kill()
        expect(not started.has_traceback(), "a process ended with a traceback")
        for line in started.lines():  # the exchange has the same limit
            pattern = (
                "rank [01] on host node-.( ends because of .* no sign of life for 30 s|: .*Timed out waiting 30000ms)"
            )
            expect(re.search(pattern, line), f"the last line is {line!r}")
        expect(not has_checkpoint(folder, STEPS), "not in the middle")
        one = start(cluster.nodes[:1], torchrun(cluster.nodes[:1], processes=2), folder, "resumed")
        codes = one.ended(LIMIT)
    expect(codes == [0], f"exit codes {codes}: {one.lines()}")
    same_as_unbroken(place, folder)
    return {"wait_minutes": 0.5, "seconds_until_all_ended": round(seconds, 1)}


def stopped(place: Workplace) -> Figures:
    """SIGTERM to torchrun of ONE machine: all processes end after the same step, with a checkpoint."""
    folder = new_folder(place, "stopped")
    place.config(folder, checkpoint_every=STEPS)
    with Cluster(*NAMES) as cluster:
        started = start(cluster.nodes, torchrun(cluster.nodes), folder, "stopped")
        log = folder / "out" / "metrics.jsonl"
        while not (started.is_over() or (log.exists() and len(log.read_text().splitlines()) > 2)):
            time.sleep(0.05)
        started.commands[1].signal(signal.SIGTERM)
        codes = started.ended(LIMIT)
        expect(None not in codes, f"exit codes {codes}")
        expect(not started.has_traceback(), "a process ended with a traceback")
        steps = [int(path.name[5:]) for path in (folder / "out" / "checkpoints").glob("step-*")]
        expect(len(steps) == 1 and 2 < steps[0] < STEPS, f"checkpoints of steps {steps}: {started.lines()}")
        finish(cluster, place, folder)
    return {"step": steps[0], "codes": codes}


def by_deepspeed(place: Workplace) -> Figures:
    """DeepSpeed's launcher and a hostfile; SIGKILL to a process, then the run is resumed by the same command."""
    folder = new_folder(place, "by_deepspeed")
    place.config(folder)
    with Cluster(*NAMES) as cluster:
        started = start(cluster.nodes, deepspeed(cluster.nodes, folder), folder, "killed")
        wait_for_checkpoint(started, folder, CHECKPOINT_EVERY, seconds=LIMIT)
        os.kill(next(pid for node in cluster.nodes if (pid := node.rank(0)) is not None), signal.SIGKILL)
        codes = started.ended(LIMIT)
        expect(None not in codes and 0 not in codes, f"exit codes {codes}")
        expect(not started.has_traceback(), "a process ended with a traceback")
        again = start(cluster.nodes, deepspeed(cluster.nodes, folder), folder, "resumed")
        codes = again.ended(LIMIT)
    expect(codes == [0, 0], f"exit codes {codes}: {again.lines()}")
    same_as_unbroken(place, folder)
    return {}


def output_not_shared(place: Workplace) -> Figures:
    """`train.output` is on the local disk of each machine."""
    folder = new_folder(place, "output_not_shared")
    with Cluster(*NAMES) as cluster:
        place.config(folder, output=str(cluster.nodes[0].local / "out"))
        started = start(cluster.nodes, torchrun(cluster.nodes), folder, "run")
        line = r"train\.output .*: rank 1 on host node-. does not see there what rank 0 on host node-. has written"
        all_ended(started, started.ended(LIMIT), line, line)
    return {"line": started.lines()[0]}


def store_not_shared(place: Workplace) -> Figures:
    """Only the first machine has the store."""
    folder = new_folder(place, "store_not_shared")
    with Cluster(*NAMES) as cluster:
        local = cluster.nodes[0].local / "store"
        place.config(folder, store=local)
        copied = start(cluster.nodes[:1], lambda _: ["cp", "-r", place.store, local], folder, "copy").ended(LIMIT)
        expect(copied == [0], "the store was not copied")
        started = start(cluster.nodes, torchrun(cluster.nodes), folder, "run")
        named = f"{re.escape(str(local))}"
        on_a = rf"rank \d on host node-a ends because of rank \d on host node-b: {named}"
        all_ended(started, started.ended(LIMIT), on_a, f"store {named}: not there yet")
    return {"line": started.lines()[0]}


def other_settings(place: Workplace) -> Figures:
    """The configuration was changed on one machine only."""
    folder = new_folder(place, "other_settings")
    place.config(folder)
    other = json.loads((folder / "run.yaml").read_text())
    other["train"] |= {"learning_rate": 2e-3, "output": str(folder / "out")}
    (folder / "other").mkdir()
    (folder / "other" / "run.yaml").write_text(json.dumps(other))
    with Cluster(*NAMES) as cluster:
        command = torchrun(cluster.nodes)
        configured = [["env", "CONFIG=run.yaml"], ["env", "CONFIG=other/run.yaml"]]
        started = start(cluster.nodes, lambda number: [*configured[number], *command(number)], folder, "run")
        line = r"train\.learning_rate is 0\.00\d for rank 0 on host node-. and 0\.00\d for rank 1 on host node-."
        all_ended(started, started.ended(LIMIT), line, line)
    return {"line": started.lines()[0]}


def own_name_is_loopback(place: Workplace) -> Figures:
    """/etc/hosts of each machine has 127.0.1.1 for its own name; GLOO_SOCKET_IFNAME mends it."""
    folder = new_folder(place, "own_name_is_loopback")
    place.config(folder)
    with Cluster(*NAMES, own_name_is_loopback=True) as cluster:
        command = torchrun(cluster.nodes)
        started = start(cluster.nodes, command, folder, "refused")
        line = "its own name leads to 127.0.1.1|has ended|ends because of"
        all_ended(started, started.ended(LIMIT), line, line)
        again = start(cluster.nodes, command, folder, "mended", GLOO_SOCKET_IFNAME="eth0")
        codes = again.ended(LIMIT)
    expect(codes == [0, 0], f"exit codes {codes}: {again.lines()}")
    same_as_unbroken(place, folder)
    return {"line": started.lines()[0]}


def dump(place: Workplace) -> Figures:
    """The teacher pass on two machines writes the store that one process writes; a worker is killed on the way."""
    folder = new_folder(place, "dump")
    place.config(folder, store=folder / "store")
    with Cluster(*NAMES) as cluster:
        endpoint = f"{cluster.nodes[0].name}:29501"
        options = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
        command = ["torchrun", *options, "-m", "alignkd.pipeline.cli", "dump", "run.yaml"]
        started = start(cluster.nodes, lambda _: command, folder, "killed")
        while not started.is_over() and not list((folder / "store" / "commits").glob("*.json")):
            time.sleep(0.02)
        for node in cluster.nodes:
            if (pid := node.rank(1)) is not None:
                os.kill(pid, signal.SIGKILL)
        ranks = [(node, number) for node in cluster.nodes for number in range(2)]
        wait_until(lambda: all(node.rank(number) is None for node, number in ranks), "the end of all", seconds=LIMIT)
        for launcher in started.commands:  # the other torchrun waits 5 minutes for the one that has failed
            launcher.kill()
        again = start(cluster.nodes, lambda _: command, folder, "resumed").ended(LIMIT)
    expect(again == [0, 0], f"exit codes {again}")
    hashes = [json.loads(alignkd("shards", "ls", store, "--json", folder=folder)) for store in (place.store, "store")]
    roots = [found["root_hash"] for found in hashes]
    expect(roots[0] == roots[1], f"root hashes {roots}")
    return {"root_hash": roots[0]}


CASES: tuple[Callable[[Workplace], Figures], ...] = (
    two_machines,
    killed,
    restarted,
    cut,
    stopped,
    by_deepspeed,
    output_not_shared,
    store_not_shared,
    other_settings,
    own_name_is_loopback,
    dump,
)


def run_case(case: Callable[[Workplace], Figures], place: Workplace) -> dict[str, Any]:
    """The case as a line: `name`, `ok`, `seconds`, its figures, and `problem` if there is one."""
    began = time.monotonic()
    line: dict[str, Any] = {"name": case.__name__, "ok": True}
    figures: Figures = {}
    try:
        figures = case(place)
    except (UnexpectedError, TimeoutError, OSError, subprocess.SubprocessError, StopIteration) as error:
        line |= {"ok": False, "problem": f"{type(error).__name__}: {error}"}
    return line | {"seconds": round(time.monotonic() - began, 1), **figures}
