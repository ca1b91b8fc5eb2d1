"""The only place that looks inside a hook name."""

HEAD_AXIS_KINDS = ("hook_q", "hook_k", "hook_v", "hook_z")


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
