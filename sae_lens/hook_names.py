"""The only place that looks inside a hook name."""

HEAD_AXIS_KINDS = ("hook_q", "hook_k", "hook_v", "hook_z")

# In which order the parts of a block run, by the first part of the name behind its number.
_PARTS_OF_A_BLOCK = (
    ("hook_resid_pre",),
    ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input"),
    ("ln1",),
    ("attn",),
    ("ln1_post",),
    ("hook_attn_out",),
    ("hook_resid_mid",),
    ("hook_mlp_in",),
    ("ln2",),
    ("mlp",),
    ("ln2_post",),
    ("hook_mlp_out",),
    ("hook_resid_post",),
)


def layer_of(hook_name: str) -> int:
    """The first integer part of a hook name: 3 for `blocks.3.hook_mlp_out`, 0 without one."""
    for part in hook_name.split("."):
        if part.isdigit():
            return int(part)
    return 0


def is_hook_z(hook_name: str) -> bool:
    """Whether the hook holds attention outputs before their projection, `[..., head, d_head]`."""
    return hook_name.endswith("_z")


def has_head_axis(hook_name: str) -> bool:
    """Whether activations at this hook have a head axis that an SAE sees flattened."""
    return any(kind in hook_name for kind in HEAD_AXIS_KINDS)


def runs_before(hook_name: str, other: str) -> bool | None:
    """Whether the first hook runs before the second; None where their names do not tell."""
    places = _place(hook_name), _place(other)
    if None in places or places[0] == places[1]:
        return None
    first, second = places
    return first < second  # type: ignore[operator]


def refuse_wrong_order(hook_name: str | None, hook_name_out: str | None) -> None:
    """`ValueError` when the names say that a transcoder's output comes before its input."""
    if hook_name and hook_name_out and runs_before(hook_name_out, hook_name):
        raise ValueError(
            f"hook_name_out={hook_name_out!r} runs before hook_name={hook_name!r}; a transcoder's "
            "input has to come first. Exchange them."
        )


def _place(hook_name: str) -> tuple[int, int] | None:
    """(block, part of it) of a hook, in the order in which a transformer runs."""
    parts = hook_name.split(".")
    if len(parts) < 3 or parts[0] != "blocks" or not parts[1].isdigit():
        return None
    for place, names in enumerate(_PARTS_OF_A_BLOCK):
        if parts[2] in names:
            return int(parts[1]), place
    return None
