"""AdamW and Muon in one optimizer."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from mla_lm.config import OptimConfig
from mla_lm.machine import resolve_precision
from mla_lm.model.sharding import part, whole

MUON_MOMENTUM = 0.95


class MuonAdamW(Optimizer):
    """AdamW for groups of `kind: adamw`, Muon (arXiv 2502.16982) for matrices of `kind: muon`.

    Muon steps along the orthogonalised momentum, scaled to the RMS of an AdamW step, so both kinds
    share learning rate and decay. Each stacked expert (E, rows, columns) is a matrix of its own, as
    is each block of rows of a projection, such as a head; `parts` has their numbers of rows.
    A matrix whose gradient is zero, such as an expert without a token, is left alone: what is left
    of its momentum would make a step of full size. (Steps of AdamW fade with the momentum.)
    Sharded matrices are gathered on every rank, one shape at a time; each rank keeps its shard.
    """

    def __init__(
        self, groups: list[dict[str, Any]], cfg: OptimConfig, parts: Mapping[Tensor, Sequence[int]]
    ) -> None:
        defaults = {"lr": cfg.lr, "betas": cfg.betas, "eps": cfg.eps, "momentum": MUON_MOMENTUM}
        super().__init__(groups, defaults)
        self.parts = parts
        for group in self.param_groups:  # all of it from the start: what a checkpoint must hold
            self.state.update({p: _fresh_state(p, group["kind"]) for p in group["params"]})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            step = self._muon if group["kind"] == "muon" else self._adamw
            step(group, [p for p in group["params"] if p.grad is not None])
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        by_shape: dict[torch.Size, dict[Tensor, list[int]]] = defaultdict(lambda: defaultdict(list))
        for p in parameters:
            assert p.grad is not None
            self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
            row = 0
            for n_rows in self.parts.get(p, p.shape[-2:-1]):
                if n_rows:
                    by_shape[torch.Size((n_rows, p.shape[-1]))][p].append(row)
                row += n_rows
        for shape, members in by_shape.items():
            self._muon_of_shape(shape, members, group)

    def _muon_of_shape(
        self, shape: torch.Size, members: Mapping[Tensor, Sequence[int]], group: dict[str, Any]
    ) -> None:
        """Step the blocks of `shape`; `members` has the first rows of the blocks of each parameter.

        Sharded tensors are gathered only here: the momenta of all members, the weights one by one.
        """

        def updates(p: Tensor) -> list[Tensor]:
            assert p.grad is not None
            nesterov = whole(p.grad.lerp(self.state[p]["momentum_buffer"], group["momentum"]))
            return [nesterov.narrow(-2, row, shape[0]).reshape(-1, *shape) for row in members[p]]

        matrices = torch.cat([update for p in members for update in updates(p)])
        sizes = [p.shape[:-2].numel() for p, rows in members.items() for _ in rows]
        steps = iter(orthogonalize(matrices).split(sizes))
        decay, scale = 1 - group["lr"] * group["weight_decay"], 0.2 * max(shape) ** 0.5
        for p, rows in members.items():
            assert p.grad is not None
            matrix, largest = whole(p), whole(p.grad.abs().amax(dim=-1))  # (..., rows)
            for row in rows:
                before = matrix.narrow(-2, row, shape[0])
                step = next(steps).view_as(before)
                after = (before * decay).add_(step, alpha=-group["lr"] * scale)
                has_gradient = largest.narrow(-1, row, shape[0]).any(dim=-1)[..., None, None]
                before.copy_(after.where(has_gradient, before))
            if matrix is not p:
                p.copy_(part(matrix, p))

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            self.state[p]["step"] = self.state[p]["step"].to(p.device)  # read from a file: on CPU
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            **{key: group[key] for key in ("lr", "weight_decay", "eps")},
        )


def _fresh_state(p: Tensor, kind: str) -> dict[str, Tensor]:
    if kind == "muon":
        return {"momentum_buffer": torch.zeros_like(p)}
    step = torch.zeros((), dtype=torch.float32, device=p.device)
    return {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximately the nearest semi-orthogonal matrices: singular values of about 1.

    Five quintic Newton-Schulz steps (Jordan et al. 2024) on (n, rows, columns), in bfloat16 where
    the hardware supports it.
    """
    fast = resolve_precision("auto", matrices.device.type) == "bf16-mixed"
    x = matrices.bfloat16() if fast else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).type_as(matrices)


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> Optimizer:
    """Matrices decay, vectors (norms) do not; under `kind: muon` the hidden matrices take Muon."""
    groups: dict[str, list[Tensor]] = {"muon": [], "matrices": [], "vectors": []}
    for name, p in model.named_parameters():
        outer = name.startswith(("embed", "lm_head")) or name.endswith("router.weight")
        hidden = "matrices" if outer or cfg.kind == "adamw" else "muon"
        groups[hidden if p.ndim >= 2 else "vectors"].append(p)
    return MuonAdamW(
        [
            {
                "params": parameters,
                "kind": "muon" if name == "muon" else "adamw",
                "weight_decay": 0.0 if name == "vectors" else cfg.weight_decay,
            }
            for name, parameters in groups.items()
            if parameters
        ],
        cfg,
        {
            module.get_parameter(name): sizes
            for module in model.modules()
            for name, sizes in getattr(module, "row_parts", {}).items()
        },
    )
