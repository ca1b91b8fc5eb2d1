"""A fuzzer over files: broken and hostile inputs, a function of a seed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What may stand where a reader expects something else.
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, float("inf"),
    float("nan"), "", " ", "none", "../../../../etc/passwd", "/etc/passwd", "\x00", "a" * 1000,
    "\ud800", "🦜", "1e400", [], {}, [[]], [None] * 50, {"": {}}, {"a": {"b": {"c": []}}},
    ["../x"], {"!tensor": "x"}, {"!items": [[[], 1]]}, {"!float": "x"}, "__import__('os')",
)  # fmt: skip
SECONDS_PER_CASE = 30
# More than any reader of small files needs, less than a header that claims a terabyte.
BYTES_PER_PROCESS = 24 << 30


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flip, cut, repeat, insert, or claim a size that is not there."""
    broken = bytearray(data)
    kind = chance.randrange(8)
    place = chance.randrange(len(broken)) if broken else 0
    if kind == 0 and broken:
        for _ in range(chance.randint(1, 8)):
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del broken[place:]
    elif kind == 2:
        del broken[place : place + chance.randint(1, 64)]
    elif kind == 3:
        broken[place:place] = chance.randbytes(chance.randint(1, 64))
    elif kind == 4:
        broken[place:place] = broken[place : place + 200]
    elif kind == 5:  # the length of a safetensors header, among other things
        broken[:8] = struct.pack("<Q", chance.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1]))
    elif kind == 6:
        digits = [i for i, letter in enumerate(broken[:4000]) if 48 <= letter < 58]
        for i in chance.sample(digits, min(len(digits), 3)):
            broken[i] = chance.choice(b"0123456789-")
    else:
        broken = bytearray(chance.randbytes(chance.randint(0, 300)))
    return bytes(broken)


def mutate_tree(value: Any, chance: random.Random) -> Any:
    """A JSON value with a few of its parts replaced, removed, renamed or added."""
    for _ in range(chance.randint(1, 3)):
        parent, key = _somewhere(value, chance)
        if parent is None:
            return chance.choice(HOSTILE)
        kind = chance.randrange(4)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[chance.choice(["", "x", "__class__", "../x", "d_in", "state"])] = parent.pop(key)
        else:
            parent[key] = json.loads(json.dumps(chance.choice(HOSTILE)))
    return value


def mutate_file(path: Path, chance: random.Random) -> None:
    """Break one file; JSON in its structure as often as in its bytes."""
    data = path.read_bytes()
    if path.suffix == ".json" and chance.random() < 0.7:
        tree = mutate_tree(json.loads(data), chance)
        path.write_text(json.dumps(tree), encoding="utf-8", errors="surrogatepass")
    elif chance.random() < 0.06:
        path.unlink()
    else:
        path.write_bytes(mutate_bytes(data, chance))


def _somewhere(value: Any, chance: random.Random) -> tuple[Any, Any]:
    parent, key = None, None
    while isinstance(value, (dict, list)) and value and (parent is None or chance.random() < 0.6):
        parent = value
        key = (
            chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        )
        value = value[key]
    return parent, key


Case = Callable[[Path, random.Random], None]


def _body(case: Case, sound: Path, work: Path, seeds: range) -> None:
    """Run the cases in this process; what goes wrong is written down and ends it."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (BYTES_PER_PROCESS, BYTES_PER_PROCESS))
    target = work / "case"
    for seed in seeds:
        (work / "seed").write_text(str(seed))
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(sound, target)
        signal.alarm(SECONDS_PER_CASE)  # ends this process: a hang is a failure like a crash
        try:
            case(target, random.Random(seed))
        except BaseException:
            (work / "error").write_text(traceback.format_exc(limit=-12)[-4000:])
            os._exit(1)
        signal.alarm(0)
    os._exit(0)


def run_cases(case: Case, sound: Path, work: Path, seeds: range) -> None:
    """Run a case on copies of the sound folder, each broken by another seed.

    It happens in a process of its own, so that crashes, hangs and unbounded memory are seen.

    Raises:
        AssertionError: with the seed and what went wrong.
    """
    work.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs"])
    process = context.Process(target=_body, args=(case, sound, work, seeds))
    process.start()
    process.join()
    if process.exitcode != 0:
        error = work / "error"
        told = error.read_text() if error.exists() else "crashed, hung or was killed"
        seed = (work / "seed").read_text()
        raise AssertionError(f"seed {seed}, exit code {process.exitcode}: {told}")
