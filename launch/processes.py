r"""Several processes on one machine, as one run: for tests, and for a machine with many GPUs.

    python launch/processes.py -n 2 -- --config=configs/demo.py
    python launch/processes.py -n 2 --devices=4 -- --config=configs/demo.py  # virtual ones
    python launch/processes.py -n 8 --gpus -- --config=configs/sketchy.py    # one GPU each
    python launch/processes.py -n 2 --program=zse_jax.evaluate -- --checkpoint=runs/sketchy

What stands behind `--` goes to the program. Process 0 prints; of the others only errors are shown,
with their number in front. When one process ends with an error, the rest is ended. The exit code is
that of the process that failed first; 75, also for processes that were killed, means: the same
command goes on from the last checkpoint. `--restarts=N` does that by itself, N times at most.
SIGTERM, SIGINT and SIGUSR1 are handed on to every process, and end the restarts.
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

AGAIN = 75  # zse_jax.runtime.distributed.AGAIN; not imported, which would take seconds


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own options, and the program's."""
    own, rest = list(arguments), []
    if "--" in own:
        cut = own.index("--")
        own, rest = own[:cut], own[cut + 1 :]
    summary, _, _ = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("-n", type=int, required=True, help="how many processes")
    parser.add_argument("--program", default="zse_jax.main", help="the module to run")
    parser.add_argument("--devices", type=int, help="virtual devices of each process, on a CPU")
    parser.add_argument("--gpus", action="store_true", help="give process i GPU i alone")
    parser.add_argument("--port", type=int, help="of process 0 (a free one)")
    help_ = "seconds in which, after an error, the others may say what they know (10)"
    parser.add_argument("--grace", type=float, default=10, help=help_)
    parser.add_argument("--restarts", type=int, default=0, help="at most, after exit code 75")
    options = parser.parse_args(own)
    if options.n < 1:
        parser.error(f"-n {options.n}: at least one process")
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
                start_new_session=True,  # Ctrl-C reaches us alone, and we hand it on
                preexec_fn=end_with_us if sys.platform == "linux" else None,
            )
        )
        if processes[-1].stderr is not None:
            arguments = (number, processes[-1].stderr)
            threading.Thread(target=show, args=arguments, daemon=True).start()
    return processes


def end_with_us() -> None:
    """Lets this process get SIGTERM when its parent is gone, even by `kill -9` (Linux only)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def show(number: int, stream: IO[bytes]) -> None:
    """Copies what a process says, with its number in front."""
    for line in stream:
        sys.stderr.write(f"[{number}] {line.decode(errors='replace')}")
        sys.stderr.flush()


def wait(processes: Sequence[subprocess.Popen], grace: float) -> int:
    """The exit code of all: 0, or that of the process that failed first; ends the rest.

    Args:
      processes: running.
      grace: seconds after which those are killed that have not ended by themselves.
    """
    first: tuple[int, int] | None = None
    deadline = 0.0
    while None in [process.poll() for process in processes]:
        failed = [(i, p.returncode) for i, p in enumerate(processes) if p.returncode]
        if failed and first is None:
            first, deadline = failed[0], time.monotonic() + grace
            number, code = first
            why = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed ({code})"
            if code != AGAIN:
                print(f"launch: process {number} {why}; ending the rest.", file=sys.stderr)
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
    """Runs what the command line says; returns the exit code."""
    options, rest = parse(sys.argv[1:])
    told: list[int] = []
    for attempt in range(options.restarts + 1):
        processes = start(options, rest)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):

            def hand_on(number: int, frame: object, to: Sequence[subprocess.Popen] = processes):
                told.append(number)  # the machine goes away: no restart here
                for process in to:
                    if process.poll() is None:
                        process.send_signal(number)

            signal.signal(number, hand_on)
        code = wait(processes, options.grace)
        if code != AGAIN or attempt == options.restarts or told:
            break
        print("launch: the same command again, from the last checkpoint.", file=sys.stderr)
    if code == AGAIN:
        print("launch: start the same command again to go on.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
