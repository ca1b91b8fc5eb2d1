from __future__ import annotations

import itertools
import json
import math
import struct
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_lens.training.loggers import (
    Histogram,
    JsonLinesLogger,
    LoggedArtifact,
    NullLogger,
    SeveralLoggers,
    WandbLogger,
    make_logger,
)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.jsonl"
    logger = JsonLinesLogger(path)
    logger.start({"lr": 1e-3, "path": tmp_path})
    values = torch.tensor([0.0, 1.0, 1.0, math.nan])
    logger.log({"loss": torch.tensor(2.5), "bad": math.nan, "hist": Histogram(values)}, step=3)
    logger.log({"group": {"l0": 4}}, step=4)
    logger.log_artifact(LoggedArtifact("sae", "model", [tmp_path / "w"], aliases=["final"]))
    logger.finish(RuntimeError("broken"))
    config, first, second, artifact, error = read_lines(path)
    assert config == {"config": {"lr": 1e-3, "path": str(tmp_path)}}
    assert (first["step"], first["loss"], first["bad"]) == (3, 2.5, None)
    assert sum(first["hist"]["counts"]) == 3
    assert len(first["hist"]["edges"]) == len(first["hist"]["counts"]) + 1
    assert second == {"step": 4, "group": {"l0": 4}}
    assert (artifact["artifact"], artifact["files"]) == ("sae", [str(tmp_path / "w")])
    assert error == {"error": "RuntimeError: broken"}


def test_a_later_logger_goes_on_with_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = JsonLinesLogger(path)
    first.start({})
    with open(path, "a") as file:
        file.write('{"step": 0, "lo')  # the process was killed here
    second = JsonLinesLogger(path)
    second.load_state_dict(first.state_dict())
    second.start({"lr": 1})
    second.log({"loss": 1.0}, step=1)
    lines = path.read_text().splitlines()
    assert [json.loads(lines[i]) for i in (0, 2, 3)] == [
        {"config": {}}, {"resumed": True, "config": {"lr": 1}}, {"step": 1, "loss": 1.0},
    ]  # fmt: skip
    another = JsonLinesLogger(tmp_path / "b.jsonl")
    another.load_state_dict(first.state_dict())
    assert another.path == tmp_path / "b.jsonl"


def test_a_run_may_go_on_with_other_loggers(tmp_path: Path) -> None:
    alone = JsonLinesLogger(tmp_path / "a")
    both = SeveralLoggers([WandbLogger("p", run_id="other"), JsonLinesLogger(tmp_path / "a")])
    both.load_state_dict(alone.state_dict())
    assert both.loggers[0].run_id == "other"  # type: ignore[attr-defined]
    both.load_state_dict({"run_id": "mine"})
    assert both.loggers[0].run_id == "mine"  # type: ignore[attr-defined]
    NullLogger().load_state_dict(both.state_dict())


def test_several_loggers_all_get_everything(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    several = SeveralLoggers([JsonLinesLogger(path) for path in paths])
    several.start({})
    several.log({"x": 1}, step=0)
    several.log_artifact(LoggedArtifact("sae", "model", []))
    several.finish()
    assert read_lines(paths[0]) == read_lines(paths[1])
    assert len(read_lines(paths[0])) == 3
    assert several.is_active
    assert not SeveralLoggers([NullLogger()]).is_active
    several.load_state_dict(several.state_dict())


def test_the_config_chooses_the_logger(tmp_path: Path) -> None:
    fields = {
        "wandb_project": "p", "wandb_entity": "e", "run_name": "r", "wandb_id": "i",
    }  # fmt: skip
    silent = SimpleNamespace(log_to_wandb=False, log_to_jsonl=None, **fields)
    assert isinstance(make_logger(silent), NullLogger)
    wandb = make_logger(SimpleNamespace(log_to_wandb=True, log_to_jsonl=None, **fields))
    assert isinstance(wandb, WandbLogger)
    assert (wandb.project, wandb.entity, wandb.run_name, wandb.run_id) == ("p", "e", "r", "i")
    both = SimpleNamespace(log_to_wandb=True, log_to_jsonl=str(tmp_path / "x"), **fields)
    assert isinstance(make_logger(both), SeveralLoggers)


def test_a_histogram_of_numbers_that_are_almost_one() -> None:
    values = torch.tensor([1.0, 1.0]).nextafter(torch.tensor([1.0, 2.0]))
    counts, edges = Histogram(values).counts_and_edges()
    assert counts == [1, *[0] * 62, 1]
    assert all(low < high for low, high in itertools.pairwise(edges))


def test_wandb_writes_a_run_that_can_be_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is replaced here: W&B runs, offline, and its own file format is read afterwards."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"12345")
    logger = WandbLogger("tests", run_name="a run", run_id="abcd1234")
    logger.start({"lr": 0.25, "hook_name": "blocks.0.hook_mlp_out"})
    assert logger.state_dict() == {"run_id": "abcd1234"}
    histogram = Histogram(torch.linspace(0, 1, 10))
    logger.log({"losses/mse_loss": 3.5, "group": {"ce": 0.5}, "plots/h": histogram}, step=9)
    logger.log_artifact(LoggedArtifact("sae_x", "model", [weights], {"d": 1}, ["final_model"]))
    logger.finish()
    assert wandb.run is None

    records = wait_for_end_of_run(next(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    runs = [record.run for record in records if record.HasField("run")]
    assert (runs[0].project, runs[0].display_name, runs[0].run_id) == ("tests", "a run", "abcd1234")
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["lr"] == 0.25
    (history,) = [record.history for record in records if record.HasField("history")]
    logged = {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in history.item
    }
    assert logged["losses/mse_loss"] == 3.5
    assert logged["group/ce"] == 0.5
    assert logged["_step"] == 9
    assert logged["plots/h/_type"] == "histogram"
    assert sum(logged["plots/h/values"]) == 10
    artifacts = [record.artifact for record in records if record.HasField("artifact")]
    assert [(a.name, a.type) for a in artifacts] == [("sae_x", "model")]
    assert "final_model" in artifacts[0].aliases
    assert [entry.path for entry in artifacts[0].manifest.contents] == ["weights.bin"]
    assert records[-1].exit.exit_code == 0


def wait_for_end_of_run(path: Path) -> list[Any]:
    """The records, once W&B's own process has written the last of them."""
    for _ in range(100):
        records = read_wandb_file(path)
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} does not end: {records}")


def read_wandb_file(path: Path) -> list[Any]:
    """The records of a W&B transaction log, which is a LevelDB log with a header of its own."""
    from wandb.proto import wandb_internal_pb2

    data, position, payload, records = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        payload += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            records.append(record)
            payload = b""
    return records
