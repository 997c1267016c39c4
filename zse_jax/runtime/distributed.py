"""Several processes, on one machine or many, that run one program together.

Based on `jax.distributed`. This module starts it, exchanges short messages between processes, and
detects processes that are gone. With a single process, all functions here do nothing.
`zse_jax.runtime.consistency` checks that the processes run the same thing.

Exit codes, for launchers: 0, finished; 1, an error that the user must fix, printed by every
process; `AGAIN` (75, EX_TEMPFAIL of sysexits), run the same command to resume from the last
checkpoint: after a preemption notice, or when another process was lost or hung.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from logging import ERROR, getLogger
from typing import Any

import jax
from absl import flags
from jax._src import clusters, distributed  # cluster detection and key-value store: not public

AGAIN = 75
"""Exit code: run the same command again."""

START_SECONDS = int(os.environ.get("ZSE_START_SECONDS", "50"))
"""How long to wait for the coordinator and for the other processes at the start."""

LOST_SECONDS = int(os.environ.get("ZSE_LOST_SECONDS", "40"))
"""A process without a heartbeat for this long is lost. jax's own limit is a little longer."""

_PREFIX = "zse_jax"
_numbers = itertools.count()  # numbers the exchanges, which are the same in every process


def define_flags(options: flags.FlagValues) -> None:
    """Defines the flags that identify this process, for clusters that jax does not detect."""
    where: Any = {"flag_values": options}
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.", **where)
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.", **where)
    flags.DEFINE_integer("num_processes", None, "Number of processes of this run.", **where)


def from_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """Reads the flags, or else JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Returns:
      The arguments of `initialize`; empty if neither is set (jax then detects the cluster).

    Raises:
      ValueError: some are missing, or they contradict each other.
    """
    given = flags.FlagValues()
    define_flags(given)
    given(argv, known_only=True)
    found = {name: given[name].value for name in _ARGUMENTS}
    for name, variable in _ARGUMENTS.items():
        if found.get(name) is None and (text := os.environ.get(variable)):
            found[name] = text if name == "coordinator_address" else _whole(variable, text)
    found = {name: value for name, value in found.items() if value is not None}
    if not found or (set(found) == {"coordinator_address"} and _cluster() is not None):
        return found
    if missing := [f"--{name}" for name in _ARGUMENTS if name not in found]:
        raise ValueError(
            f"--{next(iter(found))} needs {' and '.join(missing)} as well: every process must know "
            "the address of process 0, its own index, and the number of processes. On Cloud TPU, "
            "SLURM and Open MPI none of these flags is needed."
        )
    if not 0 <= found["process_id"] < found["num_processes"]:
        raise ValueError(
            f"--process_id={found['process_id']} does not fit --num_processes="
            f"{found['num_processes']}: choose 0 to {found['num_processes'] - 1}."
        )
    if not found["coordinator_address"].rpartition(":")[2].isdigit():
        raise ValueError(
            f"--coordinator_address={found['coordinator_address']} lacks a port: write HOST:PORT, "
            "such as node0:8476."
        )
    return found


_ARGUMENTS = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "process_id": "JAX_PROCESS_ID",
    "num_processes": "JAX_NUM_PROCESSES",
}


def _whole(name: str, text: str) -> int:
    if not text.isdigit():
        raise ValueError(
            f"{name}={text} in the environment is not a whole number: correct or unset it."
        )
    return int(text)


def _cluster() -> Any:
    """The cluster that jax detects; None for a single process."""
    for kind in clusters.ClusterEnv._cluster_types:
        if not kind.opt_in_only_method and kind.is_env_present():
            return kind if kind.get_process_count() > 1 else None
    return None


def initialize(
    coordinator_address: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
) -> None:
    """Joins the other processes, if any. Call it before anything uses a device.

    Processes other than 0 print only errors after this call. If the coordinator or another process
    does not respond within `START_SECONDS`, this process ends with `AGAIN` and an error message.

    Args:
      coordinator_address: HOST:PORT of process 0; None: as jax detects it (Cloud TPU, SLURM, Open
        MPI), or a single process if it detects no cluster.
      process_id, num_processes: likewise.
    """
    if num_processes == 1 or jax.distributed.is_initialized():
        return
    if num_processes is None and _cluster() is None:
        return
    which = f"process {process_id} of {num_processes}" if num_processes else "this process"
    arrived = threading.Event()

    def wait() -> None:  # jax would abort with a C++ stack trace
        if not arrived.wait(START_SECONDS):
            _end(AGAIN, _nobody(which, coordinator_address, process_id))

    threading.Thread(target=wait, daemon=True).start()
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=START_SECONDS + 30,
            heartbeat_timeout_seconds=LOST_SECONDS + 15,
            shutdown_timeout_seconds=START_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        arrived.set()
        raise OSError(
            f"{which} cannot join the others at {coordinator_address or 'the cluster'}: "
            f"{str(error).splitlines()[0]}. Check --coordinator_address, --process_id and "
            "--num_processes, or the cluster's environment. Each run needs its own port."
        ) from error
    arrived.set()
    if distributed.global_state.process_id:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (as long as the process)
        getLogger().setLevel(ERROR)
    _monitor.start()


def _nobody(which: str, address: str | None, process_id: int | None) -> str:
    """The error message of a failed start, as far as one process can determine the cause."""
    host, _, port = (address or "").rpartition(":")
    cause = "the others; the coordinator responds: not all were started, or one of them failed"
    if process_id != 0 and port:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        except OSError as error:
            reason = error.strerror or error
            cause = f"the coordinator (process 0) at {address}, which does not respond ({reason})"
    return (
        f"{which} on {socket.gethostname()} waited {START_SECONDS} s for {cause}. See the output "
        "of the other processes; check the address, the firewall between the machines, and that "
        "all --num_processes processes are started at the same time."
    )


def together() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and distributed.global_state.num_processes > 1


def this_process() -> int:
    """Index of this process. Unlike jax.process_index(), it does not initialise a device."""
    return distributed.global_state.process_id if together() else 0


def _client() -> Any:
    """The client of the key-value store in process 0."""
    return distributed.global_state.client


def exchange(value: str, seconds: float = START_SECONDS) -> list[str]:
    """The `value` of every process, by index. All processes must call it, in the same order.

    Raises:
      TimeoutError: a process did not call it within `seconds`; names the process.
    """
    if not together():
        return [value]
    key = f"{_PREFIX}/exchange/{next(_numbers)}"
    client, until = _client(), time.monotonic() + seconds
    client.key_value_set(f"{key}/{this_process()}", value)
    found = []
    for process in range(distributed.global_state.num_processes):
        left = max(1, int(1000 * (until - time.monotonic())))
        try:
            found.append(client.blocking_key_value_get(f"{key}/{process}", left))
        except jax.errors.JaxRuntimeError as error:
            raise TimeoutError(
                f"Process {process} did not reach the point where the others wait within "
                f"{seconds:.0f} s; see its output."
            ) from error
    return found


def of_first(value: Any, seconds: float = START_SECONDS) -> Any:
    """The `value` of process 0, in every process. All must call it, as `exchange`.

    For decisions that depend on files or clocks: two processes can see different ones.

    Args:
      value: of JSON types; ignored in other processes.
      seconds: as for `exchange`.
    """
    if not together():
        return value
    text = json.dumps(value if this_process() == 0 else None)
    return json.loads(exchange(text, seconds)[0])


class _Monitor(threading.Thread):
    """Watches the other processes through the key-value store of process 0.

    Each process writes a heartbeat counter and its current step there, and its error if it ends.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True, name="zse_jax monitor")
        self.step: int | None = None
        self.seen: dict[str, tuple[str, float]] = {}
        self.steps: dict[str, str] = {}
        self.leaving = False

    def run(self) -> None:
        client, me = _client(), str(this_process())
        for count in itertools.count():
            if self.leaving:
                return
            try:
                life = f"{count} {self.step} {socket.gethostname()}"
                client.key_value_set(f"{_PREFIX}/alive/{me}", life, allow_overwrite=True)
                ended = client.key_value_dir_get(f"{_PREFIX}/ended/")
                alive = client.key_value_dir_get(f"{_PREFIX}/alive/")
            except jax.errors.JaxRuntimeError as error:
                if not self.leaving:
                    _end(AGAIN, f"process {me} lost the coordinator (process 0): {error}")
                return
            self._look(me, ended, alive)
            time.sleep(2)

    def _look(self, me: str, ended: Sequence[Any], alive: Sequence[Any]) -> None:
        for key, text in ended:
            if (process := key.rpartition("/")[2]) != me:
                code, _, message = text.partition(" ")
                _end(int(code), f"process {me} stops because process {process} stopped: {message}")
        now = time.monotonic()
        for key, text in alive:
            process = key.rpartition("/")[2]
            life, step, host = text.split(" ", 2)
            self.steps[f"process {process} on {host}"] = step
            if self.seen.get(process, ("", 0.0))[0] != life:
                self.seen[process] = life, now
            elif process != me and now - self.seen[process][1] > LOST_SECONDS and not self.leaving:
                _end(
                    AGAIN,
                    f"process {me} stops: process {process} on {host} sent no heartbeat for "
                    f"{LOST_SECONDS} s (it was killed, its machine was lost, or the network "
                    "failed). Run the same command to resume from the last checkpoint.",
                )


_monitor = _Monitor()


def progress(step: int | None) -> None:
    """Publishes the current step of this process to the others; None: not in a step."""
    _monitor.step = step


def steps_of_all() -> str:
    """The last published step of each process: "process 0 on a: 41, process 1 on b: 42"."""
    return ", ".join(f"{name}: {step}" for name, step in sorted(_monitor.steps.items()))


def is_loss(error: BaseException) -> bool:
    """Whether a computation failed because another process, or the network, is gone."""
    words = ("gloo", "nccl", "UNAVAILABLE", "DEADLINE_EXCEEDED", "onnection", "peer", "heartbeat")
    return together() and any(word in str(error) for word in words)


def stop_watching() -> None:
    """Ignores the other processes from now on, because this one is about to end."""
    _monitor.leaving = True


def leave(code: int, message: str) -> None:
    """Ends this process immediately after an error, if it is one of several; informs the others.

    jax would wait for the other processes at exit until a timeout.
    """
    if not together():
        return
    stop_watching()
    with contextlib.suppress(Exception):
        key = f"{_PREFIX}/ended/{this_process()}"
        _client().key_value_set(key, f"{code} {message}")
    if this_process() == 0:
        time.sleep(6)  # the key-value store ends with this process; the others poll it every 2 s
    sys.stderr.flush()
    os._exit(code)


def finish() -> None:
    """Waits until all processes are done, then shuts jax.distributed down."""
    if not together():
        return
    exchange("", seconds=3600)
    stop_watching()
    jax.distributed.shutdown()


def _end(code: int, message: str) -> None:
    """Ends this process from a thread, even if its main thread is blocked."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    os._exit(code)
