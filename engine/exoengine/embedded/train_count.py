"""Trains the demo model `embedded:count`, writes its folder, and verifies it.

    python -m exoengine.embedded.train_count FOLDER                 train, from a fixed seed
    python -m exoengine.embedded.train_count --verify [FOLDER]      every pair (see `verify_count`)

The model is mlx-lm's own Llama, unchanged. It has to learn three things: to begin with the number after
"from", to follow each number with the next, and to stop at the number after "to". The last is the hard
one, for 500,000 pairs of a current and a last number must be told apart, and it shows only at the end of
an answer. So most batches hold short windows of answers, half of them at the end, with the true positions
of a whole answer; the others hold whole answers, for a window has too few numbers that could distract.

The weights that ship were trained so and then practised, round after round, on exactly the pairs that the
verification of all 498,501 named as weak, among ordinary lessons, until none was left: every next token of every
answer is right in float16 and in float32, by a margin of 4.3 at the weakest.

Who calls this: only a person who wants other weights. The engine loads the folder as any other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.llama import Model, ModelArgs

from exoengine.embedded import model_folder
from exoengine.embedded.count_language import (
    CONTEXT,
    END,
    LARGEST,
    UNK,
    VOCABULARY,
    Exchange,
    draw_exchange,
    number,
    question_and_answer,
    write_tokenizer,
)
from exoengine.embedded.verify_count import DTYPES, TOKENS, CountAnswer, answers, padded_width, verify

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 8,  # one for each of up to 8 ranks
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,  # the smallest that Metal's fused attention has kernels for
    "max_position_embeddings": CONTEXT,
    # Slow enough that half of each head hardly turns within 1,000 positions: there the last number of the
    # prompt can be compared with the current one, however far apart they are.
    "rope_theta": 100_000_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "eos_token_id": END,
    "torch_dtype": "float16",
}


WHOLE = LARGEST + 1
"""The width of a window that holds any answer whole."""


@dataclass(frozen=True)
class TrainingRecipe:
    """How the shipped weights were trained: `learn`, then `practise`."""

    seed: int = 7
    rows: int = 256
    width: int = 12
    """Tokens in a window of an answer."""

    steps: int = 5000
    rate: float = 3e-3
    whole_share: float = 0.15
    """The share of batches that hold whole answers."""
    whole_rows: int = 8

    rounds: int = 20
    round_steps: int = 100
    practice_rate: float = 5e-4
    practice_rows: int = 128
    kept: int = 64
    """The weakest of a round's 200 answers: these are practised from then on."""
    temperature: float = 2.0
    """Divides the logits in practice, so that only a larger margin will do."""
    jitter: float = 0.02
    """How far off the weights are in practice, as a share of their matrix's standard deviation."""


@dataclass(frozen=True)
class TrainingBatch:
    """Rows of a prompt and a window of its answer; all int32.

    prompts (rows, P); windows (rows, W); starts (rows,), where in its answer each window starts;
    targets (rows, 1 + W), the token after the prompt and those after each token of the window, UNK where
    there is none.
    """

    prompts: mx.array
    windows: mx.array
    starts: mx.array
    targets: mx.array


Row = tuple[tuple[int, ...], list[int], int, list[int]]
"""A row of each of the four, in their order."""


class WindowCache:
    """Stands in for mlx-lm's KVCache in training: lets a window follow its prompt at a later position.

    Rows may have different offsets, and there is nothing between the prompt's keys and the window's.
    """

    def __init__(self) -> None:
        self.keys: mx.array | None = None  # (rows, heads, tokens, head_dim)
        self.values: mx.array | None = None
        self.offset: int | mx.array = 0  # the position of the next token; (rows,) for the window

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.keys is not None and self.values is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, tokens: int, **_: object) -> str | mx.array:
        if self.keys is None:
            return "causal"
        mask: mx.array = create_causal_mask(tokens, offset=self.keys.shape[2])
        return mask


def new_model() -> Model:
    """A model with random weights, in which a number starts as the sum of its three digits.

    So what is learned of one number helps others, which makes the order of two numbers learnable at all
    within minutes. A random part of each number's own keeps numbers with two digits in common apart.
    """
    model = Model(ModelArgs.from_dict(CONFIG))
    table = model.model.embed_tokens.weight
    of_digits = mx.random.normal((3, 10, CONFIG["hidden_size"]))
    numbers = mx.arange(LARGEST + 1)
    summed = of_digits[0][numbers // 100] + of_digits[1][numbers // 10 % 10] + of_digits[2][numbers % 10]
    mixed = summed + 0.5 * mx.random.normal(summed.shape)
    # The other words start at this length too: mlx draws them with a variance of 1 / hidden_size.
    table[number(0) :] = mixed * (3.25 * CONFIG["hidden_size"]) ** -0.5
    return model


def forward(model: Model, batch: TrainingBatch) -> mx.array:
    """Logits (rows, 1 + W, vocabulary): after the prompt, and after each token of the window."""
    caches = [WindowCache() for _ in model.layers]
    after_prompt = model.model(batch.prompts, caches)[:, -1:]
    for cache in caches:
        cache.offset = batch.prompts.shape[1] + batch.starts
    after_window = model.model(batch.windows, caches)
    logits: mx.array = model.model.embed_tokens.as_linear(mx.concatenate([after_prompt, after_window], axis=1))
    return logits


def loss(model: Model, batch: TrainingBatch, temperature: float) -> mx.array:
    """Mean cross-entropy of the answers' first tokens plus that of their other tokens, in nats; a scalar.

    Two means, since the first token is one of many and by far the hardest to tell where A is near B.
    """
    each: mx.array = nn.losses.cross_entropy(forward(model, batch) / temperature, batch.targets)
    there = batch.targets[:, 1:] != UNK
    return each[:, 0].mean() + (each[:, 1:] * there).sum() / there.sum()


def cut(exchange: Exchange, start: int, width: int) -> Row:
    """A row of a TrainingBatch with the window of the answer that begins at `start`."""
    answer = exchange.answer
    window = list(answer[start : start + width])
    targets = [answer[0], *answer[start + 1 : start + width + 1]]
    window += [END] * (width - len(window))
    targets += [UNK] * (1 + width - len(targets))
    return exchange.prompt, window, start, targets


def draw_row(rng: Random, exchange: Exchange, width: int) -> Row:
    """Half of all windows are at the answer's end."""
    latest = max(0, len(exchange.answer) - width)
    place = rng.random()
    return cut(exchange, 0 if place < 0.2 else latest if place < 0.7 else rng.randint(0, latest), width)


def as_batch(rows: list[Row]) -> TrainingBatch:
    return TrainingBatch(*(mx.array(column) for column in zip(*rows, strict=True)))


def draw_batch(rng: Random, rows: int, width: int, longest_prompt: int) -> TrainingBatch:
    """Half the batches have prompts as the plain question makes them, the others any length."""
    length = 7 if rng.random() < 0.5 else rng.randint(2, longest_prompt)
    return as_batch([draw_row(rng, draw_exchange(rng, length), width) for _ in range(rows)])


def lessons(rng: Random, recipe: TrainingRecipe) -> Iterator[TrainingBatch]:
    """Batches of all that is taught, without end."""
    while True:
        if rng.random() < recipe.whole_share:
            yield draw_batch(rng, recipe.whole_rows, WHOLE, longest_prompt=16)
        else:
            yield draw_batch(rng, recipe.rows, recipe.width, longest_prompt=rng.choice((16, 16, 40)))


def weakest_answers(rng: Random, model: Model, kept: int) -> list[CountAnswer]:
    """Of answers to every fifth last number, each from a random first one, those with the least margins."""
    pairs = [(rng.randint(1, last - 1), last) for last in range(rng.randint(2, 6), LARGEST + 1, 5)]
    found = sorted(answers(model, sorted(pairs, key=padded_width), TOKENS), key=lambda answer: answer.margin)
    print(f"least margins: {', '.join(f'{answer.margin:.2f}' for answer in found[:5])}", flush=True)
    return found[:kept]


def whole_exercise(weak: CountAnswer, width: int) -> Row:
    return cut(question_and_answer(weak.first, weak.last), 0, width)


def exercise(rng: Random, weak: CountAnswer, width: int) -> Row:
    """A window on the weakest token of an answer; half of them as it is in an answer from another number."""
    first, place = weak.first, weak.place
    if place > 0 and rng.random() < 0.5:
        before = weak.first + weak.place - 1  # the number that the weakest token comes after
        first = rng.randint(1, before)
        place = before - first + 1
    start = rng.randint(max(0, place - width), max(0, place - 1))
    return cut(question_and_answer(first, weak.last), start, width)


def draw_exercises(rng: Random, weak: list[CountAnswer], recipe: TrainingRecipe) -> TrainingBatch:
    """One in eight: whole weak answers. Two in eight: ordinary lessons. Else: windows on weak tokens, and as
    many others."""
    kind = rng.randrange(8)
    if kind == 0:
        chosen = rng.choices(weak, k=2)
        width = max(answer.last - answer.first + 1 for answer in chosen)
        return as_batch([whole_exercise(answer, width) for answer in chosen])
    if kind < 3:
        return draw_batch(rng, recipe.practice_rows, recipe.width, longest_prompt=rng.choice((16, 16, 40)))
    half = recipe.practice_rows // 2
    rows = [exercise(rng, answer, recipe.width) for answer in rng.choices(weak, k=half)]
    rows += [draw_row(rng, draw_exchange(rng, len(rows[0][0])), recipe.width) for _ in range(half)]
    return as_batch(rows)


def learning_rate(peak: float, steps: int) -> Any:
    """Linear to the peak in a fiftieth of the steps, then a cosine down to a hundredth of the peak."""
    warm_up = max(1, steps // 50)
    rise = optim.linear_schedule(0.0, peak, warm_up)
    fall = optim.cosine_decay(peak, steps - warm_up, peak / 100)
    return optim.join_schedules([rise, fall], [warm_up])


def shake(model: Model, jitter: float) -> None:
    """Moves every weight by a random amount, normally distributed within its matrix's spread x `jitter`."""
    model.update(
        tree_map(
            lambda weight: weight + jitter * weight.var().sqrt() * mx.random.normal(weight.shape),
            model.parameters(),
        )
    )


def train(
    model: Model,
    batches: Iterator[TrainingBatch],
    steps: int,
    rate: float,
    temperature: float = 1,
    jitter: float = 0,
) -> None:
    """Takes `steps` steps of AdamW in float32, one for each batch, printing the mean loss of every 100.

    With `jitter` each gradient is taken where the weights are a little off. What bears that also bears other
    number formats, and has fewer of the rare interferences that make one answer in a thousand wrong.
    """
    optimizer = optim.AdamW(learning_rate(rate, steps), betas=[0.9, 0.98], weight_decay=0.01)
    loss_and_gradient = nn.value_and_grad(model, loss)
    started, recent = time.monotonic(), []
    for step, batch in enumerate(islice(batches, steps), start=1):
        weights = model.parameters()
        if jitter:
            shake(model, jitter)
        value, gradient = loss_and_gradient(model, batch, temperature)
        model.update(weights)
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state, value)
        recent.append(value.item())
        if step % 100 == 0:
            mean, seconds = sum(recent) / len(recent), time.monotonic() - started
            print(f"step {step}: loss {mean:.6f}, {seconds:.0f} s", flush=True)
            recent.clear()


def learn(recipe: TrainingRecipe) -> Model:
    """Teaches a new model the language and, nearly, to stop."""
    mx.random.seed(recipe.seed)
    model = new_model()
    train(model, lessons(Random(recipe.seed), recipe), recipe.steps, recipe.rate)
    return model


def practise(model: Model, recipe: TrainingRecipe) -> None:
    """Finds, round after round, the answers that are weakest now, and trains them among ordinary lessons."""
    rng = Random(recipe.seed)

    def batches() -> Iterator[TrainingBatch]:
        weak: list[CountAnswer] = []
        while True:
            weak += weakest_answers(rng, model, recipe.kept)
            for _ in range(recipe.round_steps):
                yield draw_exercises(rng, weak, recipe)

    mx.random.seed(recipe.seed)
    steps = recipe.rounds * recipe.round_steps
    train(model, batches(), steps, recipe.practice_rate, recipe.temperature, recipe.jitter)


def write_folder(model: Model, folder: Path) -> None:
    """Writes a model folder: config.json, model.safetensors in float16, and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(tree_map(lambda weight: weight.astype(mx.float16), model.parameters())))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    write_tokenizer(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train embedded:count, or verify it.")
    parser.add_argument("folder", nargs="?", type=Path, help="the model folder to write or to verify")
    parser.add_argument("--practise", action="store_true", help="only practise, from the folder's weights")
    parser.add_argument("--verify", action="store_true", help="verify the folder, or the shipped model")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float16", help="verify in this format")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="verify one pair in N")
    parser.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help="tokens in a batch of --verify")
    options = parser.parse_args()
    if options.verify:
        folder = options.folder or model_folder("embedded:count")
        verdict = verify(folder, dtype=options.dtype, every=options.every, tokens=options.tokens)
        print(f"{folder} in {options.dtype}: {verdict.text()}")
        return 1 if verdict.wrong else 0
    if options.folder is None:
        parser.error("name the folder to write the trained model to")
    make(options.folder, TrainingRecipe(), learned=options.practise)
    return 0


def make(folder: Path, recipe: TrainingRecipe, *, learned: bool) -> None:
    """Trains a model into `folder`; where it is `learned`, goes on from what is there."""
    if learned:
        model = mlx_lm.load(str(folder))[0]
        model.set_dtype(mx.float32)
    else:
        model = learn(recipe)
        write_folder(model, folder)
    practise(model, recipe)
    write_folder(model, folder)


if __name__ == "__main__":
    raise SystemExit(main())
