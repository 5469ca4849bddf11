"""What training keeps in memory, by part, in closed form: bytes of one process.

An estimate: of what is kept between forward and backward pass every large tensor is counted, of
what lives for a moment only the largest. T tokens a row.
"""

from mla_lm.config import MLAConfig, ModelConfig, MoEConfig, RunConfig
from mla_lm.cost import count_parameters, parameters_by_part
from mla_lm.machine import Resolved
from mla_lm.model.attend import PRODUCTS, ROWS
from mla_lm.model.experts import ALIGNED, ROW_BLOCK
from mla_lm.objective.losses import LOGITS

EXACT = 4  # bytes of float32


def training_memory(
    cfg: RunConfig, precision: Resolved, *, on_gpu: bool, n_processes: int = 1
) -> dict[str, int]:
    """Bytes of one of `n_processes` by part; it takes its share of the rows.

    Under FSDP2 it has its part of weights, gradients and moments, and whole at a time both ends and
    one block with its gradient. The largest tensors that live for a moment are those of the head.
    """
    parameters = count_parameters(cfg.model)
    n_weights = parameters.total + parameters.mtp
    ends = sum(parameters_by_part(cfg.model)[name].total for name in ("embedding", "head"))
    width = 2 if precision == "bf16-mixed" else EXACT
    moments = 2 * n_weights
    if cfg.optim.kind == "muon":  # one momentum for the hidden matrices
        moments = n_weights + ends
    n_parts, whole = 1, 0
    if cfg.trainer.strategy == "fsdp" and n_processes > 1:
        n_blocks = cfg.model.n_layers + cfg.model.mtp_depth
        n_parts, whole = n_processes, ends + 2 * (n_weights - ends) // n_blocks
    n_tokens = cfg.data.batch_size // n_processes * cfg.data.seq_len
    head = cfg.model.vocab_size * cfg.model.dim
    logits = min(LOGITS, n_tokens * cfg.model.vocab_size)
    return {
        "weights": EXACT * (n_weights // n_parts + whole),
        "gradients": EXACT * (n_weights // n_parts),
        "moments": EXACT * (moments // n_parts),
        "copies in bfloat16": 2 * n_weights if width == 2 else 0,  # autograd keeps them whole
        "activations": _activations(cfg, n_tokens, width=width, on_gpu=on_gpu),
        "logits and the head's gradient": EXACT * head + 2 * EXACT * logits,
    }


def _activations(cfg: RunConfig, n_tokens: int, *, width: int, on_gpu: bool) -> int:
    """Of a micro-batch, until the backward pass has used them."""
    model = cfg.model
    by_products = not on_gpu and cfg.data.seq_len <= PRODUCTS
    padded = _are_padded(model, width=width, on_gpu=on_gpu)
    attention = _attention(cfg, width=width, by_products=by_products)
    layers = range(model.n_layers + model.mtp_depth)
    blocks = [attention + _ffn(model, layer, width=width, padded=padded) for layer in layers]
    join = model.mtp_depth * model.dim * (4 * EXACT + 3 * width)  # norms and projection
    ends = (1 + model.mtp_depth) * model.dim * (2 * EXACT + 2 * width)  # final norms, head
    kept = sum(blocks)
    if cfg.trainer.activation_checkpointing != "none":
        kept = len(blocks) * EXACT * model.dim + max(blocks)
    padding = 0
    if isinstance(model.ffn, MoEConfig) and padded:  # half a block an expert
        n_rows = sum(map(model.is_moe, layers)) * model.ffn.n_routed_experts * ROW_BLOCK // 2
        padding = n_rows * 2 * model.ffn.moe_inter_dim
    return n_tokens * (kept + join + ends) + width * padding


def _are_padded(cfg: ModelConfig, *, width: int, on_gpu: bool) -> bool:
    """Whether experts run in blocks of rows; a GPU is taken for one with a fast `grouped_mm`."""
    if not isinstance(cfg.ffn, MoEConfig) or cfg.ffn.execution != "auto":
        return cfg.ffn.kind == "moe" and cfg.ffn.execution == "padded"
    aligned = cfg.dim % ALIGNED == cfg.ffn.moe_inter_dim % ALIGNED == 0
    return not (on_gpu and width < EXACT and aligned)


def _attention(cfg: RunConfig, *, width: int, by_products: bool) -> int:
    """Bytes a token that attention and the norm before it keep.

    A norm keeps its input and that divided by its length, in float32; under autocast every matrix
    keeps a copy of its input.
    """
    dim, heads, attention = cfg.model.dim, cfg.model.n_heads, cfg.model.attention
    seq_len, casts = cfg.data.seq_len, width < EXACT
    exact = 2 * dim
    if isinstance(attention, MLAConfig):
        nope_dim, v_dim = attention.qk_nope_head_dim, attention.v_head_dim
        qk_dim = nope_dim + attention.qk_rope_head_dim
        ranks = attention.kv_lora_rank + (attention.q_lora_rank or 0)
        numbers = (1 + casts) * dim + ranks + 2 * heads * (qk_dim + v_dim)  # q, k, v, context
        exact += 2 * ranks
        if not by_products:  # v padded or in one tensor with what k is made of; context twice
            numbers += heads * (2 * qk_dim - v_dim if v_dim < qk_dim else nope_dim + v_dim)
    else:
        kv_heads = heads if by_products else attention.n_kv_heads
        numbers = (1 + 2 * casts) * dim + 2 * (heads + kv_heads) * attention.head_dim
        if attention.qk_norm:
            exact += 2 * (heads + attention.n_kv_heads) * attention.head_dim
    if by_products:  # probabilities
        numbers += heads * (seq_len + ROWS) // 2
    else:  # sums of exponentials, and the mask as it is added
        exact += heads
        numbers += seq_len * cfg.data.mask_documents
    return EXACT * exact + width * numbers


def _ffn(cfg: ModelConfig, layer: int, *, width: int, padded: bool) -> int:
    """Bytes a token that the FFN of a block and the norm before it keep."""
    dim, casts = cfg.dim, width < EXACT
    exact, numbers = 2 * dim, (1 + casts) * dim
    if isinstance(cfg.ffn, MoEConfig) and cfg.is_moe(layer):
        top_k, inter_dim = cfg.ffn.n_activated_experts, cfg.ffn.moe_inter_dim
        numbers += 2 * top_k * inter_dim + 4 * cfg.ffn.n_shared_experts * inter_dim
        numbers += casts * dim if padded else 2 * top_k * (dim + inter_dim)  # inputs; outputs
        exact += casts * dim + 2 * cfg.ffn.n_routed_experts  # the gate
    else:
        numbers += 4 * cfg.inter_dim
    return EXACT * exact + width * numbers
