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

MOE: Final[dict[str, Any]] = {
    "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
}  # fmt: skip

YARN: Final[dict[str, Any]] = {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096, "type": "yarn",
}  # fmt: skip

LATENT_ATTENTION: Final[dict[str, Any]] = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 16, "v_head_dim": 16, "qk_nope_head_dim": 16,
}  # fmt: skip

ROUTED: Final[dict[str, Any]] = {
    "moe_intermediate_size": 64, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
}  # fmt: skip

_LINEAR: Final[dict[str, Any]] = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 3, "head_dim": 32, "partial_rotary_factor": 0.5,
}  # fmt: skip

ALTERNATING: Final = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def of(model_type: str, *parts: dict[str, Any], **own: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"model_type": model_type, **_BASE}
    for part in parts:
        made |= part
    return made | own


DENSE: Final = [
    of("qwen3", head_dim=32),
    of("qwen2", tie_word_embeddings=True),
    of("mistral"),
    of("phi3"),
    of("stablelm", partial_rotary_factor=0.25, layer_norm_eps=1e-5, use_qkv_bias=False),
    of("gemma", head_dim=32),
    of("gemma2", head_dim=32),
    of("glm4", head_dim=16, attention_bias=False, partial_rotary_factor=0.5),
    of("olmo2", attention_bias=False),
    of(
        "granite", logits_scaling=2.0, attention_multiplier=0.5, embedding_multiplier=3.0, residual_multiplier=0.7,
        attention_bias=False, mlp_bias=False,
    ),
    of("ernie4_5", head_dim=None, use_bias=False, tie_word_embeddings=True),
    of("starcoder2", norm_epsilon=1e-5, tie_word_embeddings=True),
    of("smollm3"),
    of("apertus", mlp_bias=True, attention_bias=False, post_norm=True, qk_norm=True),
    {
        "model_type": "gpt2", "n_ctx": 2048, "n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 2048,
        "layer_norm_epsilon": 1e-5, "vocab_size": VOCAB,
    },
]  # fmt: skip

SLIDING: Final = [
    of("llama", layer_types=ALTERNATING, sliding_window=16),
    of(
        "gemma3_text", head_dim=32, sliding_window=16, sliding_window_pattern=3, query_pre_attn_scalar=32,
        rope_local_base_freq=10000.0,
    ),
    of("cohere2", head_dim=16, sliding_window=16, sliding_window_pattern=2, layer_norm_eps=1e-5),
    of("olmo3", head_dim=16, sliding_window=16, layer_types=ALTERNATING),
    of("llama4_text", head_dim=16, intermediate_size_mlp=128, no_rope_layers=[1, 1, 1, 0], use_qk_norm=True,
        attention_chunk_size=16),
    of(
        "gemma4_text", head_dim=32, global_head_dim=32, vocab_size_per_layer_input=VOCAB, num_key_value_heads=1,
        num_kv_shared_layers=0, hidden_size_per_layer_input=16, sliding_window=16, sliding_window_pattern=2,
        final_logit_softcapping=30.0, layer_types=ALTERNATING,
        rope_parameters={
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6},
            "sliding_attention": {"rope_theta": 1e4},
        },
    ),
]  # fmt: skip

EXPERTS: Final = [
    of("mixtral", num_experts_per_tok=2, num_local_experts=4),
    of("qwen2_moe", MOE, shared_expert_intermediate_size=64),
    of("qwen3_moe", MOE, head_dim=32, decoder_sparse_step=1, mlp_only_layers=[]),
    of("olmoe", MOE),
    of("ernie4_5_moe", use_bias=False, moe_num_experts=4),
    of("glm4_moe", ROUTED, head_dim=16, first_k_dense_replace=1, rope_scaling=None, use_qk_norm=True,
        attention_bias=False, partial_rotary_factor=0.5),
    of("gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=16, layer_types=ALTERNATING,
        head_dim=32),
    of("afmoe", MOE, head_dim=32, sliding_window=16, layer_types=ALTERNATING),
]  # fmt: skip

LATENT: Final = [
    of("deepseek_v2", LATENT_ATTENTION, moe_intermediate_size=64, rope_scaling=YARN),
    of("deepseek_v3", LATENT_ATTENTION, ROUTED, rope_scaling=YARN),
    of("deepseek_v32", LATENT_ATTENTION, ROUTED, rope_scaling=YARN, index_head_dim=32, index_n_heads=4,
        index_topk=16),
    of("longcat_flash", LATENT_ATTENTION, attention_method="MLA", zero_expert_type="identity", ffn_hidden_size=128,
        moe_topk=2, expert_ffn_hidden_size=64, n_routed_experts=2, zero_expert_num=2, num_layers=4,
        routed_scaling_factor=1.0, mla_scale_q_lora=True, mla_scale_kv_lora=True, attention_bias=False),
]  # fmt: skip

HYBRID: Final = [
    of("qwen3_next", MOE, _LINEAR, decoder_sparse_step=1, mlp_only_layers=[0], shared_expert_intermediate_size=64,
        full_attention_interval=2),
    of("qwen3_5", _LINEAR, full_attention_interval=2),
    of("lfm2", norm_eps=1e-5, full_attn_idxs=[1, 3], block_dim=64, block_ffn_dim_multiplier=1.5,
        block_auto_adjust_ff_dim=True, block_ff_dim=128, block_multiple_of=32, conv_bias=True, conv_L_cache=3),
    of("granitemoehybrid", embedding_multiplier=1.0, attention_multiplier=1.0, logits_scaling=1.0,
        residual_multiplier=1.0, attention_bias=False, num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=64, mamba_n_heads=8, mamba_d_head=16, mamba_proj_bias=False, mamba_d_state=32,
        mamba_d_conv=4, mamba_n_groups=1, mamba_conv_bias=False,
        layer_types=["mamba", "attention", "mamba", "attention"]),
    of("nemotron_h", attention_bias=False, mamba_num_heads=4, mamba_head_dim=32, mamba_proj_bias=False,
        ssm_state_size=32, conv_kernel=3, n_groups=4, time_step_limit=[1.0, 2.0], mlp_bias=False,
        layer_norm_epsilon=1e-4, use_bias=True, use_conv_bias=True, residual_in_fp32=True,
        hybrid_override_pattern=["*", "M", "-", "M"]),
    of("kimi_linear", MOE, head_dim=32, model_max_length=2048, kv_lora_rank=8, qk_nope_head_dim=16,
        qk_rope_head_dim=16, v_head_dim=16,
        linear_attn_config={"num_heads": 4, "head_dim": 32, "kda_layers": [1, 3], "short_conv_kernel_size": 4}),
    of("recurrent_gemma", attention_bias=False, conv1d_width=3, logits_soft_cap=30.0, attention_window_size=16,
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
    of("baichuan_m1", sliding_window=16, sliding_window_layers=[0, 2], conv_window=2),
]  # fmt: skip

ALL: Final = [*DENSE, *SLIDING, *EXPERTS, *LATENT, *HYBRID]

WITH_UNUSUAL_CACHES: Final = [SLIDING[0], HYBRID[0], EXPERTS[6], HYBRID[6], LATENT[2]]
"""One of each kind of cache: rotating, state-space, rotating with experts, recurrent, latent with an index."""

NOT_DIVISIBLE: Final = [
    of("gemma4_text", head_dim=32, global_head_dim=32, vocab_size_per_layer_input=VOCAB, num_key_value_heads=1,
        num_kv_shared_layers=2, hidden_size_per_layer_input=16, sliding_window=16, sliding_window_pattern=2,
        layer_types=ALTERNATING),
    {**LLAMA, "model_type": "iquestloopcoder", "head_dim": 16, "num_hidden_layers": 4, "loop_num": 2,
     "loop_window_size": 16, "rope_theta": 1000.0, "attention_bias": False, "mlp_bias": False},
]  # fmt: skip
"""Layers that share a KV cache over the middle, and layers that run twice."""
