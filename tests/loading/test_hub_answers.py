"""Answers of a hub that are broken: loading says so readably, and writes nothing elsewhere."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sae_lens.saes import SAE
from tests.hub_server import Fault, HubServer
from tests.loading.synthetic import CHECKPOINTS, sae_lens_flat
from tests.loading.test_hub import load, publish, register, server
from tests.mutation import mutate_bytes, mutate_tree
from tests.test_broken_input import expect_readable

__all__ = ["server"]  # the fixture

FAST, SLOW = 150, 10_000
STATUS = (400, 401, 403, 404, 416, 429, 500, 503)


def break_answers(server: HubServer, repo_id: str, chance: random.Random) -> None:
    """Faulty answers, or sound answers with broken files."""
    files = server.repositories[repo_id]
    branch = files.commits[files.branches["main"]]
    name = chance.choice(sorted(branch))
    kind = chance.randrange(4)
    if kind == 0:
        path, times = chance.choice([".*", name]), chance.choice([1, 3, None])
        server.faults.append(Fault(path, status=chance.choice(STATUS), times=times))
    elif kind == 1:
        server.faults.append(Fault(name, cut_after=chance.randrange(200), times=3))
    else:
        data = branch[name]
        if name.endswith(".json") and chance.random() < 0.7:
            text = json.dumps(mutate_tree(json.loads(data), chance))
            data = text.encode("utf-8", "surrogatepass")
        else:
            data = mutate_bytes(data, chance)
        server.add(repo_id, {name: data})


def try_cases(
    server: HubServer, seeds: range, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    n_loaded = 0
    for seed in seeds:
        chance = random.Random(seed)
        server.faults.clear()
        server.repositories.clear()
        place = folder / str(seed)
        checkpoint = publish(server, CHECKPOINTS[seed % len(CHECKPOINTS)], place / "files")
        register(checkpoint, place / "registry.yaml", monkeypatch)
        break_answers(server, checkpoint.repo_id, chance)
        try:
            found = expect_readable(lambda: load("mine", "it", force_download=True))
        except Exception as error:
            raise AssertionError(f"seed {seed}, {checkpoint.format_name}") from error
        if found is not None:
            sae: SAE = found[0]
            assert sae.W_dec.shape[0] == sae.cfg.d_sae
            n_loaded += 1
    return n_loaded


def test_broken_answers(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_loaded = try_cases(server, range(FAST), tmp_path, monkeypatch)
    assert 0 < n_loaded < FAST


@pytest.mark.slow
def test_ten_thousand_broken_answers(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_loaded = try_cases(server, range(FAST, FAST + SLOW), tmp_path, monkeypatch)
    print(f"\n{SLOW} broken answers, {n_loaded} of them harmless")


@pytest.mark.parametrize(
    ("release", "sae_id"),
    [
        ("owner/../../x", "a"), ("../x", "a"), ("/etc", "passwd"), ("owner/name", "../../../etc"),
        ("owner/name", "/etc/passwd"), ("owner/name\0", "a"), ("owner/name", "a\0b"),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_do_not(
    release: str, sae_id: str, server: HubServer, tmp_path: Path
) -> None:
    publish(server, sae_lens_flat, tmp_path / "files")
    before = {path for path in tmp_path.rglob("*") if tmp_path / "cache" not in path.parents}
    assert expect_readable(lambda: load(release, sae_id)) is None
    after = {path for path in tmp_path.rglob("*") if tmp_path / "cache" not in path.parents}
    assert after - before <= {tmp_path / "cache"}
