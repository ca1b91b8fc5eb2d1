"""The small language model and the text that come with the package; no network is touched.

A four-layer transformer with its own tokenizer, trained on CPython's standard library and
documentation by `benchmarks/train_embedded_model.py`. Demo, tutorials and tests use it through
the names `EMBEDDED_MODEL_NAME` and `EMBEDDED_DATASET_NAME`, which `load_model` and everything
that takes a dataset path understand.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file

from sae_lens.constants import DTYPE_MAP, EMBEDDED_DATASET_NAME, EMBEDDED_MODEL_NAME
from sae_lens.errors import InvalidArgumentError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "data" / "tiny_python"
EMBEDDED_SPLITS = ("train", "heldout")

# What `HookedTransformer.from_pretrained` may do to the weights; all off unless asked for.
_PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)


def load_embedded_model(
    model_class: type[Any] | None = None,
    device: str | torch.device | None = "cpu",
    dtype: str | torch.dtype = torch.float32,
    default_prepend_bos: bool = True,
    default_padding_side: Literal["left", "right"] = "right",
    **processing: bool,
) -> Any:
    """The packaged language model, as an instance of `model_class`.

    Args:
        model_class: `HookedTransformer` (the default) or a subclass of it.
        device: Where the model goes; None is the CPU.
        dtype: Of the parameters. They are stored in float16.
        default_prepend_bos: As for `HookedTransformer.from_pretrained`.
        default_padding_side: As for `HookedTransformer.from_pretrained`.
        **processing: `fold_ln`, `center_writing_weights`, `center_unembed`, `fold_value_biases`
            and `refactor_factored_attn_matrices`, as for `HookedTransformer.from_pretrained`;
            here they are all off by default.

    Raises:
        InvalidArgumentError: A keyword that is none of these.
        FileNotFoundError: The package was installed without its data.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    unknown = sorted(set(processing) - set(_PROCESSING))
    if unknown:
        raise InvalidArgumentError(
            f"The embedded model {EMBEDDED_MODEL_NAME!r} takes no argument {', '.join(unknown)}. "
            f"Beside device, dtype, default_prepend_bos and default_padding_side it takes "
            f"{', '.join(_PROCESSING)}. Remove it from model_from_pretrained_kwargs."
        )
    shape = json.loads(_packaged("config.json").read_text(encoding="utf-8"))["model"]
    cfg = HookedTransformerConfig(
        n_layers=shape["n_layers"],
        d_model=shape["d_model"],
        n_heads=shape["n_heads"],
        d_head=shape["d_model"] // shape["n_heads"],
        d_mlp=shape["d_mlp"],
        n_ctx=shape["n_ctx"],
        d_vocab=shape["d_vocab"],
        act_fn="gelu_new",
        normalization_type="LN",
        positional_embedding_type="rotary",
        rotary_dim=shape["d_model"] // shape["n_heads"],
        model_name=EMBEDDED_MODEL_NAME,
        tokenizer_name=EMBEDDED_MODEL_NAME,
        default_prepend_bos=default_prepend_bos,
        init_weights=False,
        dtype=DTYPE_MAP[dtype] if isinstance(dtype, str) else dtype,
        device=str(device or "cpu"),
    )
    model = (model_class or HookedTransformer)(
        cfg, tokenizer=load_embedded_tokenizer(), default_padding_side=default_padding_side
    )
    stored = load_file(_packaged("model.safetensors"))
    stored["unembed.W_U"] = stored["embed.W_E"].T  # tied, so stored once
    state = model.state_dict()
    for name, parameter in model.named_parameters():
        # The biases that the model does not have are not stored; here they are zeros.
        state[name] = stored.get(name, torch.zeros_like(parameter)).to(cfg.dtype)
    model.load_and_process_state_dict(
        state, **{name: processing.get(name, False) for name in _PROCESSING}
    )
    return model


def load_embedded_tokenizer() -> PreTrainedTokenizerFast:
    """The packaged byte-level BPE tokenizer; like Llama's it puts a BOS before a text.

    BOS and EOS are one token that stands between documents; the padding token is another.
    """
    from transformers import PreTrainedTokenizerFast

    config = json.loads(_packaged("config.json").read_text(encoding="utf-8"))
    # TransformerLens loads a tokenizer anew, by its name, unless it says that it adds a BOS.
    return PreTrainedTokenizerFast(
        tokenizer_file=str(_packaged("tokenizer.json")),
        name_or_path=EMBEDDED_MODEL_NAME,
        bos_token=config["bos_token"],
        eos_token=config["bos_token"],
        pad_token=config["pad_token"],
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )


def load_embedded_text(split: str = "train") -> Dataset:
    """The packaged text: one whole file per row, columns "text" and "source" (the file's name).

    Args:
        split: "train", what the model and its tokenizer were trained on, or "heldout", files
            that neither has seen.

    Raises:
        InvalidArgumentError: Another split.
    """
    from datasets import Dataset

    if split not in EMBEDDED_SPLITS:
        raise InvalidArgumentError(
            f"The embedded text {EMBEDDED_DATASET_NAME!r} has no split {split!r}; "
            f"its splits are {' and '.join(map(repr, EMBEDDED_SPLITS))}."
        )
    with lzma.open(_packaged("text.jsonl.xz"), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    # In an order by which code and documentation are mixed, so that any beginning is typical.
    rows.sort(key=lambda row: hashlib.sha256(row["source"].encode()).digest())
    chosen = [row for row in rows if row["split"] == split]
    return Dataset.from_dict({key: [row[key] for row in chosen] for key in ("text", "source")})


def _packaged(name: str) -> Path:
    path = EMBEDDED_FOLDER / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: this copy of sae_lens came without its embedded model. "
            "Install it from the wheel, or make the files with benchmarks/train_embedded_model.py."
        )
    return path
