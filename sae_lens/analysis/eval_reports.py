"""Results of evaluations as files: JSON, a flat table, and the groups of the benchmark suites."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from sae_lens.atomic_files import atomic_write_json


class ResultFiles(TypedDict):
    """Where `process_results` wrote."""

    individual_jsons: list[Path]
    combined_json: Path
    csv: Path


def nested_dict() -> defaultdict[Any, Any]:
    """A dict whose missing entries are such dicts."""
    return defaultdict(nested_dict)


def dict_to_nested(flat_dict: Mapping[str, Any]) -> defaultdict[Any, Any]:
    """Keys split at "/": `{"a/b": 1}` becomes `{"a": {"b": 1}}`."""
    nested = nested_dict()
    for key, value in flat_dict.items():
        *parents, last = key.split("/")
        place = nested
        for parent in parents:
            place = place[parent]
        place[last] = value
    return nested


def replace_nans_with_negative_one(obj: Any) -> Any:
    """A copy of nested dicts and lists with −1 in the place of NaN, which JSON cannot say."""
    if isinstance(obj, dict):
        return {key: replace_nans_with_negative_one(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [replace_nans_with_negative_one(value) for value in obj]
    return -1 if isinstance(obj, float) and math.isnan(obj) else obj


def write_result(result: Mapping[str, Any], folder: Path) -> Path:
    """Write one result as `{unique_id}_{context_size}_{dataset}.json`, "/" as "_"."""
    cfg = result["eval_cfg"]
    name = f"{result['unique_id']}_{cfg['context_size']}_{cfg['dataset']}.json".replace("/", "_")
    atomic_write_json(folder / name, replace_nans_with_negative_one(dict(result)), indent=2)
    return folder / name


def process_results(
    eval_results: Sequence[Mapping[str, Any]], output_dir: str | Path
) -> ResultFiles:
    """Write results as JSON, one file each and one with all, and as a flat CSV table.

    NaN becomes −1. Files are named `{unique_id}_{context_size}_{dataset}.json` with "/" as "_",
    `all_eval_results.json` and `all_eval_results.csv`.

    Returns:
        `individual_jsons` (every JSON file in the folder), `combined_json`, `csv`.
    """
    import pandas as pd

    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    clean = [replace_nans_with_negative_one(dict(result)) for result in eval_results]
    for result in clean:
        write_result(result, folder)
    combined = folder / "all_eval_results.json"
    atomic_write_json(combined, clean, indent=2)
    table = folder / "all_eval_results.csv"
    pd.json_normalize(clean).to_csv(table, index=False)
    return {
        "individual_jsons": sorted(folder.glob("*.json")),
        "combined_json": combined,
        "csv": table,
    }


def core_report(result: Mapping[str, Any]) -> dict[str, Any]:
    """One result in the shape of SAEBench's "core" evaluation.

    `eval_result_metrics` holds the groups of metrics, `eval_result_details` one entry per feature;
    the rest says what was evaluated and how. NaN becomes −1.
    """
    details = [
        {"index": index, **{name: values[index] for name, values in result_lists(result).items()}}
        for index in range(number_of_features(result))
    ]
    report = {
        "eval_type_id": "core",
        "eval_config": result["eval_cfg"],
        "eval_id": result["unique_id"],
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": result["metrics"],
        "eval_result_details": details,
        "sae_lens_release_id": result["sae_set"],
        "sae_lens_id": result["sae_id"],
        "sae_lens_version": result["eval_cfg"]["library_version"],
        "sae_cfg_dict": result["sae_cfg"],
    }
    return replace_nans_with_negative_one(report)


def result_lists(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """The entries of `feature_metrics` that have one value per feature."""
    return {k: v for k, v in result["feature_metrics"].items() if isinstance(v, list)}


def number_of_features(result: Mapping[str, Any]) -> int:
    """The length of the per-feature lists; 0 without any."""
    return max((len(values) for values in result_lists(result).values()), default=0)


def table_lines(result: Mapping[str, Any]) -> list[str]:
    """The metrics of one result as aligned text: group, metric, value."""
    groups = dict(result["metrics"])
    groups |= groups.pop("by_hook", {})  # each hook's numbers are a group of their own
    rows = [
        (group, name, _number(value))
        for group, values in groups.items()
        for name, value in values.items()
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = []
    previous = None
    for group, name, value in rows:
        shown = group if group != previous else ""
        lines.append(f"{shown:<{widths[0]}}  {name:<{widths[1]}}  {value:>{widths[2]}}")
        previous = group
    return lines


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
