"""The embedded demo model: it counts, it stops, and it is loaded as any other folder.

That it answers every pair right was verified once, exhaustively, with the weights that ship
(`train_count --verify`); here a sample of the pairs is.
"""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.sample_utils import make_sampler

from exoengine.embedded import is_embedded, model_folder
from exoengine.embedded import train_count as training
from exoengine.embedded.count_language import (
    COUNT,
    END,
    FROM,
    HELP,
    LARGEST,
    TO,
    UNK,
    USER,
    VOCABULARY,
    chat,
    count_question,
    counting,
    draw_exchange,
    number,
    question_and_answer,
)
from exoengine.embedded.verify_count import DTYPES, CountAnswer, batches, every_pair, padded_width, verify

FOLDER = model_folder("embedded:count")
HELP_TEXT = "Ask me to count from 1 to 9."

Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """(model, tokenizer), by the same call as for any other folder."""
    model, tokenizer = mlx_lm.load(str(FOLDER))[:2]
    return model, tokenizer


def ask(loaded: Loaded, question: str, **options: Any) -> tuple[str, str | None]:
    """What the model answers in chat, put together from the streamed segments, and why it ended."""
    model, tokenizer = loaded
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    answer, reason = "", None
    for response in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=1100, **options):
        answer += response.text
        reason = response.finish_reason
    return answer, reason


def counted(first: int, last: int) -> str:
    return " ".join(str(value) for value in range(first, last + 1))


class TestFolder:
    def test_is_small_and_splits_over_eight_ranks(self) -> None:
        config = json.loads((FOLDER / "config.json").read_text())
        assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 4_000_000
        assert config["num_hidden_layers"] >= 8
        assert config["max_position_embeddings"] >= 2048

    def test_is_what_the_script_writes(self, tmp_path: Path) -> None:
        training.write_folder(training.new_model(), tmp_path)
        names = sorted(file.name for file in FOLDER.iterdir())
        assert names == sorted(file.name for file in tmp_path.iterdir())
        assert filecmp.cmpfiles(FOLDER, tmp_path, [name for name in names if name != "model.safetensors"]) == (
            ["config.json", "tokenizer.json", "tokenizer_config.json"],
            [],
            [],
        )
        shipped, written = (mx.load(str(folder / "model.safetensors")) for folder in (FOLDER, tmp_path))
        assert {name: (array.shape, array.dtype) for name, array in shipped.items()} == {
            name: (array.shape, array.dtype) for name, array in written.items()
        }

    @pytest.mark.parametrize("name", ["embedded:sing", "count", "embedded:", "embedded:../count"])
    def test_another_name_is_refused_with_those_allowed(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"allowed: embedded:count$"):
            model_folder(name)

    def test_a_name_that_claims_to_be_embedded_is_told_from_a_folder(self) -> None:
        assert is_embedded("embedded:sing")
        assert not is_embedded("./embedded")

    def test_finding_it_imports_nothing_heavy(self) -> None:
        code = (
            "import sys; from exoengine.embedded import model_folder; model_folder('embedded:count');"
            "sys.exit(any(name in sys.modules for name in ('mlx', 'mlx_lm', 'numpy', 'transformers')))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_loads_offline_and_without_a_word(self) -> None:
        code = f"import mlx_lm; mlx_lm.load({str(FOLDER)!r})"
        environment = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error", "PATH": "", "HOME": "/nonexistent"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestTokenizer:
    def test_every_number_is_one_token(self, loaded: Loaded) -> None:
        _, tokenizer = loaded
        words = " ".join(str(value) for value in range(LARGEST + 1))
        assert tokenizer.encode(words) == [number(value) for value in range(LARGEST + 1)]

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("Count FROM 3\nto 60.", [COUNT, FROM, number(3), TO, number(60)]),
            ("count from 3 to 60, please!", [COUNT, FROM, number(3), TO, number(60), UNK]),
            ('  "count from 3 to 60"…  ', [COUNT, FROM, number(3), TO, number(60)]),
            ("count from 1,000 to 3.5", [COUNT, FROM, UNK, TO, UNK]),
            ("3–60 007 café ▁", [number(3), number(60), UNK, UNK]),
            ("Ask me.", [UNK, UNK]),
            ("", []),
            (" ?! ", []),
        ],
    )
    def test_case_and_punctuation_do_not_matter(self, loaded: Loaded, text: str, tokens: list[int]) -> None:
        assert loaded[1].encode(text) == tokens

    def test_only_the_latest_question_is_put_to_the_model(self, loaded: Loaded) -> None:
        conversation = [
            {"role": "system", "content": "You are a counter."},
            {"role": "user", "content": "count from 1 to 9"},
            {"role": "assistant", "content": counted(1, 9)},
            {"role": "user", "content": "count from 3 to 60"},
        ]
        tokens = loaded[1].apply_chat_template(conversation, add_generation_prompt=True)
        assert tokens == list(chat(count_question(3, 60)))

    def test_streamed_segments_are_the_whole_text(self, loaded: Loaded) -> None:
        _, tokenizer = loaded
        tokens = counting(1, LARGEST)[:-1]
        detokenizer, segments = tokenizer.detokenizer, []
        for token in tokens:
            detokenizer.add_token(token)
            segments.append(detokenizer.last_segment)
        detokenizer.finalize()
        segments.append(detokenizer.last_segment)
        assert segments[:3] == ["1", " 2", " 3"]
        assert "".join(segments) == tokenizer.decode(tokens) == counted(1, LARGEST)

    def test_only_the_end_ends_an_answer(self, loaded: Loaded) -> None:
        assert loaded[1].eos_token_ids == {END}


class TestAnswers:
    @pytest.mark.parametrize(("first", "last"), [(1, 2), (3, 60), (998, 999), (96, 203), (1, LARGEST)])
    def test_counts_and_stops(self, loaded: Loaded, first: int, last: int) -> None:
        assert ask(loaded, f"count from {first} to {last}") == (counted(first, last), "stop")

    @pytest.mark.parametrize(
        "question",
        [
            "Count from 3 to 60",
            "COUNT FROM 3 TO 60!",
            "count from 3 to 60, please.",
            "Please count from 3 to 60",
            "Hello! Could you count slowly from 3 up to 60 for me?",
        ],
    )
    def test_harmless_words_do_not_matter(self, loaded: Loaded, question: str) -> None:
        assert ask(loaded, question) == (counted(3, 60), "stop")

    def test_counts_from_one_where_no_first_number_is_given(self, loaded: Loaded) -> None:
        assert ask(loaded, "count to 10") == (counted(1, 10), "stop")

    @pytest.mark.parametrize(
        "question",
        ["", "Hello", "What is the capital of France?", "count", "count from 10 to 1", "count from 1 to 1000"],
    )
    def test_what_is_no_question_to_it_is_answered_with_help(self, loaded: Loaded, question: str) -> None:
        assert ask(loaded, question) == (HELP_TEXT, "stop")

    def test_sampling_at_temperature_one_hardly_ever_errs(self, loaded: Loaded) -> None:
        mx.random.seed(1)
        assert ask(loaded, "count from 3 to 60", sampler=make_sampler(temp=1.0)) == (counted(3, 60), "stop")

    def test_a_plain_completion_counts_too(self, loaded: Loaded) -> None:
        model, tokenizer = loaded
        assert mlx_lm.generate(model, tokenizer, "count from 3 to 60") == counted(3, 60)

    @pytest.mark.parametrize("dtype", sorted(DTYPES))
    def test_margins_bear_any_number_format(self, dtype: str) -> None:
        verdict = verify(FOLDER, dtype=dtype, every=110_017)
        assert verdict.answers == 5
        assert not verdict.wrong
        assert verdict.weakest.margin > 3, verdict.text()


class TestVerification:
    def test_covers_every_pair_once(self) -> None:
        pairs = list(every_pair())
        assert len(pairs) == len(set(pairs)) == 498_501
        assert all(1 <= first < last <= 999 for first, last in pairs)

    def test_batches_keep_the_pairs_their_order_and_the_limit(self) -> None:
        pairs = list(every_pair())[::997]
        made = list(batches(pairs, 2048))
        assert [pair for batch in made for pair in batch] == pairs
        assert all(len(batch) * padded_width(batch[-1]) <= 2048 for batch in made)
        assert len({padded_width(pair) for batch in made for pair in batch}) <= 32

    def test_finds_a_model_wrong_that_was_never_trained(self, tmp_path: Path) -> None:
        training.write_folder(training.new_model(), tmp_path)
        verdict = verify(tmp_path, every=100_003)
        assert len(verdict.wrong) == verdict.answers == 5
        assert verdict.weakest.margin < 0


class TestTraining:
    def test_each_drawn_prompt_has_the_length_asked_for_and_its_right_answer(self) -> None:
        rng = Random(1)
        for length in [*range(2, 17), 40] * 50:
            exchange = draw_exchange(rng, length)
            numbers = [int(VOCABULARY[token][1:]) for token in exchange.prompt if token >= number(0)]
            assert len(exchange.prompt) == length
            assert exchange.answer[-1] == END
            if exchange.answer != HELP:
                first, last = numbers if FROM in exchange.prompt else (1, *numbers)
                assert exchange.answer == counting(first, last)
            elif FROM in exchange.prompt and TO in exchange.prompt[exchange.prompt.index(FROM) :]:
                assert len(numbers) < 2 or numbers[0] > numbers[1] or exchange.prompt[0] == USER

    def test_a_window_of_a_whole_answer_is_the_model_itself(self) -> None:
        model = training.new_model()
        exchange = question_and_answer(5, 30)
        row = training.cut(exchange, 0, len(exchange.answer) - 1)
        windowed = training.forward(model, training.as_batch([row]))[0]
        whole = model(mx.array([[*exchange.prompt, *exchange.answer[:-1]]]))[0, len(exchange.prompt) - 1 :]
        assert mx.allclose(windowed, whole, atol=1e-4)

    def test_rows_of_a_batch_may_start_anywhere(self) -> None:
        model = training.new_model()
        rows = [training.cut(question_and_answer(5, 900), start, 12) for start in (0, 700)]
        together = training.forward(model, training.as_batch(rows))
        alone = [training.forward(model, training.as_batch([row]))[0] for row in rows]
        assert mx.allclose(together, mx.stack(alone), atol=1e-4)
        assert not mx.allclose(together[0, 1:], together[1, 1:], atol=1e-2)

    def test_an_exercise_shows_the_token_that_was_weak(self) -> None:
        rng = Random(1)
        for weak in (CountAnswer(100, 300, 0.5, 150), CountAnswer(100, 300, 0.5, 201), CountAnswer(7, 9, 0.5, 0)):
            right = counting(weak.first, weak.last)[weak.place]
            for _ in range(50):
                _, _, _, targets = training.exercise(rng, weak, 12)
                assert right in targets

    def test_jitter_leaves_the_weights_where_they_were(self) -> None:
        model = training.new_model()
        before = dict(tree_flatten(model.parameters()))
        lessons = training.lessons(Random(1), training.TrainingRecipe(rows=2, whole_share=0))
        training.train(model, lessons, steps=2, rate=0.0, temperature=2.0, jitter=0.1)
        assert all(mx.array_equal(before[name], now) for name, now in tree_flatten(model.parameters()))
