r"""Runs several processes on one machine, for tests or for a machine with several GPUs.

    python launch/processes.py -n 2 -- --config=configs/demo.py
    python launch/processes.py -n 2 --devices=4 -- --config=configs/demo.py  # virtual devices
    python launch/processes.py -n 8 --gpus -- --config=configs/sketchy.py    # one GPU per process
    python launch/processes.py -n 2 --program=zse_jax.evaluate -- --checkpoint=runs/sketchy

Arguments after `--` are passed to the program. The output of process 0 is shown; for the others,
only stderr, prefixed with their number. If one process fails, the others are killed. The exit code
is that of the first failed process; 75, also used for killed processes, means that the same command
resumes from the last checkpoint. `--restarts=N` restarts automatically, at most N times. SIGTERM,
SIGINT and SIGUSR1 are forwarded to all processes and disable restarts.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

AGAIN = 75  # zse_jax.runtime.distributed.AGAIN; not imported, because that takes seconds


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of the launcher, and the arguments of the program."""
    own, rest = list(arguments), []
    if "--" in own:
        cut = own.index("--")
        own, rest = own[:cut], own[cut + 1 :]
    summary, _, _ = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("-n", type=int, required=True, help="number of processes")
    parser.add_argument("--program", default="zse_jax.main", help="the module to run")
    parser.add_argument("--devices", type=int, help="virtual CPU devices per process")
    parser.add_argument("--gpus", action="store_true", help="process i uses only GPU i")
    parser.add_argument("--port", type=int, help="port of process 0 (default: a free port)")
    help_ = "seconds after an error until the other processes are killed (10)"
    parser.add_argument("--grace", type=float, default=10, help=help_)
    parser.add_argument(
        "--restarts", type=int, default=0, help="maximum number of restarts after exit code 75"
    )
    options = parser.parse_args(own)
    if options.n < 1:
        parser.error(f"-n {options.n}: must be at least 1")
    return options, rest


def start(options: argparse.Namespace, rest: Sequence[str]) -> list[subprocess.Popen]:
    """Starts all processes."""
    processes: list[subprocess.Popen] = []
    address = f"127.0.0.1:{options.port or free_port()}"
    for number in range(options.n):
        environment = dict(os.environ)
        if options.n > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(options.n),
                "JAX_PROCESS_ID": str(number),
            }
        if options.devices:
            flag = f"--xla_force_host_platform_device_count={options.devices}"
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
            environment["JAX_PLATFORMS"] = "cpu"
        if options.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(number)
        command = [sys.executable, "-m", options.program, *rest]
        piped = None if number == 0 else subprocess.PIPE
        processes.append(
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=piped and subprocess.DEVNULL,
                stderr=piped,
                start_new_session=True,  # Ctrl-C reaches only the launcher, which forwards it
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )
        )
        if processes[-1].stderr is not None:
            arguments = (number, processes[-1].stderr)
            threading.Thread(target=show, args=arguments, daemon=True).start()
    return processes


def end_with_parent() -> None:
    """Makes this process receive SIGTERM when its parent ends, even by `kill -9` (Linux only)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def free_port() -> int:
    """An unused port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def show(number: int, stream: IO[bytes]) -> None:
    """Copies the output of a process to stderr, prefixed with its number."""
    for line in stream:
        sys.stderr.write(f"[{number}] {line.decode(errors='replace')}")
        sys.stderr.flush()


def wait(processes: Sequence[subprocess.Popen], grace: float) -> int:
    """Waits for all processes; returns 0 or the exit code of the first failed process.

    Args:
      processes: the running processes.
      grace: seconds after the first failure until the remaining processes are killed.
    """
    first: tuple[int, int] | None = None
    deadline = 0.0
    while None in [process.poll() for process in processes]:
        failed = [(i, p.returncode) for i, p in enumerate(processes) if p.returncode]
        if failed and first is None:
            first, deadline = failed[0], time.monotonic() + grace
            number, code = first
            why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed ({code})"
            if code != AGAIN:
                print(f"launch: process {number} {why}; ending the others.", file=sys.stderr)
        if first is not None and time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.1)
    codes = [first[1]] if first else [p.returncode for p in processes if p.returncode]
    if not codes:
        return 0
    return AGAIN if codes[0] < 0 else codes[0]


def main() -> int:
    """Runs the command line; returns the exit code."""
    options, rest = parse(sys.argv[1:])
    received: list[int] = []
    for attempt in range(options.restarts + 1):
        processes = start(options, rest)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):

            def forward(number: int, frame: object, to: Sequence[subprocess.Popen] = processes):
                received.append(number)  # The machine may shut down: no restart.
                for process in to:
                    if process.poll() is None:
                        process.send_signal(number)

            signal.signal(number, forward)
        code = wait(processes, options.grace)
        if code != AGAIN or attempt == options.restarts or received:
            break
        print("launch: restarting from the last checkpoint.", file=sys.stderr)
    if code == AGAIN:
        print("launch: run the same command again to resume.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
