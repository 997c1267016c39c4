"""Several processes, on one machine or many, that run one program together.

`jax.distributed` is the engine; here is when it starts, how processes tell each other things, and
how each of them learns that another one is gone. With one process nothing here does anything. What
they must have in common is checked in `zse_jax.runtime.consistency`.

Exit codes, for launchers: 0 finished; 1 an error that a user has to mend, told by every process;
`AGAIN` (75, sysexits' EX_TEMPFAIL) the same command goes on from the last checkpoint: after a
preemption notice, or when another process was lost or hung.
"""

import contextlib
import itertools
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
from jax._src import clusters, distributed  # detection alone, and the store of keys: not public

AGAIN = 75
"""Exit code: start the same command again."""

START_SECONDS = int(os.environ.get("ZSE_START_SECONDS", "50"))
"""How long to wait for the coordinator and for the other processes at the start."""

LOST_SECONDS = int(os.environ.get("ZSE_LOST_SECONDS", "40"))
"""A process that gives no sign of life for so long is lost. jax's own limit is a little longer."""

_PREFIX = "zse_jax"
_numbers = itertools.count()  # of exchanges: every process does the same ones in the same order


def define_flags(options: flags.FlagValues) -> None:
    """The flags that say which process of how many this is, where no environment does."""
    where: Any = {"flag_values": options}
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.", **where)
    flags.DEFINE_integer("process_id", None, "Which process this is, from 0 on.", **where)
    flags.DEFINE_integer("num_processes", None, "How many processes run together.", **where)


def from_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """What a command line, or else JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID say.

    Returns:
      The arguments of `initialize`; without any, the environment of a cluster decides.

    Raises:
      ValueError: some are given and others are not, or they do not fit each other.
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
            f"--{next(iter(found))} needs {' and '.join(missing)} as well: every process is told "
            "where process 0 is, which one it is, and how many there are. On Cloud TPU, SLURM and "
            "Open MPI none of them is needed."
        )
    if not 0 <= found["process_id"] < found["num_processes"]:
        raise ValueError(
            f"--process_id={found['process_id']} does not fit --num_processes="
            f"{found['num_processes']}: it counts from 0 to {found['num_processes'] - 1}."
        )
    if not found["coordinator_address"].rpartition(":")[2].isdigit():
        raise ValueError(
            f"--coordinator_address={found['coordinator_address']} lacks a port: HOST:PORT, such "
            "as node0:8476."
        )
    return found


_ARGUMENTS = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "process_id": "JAX_PROCESS_ID",
    "num_processes": "JAX_NUM_PROCESSES",
}


def _whole(name: str, text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"{name}={text} in the environment is no whole number: unset or mend it.")
    return int(text)


def _cluster() -> Any:
    """What jax knows of the cluster this process runs in, if it runs more than one process."""
    for kind in clusters.ClusterEnv._cluster_types:
        if not kind.opt_in_only_method and kind.is_env_present():
            return kind if kind.get_process_count() > 1 else None
    return None


def initialize(
    coordinator_address: str | None = None,
    process_id: int | None = None,
    num_processes: int | None = None,
) -> None:
    """Joins the other processes, if there are any: before anything touches a device.

    Args:
      coordinator_address: HOST:PORT of process 0; None: as jax detects it (Cloud TPU, SLURM, Open
        MPI), or alone where it detects nothing.
      process_id, num_processes: likewise.

    Processes other than 0 print nothing from here on but errors. Where the coordinator or another
    process does not come within `START_SECONDS`, this process ends with `AGAIN` and says so.
    """
    if num_processes == 1 or jax.distributed.is_initialized():
        return
    if num_processes is None and _cluster() is None:
        return
    which = f"process {process_id} of {num_processes}" if num_processes else "this process"
    arrived = threading.Event()

    def wait() -> None:  # jax itself would abort with a stack trace of C++
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
            "--num_processes, or the cluster's environment; give each run a port of its own."
        ) from error
    arrived.set()
    if distributed.global_state.process_id:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (as long as the process)
        getLogger().setLevel(ERROR)
    _monitor.start()


def _nobody(which: str, address: str | None, process_id: int | None) -> str:
    """Why a start has failed, as far as one process can tell."""
    host, _, port = (address or "").rpartition(":")
    cause = "the others, and its coordinator answers: not all of them were started, or one failed"
    if process_id != 0 and port:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        except OSError as error:
            reason = error.strerror or error
            cause = f"the coordinator (process 0) at {address}: nobody answers there ({reason})"
    return (
        f"{which} on {socket.gethostname()} waited {START_SECONDS} s for {cause}. See the "
        "output of the other processes; check the address, the firewall between the machines, and "
        "that --num_processes are started together."
    )


def together() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and distributed.global_state.num_processes > 1


def this_process() -> int:
    """Which process this is; 0 when alone. Unlike jax.process_index(), it touches no device."""
    return distributed.global_state.process_id if together() else 0


def _client() -> Any:
    """Whom to ask for the store of keys that process 0 keeps."""
    return distributed.global_state.client


def exchange(value: str, seconds: float = START_SECONDS) -> list[str]:
    """What every process gave, by process; all must ask, in the same order.

    Raises:
      TimeoutError: some process did not come within `seconds`; names it.
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
                f"Process {process} did not come within {seconds:.0f} s to where the others wait; "
                "see its output."
            ) from error
    return found


class _Monitor(threading.Thread):
    """Watches the other processes, and tells them when this one ends with an error.

    Each process counts up a sign of life in the store of keys that process 0 keeps, beside the
    step it is at.
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
                _end(int(code), f"process {me} stops because process {process} has: {message}")
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
                    f"process {me} stops: process {process} on {host} gave no sign of life for "
                    f"{LOST_SECONDS} s (killed, its machine lost, or cut off). The same command "
                    "goes on from the last checkpoint.",
                )


_monitor = _Monitor()


def progress(step: int | None) -> None:
    """Tells the others at which step this process is; None: at something else."""
    _monitor.step = step


def steps_of_all() -> str:
    """At which step each process last said to be: "process 0 on a: 41, process 1 on b: 42"."""
    return ", ".join(f"{name}: {step}" for name, step in sorted(_monitor.steps.items()))


def is_loss(error: BaseException) -> bool:
    """Whether a computation failed because another process, or the way to it, is gone."""
    words = ("gloo", "nccl", "UNAVAILABLE", "DEADLINE_EXCEEDED", "onnection", "peer", "heartbeat")
    return together() and any(word in str(error) for word in words)


def stop_watching() -> None:
    """From here on what happens to the other processes is no news: this one ends."""
    _monitor.leaving = True


def leave(code: int, message: str) -> None:
    """Ends this process at once after an error, if it is one of several; the others are told.

    Waiting for them, as jax does at the end of a process, would take until a timeout.
    """
    if not together():
        return
    stop_watching()
    with contextlib.suppress(Exception):
        key = f"{_PREFIX}/ended/{this_process()}"
        _client().key_value_set(key, f"{code} {message}")
    if this_process() == 0:
        time.sleep(6)  # its store of keys ends with it: the others look there every 2 s
    sys.stderr.flush()
    os._exit(code)


def finish() -> None:
    """Ends the work of all processes together, however much longer one of them took."""
    if not together():
        return
    exchange("", seconds=3600)
    stop_watching()
    jax.distributed.shutdown()


def _end(code: int, message: str) -> None:
    """Ends this process from a thread, whatever its main thread waits for."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    os._exit(code)
