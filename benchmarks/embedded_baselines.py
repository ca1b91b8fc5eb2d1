"""Held-out loss of the packaged language model beside n-gram models of the same text.

    python benchmarks/embedded_baselines.py

Everything is fitted to the packaged training part and measured on the packaged held-out files, in
bits per byte of UTF-8, so that models over tokens and over bytes can be compared. The n-gram
models are interpolated with modified Kneser-Ney smoothing (Chen and Goodman 1999, section 3):
the strongest of the classical ones. The language model reads each file in rows of its context
length without overlap, so its first predictions in a row have little to go by.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from sae_lens.activations.embedded import (
    load_embedded_model,
    load_embedded_text,
    load_embedded_tokenizer,
)
from sae_lens.atomic_files import atomic_write_json

log = logging.getLogger("embedded_baselines")

START = 0  # the symbol before a document, in both alphabets


@dataclass(frozen=True)
class Order:
    """What a Kneser-Ney model keeps of the n-grams of one length.

    An n-gram's key is the number of its first n-1 symbols times the alphabet plus its last symbol.
    """

    keys: np.ndarray  # sorted, one per distinct n-gram
    counts: np.ndarray  # occurrences; for shorter n, distinct symbols seen before it
    discounts: np.ndarray  # for counts 0, 1, 2, 3 and more
    totals: np.ndarray  # per context: sum of counts
    freed: np.ndarray  # per context: sum of discounts, handed to the shorter context


class KneserNey:
    """An interpolated n-gram model; `stream` has `order - 1` START symbols before each document."""

    def __init__(self, stream: np.ndarray, order: int, alphabet: int):
        self.alphabet, self.length = alphabet, order
        self.orders: list[Order] = []
        keys_by_order, counts_by_order = [np.arange(alphabet)], [np.bincount(stream)]
        ids = stream.astype(np.int64)
        for n in range(2, order + 1):
            keys = ids[:-1] * alphabet + stream[n - 1 :]
            keys, first, new_ids, counts = np.unique(
                keys, return_index=True, return_inverse=True, return_counts=True
            )
            # Of a shorter n-gram, only in how many contexts it occurs is of interest.
            without_first = ids[first + 1]
            counts_by_order[-1] = np.bincount(without_first, minlength=len(keys_by_order[-1]))
            keys_by_order.append(keys)
            counts_by_order.append(counts)
            ids = new_ids
        contexts = 1
        for keys, counts in zip(keys_by_order, counts_by_order, strict=True):
            counts = np.pad(counts, (0, len(keys) - len(counts)))
            self.orders.append(summarise(keys, counts, contexts, alphabet))
            contexts = len(keys)

    def nats(self, stream: np.ndarray) -> np.ndarray:
        """Minus log probability of every symbol after the first `order - 1`: [len - order + 1]."""
        start = self.length - 1
        probability = np.full(len(stream) - start, 1 / self.alphabet)
        ids = np.zeros(len(stream) + 1, dtype=np.int64)  # of the empty context, at each position
        for n, order in enumerate(self.orders, start=1):
            keys = np.where(ids[:-1] >= 0, ids[:-1] * self.alphabet + stream[n - 1 :], -1)
            found = np.minimum(np.searchsorted(order.keys, keys), len(order.keys) - 1)
            new_ids = np.where(order.keys[found] == keys, found, -1)
            here = slice(start - n + 1, None)  # the n-gram that ends at each predicted symbol
            context, gram = ids[:-1][here], new_ids[here]
            count = np.where(gram >= 0, order.counts[gram], 0)
            own = np.maximum(count - order.discounts[np.minimum(count, 3)], 0)
            total = np.where(context >= 0, order.totals[context], 0)
            seen = total > 0
            probability[seen] = (own[seen] + order.freed[context[seen]] * probability[seen]) / (
                total[seen]
            )
            ids = new_ids
        return -np.log(probability)


def summarise(keys: np.ndarray, counts: np.ndarray, contexts: int, alphabet: int) -> Order:
    """Discounts and per-context sums of the n-grams of one length."""
    once, twice, thrice, four = (max(1, int((counts == k).sum())) for k in (1, 2, 3, 4))
    y = once / (once + 2 * twice)
    discounts = np.array(
        [0, 1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four / thrice]
    ).clip(0, None)
    context = keys // alphabet
    freed = np.bincount(context, weights=discounts[np.minimum(counts, 3)], minlength=contexts)
    totals = np.bincount(context, weights=counts, minlength=contexts)
    return Order(keys, counts, discounts, totals, freed)


def joined(documents: list[list[int]] | list[np.ndarray], padding: int) -> np.ndarray:
    """All symbols, with `padding` START symbols before each document."""
    start = np.full(padding, START, dtype=np.int64)
    return np.concatenate([part for d in documents for part in (start, np.asarray(d))])


def n_gram_bits(
    train: list[np.ndarray], held_out: list[np.ndarray], order: int, alphabet: int, size: int
) -> float:
    """Bits per byte of the held-out documents under an n-gram model of the training documents."""
    padding = max(1, order - 1)
    model = KneserNey(joined(train, padding), order, alphabet)
    stream = joined(held_out, padding)
    nats = model.nats(stream)
    return float(nats[stream[order - 1 :] != START].sum() / math.log(2) / size)


@torch.no_grad()
def model_bits(documents: list[np.ndarray], size: int) -> tuple[float, int]:
    """Bits per byte of the packaged model, and the tokens that were predicted."""
    model = load_embedded_model()
    width = model.cfg.n_ctx - 1
    nats, count = 0.0, 0
    for document in tqdm(documents, desc="language model"):
        for at in range(0, len(document), 16 * width):
            chunk = document[at : at + 16 * width]
            for part in np.split(chunk, [len(chunk) // width * width]):
                if len(part):
                    rows = torch.from_numpy(part.reshape(-1, min(width, len(part))))
                    tokens = torch.cat([torch.full_like(rows[:, :1], START), rows], dim=1)
                    logits = model(tokens[:, :-1]).flatten(0, 1)
                    targets = tokens[:, 1:].flatten()
                    nats += float(torch.nn.functional.cross_entropy(logits, targets).double()) * (
                        len(targets)
                    )
                    count += len(targets)
    return nats / math.log(2) / size, count


def main() -> None:
    """Measure and log the table; with --json also write it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    texts = {split: load_embedded_text(split)["text"][:] for split in ("train", "heldout")}
    size = sum(len(text.encode()) for text in texts["heldout"])
    tokenizer = load_embedded_tokenizer()
    tokens = {
        split: [np.asarray(ids) for ids in tokenizer(part, add_special_tokens=False).input_ids]
        for split, part in texts.items()
    }
    raw = {
        split: [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) + 1 for text in part]
        for split, part in texts.items()
    }
    figures: dict[str, float] = {}
    for order in tqdm((1, 5), desc="n-grams of tokens"):
        figures[f"{order}-gram over tokens"] = n_gram_bits(
            tokens["train"], tokens["heldout"], order, len(tokenizer), size
        )
    for order in tqdm((1, 5), desc="n-grams of bytes"):
        figures[f"{order}-gram over bytes"] = n_gram_bits(
            raw["train"], raw["heldout"], order, 257, size
        )
    figures["embedded model"], count = model_bits(tokens["heldout"], size)
    log.info("held out: %d files, %d bytes, %d tokens", len(texts["heldout"]), size, count)
    log.info("%-22s %s", "model", "bits per byte")
    for name, bits in sorted(figures.items(), key=lambda pair: -pair[1]):
        log.info("%-22s %.3f", name.replace("1-gram", "unigram"), bits)
    if options.json:
        atomic_write_json(options.json, json.loads(json.dumps(figures)), indent=1)


if __name__ == "__main__":
    main()
