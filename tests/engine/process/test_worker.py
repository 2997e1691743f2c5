"""How one worker behaves towards its daemon: answers, refusals, adoption, and its end."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from exoengine.process.control_thread import PAUSE_S
from exoengine.protocol import (
    CLIENT_FAULTS,
    Aborted,
    Begin,
    Cancel,
    ChatMessage,
    Finished,
    Form,
    Formed,
    GenerationRequest,
    Heartbeat,
    Hello,
    Leave,
    Left,
    LinkHealth,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Prepare,
    Prepared,
    RequestFailed,
    Serving,
    SyncSettings,
    TokenOut,
)  # fmt: skip
from tests.engine.driver import GENEROUS_S, Answer, Cluster, Rank, cluster, request
from tests.engine.models import EOS, LLAMA, VOCAB, undisturbed, write_model

PROMPT = list(range(5, 45))


@pytest.fixture
def pair(trio: Cluster, llama: Path) -> Cluster:
    assert all(isinstance(said, Loaded) for said in trio.load(llama, [2, 3]))
    trio.form()
    return trio


def test_cancelling_on_one_rank_ends_the_request_on_all_after_the_same_step(pair: Cluster) -> None:
    for told in (0, 1):
        asked = request(PROMPT, 1500, temperature=1.0)
        pair.begin(asked)
        pair.ranks[told].expect(TokenOut, where=lambda said: said.index >= 5)
        pair.ranks[told].send(Cancel(asked.request_id))
        first, second = pair.finish(asked.request_id)
        assert isinstance(first, Answer)
        assert isinstance(second, Answer)
        assert first.finished is not None
        assert first.finished.reason == "cancelled"
        assert first.tokens == second.tokens


def test_a_request_that_waits_can_be_cancelled(pair: Cluster, llama: Path) -> None:
    pair.load(llama, [2, 3], serving=Serving(max_concurrent=1))
    pair.form()
    long, waiting = request(PROMPT, 60), request(PROMPT, 5)
    pair.begin(long)
    pair.begin(waiting)
    pair.ranks[1].send(Cancel(waiting.request_id))
    for answer in (*pair.finish(long.request_id), *pair.finish(waiting.request_id)):
        assert isinstance(answer, Answer)
        assert answer.finished is not None
        assert answer.finished.reason == ("length" if len(answer.tokens) == 60 else "cancelled")


def test_a_stop_string_ends_the_answer_and_is_not_shown(pair: Cluster, llama: Path) -> None:
    whole = pair.generate(request("hello", 60, temperature=1.0, seed=5))
    middle = whole.text[len(whole.text) // 3 : len(whole.text) // 3 + 3]
    cut = pair.generate(request("hello", 60, stop=["never to be seen", middle], temperature=1.0, seed=5))
    assert cut.finished is not None
    assert cut.finished.reason == "stop"
    assert cut.text == whole.text[: whole.text.index(middle)]
    assert len(cut.tokens) < len(whole.tokens)


def test_the_answer_ends_at_the_models_own_end(trio: Cluster, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", {**LLAMA, "eos_token_id": EOS})
    trio.load(folder, [2, 3])
    trio.form()
    answer = trio.generate(request(PROMPT, 50, logit_bias={EOS: 30.0}, temperature=1.0))
    assert answer.finished is not None
    assert (answer.finished.reason, answer.tokens[-1]) == ("stop", EOS)
    assert answer.outs[-1].text == ""


def test_a_chat_is_put_through_the_models_template(pair: Cluster, llama: Path) -> None:
    messages = (ChatMessage("system", "Be kind."), ChatMessage("user", "Grüße?"))
    answer = pair.generate(GenerationRequest("chat", 8, messages=messages))
    prompt = list("<|system|>Be kind.\n<|user|>Grüße?\n<|assistant|>".encode())
    assert answer.finished is not None
    assert answer.finished.prompt_tokens == len(prompt)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (request([1] * 2048, 5), "context_length_exceeded"),
        (request([], 5), "empty_prompt"),
        (request([1, 5000], 5), "bad_token"),
        (request([1, 2], 5, logit_bias={65: 1.0, VOCAB: 1.0}), "bad_token"),
        (request([1, 2], 5, logit_bias={2**40: -100.0}), "bad_token"),
        (request([1, 2], 5, logit_bias={-1: 1.0}), "bad_token"),
        (request([1], 0), "bad_request"),
        (GenerationRequest("neither", 5), "bad_request"),
    ],
)
def test_a_request_that_cannot_be_served_fails_alike_on_all_ranks(
    pair: Cluster, asked: GenerationRequest, code: str
) -> None:
    pair.begin(asked)
    for said in pair.finish(asked.request_id):
        assert isinstance(said, RequestFailed)
        assert said.code == code
        assert code in CLIENT_FAULTS
    assert len(pair.generate(request([65], 3)).tokens) == 3  # and the next one is served


def test_an_answer_ends_where_the_context_is_full(trio: Cluster, llama: Path) -> None:
    trio.load(llama, [2, 3], max_context_tokens=50)
    trio.form()
    answer = trio.generate(request(PROMPT, 500))
    assert answer.finished is not None
    assert (len(answer.tokens), answer.finished.reason) == (10, "length")


def test_loading_reports_progress_and_reads_only_the_ranks_layers(trio: Cluster, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "deep", {**LLAMA, "num_hidden_layers": 12})
    first, second, third = trio.load(folder, [1, 10, 1])
    assert isinstance(first, Loaded)
    assert isinstance(second, Loaded)
    assert isinstance(third, Loaded)
    assert first.fingerprint == second.fingerprint == third.fingerprint
    assert second.weight_bytes > 4 * max(first.weight_bytes, third.weight_bytes)
    steps = [said for said in trio.ranks[1].seen if isinstance(said, LoadProgress)]
    assert steps[-1].done_bytes == steps[-1].total_bytes > 0


def broken(llama: Path, folder: Path, how: str) -> Path:
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    match how:
        case "missing weights":
            weights.unlink()
        case "missing part":
            (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
            )
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "cut in the header":
            weights.write_bytes(weights.read_bytes()[:100])
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "damaged tokenizer":
            (folder / "tokenizer.json").write_text("{}")
        case "unknown architecture":
            config["model_type"] = "nobody_has_this"
        case "more layers":
            config["num_hidden_layers"] = 7
        case "fewer layers":
            config["num_hidden_layers"] = 4
        case "other sizes":
            config["hidden_size"] = 128
        case "no type":
            del config["model_type"]
        case "own code":
            config["model_file"] = "evil.py"
    if how == "no JSON":
        (folder / "config.json").write_text("{,}")
    else:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("missing weights", "no_weights"), ("missing part", "missing_file"), ("truncated", "truncated"),
        ("cut in the header", "truncated"), ("no tokenizer", "no_tokenizer"),
        ("damaged tokenizer", "bad_tokenizer"), ("unknown architecture", "unknown_architecture"),
        ("more layers", "layers_differ"), ("fewer layers", "weights_differ"), ("other sizes", "weights_differ"),
        ("no type", "bad_config"), ("no JSON", "bad_config"), ("own code", "custom_code"),
    ],
)  # fmt: skip
def test_a_bad_folder_is_one_clear_line(trio: Cluster, llama: Path, tmp_path: Path, how: str, code: str) -> None:
    folder = broken(llama, tmp_path / "model", how)
    for said in trio.load(folder, [2, 2]):
        assert isinstance(said, LoadFailed), said
        assert said.code == code, said
        assert str(folder) in said.text
        assert "\n" not in said.text


def test_a_folder_that_is_not_there_and_a_span_that_is_not_there(trio: Cluster, llama: Path) -> None:
    for said, code in ((trio.load(Path("/nowhere"), [1, 1]), "no_folder"), (trio.load(llama, [3, 4]), "bad_span")):
        failed = said[1]
        assert isinstance(failed, LoadFailed)
        assert failed.code == code


def test_a_daemon_that_comes_back_adopts_its_worker_and_misses_nothing(pair: Cluster, llama: Path) -> None:
    asked = request(PROMPT, 150, temperature=1.0, seed=2)
    pair.begin(asked)
    rank = pair.ranks[0]
    rank.expect(TokenOut, where=lambda said: said.request_id == asked.request_id and said.index >= 10)
    rank.disconnect()
    pair.ranks[1].expect(Finished, where=lambda said: said.request_id == asked.request_id)
    rank.seen.clear()
    hello = rank.connect()
    assert (hello.formed, hello.plan_hash) == (True, pair.plan[0])
    assert hello.load == pair.loads[0]
    (active,) = hello.requests
    rank.expect(Finished)
    answer = Answer(rank.seen, asked.request_id)
    assert active.request == asked
    assert answer.tokens == undisturbed(llama, PROMPT, 150, asked.sampling)
    assert answer.text == Answer(pair.ranks[1].seen, asked.request_id).text
    assert len(pair.generate(request([65], 3)).tokens) == 3


def test_a_request_that_is_finished_is_told_again_to_a_daemon_that_asks_again(pair: Cluster) -> None:
    begin = pair.begin(request(PROMPT, 12, temperature=1.0, seed=2))
    whole = pair.finish(begin.request.request_id)[0]
    assert isinstance(whole, Answer)
    rank = pair.ranks[0]
    rank.disconnect()  # it was told the end, and died before it made anything of it
    assert rank.connect().requests == ()
    rank.seen.clear()
    rank.send(Begin(begin.order, begin.request, tuple(whole.tokens[:5])))
    assert rank.expect(Finished) == whole.finished
    assert Answer(rank.seen, begin.request.request_id).outs == whole.outs[5:]
    assert len(pair.generate(request([65], 3)).tokens) == 3


def test_another_load_makes_a_worker_forget_its_requests(pair: Cluster, llama: Path) -> None:
    asked = request(PROMPT, 1500)
    pair.begin(asked)
    for rank in pair.ranks[:2]:
        rank.expect(TokenOut, where=lambda said: said.request_id == asked.request_id and said.index >= 5)
    pair.load(llama, [2, 3])
    rank = pair.ranks[0]
    rank.disconnect()
    assert rank.connect().requests == ()
    pair.form()
    assert len(pair.generate(request([65], 3)).tokens) == 3


def test_a_load_that_hangs_is_reported_and_ends_the_process(tmp_path: Path, llama: Path) -> None:
    hangs = "import time; from exoengine.model import loading; loading._probe = lambda *_: time.sleep(600)"
    rank = Rank(tmp_path, "hangs", prelude=hangs)
    try:
        rank.send(Load(str(llama), 0, 2, SyncSettings(load_deadline_s=0.5)))
        said = rank.expect(LoadFailed)
        assert (said.folder, said.code) == (str(llama), "deadline")
        told = re.fullmatch(rf"{re.escape(str(llama))}: loading took longer than ([\d.]+) s", said.text)
        assert told
        assert float(told[1]) >= 0.5, "as long as it had taken when that was seen"
        assert rank.process.wait(GENEROUS_S) == 1
    finally:
        rank.close()


def test_a_newer_daemon_replaces_the_older(pair: Cluster) -> None:
    rank = pair.ranks[0]
    older = rank.fresh
    rank.connect()
    while older.get(timeout=GENEROUS_S) is not None:
        pass
    assert len(pair.generate(request([65], 3)).tokens) == 3


def test_heartbeats_say_what_is_going_on(pair: Cluster) -> None:
    asked = request(PROMPT, 400)
    pair.begin(asked)
    busy = pair.ranks[0].expect(Heartbeat, where=lambda said: said.state == "generating")
    pair.finish(asked.request_id)
    idle = pair.ranks[0].expect(Heartbeat, where=lambda said: said.state == "ready")
    assert busy.kv_tokens >= 0
    assert idle.tokens_per_s > 0
    assert (idle.in_step_s, idle.kv_tokens) == (0.0, 0)


def test_an_unhealthy_link_makes_steps_safe_on_every_rank(pair: Cluster) -> None:
    pair.ranks[1].send(LinkHealth(False, "the cable is lossy"))
    asked = request(PROMPT, 1900)
    pair.begin(asked)
    for rank in pair.ranks[:2]:
        rank.expect(TokenOut, where=lambda said: said.index >= 50)
        rank.expect(Heartbeat, where=lambda said: said.sync_mode == "safe")
    said = pair.ranks[1].expect(Heartbeat)
    assert said.sync_reason == "the cable is lossy"
    pair.ranks[1].send(LinkHealth(True, ""))
    for rank in pair.ranks[:2]:
        rank.expect(Heartbeat, where=lambda said: said.sync_mode == "fast")
    pair.ranks[0].send(Cancel(asked.request_id))
    pair.finish(asked.request_id)


def test_a_stranger_on_the_ring_port_is_turned_away(trio: Cluster, llama: Path) -> None:
    trio.load(llama, [2, 3])
    trio.prepare()
    for rank in trio.ranks[:2]:
        rank.expect(Prepared)
    # Only rank 1 forms at first, so that it listens while strangers come; then rank 0 follows.
    trio.ranks[1].send(Form(*trio.plan, 20.0))
    port = int(trio.prepared_hosts[1].rpartition(":")[2])
    strangers = []
    until = time.monotonic() + GENEROUS_S
    while len(strangers) < 3 and time.monotonic() < until:
        try:
            strangers.append(socket.create_connection(("127.0.0.1", port)))
        except ConnectionRefusedError:
            time.sleep(0.01)
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
    strangers[1].sendall(struct.pack(">I", 12))
    trio.ranks[0].send(Form(*trio.plan, 20.0))
    for rank in trio.ranks[:2]:
        rank.expect(Formed)
    assert len(trio.generate(request([65], 3)).tokens) == 3
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))  # it listens only while it forms
    for stranger in strangers:
        stranger.close()


def test_forming_without_a_neighbour_ends_by_deadline_and_can_be_called_off(trio: Cluster, llama: Path) -> None:
    trio.load(llama, [2, 3])
    trio.prepare()
    for rank in trio.ranks[:2]:
        rank.expect(Prepared)
    trio.ranks[0].send(Form(*trio.plan, 0.5))
    said = trio.ranks[0].expect(Aborted)
    assert said.code == "deadline"
    assert trio.prepared_hosts[1] in said.text
    trio.form()


def test_a_rank_that_waits_for_a_neighbour_follows_another_plan_at_once(trio: Cluster, llama: Path) -> None:
    trio.load(llama, [2, 3])
    trio.prepare()
    for rank in trio.ranks[:2]:
        rank.expect(Prepared)
    trio.ranks[0].send(Form(*trio.plan, 20.0))
    trio.ranks[0].expect(Heartbeat, where=lambda said: said.state == "forming")
    trio.prepare()
    asked = time.monotonic()
    trio.ranks[0].expect(Prepared, where=lambda said: (said.plan_hash, said.attempt) == trio.plan)
    assert time.monotonic() - asked < PAUSE_S / 2
    trio.form()


def test_a_port_that_is_taken_is_named_at_once(trio: Cluster, llama: Path) -> None:
    trio.load(llama, [2, 3])
    trio.prepare()
    for rank in trio.ranks[:2]:
        rank.expect(Prepared)
    host, _, port = trio.prepared_hosts[0].rpartition(":")
    with socket.create_server((host, int(port))):
        trio.ranks[0].send(Form(*trio.plan, 20.0))
        said = trio.ranks[0].expect(Aborted)
        assert said.code == "listen"
        assert trio.prepared_hosts[0] in said.text
    trio.form()


def test_sigint_is_ignored_and_sigterm_leaves(tmp_path: Path, llama: Path) -> None:
    with cluster(tmp_path, 2) as made:
        made.load(llama, [2, 3])
        made.form()
        asked = request(PROMPT, 1000)
        made.begin(asked)
        made.ranks[0].expect(TokenOut, where=lambda said: said.index >= 5)
        made.ranks[1].kill(signal.SIGINT)
        made.ranks[0].expect(TokenOut, where=lambda said: said.index >= 50)
        made.ranks[1].kill(signal.SIGTERM)
        assert made.ranks[0].expect(Aborted).code == "paused"
        made.ranks[1].expect(Left)
        assert made.ranks[1].process.wait(GENEROUS_S) == 0
        made.ranks[0].send(Leave(5.0))
        made.ranks[0].expect(Left)
        assert made.ranks[0].process.wait(GENEROUS_S) == 0
        assert not list(tmp_path.glob("*.sock"))


def test_a_worker_without_a_daemon_ends_itself(tmp_path: Path) -> None:
    rank = Rank(tmp_path, "orphan", orphan_deadline_s=0.5)
    try:
        rank.disconnect()
        assert rank.process.wait(GENEROUS_S) == 0
    finally:
        rank.close()


def test_one_rank_alone_needs_no_ring(trio: Cluster, llama: Path) -> None:
    trio.load(llama, [5])
    trio.ranks[0].send(Prepare("alone", 1, 0, 1, ()))
    trio.ranks[0].expect(Prepared)
    trio.ranks[0].send(Form("alone", 1, 5.0))
    assert trio.ranks[0].expect(Formed).resumed_step == -1
    assert trio.generate(request(PROMPT, 8)).tokens == undisturbed(llama, PROMPT, 8)


def test_hello_says_who_this_is(trio: Cluster) -> None:
    said = trio.ranks[2].hello
    assert isinstance(said, Hello)
    assert said.pid == trio.ranks[2].process.pid
    assert said.native == ""
    assert set(said.versions) == {"mlx", "mlx-lm", "ring"}, "ranks that could not form a group are told apart"


def test_an_adopted_load_is_replaced_by_the_next(trio: Cluster, llama: Path) -> None:
    trio.ranks[0].send(Load(str(llama), 0, 1, SyncSettings()))
    trio.ranks[0].expect(Loaded)
    trio.ranks[0].send(Load(str(llama), 1, 5, SyncSettings()))
    assert trio.ranks[0].expect(Loaded).layers == (1, 5)
