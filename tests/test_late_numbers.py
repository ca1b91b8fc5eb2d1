"""A number on its way to the host is the one that the tensor had at the time."""

import torch

from sae_lens.late_numbers import LateNumber


def test_later_changes_do_not_reach_it() -> None:
    count = torch.tensor(3)
    late = LateNumber(count)
    count.add_(1)
    assert late.has_arrived()
    assert late.value() == 3 and LateNumber(count).value() == 4
