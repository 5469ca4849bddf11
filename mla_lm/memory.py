"""What training keeps in memory, by part, in closed form: bytes of one process.

An estimate: of what is kept between forward and backward pass every large tensor is counted, of
what lives for a moment only the largest. T tokens a row.
"""

from mla_lm.accounting import attention_width, count_parameters, parameters_by_part
from mla_lm.config import MLAConfig, ModelConfig, MoEConfig, RunConfig
from mla_lm.machine import Resolved

EXACT, LOGITS, ROWS = 4, 2**23, 128  # bytes of float32; logits at once; queries at once on a CPU
PADDING = 32  # rows an expert is padded by, on average, on a CPU


def training_memory(cfg: RunConfig, precision: Resolved, *, on_gpu: bool) -> dict[str, int]:
    """Bytes by part; the largest tensors that live for a moment are those of the head."""
    parameters = count_parameters(cfg.model)
    n_weights = parameters.total + parameters.mtp
    width = 2 if precision == "bf16-mixed" else EXACT
    moments = 2 * n_weights
    if cfg.optim.kind == "muon":  # one momentum for the hidden matrices
        ends = sum(parameters_by_part(cfg.model)[name].total for name in ("embedding", "head"))
        moments = n_weights + ends
    n_tokens = cfg.data.batch_size * cfg.data.seq_len
    head = cfg.model.vocab_size * cfg.model.dim
    logits = min(LOGITS, n_tokens * cfg.model.vocab_size)
    return {
        "weights": EXACT * n_weights,
        "gradients": EXACT * n_weights,
        "moments": EXACT * moments,
        "copies in bfloat16": 2 * n_weights if width == 2 else 0,
        "activations": _activations(cfg, width, on_gpu=on_gpu),
        "logits and the head's gradient": EXACT * head + 2 * EXACT * logits,
    }


def _activations(cfg: RunConfig, width: int, *, on_gpu: bool) -> int:
    """Of a micro-batch, until the backward pass has used them."""
    model, seq_len = cfg.model, cfg.data.seq_len
    n_tokens = cfg.data.batch_size * seq_len
    blocks = [
        _block(model, layer, seq_len=seq_len, width=width, on_gpu=on_gpu)
        for layer in range(model.n_layers)
    ]
    join = model.mtp_depth * model.dim * (4 * EXACT + 3 * width)  # norms and projection
    blocks += [blocks[-1]] * model.mtp_depth
    ends = (1 + model.mtp_depth) * model.dim * (2 * EXACT + 2 * width)  # final norms, head
    kept = sum(blocks)
    if cfg.trainer.activation_checkpointing != "none":
        kept = len(blocks) * EXACT * model.dim + max(blocks)
    padding = 0
    if isinstance(model.ffn, MoEConfig) and not on_gpu:
        n_layers = sum(map(model.is_moe, range(model.n_layers))) + model.mtp_depth
        padding = n_layers * model.ffn.n_routed_experts * PADDING * 2 * model.ffn.moe_inter_dim
    return n_tokens * (kept + join + ends) + width * padding


def _block(cfg: ModelConfig, layer: int, *, seq_len: int, width: int, on_gpu: bool) -> int:
    """Bytes a token that a block keeps.

    A norm keeps its input and that divided by its length, in float32; under autocast every matrix
    keeps a copy of its input.
    """
    dim, heads, attention = cfg.dim, cfg.n_heads, cfg.attention
    casts = width < EXACT
    exact = 4 * dim
    numbers = heads * attention_width(cfg)  # q or k, and v
    if isinstance(attention, MLAConfig):
        qk_dim = attention.qk_nope_head_dim + attention.qk_rope_head_dim
        numbers += (1 + casts) * dim + heads * (qk_dim + attention.v_head_dim)
        numbers += attention.kv_lora_rank + (attention.q_lora_rank or 0)
        exact += 2 * attention.kv_lora_rank + 2 * (attention.q_lora_rank or 0)
    else:
        numbers += (1 + 2 * casts) * dim + 2 * heads * attention.head_dim
        if attention.qk_norm:
            exact += 2 * (heads + attention.n_kv_heads) * attention.head_dim
    if not on_gpu:  # probabilities, which fused kernels do not keep
        numbers += heads * (seq_len + ROWS) // 2
    numbers += (1 + casts) * dim
    if isinstance(cfg.ffn, MoEConfig) and cfg.is_moe(layer):
        numbers += 2 * cfg.ffn.n_activated_experts * cfg.ffn.moe_inter_dim + casts * dim
        numbers += 4 * cfg.ffn.n_shared_experts * cfg.ffn.moe_inter_dim
        exact += casts * dim + 2 * cfg.ffn.n_routed_experts  # the gate
    else:
        numbers += 4 * cfg.inter_dim
    return EXACT * exact + width * numbers
