"""Reads damaged files of PyTorch, and prints how many were read, refused and found to be damaged.

    python -m tests.zse_jax.pretrained.fuzz FILE 2000

Ends with an error if reading one starts a program, imports a module, runs code, needs more than
1 GiB of memory, or raises anything but a ValueError of one line.
"""

import encodings.cp437
import encodings.raw_unicode_escape  # noqa: F401 - which Python imports when it needs it
import io
import json
import random
import resource
import sys
import zipfile
from pathlib import Path

from zse_jax.pretrained.torch_files import RefusedError, read

HERE = Path(__file__).parent / "files"

OPERATIONS = b"()]}.0123GIJKLMNPQRSTUVXabcdeghijlopqrstu\x80\x81\x82\x85\x88\x8a\x8b\x93\x94\x95"
FUNCTIONS = (
    b"os\nsystem", b"builtins\neval", b"builtins\nexec", b"subprocess\nPopen", b"torch\nload",
    b"builtins\n__import__", b"tests.zse_jax.pretrained.fuzz\nmain",
)  # fmt: skip
NAMES = (b"collections\nOrderedDict", b"torch._utils\n_rebuild_tensor_v2", b"numpy\ndtype")
EVENTS = {
    "exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove",
    "subprocess.Popen", "pickle.find_class", "socket.connect",
}  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one of six kinds of damage."""
    content = bytearray(data)
    where = rng.randrange(len(content))
    match rng.randrange(6):
        case 0:  # some bytes differ
            for _ in range(rng.randint(1, 8)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        case 1:  # the end is missing
            del content[where:]
        case 2:  # other operations
            content[where:where] = bytes(rng.choices(OPERATIONS, k=rng.randint(1, 6)))
        case 3:  # a call
            call = b"c" + rng.choice(FUNCTIONS) + b"\nX\x04\0\0\0exit\x85R"
            where = rng.choice([where, 2, len(content) - 1])
            content[where:where] = call
        case 4:  # another name
            for name in NAMES:
                content = content.replace(name, rng.choice([*NAMES, *FUNCTIONS[:2]]))
        case 5:  # a part is repeated
            end = rng.randint(where, min(len(content), where + 50))
            content[where:where] = content[where:end] * rng.randint(1, 50)
    return bytes(content)


def damaged(name: str, rng: random.Random) -> bytes:
    """A file of this folder with a mutated pickle."""
    whole = (HERE / name).read_bytes()
    if whole[:2] != b"PK":
        return mutated(whole, rng)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(result, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            new.writestr(entry, mutated(content, rng) if entry.endswith("data.pkl") else content)
    return result.getvalue()


def main() -> None:
    """Reads the files and prints the outcomes as JSON."""
    path, count = Path(sys.argv[1]), int(sys.argv[2])
    events: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if event in EVENTS:
            events.append(f"{event} {arguments}"[:300])

    read(HERE / "script.pt")  # compiles patterns and imports what reading needs
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
    rng = random.Random(0)
    outcomes = {"read": 0, "refused": 0, "damaged": 0}
    sys.addaudithook(watch)
    for number in range(count):
        path.write_bytes(damaged(("zip.pth", "stacked.pth", "script.pt")[number % 3], rng))
        try:
            read(path)
            outcomes["read"] += 1
        except ValueError as error:
            outcomes["refused" if isinstance(error, RefusedError) else "damaged"] += 1
            if "\n" in str(error) or len(str(error)) > 1000:
                sys.exit(f"file {number}: {error}")
        if events:
            sys.exit(f"file {number}: {events}")
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
