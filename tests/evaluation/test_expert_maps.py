from pathlib import Path

import torch

from mla_lm.evaluation import expert_maps
from mla_lm.evaluation.expert_maps import draw_by_kind, draw_over_training
from mla_lm.evaluation.language_model import _load_by_kind
from mla_lm.model import Routing


def test_pictures_are_written_without_a_display(tmp_path: Path) -> None:
    loads = torch.randint(9, (5, 2, 4))
    loads[0] = 0  # a kind that does not occur
    draw_over_training(tmp_path / "training.png", [2, 4, 6, 8, 10], loads, ["layer_1", "mtp_1"])
    draw_by_kind(tmp_path / "kinds.png", loads, list("abcde"), ["layer_1", "mtp_1"])
    for name in ("training.png", "kinds.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_shares_are_relative_to_the_mean_of_a_layer() -> None:
    (layer,) = expert_maps._relative(torch.tensor([[[2, 6]], [[5, 5]], [[0, 0]]]))
    assert layer.tolist() == [[0.5, 1.5], [1, 1], [0, 0]]


def test_load_by_kind_by_hand() -> None:
    experts = torch.tensor([[[0, 1], [1, 2], [0, 2]]])
    routing = (Routing(torch.rand(1, 3, 3), experts), Routing(torch.rand(1, 2, 3), experts[:, :2]))
    kinds = torch.tensor([[1, -1, 1]])
    load = _load_by_kind(routing, kinds, 2)
    assert load.tolist() == [[[0, 0, 0]] * 2, [[2, 1, 1], [1, 1, 0]]]
