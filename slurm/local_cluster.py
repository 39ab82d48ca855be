#!/usr/bin/env python3
"""A real SLURM on one machine, for tests and for first steps: a controller and a few node daemons, with all of their
files in one folder. It shares nothing with a cluster that the machine may belong to.

    python slurm/local_cluster.py start /tmp/slurm     # prints the line that points sbatch, srun and squeue at it
    python slurm/local_cluster.py status /tmp/slurm
    python slurm/local_cluster.py stop /tmp/slurm

Needs Debian's or Ubuntu's packages slurm-wlm and munge. Nodes may promise more processors and memory than there are;
nothing holds a job to what it asked for.
"""

from __future__ import annotations

import argparse
import os
import pwd
import random
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from kdbench.errors import KdbenchError, UsageError, unknown

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
OWN = ("run", "state", "spool")
LONGEST = 60  # characters of the folder: names of sockets below it must stay under 108

CONFIGURATION = """\
ClusterName=kdbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire={requeue_wait}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/finished.txt
JobRequeue=1
ReturnToService=2
MaxArraySize={max_array_size}
MaxJobCount=20000
MinJobAge={min_job_age}
KillWait={kill_wait}
SlurmctldTimeout=30
SlurmdTimeout={node_timeout}
InactiveLimit=0
Waittime=0
"""


@dataclass(frozen=True)
class Shape:
    """What the cluster is like. Waits are in seconds and much shorter than on a real one."""

    nodes: int = 4
    """Node daemons n1, n2, …"""
    cpus: int = 2
    """Processors that each node offers."""
    memory: int = 8192
    """MB that each node offers: as much as slurm/cpu.yaml asks for."""
    max_array_size: int = 1001
    """SLURM's MaxArraySize: array indices stay below it."""
    node_timeout: int = 10
    """A node that is silent for so long is down, and its jobs are queued again."""
    kill_wait: int = 5
    """From SIGTERM to SIGKILL when a job's time is up."""
    grace: int = 5
    """From the warning of a job that is preempted to its end."""
    requeue_wait: int = 5
    """A job that was queued again waits for so long; SLURM takes no less than 5."""
    min_job_age: int = 60
    """For so long squeue and scontrol know a job that has ended."""

    @property
    def names(self) -> list[str]:
        """The nodes' names."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]


class Unavailable(KdbenchError):
    """SLURM is not installed here, or we may not start it."""


class LocalCluster:
    """A cluster in ``folder``, which must be new or empty; as a context manager it is up inside the block only.

    Partitions: ``main``, the default, and ``urgent``, whose jobs preempt those of ``main``.
    """

    def __init__(self, folder: Path, shape: Shape | None = None) -> None:
        self.folder, self.shape = folder.absolute(), shape or Shape()
        self.configuration = self.folder / "slurm.conf"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def variables(self) -> dict[str, str]:
        """What points SLURM's commands, and Lightning in its jobs, to this cluster.

        The nodes' names resolve nowhere, so the address at which the processes of a run meet is given too.
        """
        return {"SLURM_CONF": str(self.configuration), "MASTER_ADDR": "127.0.0.1"}

    @property
    def environment(self) -> dict[str, str]:
        """The environment for this cluster's commands: ours, without what an outer job left in it."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        return {**ours, **self.variables}

    def start(self, patience: float = 60) -> None:
        """Start the daemons and wait until every node is idle. After a failure nothing is left running.

        Raises :class:`Unavailable` where SLURM is missing or forbidden, UsageError for a folder that cannot serve,
        KdbenchError with what the logs say when the nodes are not idle after ``patience`` seconds.
        """
        self._check_folder()
        _require()
        self._write()
        try:
            self._munge()
            self._daemon("controller", "slurmctld", "-D", "-c")
            for name in self.shape.names:
                self._daemon(name, "slurmd", "-D", "-N", name)
            self.wait(self.shape.names, ("idle",), patience)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the daemons and all jobs, and remove everything but the logs. UsageError where there is no cluster."""
        if not self.configuration.exists():
            raise UsageError(f"There is no cluster in '{self.folder}'.")
        self._kill()
        for child in self._children.values():
            child.wait()
        for name in OWN:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.configuration.unlink()

    def command(self, *words: str, patience: float = 120) -> str:
        """What one of SLURM's commands prints, run on this cluster; KdbenchError with its words where it fails."""
        done = subprocess.run(
            words, capture_output=True, text=True, env=self.environment, timeout=patience, check=False
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise KdbenchError(f"'{shlex.join(words)}' failed with exit code {done.returncode}: {said}")
        return done.stdout

    def states(self) -> dict[str, str]:
        """Each node's state as sinfo tells it: ``idle``, ``mixed``, ``allocated``, ``down*`` …"""
        lines = self.command("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return {name: state for name, state in (line.split() for line in lines)}

    def jobs(self) -> dict[str, str]:
        """State of every job that the controller still knows, by ``12`` or, for array tasks, ``12_3``."""
        lines = self.command("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        return {job: state for job, state in (line.split() for line in lines)}

    def wait_jobs(self, names: Sequence[str], wanted: Sequence[str], patience: float = 60) -> None:
        """Wait until these jobs are in one of the states ``wanted``; KdbenchError after ``patience`` seconds."""
        end = time.monotonic() + patience
        while not all((states := self.jobs()).get(name) in wanted for name in names):
            if time.monotonic() > end:
                told = ", ".join(f"{name} {states.get(name)}" for name in names)
                raise KdbenchError(f"Jobs are not {' or '.join(wanted)} after {patience:.0f} s: {told}.")
            time.sleep(0.1)

    def wait(self, names: Sequence[str], wanted: Sequence[str], patience: float = 60) -> None:
        """Wait until these nodes are in one of the states ``wanted``; KdbenchError after ``patience`` seconds."""
        end = time.monotonic() + patience
        told = ""
        while time.monotonic() < end:
            self._check_children(["munge", "controller", *names])
            try:
                states = self.states()
            except KdbenchError as error:  # the controller does not answer yet
                told = str(error)
            else:
                if all(states.get(name) in wanted for name in names):
                    return
                told = ", ".join(f"{name} {state}" for name, state in states.items())
            time.sleep(0.1)
        raise KdbenchError(f"Nodes are not {' or '.join(wanted)} after {patience:.0f} s: {told}.{self._complaints()}")

    def node_down(self, name: str, with_jobs: bool = False) -> None:
        """Kill a node's daemon by SIGKILL; ``with_jobs`` kills all that runs on the node too, as a power cut would."""
        self._known(name)
        if with_jobs:
            self._kill(name)
        for pid in self.processes(name):
            if _command(pid) == "slurmd":
                os.kill(pid, signal.SIGKILL)
        if name in self._children:
            self._children.pop(name).wait()

    def node_up(self, name: str, patience: float = 60) -> None:
        """Start a node's daemon and wait until the controller uses the node again."""
        self._known(name)
        self._daemon(name, "slurmd", "-D", "-N", name)
        self.wait([name], ("idle", "mixed", "allocated", "completing"), patience)

    def processes(self, node: str | None = None) -> list[int]:
        """Process numbers of this cluster's daemons and jobs, or those of one node.

        They are told by their environment, which children inherit: a process that left its job's session is found
        too, and a number that was given to another program meanwhile is not.
        """
        ours = f"SLURM_CONF={self.configuration}".encode()
        place = b"SLURMD_NODENAME=" + (node or "").encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                facts = (folder / "environ").read_bytes().split(b"\0")
                if ours in facts and any(fact == place if node else fact.startswith(place) for fact in facts):
                    found.append(int(folder.name))
        return found

    def _known(self, name: str) -> None:
        if name not in self.shape.names:
            raise unknown("node", name, self.shape.names)

    def _check_folder(self) -> None:
        if len(str(self.folder)) > LONGEST or any(letter.isspace() for letter in str(self.folder)):
            raise UsageError(f"'{self.folder}' has spaces or more than {LONGEST} characters: take one like /tmp/slurm.")
        if self.configuration.exists():
            raise UsageError(f"There is a cluster in '{self.folder}'; stop it first.")
        if self.folder.exists() and any(path.name != "log" for path in self.folder.iterdir()):
            raise UsageError(f"'{self.folder}' is not empty.")

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (*OWN, "log"):
            (self.folder / name).mkdir(exist_ok=True)
        for name in self.shape.names:
            (self.folder / "spool" / name).mkdir()
        shape, ports = self.shape, _free_ports(1 + self.shape.nodes)
        host, user = socket.gethostname().split(".")[0], pwd.getpwuid(os.geteuid()).pw_name
        lines = [
            CONFIGURATION.format(**vars(shape), host=host, user=user, port=ports[0], folder=self.folder),
            *(
                f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={shape.cpus} "
                f"RealMemory={shape.memory} State=UNKNOWN\n"
                for name, port in zip(shape.names, ports[1:], strict=True)
            ),
            f"PartitionName=DEFAULT Nodes={','.join(shape.names)} DefMemPerCPU={shape.memory // shape.cpus} State=UP\n",
            f"PartitionName=main Default=YES PriorityTier=1 GraceTime={shape.grace}\n",
            "PartitionName=urgent PriorityTier=10 PreemptMode=OFF\n",
        ]
        self.configuration.write_text("".join(lines))

    def _munge(self) -> None:
        run = self.folder / "run"
        key = run / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = [f"--{what}-file={run}/munge.{what}" for what in ("key", "pid", "seed", "log")]
        self._daemon("munge", "munged", "--foreground", f"--socket={run}/munge.socket", *files)
        end = time.monotonic() + 20
        while not (run / "munge.socket").exists():
            self._check_children(["munge"])
            if time.monotonic() > end:
                raise KdbenchError(f"munged does not come up.{self._complaints()}")
            time.sleep(0.02)

    def _daemon(self, place: str, program: str, *words: str) -> None:
        path = shutil.which(program, path=SEARCH)
        assert path
        with (self.folder / "log" / f"{place}.out").open("ab") as out:
            self._children[place] = subprocess.Popen(
                [path, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**self.environment, "SLURMD_NODENAME": place, "PATH": SEARCH},
                cwd=self.folder,
                start_new_session=True,
            )

    def _check_children(self, places: Sequence[str]) -> None:
        for place in places:
            child = self._children.get(place)
            if child is not None and child.poll() is not None:
                said = self._complaints()
                kind = Unavailable if "permission denied" in said.lower() or "not permitted" in said else KdbenchError
                raise kind(f"The daemon of {place} ended with exit code {child.returncode}.{said}")

    def _kill(self, node: str | None = None) -> None:
        end = time.monotonic() + 20
        while found := self.processes(node):
            if time.monotonic() > end:
                raise KdbenchError(f"Processes {found} of the cluster in '{self.folder}' do not end.")
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _complaints(self) -> str:
        logs = sorted((self.folder / "log").glob("*.out"))
        lines = [f"{log.stem}: {line}" for log in logs for line in log.read_text(errors="replace").splitlines()]
        told = [line for line in lines if re.search("error|fatal", line, re.IGNORECASE) and "mpi" not in line.lower()]
        return "".join(f"\n  {line}" for line in told[-8:])


@contextmanager
def temporary(shape: Shape | None = None) -> Iterator[LocalCluster]:
    """A cluster in a folder of its own under ``/tmp``; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="kdbench-slurm-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)  # munge refuses a socket that others cannot reach
        with LocalCluster(Path(folder), shape) as cluster:
            yield cluster


def _require() -> None:
    missing = [name for name in (*DAEMONS, *CLIENTS) if not shutil.which(name, path=SEARCH)]
    if missing:
        raise Unavailable(f"Missing here: {', '.join(missing)}. On Debian or Ubuntu: apt-get install slurm-wlm munge")
    if not Path("/proc/self/environ").exists():
        raise Unavailable("A local cluster needs Linux: there is no /proc here.")


def _free_ports(count: int) -> list[int]:
    """Ports below those that systems give to outgoing connections, so that none is taken before its daemon starts."""
    ports: list[int] = []
    for port in random.sample(range(12000, 30000), 2000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise KdbenchError(f"No {count} free ports between 12000 and 30000.")


def _command(pid: int) -> str:
    try:
        return Path(Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]).name
    except OSError:
        return ""


def main(words: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("start", "status", "stop"))
    parser.add_argument("folder", type=Path, help="holds configuration, state and logs; stop keeps the logs")
    for option in fields(Shape):
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=int, default=option.default, help="%(default)s")
    given = vars(parser.parse_args(words))
    action, folder = given.pop("action"), given.pop("folder")
    cluster = LocalCluster(folder, Shape(**given))
    try:
        if action == "start":
            cluster.start()
            print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in cluster.variables.items()))
        elif action == "status":
            print(cluster.command("sinfo", "--long"), cluster.command("squeue"), sep="\n", end="")
        else:
            cluster.stop()
    except KdbenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
