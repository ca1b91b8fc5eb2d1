"""Makes the small language model and the text that the package carries.

    python benchmarks/train_embedded_model.py corpus --docs .../html/_sources
    python benchmarks/train_embedded_model.py train --steps 2150 --bfloat16

`--docs` is a folder with the `.rst.txt` sources of CPython's documentation (in Debian's package
python3.11-doc they are under `html/_sources`). `corpus` collects CPython's standard library and
documentation (both under the PSF licence), holds out whole files, trains the tokenizer, and writes
the text and the tokenizer into the package. `train` needs nothing but those files, so anyone can
repeat it from an installed package. The learning rate follows the share of the budget that is used
up, be it minutes or `--steps`; with `--steps` the run is the same on every repetition. A run that
was stopped goes on from `--state`.

The model is a plain pre-norm decoder: rotary positions, tanh-GELU, LayerNorm, embedding and
unembedding tied. It is written out here in plain torch, without hooks, to train fast; `export`
writes the parameters under the names of TransformerLens.
Matrices inside the blocks are trained with Muon (Jordan et al. 2024), everything else with Adam.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import lzma
import math
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from tqdm.auto import tqdm

from sae_lens.atomic_files import (
    atomic_path,
    atomic_save_safetensors,
    atomic_write_bytes,
    atomic_write_json,
)

log = logging.getLogger("train_embedded_model")

PACKAGE_FOLDER = Path(__file__).resolve().parents[1] / "sae_lens" / "data" / "tiny_python"
TEXT_FILENAME = "text.jsonl.xz"
TOKENIZER_FILENAME = "tokenizer.json"
CONFIG_FILENAME = "config.json"
WEIGHTS_FILENAME = "model.safetensors"

BOS = "<|endoftext|>"
PAD = "<|pad|>"
HELD_OUT_SHARE = 0.04

# Tests are left out for size; grammars, translations tables and generated data are not language.
SKIPPED_FOLDERS = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3",
    "encodings", "pydoc_data", "ensurepip", "lib-dynload", "turtledemo",
}  # fmt: skip
MIN_CHARACTERS, MAX_CHARACTERS = 200, 600_000


# --- corpus ------------------------------------------------------------------------------------


def is_held_out(name: str) -> bool:
    """Whether a file belongs to the held-out part: decided by its name alone."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return number / 2**64 < HELD_OUT_SHARE


def source_files(stdlib: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of each Python source of the standard library that is kept."""
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if not SKIPPED_FOLDERS & set(relative.parts) and not relative.name.startswith("_sysconfig"):
            yield f"Lib/{relative.as_posix()}", path


def documentation_files(docs: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of each page of the documentation, in reStructuredText."""
    for path in sorted(docs.rglob("*.rst.txt")):
        yield f"Doc/{path.relative_to(docs).as_posix().removesuffix('.txt')}", path


def build_corpus(stdlib: Path, docs: Path | None, folder: Path, vocabulary: int) -> None:
    """Write the text (with its split) and the tokenizer, which sees the training part only."""
    files = list(source_files(stdlib)) + (list(documentation_files(docs)) if docs else [])
    rows: list[dict[str, str]] = []
    for name, path in tqdm(files, desc="reading"):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            split = "heldout" if is_held_out(name) else "train"
            rows.append({"split": split, "source": name, "text": text.replace("\r\n", "\n")})
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**25}]
    packed = lzma.compress(lines.encode("utf-8"), filters=filters)
    atomic_write_bytes(folder / TEXT_FILENAME, packed)
    tokenizer = train_tokenizer([r["text"] for r in rows if r["split"] == "train"], vocabulary)
    with atomic_path(folder / TOKENIZER_FILENAME) as temporary:
        tokenizer.save(str(temporary), pretty=False)
    for split in ("train", "heldout"):
        part = [row["text"] for row in rows if row["split"] == split]
        log.info("%s: %d documents, %.2f MB", split, len(part), sum(map(len, part)) / 1e6)
    log.info("packed text: %.2f MB", len(packed) / 1e6)


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE; sequences begin with the one special token that also ends documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return tokenizer


def read_split(folder: Path, split: str) -> list[str]:
    """The documents of one split, in file order."""
    with lzma.open(folder / TEXT_FILENAME, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows if row["split"] == split]


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Token ids per document, each with a leading BOS."""
    return [np.asarray(e.ids, dtype=np.int64) for e in tokenizer.encode_batch(texts)]


# --- model -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes of the model; also what the package's config file says of it."""

    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 512
    n_ctx: int = 256
    d_vocab: int = 4096

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, first half against second half: [batch, head, pos, d_head]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.n_heads, d = shape.n_heads, shape.d_model
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(3))
        self.out = nn.Linear(d, d, bias=False)
        self.mlp_in, self.mlp_out = nn.Linear(d, shape.d_mlp), nn.Linear(shape.d_mlp, d)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.mlp_out.weight)
        nn.init.zeros_(self.mlp_out.bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[batch, pos, d_model] -> the same."""
        h = self.ln1(x)
        q, k, v = (p(h).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for p in self.qkv)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).flatten(2))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.ln2(x)), approximate="tanh"))


class TinyTransformer(nn.Module):
    """The whole model; the unembedding is the transposed embedding."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.d_vocab, shape.d_model)
        nn.init.normal_(self.embed.weight, std=0.05)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.ln_final = nn.LayerNorm(shape.d_model)
        half = shape.d_head // 2
        angles = torch.arange(shape.n_ctx)[:, None] / 10_000 ** (torch.arange(half) / half)
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, pos] ids -> [batch, pos, d_vocab] logits."""
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.linear(self.ln_final(x), self.embed.weight)


def transformer_lens_weights(model: TinyTransformer) -> dict[str, Tensor]:
    """The parameters under TransformerLens's names and shapes, without those that are all zero."""
    heads = model.shape.n_heads
    weights = {"embed.W_E": model.embed.weight}
    for i, block in enumerate(model.blocks):
        for letter, linear in zip("QKV", block.qkv, strict=True):
            per_head = linear.weight.unflatten(0, (heads, -1)).transpose(1, 2)
            weights[f"blocks.{i}.attn.W_{letter}"] = per_head  # [head, d_model, d_head]
        weights[f"blocks.{i}.attn.W_O"] = block.out.weight.T.unflatten(0, (heads, -1))
        weights[f"blocks.{i}.mlp.W_in"] = block.mlp_in.weight.T
        weights[f"blocks.{i}.mlp.b_in"] = block.mlp_in.bias
        weights[f"blocks.{i}.mlp.W_out"] = block.mlp_out.weight.T
        weights[f"blocks.{i}.mlp.b_out"] = block.mlp_out.bias
        for name in ("ln1", "ln2"):
            norm = getattr(block, name)
            weights[f"blocks.{i}.{name}.w"], weights[f"blocks.{i}.{name}.b"] = (
                norm.weight,
                norm.bias,
            )
    weights["ln_final.w"], weights["ln_final.b"] = model.ln_final.weight, model.ln_final.bias
    return {name: tensor.detach().to(torch.float16) for name, tensor in weights.items()}


# --- optimisation ------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by its nearest semi-orthogonal matrix.

    Five Newton-Schulz steps with the coefficients of Jordan et al. 2024 (kellerjordan.github.io/
    posts/muon).
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float, decay: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every matrix."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                velocity = state.setdefault("velocity", torch.zeros_like(weight))
                velocity.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalized(weight.grad.lerp(velocity, group["momentum"]))
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.mul_(1 - group["lr"] * group["decay"])
                weight.add_(update, alpha=-group["lr"] * scale)


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix with its singular values pulled towards one."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.T


def schedule(progress: float, warm_up: float = 0.02, floor: float = 0.02) -> float:
    """Learning-rate factor: short warm-up, then flat, then linear to almost zero."""
    if progress < warm_up:
        return progress / warm_up + 1e-3
    return max(floor, min(1.0, (1 - progress) / 0.7))


def training_rows(
    documents: list[np.ndarray], width: int, batch: int, seed: int, step: int
) -> Iterator[tuple[int, Tensor]]:
    """Endless batches [batch, width] with their epoch, from the given step on.

    Each epoch shuffles the documents, joins them, cuts rows and shuffles those; what comes at a
    step depends on the seed alone.
    """
    epoch, skipped = 0, 0
    while True:
        random = np.random.default_rng((seed, epoch))
        rows = rows_of([documents[i] for i in random.permutation(len(documents))], width)
        order = random.permutation(len(rows) // batch * batch).reshape(-1, batch)
        for chosen in order[max(0, step - skipped) :]:
            yield epoch, rows[torch.from_numpy(chosen)]
        skipped += len(order)
        epoch += 1


def rows_of(documents: list[np.ndarray], width: int) -> Tensor:
    """Documents joined and cut into rows [n, width]; each row has a BOS put before it."""
    stream = np.concatenate(documents)
    count = len(stream) // (width - 1)
    rows = np.zeros((count, width), dtype=np.int64)  # BOS is id 0
    rows[:, 1:] = stream[: count * (width - 1)].reshape(count, width - 1)
    return torch.from_numpy(rows)


@torch.no_grad()
def held_out_nats(model: TinyTransformer, documents: list[np.ndarray], limit: int) -> float:
    """Mean loss in nats per token over `limit` rows spread evenly over the held-out documents."""
    rows = rows_of(documents, model.shape.n_ctx + 1)
    rows = rows[:: max(1, len(rows) // limit)]
    total, count = 0.0, 0
    for batch in rows.split(16):
        logits = model(batch[:, :-1]).float()
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        count += batch[:, 1:].numel()
    return float(total) / count


def train(options: argparse.Namespace) -> None:
    """Train within the budget, export along the way and at the end."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    folder: Path = options.folder
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILENAME))
    shape = Shape(d_vocab=tokenizer.get_vocab_size())
    documents = encode_documents(tokenizer, read_split(folder, "train"))
    held_out_texts = read_split(folder, "heldout")
    held_out = encode_documents(tokenizer, held_out_texts)
    bits_per_nat_and_byte = (
        sum(map(len, held_out)) / sum(len(text.encode()) for text in held_out_texts) / math.log(2)
    )
    log.info("%.2fM training tokens", sum(map(len, documents)) / 1e6)

    model = TinyTransformer(shape)
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers = [
        Muon(matrices, lr=options.muon_lr, momentum=0.95, decay=0.1),
        torch.optim.Adam(rest, lr=options.adam_lr, betas=(0.9, 0.98), eps=1e-10),
    ]
    bases = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    step, elapsed, history = 0, 0.0, []
    if options.state.exists():
        saved = torch.load(options.state, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        step, elapsed, history = saved["step"], saved["elapsed"], saved["history"]
        log.info("going on from step %d", step)
    started = time.monotonic() - elapsed
    last_export, first_step, resumed = time.monotonic(), step, time.monotonic()

    def keep() -> None:
        state = {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "elapsed": time.monotonic() - started,
            "history": history,
        }
        with atomic_path(options.state) as temporary:
            torch.save(state, temporary)
        export(model, folder, step, options, history)

    bar = tqdm(total=1000, desc="training", file=sys.stderr, mininterval=2)
    rows = training_rows(documents, shape.n_ctx + 1, options.batch, options.seed, step)
    for epoch, tokens in rows:
        if options.steps:
            progress = step / options.steps
        else:
            progress = (time.monotonic() - started) / (60 * options.minutes)
        if progress >= 1:
            break
        for optimizer, base in zip(optimizers, bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * schedule(progress)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bfloat16):
            logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        seen = step * options.batch * shape.n_ctx
        bar.n = int(1000 * progress)
        if step % 10 == 0:
            rate = (step - first_step) * options.batch * shape.n_ctx / (time.monotonic() - resumed)
            bar.set_postfix_str(f"step {step} loss {loss.item():.3f} {rate:.0f} tokens/s")
        if step % options.eval_every == 0:
            nats = held_out_nats(model, held_out, 64)
            bits = nats * bits_per_nat_and_byte
            history.append({"step": step, "bits_per_byte": bits})
            log.info(
                "step %d (%.1fM tokens, epoch %d): held-out %.4f nats/token, %.4f bits/byte",
                *(step, seen / 1e6, epoch, nats, bits),
            )
        if time.monotonic() - last_export > 60 * options.export_minutes:
            last_export = time.monotonic()
            keep()
    keep()


def export(
    model: TinyTransformer,
    folder: Path,
    step: int,
    options: argparse.Namespace,
    history: list[dict[str, float]],
) -> None:
    """Write weights and config into the package folder, each whole or not at all."""
    atomic_save_safetensors(transformer_lens_weights(model), folder / WEIGHTS_FILENAME)
    shape = asdict(model.shape)
    training = {
        "steps": step,
        "tokens": step * options.batch * model.shape.n_ctx,
        "seed": options.seed,
        "batch": options.batch,
        "curve": [[int(h["step"]), round(h["bits_per_byte"], 4)] for h in history],
    }
    config = {"model": shape, "bos_token": BOS, "pad_token": PAD, "training": training}
    atomic_write_json(folder / CONFIG_FILENAME, config, indent=1)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus", help="collect the text and train the tokenizer")
    corpus.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    corpus.add_argument("--docs", type=Path, help="folder of the documentation's .rst.txt sources")
    corpus.add_argument("--vocabulary", type=int, default=4096)
    training = commands.add_parser("train", help="train the model on the packaged text")
    training.add_argument("--minutes", type=float, default=40.0, help="wall-clock budget")
    training.add_argument("--steps", type=int, help="a budget in steps instead: repeatable")
    training.add_argument("--batch", type=int, default=16, help="rows of context per step")
    training.add_argument("--muon-lr", type=float, default=0.02)
    training.add_argument("--adam-lr", type=float, default=0.003)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--threads", type=int, default=2)
    training.add_argument("--eval-every", type=int, default=200)
    training.add_argument("--export-minutes", type=float, default=5.0)
    training.add_argument(
        "--state", type=Path, default=Path("train_embedded_model.pt"), help="to go on after a stop"
    )
    training.add_argument("--bfloat16", action="store_true", help="where the CPU has it natively")
    for command in (corpus, training):
        command.add_argument("--folder", type=Path, default=PACKAGE_FOLDER)
    return parser.parse_args()


def main() -> None:
    """Run the chosen command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = parse_arguments()
    if options.command == "corpus":
        build_corpus(options.stdlib, options.docs, options.folder, options.vocabulary)
    else:
        train(options)


if __name__ == "__main__":
    main()
