"""Tiny configs of the architectures that mlx-lm divides for tensor parallelism, with heads for four ranks."""

from __future__ import annotations

from typing import Any, Final

from tests.engine.architectures import ALL, ALTERNATING, LATENT_ATTENTION, MOE, ROUTED, YARN, of
from tests.engine.models import LLAMA

_FOUR: Final[dict[str, Any]] = {"num_key_value_heads": 4}

PARTED: Final = [
    *({**config, **_FOUR} for config in ALL if config["model_type"] in (
        "qwen3", "qwen2", "mistral", "llama", "qwen3_moe", "glm4_moe", "gpt_oss", "deepseek_v2", "deepseek_v3",
        "deepseek_v32", "longcat_flash", "qwen3_5",
    )),
]  # fmt: skip
"""What mlx-lm can divide for tensor parallelism, with heads for four ranks."""

PARTED_MORE: Final = [
    of(
        "exaone_moe",
        MOE,
        _FOUR,
        head_dim=16,
        num_shared_experts=1,
        sliding_window=16,
        layer_types=ALTERNATING,
        is_moe_layer=[False, True, True, True],
    ),
    of("glm4_moe_lite", LATENT_ATTENTION, ROUTED, _FOUR),
    {
        "model_type": "kimi_k25",
        "text_config": of("deepseek_v3", LATENT_ATTENTION, ROUTED, _FOUR, rope_scaling=YARN),
    },
    of(
        "longcat_flash_ngram",
        LATENT_ATTENTION,
        _FOUR,
        attention_method="MLA",
        zero_expert_type="identity",
        ffn_hidden_size=128,
        moe_topk=2,
        expert_ffn_hidden_size=64,
        n_routed_experts=2,
        zero_expert_num=2,
        num_layers=4,
        routed_scaling_factor=1.0,
        mla_scale_q_lora=True,
        mla_scale_kv_lora=True,
        attention_bias=False,
        ngram_vocab_size_ratio=4,
        emb_neighbor_num=2,
        emb_split_num=2,
    ),
    of(
        "minimax",
        _FOUR,
        num_experts_per_tok=2,
        num_local_experts=4,
        shared_intermediate_size=64,
        rotary_dim=8,
        head_dim=16,
    ),
    of(
        "ministral3",
        _FOUR,
        head_dim=16,
        rope_parameters={
            "rope_theta": 1000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 2048,
            "type": "default",
            "rope_type": "default",
        },
        layer_types=ALTERNATING,
        sliding_window=16,
    ),
    of(
        "mistral4",
        LATENT_ATTENTION,
        ROUTED,
        _FOUR,
        first_k_dense_replace=1,
        rope_parameters={
            "rope_theta": 1000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 2048,
            "type": "yarn",
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    ),
    of(
        "step3p5",
        _FOUR,
        num_attention_groups=4,
        head_dim=16,
        sliding_window=16,
        layer_types=ALTERNATING,
        moe_num_experts=4,
        moe_top_k=2,
        moe_intermediate_size=64,
        share_expert_dim=64,
        moe_layers_enum="1, 2, 3",
    ),
    {
        "model_type": "minimax_m3_vl",
        "text_config": of(
            "x",
            _FOUR,
            dense_intermediate_size=128,
            shared_intermediate_size=64,
            num_local_experts=4,
            num_experts_per_tok=2,
            head_dim=16,
            moe_layer_freq=[0, 1, 1, 1],
        ),
    },
    {
        "model_type": "kimi_k3",
        "text_config": of(
            "kimi_linear",
            _FOUR,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_nope_head_dim=16,
            qk_rope_head_dim=16,
            v_head_dim=16,
            num_experts=4,
            num_experts_per_token=2,
            num_shared_experts=1,
            moe_intermediate_size=64,
            first_k_dense_replace=1,
            linear_attn_config={
                "num_heads": 4,
                "head_dim": 32,
                "kda_layers": [1, 3],
                "full_attn_layers": [2, 4],
                "short_conv_kernel_size": 4,
            },
        ),
    },
    of(
        "deepseek_v41",
        _FOUR,
        head_dim=32,
        q_lora_rank=16,
        qk_rope_head_dim=16,
        o_groups=4,
        o_lora_rank=16,
        moe_intermediate_size=64,
        n_routed_experts=4,
        num_experts_per_tok=2,
        sliding_window=16,
        compress_ratios=(0, 4, 0, 4),
        index_n_heads=4,
        index_head_dim=32,
        index_topk=16,
        candidate_topk_blocks=8,
        rms_norm_eps=1e-6,
    ),
    {
        **LLAMA,
        **_FOUR,
        "model_type": "iquestloopcoder",
        "head_dim": 16,
        "num_hidden_layers": 4,
        "loop_num": 2,
        "loop_window_size": 16,
        "rope_theta": 1000.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
]
"""The others that mlx-lm can divide, on a CPU."""

NEEDS_METAL: Final = ("muse_spark",)
"""mlx-lm divides it, but its attention is a kernel for Metal alone."""
