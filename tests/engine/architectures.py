"""Tiny configs of mlx-lm's architectures, of every kind that a stage must divide rightly.

Windows are smaller than the tests' contexts, so that they matter. Sizes are as small as each architecture allows.
"""

from __future__ import annotations

from typing import Any, Final

from tests.engine.models import LLAMA, VOCAB

_BASE: Final[dict[str, Any]] = {
    "hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": VOCAB, "rope_theta": 1000.0,
    "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip

_MOE: Final[dict[str, Any]] = {
    "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
}  # fmt: skip

_YARN: Final[dict[str, Any]] = {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096, "type": "yarn",
}  # fmt: skip

_LATENT: Final[dict[str, Any]] = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 16, "v_head_dim": 16, "qk_nope_head_dim": 16,
}  # fmt: skip

_ROUTED: Final[dict[str, Any]] = {
    "moe_intermediate_size": 64, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
}  # fmt: skip

_LINEAR: Final[dict[str, Any]] = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 3, "head_dim": 32, "partial_rotary_factor": 0.5,
}  # fmt: skip

_ALTERNATING: Final = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def _of(model_type: str, *parts: dict[str, Any], **own: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"model_type": model_type, **_BASE}
    for part in parts:
        made |= part
    return made | own


DENSE: Final = [
    _of("qwen3", head_dim=32),
    _of("qwen2", tie_word_embeddings=True),
    _of("mistral"),
    _of("phi3"),
    _of("stablelm", partial_rotary_factor=0.25, layer_norm_eps=1e-5, use_qkv_bias=False),
    _of("gemma", head_dim=32),
    _of("gemma2", head_dim=32),
    _of("glm4", head_dim=16, attention_bias=False, partial_rotary_factor=0.5),
    _of("olmo2", attention_bias=False),
    _of(
        "granite", logits_scaling=2.0, attention_multiplier=0.5, embedding_multiplier=3.0, residual_multiplier=0.7,
        attention_bias=False, mlp_bias=False,
    ),
    _of("ernie4_5", head_dim=None, use_bias=False, tie_word_embeddings=True),
    _of("starcoder2", norm_epsilon=1e-5, tie_word_embeddings=True),
    _of("smollm3"),
    _of("apertus", mlp_bias=True, attention_bias=False, post_norm=True, qk_norm=True),
    {
        "model_type": "gpt2", "n_ctx": 2048, "n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 2048,
        "layer_norm_epsilon": 1e-5, "vocab_size": VOCAB,
    },
]  # fmt: skip

SLIDING: Final = [
    _of("llama", layer_types=_ALTERNATING, sliding_window=16),
    _of(
        "gemma3_text", head_dim=32, sliding_window=16, sliding_window_pattern=3, query_pre_attn_scalar=32,
        rope_local_base_freq=10000.0,
    ),
    _of("cohere2", head_dim=16, sliding_window=16, sliding_window_pattern=2, layer_norm_eps=1e-5),
    _of("olmo3", head_dim=16, sliding_window=16, layer_types=_ALTERNATING),
    _of("llama4_text", head_dim=16, intermediate_size_mlp=128, no_rope_layers=[1, 1, 1, 0], use_qk_norm=True,
        attention_chunk_size=16),
    _of(
        "gemma4_text", head_dim=32, global_head_dim=32, vocab_size_per_layer_input=VOCAB, num_key_value_heads=1,
        num_kv_shared_layers=0, hidden_size_per_layer_input=16, sliding_window=16, sliding_window_pattern=2,
        final_logit_softcapping=30.0, layer_types=_ALTERNATING,
        rope_parameters={
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6},
            "sliding_attention": {"rope_theta": 1e4},
        },
    ),
]  # fmt: skip

EXPERTS: Final = [
    _of("mixtral", num_experts_per_tok=2, num_local_experts=4),
    _of("qwen2_moe", _MOE, shared_expert_intermediate_size=64),
    _of("qwen3_moe", _MOE, head_dim=32, decoder_sparse_step=1, mlp_only_layers=[]),
    _of("olmoe", _MOE),
    _of("ernie4_5_moe", use_bias=False, moe_num_experts=4),
    _of("glm4_moe", _ROUTED, head_dim=16, first_k_dense_replace=1, rope_scaling=None, use_qk_norm=True,
        attention_bias=False, partial_rotary_factor=0.5),
    _of("gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=16, layer_types=_ALTERNATING,
        head_dim=32),
    _of("afmoe", _MOE, head_dim=32, sliding_window=16, layer_types=_ALTERNATING),
]  # fmt: skip

LATENT: Final = [
    _of("deepseek_v2", _LATENT, moe_intermediate_size=64, rope_scaling=_YARN),
    _of("deepseek_v3", _LATENT, _ROUTED, rope_scaling=_YARN),
    _of("deepseek_v32", _LATENT, _ROUTED, rope_scaling=_YARN, index_head_dim=32, index_n_heads=4, index_topk=16),
    _of("longcat_flash", _LATENT, attention_method="MLA", zero_expert_type="identity", ffn_hidden_size=128,
        moe_topk=2, expert_ffn_hidden_size=64, n_routed_experts=2, zero_expert_num=2, num_layers=4,
        routed_scaling_factor=1.0, mla_scale_q_lora=True, mla_scale_kv_lora=True, attention_bias=False),
]  # fmt: skip

HYBRID: Final = [
    _of("qwen3_next", _MOE, _LINEAR, decoder_sparse_step=1, mlp_only_layers=[0], shared_expert_intermediate_size=64,
        full_attention_interval=2),
    _of("qwen3_5", _LINEAR, full_attention_interval=2),
    _of("lfm2", norm_eps=1e-5, full_attn_idxs=[1, 3], block_dim=64, block_ffn_dim_multiplier=1.5,
        block_auto_adjust_ff_dim=True, block_ff_dim=128, block_multiple_of=32, conv_bias=True, conv_L_cache=3),
    _of("granitemoehybrid", embedding_multiplier=1.0, attention_multiplier=1.0, logits_scaling=1.0,
        residual_multiplier=1.0, attention_bias=False, num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=64, mamba_n_heads=8, mamba_d_head=16, mamba_proj_bias=False, mamba_d_state=32,
        mamba_d_conv=4, mamba_n_groups=1, mamba_conv_bias=False,
        layer_types=["mamba", "attention", "mamba", "attention"]),
    _of("nemotron_h", attention_bias=False, mamba_num_heads=4, mamba_head_dim=32, mamba_proj_bias=False,
        ssm_state_size=32, conv_kernel=3, n_groups=4, time_step_limit=[1.0, 2.0], mlp_bias=False,
        layer_norm_epsilon=1e-4, use_bias=True, use_conv_bias=True, residual_in_fp32=True,
        hybrid_override_pattern=["*", "M", "-", "M"]),
    _of("kimi_linear", _MOE, head_dim=32, model_max_length=2048, kv_lora_rank=8, qk_nope_head_dim=16,
        qk_rope_head_dim=16, v_head_dim=16,
        linear_attn_config={"num_heads": 4, "head_dim": 32, "kda_layers": [1, 3], "short_conv_kernel_size": 4}),
    _of("recurrent_gemma", attention_bias=False, conv1d_width=3, logits_soft_cap=30.0, attention_window_size=16,
        block_types=["recurrent", "attention"]),
    {
        "model_type": "mamba2", "num_heads": 8, "head_dim": 16, "vocab_size": VOCAB, "hidden_size": 64,
        "intermediate_size": 128, "state_size": 32, "num_hidden_layers": 4, "layer_norm_epsilon": 1e-4,
        "conv_kernel": 3, "n_groups": 4, "use_bias": False, "use_conv_bias": False, "tie_word_embeddings": True,
        "time_step_limit": [0.01, 10.0], "time_step_rank": "auto", "max_position_embeddings": 2048,
    },
    {
        "model_type": "mamba", "vocab_size": VOCAB, "use_bias": False, "use_conv_bias": True, "conv_kernel": 4,
        "hidden_size": 64, "num_hidden_layers": 4, "state_size": 16, "intermediate_size": 128, "time_step_rank": 8,
    },
    _of("baichuan_m1", sliding_window=16, sliding_window_layers=[0, 2], conv_window=2),
]  # fmt: skip

ALL: Final = [*DENSE, *SLIDING, *EXPERTS, *LATENT, *HYBRID]

WITH_UNUSUAL_CACHES: Final = [SLIDING[0], HYBRID[0], EXPERTS[6], HYBRID[6], LATENT[2]]
"""One of each kind of cache: rotating, state-space, rotating with experts, recurrent, latent with an index."""

NOT_DIVISIBLE: Final = [
    _of("gemma4_text", head_dim=32, global_head_dim=32, vocab_size_per_layer_input=VOCAB, num_key_value_heads=1,
        num_kv_shared_layers=2, hidden_size_per_layer_input=16, sliding_window=16, sliding_window_pattern=2,
        layer_types=_ALTERNATING),
    {**LLAMA, "model_type": "iquestloopcoder", "head_dim": 16, "num_hidden_layers": 4, "loop_num": 2,
     "loop_window_size": 16, "rope_theta": 1000.0, "attention_bias": False, "mlp_bias": False},
]  # fmt: skip
"""Layers that share a KV cache over the middle, and layers that run twice."""

_FOUR: Final[dict[str, Any]] = {"num_key_value_heads": 4}

PARTED: Final = [
    *({**config, **_FOUR} for config in [*DENSE, *SLIDING, *EXPERTS, *LATENT, *HYBRID] if config["model_type"] in (
        "qwen3", "qwen2", "mistral", "llama", "qwen3_moe", "glm4_moe", "gpt_oss", "deepseek_v2", "deepseek_v3",
        "deepseek_v32", "longcat_flash", "qwen3_5",
    )),
]  # fmt: skip
"""What mlx-lm can divide for tensor parallelism, with heads for four ranks."""

PARTED_MORE: Final = [
    _of("exaone_moe", _MOE, _FOUR, head_dim=16, num_shared_experts=1, sliding_window=16, layer_types=_ALTERNATING,
        is_moe_layer=[False,True,True,True]),
    _of("glm4_moe_lite", _LATENT, _ROUTED, _FOUR),
    {"model_type": "kimi_k25", "text_config": _of("deepseek_v3", _LATENT, _ROUTED, _FOUR, rope_scaling=_YARN)},
    _of("longcat_flash_ngram", _LATENT, _FOUR, attention_method="MLA", zero_expert_type="identity",
        ffn_hidden_size=128, moe_topk=2, expert_ffn_hidden_size=64, n_routed_experts=2, zero_expert_num=2, num_layers=4,
        routed_scaling_factor=1.0, mla_scale_q_lora=True, mla_scale_kv_lora=True, attention_bias=False,
        ngram_vocab_size_ratio=4, emb_neighbor_num=2, emb_split_num=2),
    _of("minimax", _FOUR, num_experts_per_tok=2, num_local_experts=4, shared_intermediate_size=64, rotary_dim=8,
        head_dim=16),
    _of("ministral3", _FOUR, head_dim=16, rope_parameters={"rope_theta": 1000.0, "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 2048, "type": "default", "rope_type": "default"}, layer_types=_ALTERNATING,
        sliding_window=16),
    _of("mistral4", _LATENT, _ROUTED, _FOUR, first_k_dense_replace=1, rope_parameters={"rope_theta": 1000.0,
        "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 2048, "type": "yarn", "factor": 4.0,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}),
    _of("step3p5", _FOUR, num_attention_groups=4, head_dim=16, sliding_window=16, layer_types=_ALTERNATING,
        moe_num_experts=4, moe_top_k=2, moe_intermediate_size=64, share_expert_dim=64, moe_layers_enum="1, 2, 3"),
    {"model_type": "minimax_m3_vl", "text_config": _of("x", _FOUR, dense_intermediate_size=128,
        shared_intermediate_size=64, num_local_experts=4, num_experts_per_tok=2, head_dim=16, moe_layer_freq=[0, 1, 1,
        1])},
    {"model_type": "kimi_k3", "text_config": _of("kimi_linear", _FOUR, q_lora_rank=8, kv_lora_rank=8,
        qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, num_experts=4, num_experts_per_token=2,
        num_shared_experts=1, moe_intermediate_size=64, first_k_dense_replace=1, linear_attn_config={"num_heads": 4,
        "head_dim": 32, "kda_layers": [1, 3], "full_attn_layers": [2, 4], "short_conv_kernel_size": 4})},
    _of("deepseek_v41", _FOUR, head_dim=32, q_lora_rank=16, qk_rope_head_dim=16, o_groups=4, o_lora_rank=16,
        moe_intermediate_size=64, n_routed_experts=4, num_experts_per_tok=2, sliding_window=16,
        compress_ratios=(0, 4, 0, 4), index_n_heads=4, index_head_dim=32, index_topk=16, candidate_topk_blocks=8, rms_norm_eps=1e-6),
    {**LLAMA, **_FOUR, "model_type": "iquestloopcoder", "head_dim": 16, "num_hidden_layers": 4, "loop_num": 2,
        "loop_window_size": 16, "rope_theta": 1000.0, "attention_bias": False, "mlp_bias": False},
]  # fmt: skip
"""The others that mlx-lm can divide, on a CPU."""

NEEDS_METAL: Final = ("muse_spark",)
"""mlx-lm divides it, but its attention is a kernel for Metal alone."""
