"""Parameters, training FLOPs, training memory and KV cache in closed form from the configuration.

The tests check the formulae against real tensors. A matrix costs 2 FLOPs per weight and token
forward, and twice that backward; the embedding look-up is not a matmul, the head is.
"""

from collections import Counter
from typing import Literal, NamedTuple

from mla_lm.config import MLAConfig, ModelConfig, MoEConfig, RunConfig
from mla_lm.errors import UserError

BLOCK = ("attention", "dense FFN", "router", "shared experts", "routed experts", "norms")
NEVER_MUON = ("embedding", "router", "norms", "head")  # parts that take AdamW under optim=muon too
FLOAT32 = 4  # bytes per element


class Parameters(NamedTuple):
    """`total` and `active` count the main model, `mtp` and `mtp_active` the MTP modules.

    Active parameters are those that one token uses.
    """

    total: int
    active: int
    mtp: int
    mtp_active: int


class Part(NamedTuple):
    """Parameters, and those that one token uses."""

    total: int
    active: int


def parameters_by_part(cfg: ModelConfig) -> dict[str, Part]:
    """Trainable parameters of the main model by component; a tied head counts as 0."""
    head = cfg.vocab_size * cfg.dim
    parts = {name: [0, 0] for name in ("embedding", *BLOCK, "head")}
    parts["embedding"] = [head, head]
    parts["head"] = [0, 0] if cfg.tie_embeddings else [head, head]
    parts["norms"] = [cfg.dim, cfg.dim]
    n_dense = cfg.n_dense_layers if isinstance(cfg.ffn, MoEConfig) else cfg.n_layers
    for layer, n in ((0, n_dense), (n_dense, cfg.n_layers - n_dense)):  # equal ones, from `layer`
        for name, of_block in _block(cfg, layer).items():
            parts[name] = [a + n * b for a, b in zip(parts[name], of_block, strict=True)]
    return {name: Part(*counts) for name, counts in parts.items()}


def count_parameters(cfg: ModelConfig) -> Parameters:
    """Trainable parameters of the whole model."""
    main, mtp = parameters_by_part(cfg).values(), _mtp_module(cfg).values()
    return Parameters(
        total=sum(part.total for part in main),
        active=sum(part.active for part in main),
        mtp=cfg.mtp_depth * sum(part.total for part in mtp),
        mtp_active=cfg.mtp_depth * sum(part.active for part in mtp),
    )


def require_stored(cfg: ModelConfig, n_bytes: int, place: object) -> None:
    """UserError where files of `n_bytes` cannot hold the weights, of two bytes or more each."""
    parameters = count_parameters(cfg)
    if 2 * (n := parameters.total + parameters.mtp) > n_bytes:
        raise UserError(
            f"{place}: its sizes make {n:,} parameters, its {n_bytes:,} bytes hold fewer"
        )


def training_bytes(cfg: ModelConfig, optimizer: Literal["adamw", "muon"]) -> dict[str, int]:
    """Bytes of what training holds in float32 besides activations, MTP modules included.

    AdamW keeps two moments of a parameter, Muon one of each hidden matrix.
    """
    sizes: Counter[str] = Counter()
    for part, count in parameters_by_part(cfg).items():
        sizes[part] += FLOAT32 * count.total
    for part, count in _mtp_module(cfg).items():
        sizes[part] += FLOAT32 * count.total * cfg.mtp_depth
    by_muon = {part for part in sizes if optimizer == "muon" and part not in NEVER_MUON}
    moments = sum(size * (1 if part in by_muon else 2) for part, size in sizes.items())
    weights = sizes.total()
    return {"weights": weights, "gradients": weights, "optimizer state": moments}


def bytes_of_ranks(cfg: RunConfig, n: int, *, n_ranks: int) -> int:
    """`training_bytes` held by `n` of `n_ranks` ranks; FSDP2 shares them out, DDP does not."""
    of_model = sum(training_bytes(cfg.model, cfg.optim.kind).values())
    return n * of_model // (n_ranks if cfg.trainer.strategy == "fsdp" else 1)


def train_flops_per_token(cfg: ModelConfig, seq_len: int) -> float:
    """FLOPs of forward and backward per token at `seq_len`, attention counted causally."""
    parameters = count_parameters(cfg)
    head = cfg.vocab_size * cfg.dim
    embedding = 0 if cfg.tie_embeddings else head  # a tied matrix is counted once, as the head
    norms = _norms(cfg)
    matmul = parameters.active + parameters.mtp_active - embedding - norms + cfg.mtp_depth * head
    width = attention_width(cfg)
    core = (cfg.n_layers + cfg.mtp_depth) * cfg.n_heads * seq_len * width
    return 3.0 * (2 * matmul + core)


def attention_width(cfg: ModelConfig) -> int:
    """Width of one head's key plus that of its value."""
    attention = cfg.attention
    if isinstance(attention, MLAConfig):
        return attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
    return 2 * attention.head_dim


def cache_elements_per_token(cfg: ModelConfig) -> int:
    """Elements per token of the main model's KV cache; MTP modules not counted."""
    attention = cfg.attention
    if isinstance(attention, MLAConfig):
        return cfg.n_layers * (attention.kv_lora_rank + attention.qk_rope_head_dim)
    return cfg.n_layers * 2 * attention.n_kv_heads * attention.head_dim


def _attention(cfg: ModelConfig) -> tuple[int, int]:
    """Weights of the matrices and of the norms of one attention layer."""
    attention, dim, heads = cfg.attention, cfg.dim, cfg.n_heads
    if not isinstance(attention, MLAConfig):
        width = attention.head_dim
        norms = 2 * width if attention.qk_norm else 0
        return 2 * dim * width * (heads + attention.n_kv_heads), norms
    nope, rope = attention.qk_nope_head_dim, attention.qk_rope_head_dim
    v_dim, rank, q_rank = attention.v_head_dim, attention.kv_lora_rank, attention.q_lora_rank
    q_dim = heads * (nope + rope)
    query = dim * q_dim if q_rank is None else q_rank * (dim + q_dim)
    key_value = dim * (rank + rope) + rank * heads * (nope + v_dim)
    return query + key_value + heads * v_dim * dim, rank + (q_rank or 0)


def _block(cfg: ModelConfig, layer: int) -> dict[str, Part]:
    """Parameters of one block by part."""
    matrices, norms = _attention(cfg)
    norms += 2 * cfg.dim
    parts = {"attention": Part(matrices, matrices), "norms": Part(norms, norms)}
    if not (isinstance(cfg.ffn, MoEConfig) and cfg.is_moe(layer)):
        dense = 3 * cfg.dim * cfg.inter_dim
        return {**parts, "dense FFN": Part(dense, dense)}
    expert = 3 * cfg.dim * cfg.ffn.moe_inter_dim
    router = cfg.dim * cfg.ffn.n_routed_experts
    shared = cfg.ffn.n_shared_experts * expert
    return {
        **parts,
        "router": Part(router, router),
        "shared experts": Part(shared, shared),
        "routed experts": Part(
            cfg.ffn.n_routed_experts * expert, cfg.ffn.n_activated_experts * expert
        ),
    }


def _mtp_module(cfg: ModelConfig) -> dict[str, Part]:
    """Parameters of one MTP module by part."""
    block = _block(cfg, cfg.n_layers)
    projection = 2 * cfg.dim * cfg.dim
    norms = block["norms"].total + 3 * cfg.dim  # two of the inputs, and the final one
    return {**block, "projection": Part(projection, projection), "norms": Part(norms, norms)}


def _norms(cfg: ModelConfig) -> int:
    """Norm weights of the whole model, MTP modules included."""
    in_block = 2 * cfg.dim + _attention(cfg)[1]
    return (cfg.n_layers + cfg.mtp_depth) * in_block + cfg.dim * (1 + 3 * cfg.mtp_depth)


def describe(cfg: RunConfig, precision: str, minutes: float | None = None) -> str:
    """The plan of a run, in a few lines for the console; `minutes` it is expected to take."""
    parameters = count_parameters(cfg.model)
    elements = cache_elements_per_token(cfg.model)
    flops = train_flops_per_token(cfg.model, cfg.data.seq_len)
    per_step = cfg.data.batch_size * cfg.data.seq_len * cfg.trainer.accumulate_grad_batches
    expected = "" if minutes is None else f", about {minutes:.1f} min on this machine"
    rows = {
        "model": f"{cfg.model.attention.kind} + {cfg.model.ffn.kind}, {cfg.model.n_layers} layers",
        "parameters": f"{parameters.total / 1e6:.2f}M, {parameters.active / 1e6:.2f}M active; "
        f"MTP {parameters.mtp / 1e6:.2f}M, {parameters.mtp_active / 1e6:.2f}M active",
        "training": f"{flops / 1e6:.1f}M FLOPs per token",
        "KV cache": f"{elements} elements per token ({2 * elements} bytes in bfloat16)",
        "precision": precision,
        "plan": f"{cfg.trainer.max_steps:,} steps of {per_step:,} tokens, "
        f"{cfg.trainer.max_steps * per_step / 1e6:.2f}M tokens{expected}",
        "run folder": cfg.run_dir,
    }
    return "\n".join(f"{name:11} {value}" for name, value in rows.items())
