"""One rank of mlx-lm's own pipeline, with nobody to look after it: what `exod` is compared with.

    python -m tests.bench.plain_pipeline

MLX_HOSTFILE and MLX_RANK say where and who, as `mlx.launch` would. Makes a small random Qwen2 (each rank the same
one), gives its layers to the ranks with mlx-lm's PipelineMixin, and generates with mlx-lm's generate_step until it
is killed. Prints one line for each token: its number and when it came, on the host's monotonic clock. Never catches
an error: what becomes of the generation is what is measured. A rank that waits for another one computes without
end, so it ends with the process that started it, and after LIVES_S at the latest: the kernel sees to both.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models import qwen2

LAYERS = 8
PROMPT = [1, 2, 3, 4]
MAX_TOKENS = 20_000  # more than any measurement takes
LIVES_S = 240
"""More than a measurement takes: a minute each to start and to resume, and half a minute of cut cable."""
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def end_with_parent(parent: int) -> None:
    """SIGKILL when it ends, and SIGALRM, which nobody handles, in the end."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        raise SystemExit("who started this rank has ended")
    signal.alarm(LIVES_S)


def main() -> None:
    end_with_parent(int(os.environ["EXOD_BENCH_PARENT"]))
    group = mx.distributed.init(strict=True, backend="ring")
    mx.random.seed(0)
    model = qwen2.Model(
        qwen2.ModelArgs(
            model_type="qwen2",
            hidden_size=96,
            num_hidden_layers=LAYERS,
            intermediate_size=192,
            num_attention_heads=2,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            vocab_size=1010,
            tie_word_embeddings=True,
        )
    )
    model.model.pipeline(group)
    mx.eval(model.parameters())
    for number, _ in enumerate(generate_step(mx.array(PROMPT), model, max_tokens=MAX_TOKENS)):
        print(number, time.monotonic(), flush=True)


if __name__ == "__main__":
    main()
