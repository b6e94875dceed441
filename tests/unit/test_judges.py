"""The judge, against a server that misbehaves on demand."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from omnikit.evaluate import judges
from omnikit.evaluate.judges import Judge, JudgeFailed

KEY = "sk-very-secret-1234"
HELLO = [{"role": "user", "content": "Hello? 你好"}]


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Server:
    """Answers request after request by the next of its `plans`: functions of the handler. Keeps what it was asked."""

    def __init__(self):
        self.plans, self.asked, self.headers = [], [], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.asked.append((self.path, json.loads(body)))
                server.headers.append(dict(self.headers))
                plan = server.plans.pop(0) if server.plans else say("yes")
                plan(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def send(handler, code, body, **headers):
    handler.send_response(code)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def say(text):
    return lambda handler: send(handler, 200, completion(text))


def refuse(code, message="no", **headers):
    return lambda handler: send(handler, code, json.dumps({"error": {"message": message}}).encode(), **headers)


def raw(body, code=200):
    return lambda handler: send(handler, code, body)


def close(handler):
    handler.close_connection = True
    handler.connection.close()


def cut(handler):
    """Half of what was promised, and then no more."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(completion("yes")[:20])
    close(handler)


def sleep(handler):
    time.sleep(1)
    close(handler)


def dribble(handler):
    """A byte now and then: no single wait is ever too long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(40):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass
    close(handler)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setattr(judges, "PAUSE", 0.01)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


# ---------------------------------------------------------------------------------------------------------- one request


def test_it_asks_as_openai_has_it(server):
    server.plans = [say("  no  ")]
    judge = Judge(server.url + "/", "grader-1", "JUDGE_KEY")
    assert judge.ask(HELLO, temperature=0.5) == "  no  ", "the words as they are"
    assert server.asked == [("/v1/chat/completions", {"model": "grader-1", "messages": HELLO, "temperature": 0.5})]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["Content-Type"] == "application/json"


def test_without_a_key_none_is_sent(server):
    assert Judge(server.url, "m").ask(HELLO) == "yes"
    assert "Authorization" not in server.headers[0]


def test_the_same_is_asked_once(server):
    judge = Judge(server.url, "m")
    assert judge.ask(HELLO) == judge.ask(HELLO) and len(server.asked) == 1
    judge.ask(HELLO, temperature=1.0)
    judge.ask([*HELLO, {"role": "assistant", "content": "hm"}])
    assert len(server.asked) == 3


# --------------------------------------------------------------------------------------------------------- misbehaviour


@pytest.mark.parametrize(
    "plan",
    [refuse(500), refuse(503), refuse(429), refuse(408), close, cut, sleep, dribble, raw(b"not json"), raw(b"[]"),
     raw(b'{"choices": []}'), raw(completion(None)), raw(b"\xff\xfe"), raw(b"")],
    ids=["500", "503", "429", "408", "closes", "cuts", "sleeps", "dribbles", "no-json", "a-list", "no-choice", "null",
         "bytes", "empty"],
)  # fmt: skip
def test_what_may_pass_is_tried_again(server, plan, monkeypatch):
    if plan in (sleep, dribble):
        monkeypatch.setattr(judges, "TIMEOUT", 0.4)
    server.plans = [plan, plan]
    assert Judge(server.url, "m").ask(HELLO) == "yes"
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (refuse(500, "out of order"), "HTTP 500: out of order"),
        (refuse(429, "slow down"), "HTTP 429: slow down"),
        (sleep, "no reply within 0.4 s"),
        (dribble, "no reply within 0.4 s"),
        (cut, "IncompleteRead"),
        (raw(b"<html>"), "no chat completion: b'<html>'"),
    ],
)
def test_after_five_tries_the_question_has_no_grade(server, plan, reason, monkeypatch):
    server.plans = [plan] * 5
    judge = Judge(server.url, "m")
    if plan in (sleep, dribble):
        monkeypatch.setattr(judges, "TIMEOUT", 0.4)
    with pytest.raises(JudgeFailed, match=rf"^judge m at {server.url}: no reply in 5 tries; the last: {reason}"):
        judge.ask(HELLO)
    assert len(server.asked) == 5
    monkeypatch.setattr(judges, "TIMEOUT", 60)
    assert judge.ask(HELLO) == "yes", "the next question is asked as ever, and a failure is not remembered"


def test_the_pauses_double(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(judges.time, "sleep", pauses.append)
    server.plans = [refuse(500)] * 5
    with pytest.raises(JudgeFailed):
        Judge(server.url, "m").ask(HELLO)
    assert pauses == [0.01, 0.02, 0.04, 0.08]


def test_retry_after_is_heeded(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(judges.time, "sleep", pauses.append)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    held = ["7", "0.5", soon, "100000"]
    assert not any(map(judges._retry_after, ("soon", "nan", "-3", f"Wed, 21 Oct {'9' * 20} 07:28:00 GMT")))
    server.plans = [refuse(429, Retry_After=value) for value in held]
    assert Judge(server.url, "m").ask(HELLO) == "yes"
    assert pauses[:2] == [7, 0.5] and 25 < pauses[2] <= 30 and pauses[3] == judges.LONGEST_PAUSE
    pauses.clear()
    server.plans = [refuse(429, Retry_After=value) for value in ("soon", "-5", "nan")]
    assert Judge(server.url, "n").ask(HELLO) == "yes" and pauses == [0.01, 0.02, 0.04]


def test_nobody_there_is_found_out_once(server):
    server.http.shutdown()
    server.http.server_close()
    judge = Judge(server.url, "m")
    for number in range(judges.IN_A_ROW):
        with pytest.raises(JudgeFailed, match="no reply in 5 tries; the last: ConnectionRefusedError"):
            judge.ask([{"role": "user", "content": str(number)}])
    begun = time.monotonic()
    for number in range(1000):
        with pytest.raises(JudgeFailed, match="not asked, as it left 5 in a row alone"):
            judge.ask([{"role": "user", "content": f"more {number}"}])
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_request_that_is_refused_is_not_sent_again(server, code):
    server.plans = [refuse(code, "maximum context\nlength is 8192 tokens")]
    judge = Judge(server.url, "m")
    with pytest.raises(JudgeFailed, match=f"HTTP {code}: maximum context length is 8192 tokens$"):
        judge.ask(HELLO)
    assert len(server.asked) == 1 and judge.ask(HELLO) == "yes"


@pytest.mark.parametrize("code", [401, 403, 404, 301, 307])
def test_what_will_never_work_ends_the_evaluation(server, code):
    server.plans = [refuse(code, f"Incorrect API key provided: {KEY}", Location=server.url)]
    with pytest.raises(
        ValueError, match=f"HTTP {code}: .*; check the address, the model 'm', or the key in JUDGE_KEY"
    ) as caught:
        Judge(server.url, "m", "JUDGE_KEY").ask(HELLO)
    assert len(server.asked) == 1, "no redirect is followed, which would hand the key on"
    assert KEY not in str(caught.value)


def test_too_much_is_not_read(server, monkeypatch):
    monkeypatch.setattr(judges, "LARGEST", 1000)
    server.plans = [say("x" * 100_000)]
    assert Judge(server.url, "m").ask(HELLO) == "yes" and len(server.asked) == 2


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:8000/v1", "file:/etc/passwd", "ftp://host/v1", "http://", "http:///v1", "http://host:v1"),
        *("http://host:99999/v1", "http://[::1/v1", "http://a b/v1", "http://host/v\n1", "http://host/vé"),
    ],
)
def test_an_address_that_is_none(url):
    with pytest.raises(ValueError, match=r"judge: .* is no address; give one such as http://localhost:8000/v1"):
        Judge(url, "m")


@pytest.mark.parametrize("host", ["host", "host:v1", "[::1"])
def test_an_address_may_hold_no_password(host):
    with pytest.raises(ValueError, match="judge: the address holds a name or password") as caught:
        Judge(f"https://me:hunter2@{host}/v1", "m")
    assert "hunter2" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- the key


@pytest.mark.parametrize("value", [None, "", "  ", "schlüssel", "two\nlines"])
def test_a_missing_or_broken_key_is_said_first(monkeypatch, value):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(
        ValueError, match=r"judge: the environment variable JUDGE_KEY (is not set|holds what is no key)"
    ) as caught:
        Judge("http://localhost:1/v1", "m", "JUDGE_KEY")
    assert not value or not value.strip() or value not in str(caught.value)


def test_the_key_is_written_nowhere(server, tmp_path):
    record = tmp_path / "judge.jsonl"
    judge = Judge(server.url, "m", "JUDGE_KEY", record)
    server.plans = [say("yes"), *[refuse(500, f"key {KEY} is ill")] * 5]
    judge.ask(HELLO)
    with pytest.raises(JudgeFailed, match=r"key \[key\] is ill") as caught:
        judge.ask([{"role": "user", "content": "again"}])
    assert KEY not in record.read_text() and KEY not in str(caught.value) and KEY not in repr(vars(judge))


# ------------------------------------------------------------------------------------------------------------ recording


def test_a_recording_replays_offline(server, tmp_path, monkeypatch):
    record = tmp_path / "deep" / "judge.jsonl"
    server.plans = [say("one"), say("zwei 二 \ud83d")]
    judge = Judge(server.url, "m", "JUDGE_KEY", record)
    said = [judge.ask(HELLO), judge.ask(HELLO, temperature=0.5)]
    server.http.shutdown()
    monkeypatch.delenv("JUDGE_KEY")
    replayed = Judge("http://elsewhere.invalid/v1", "m", "JUDGE_KEY", record, replay=True)
    assert [replayed.ask(HELLO), replayed.ask(HELLO, temperature=0.5)] == said
    with pytest.raises(
        JudgeFailed, match=r"judge\.jsonl holds no reply to this request; ask the judge once without replay"
    ):
        replayed.ask(HELLO, temperature=1.0)
    with pytest.raises(JudgeFailed):
        Judge(server.url, "another", None, record, replay=True).ask(HELLO)


def test_what_is_recorded_is_not_asked_again(server, tmp_path):
    record = tmp_path / "judge.jsonl"
    Judge(server.url, "m", None, record).ask(HELLO)
    again = Judge(server.url, "m", None, record)
    assert again.ask(HELLO) == "yes" and len(server.asked) == 1
    again.ask(HELLO, temperature=1.0)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["temperature"] for line in lines] == [0, 1] and lines[0]["messages"] == HELLO


@pytest.mark.parametrize("keep", ["half", "all but the end of the line"])
def test_a_line_that_a_kill_cut_off_is_mended(server, tmp_path, keep):
    record = tmp_path / "judge.jsonl"
    judge = Judge(server.url, "m", None, record)
    judge.ask(HELLO)
    judge.ask(HELLO, temperature=1.0)
    whole = record.read_bytes()
    end = len(whole) - 1 if keep.startswith("all") else len(whole) - 40
    record.write_bytes(whole[:end])
    Judge(server.url, "m", None, record, replay=True).ask(HELLO)
    assert record.read_bytes() == whole[:end], "a replay changes nothing"
    again = Judge(server.url, "m", None, record)
    again.ask(HELLO, temperature=1.0)
    assert record.read_bytes() == whole and len(server.asked) == (2 if keep.startswith("all") else 3)


@pytest.mark.parametrize("line", ["{", "[]", "5", '{"hash": "x"}', '{"hash": 1, "reply": "y"}', "\xff"])
def test_a_recording_that_is_none_is_named(tmp_path, line):
    record = tmp_path / "judge.jsonl"
    record.write_text('{"hash": "a", "reply": "b"}\n' + line + "\n", encoding="latin-1")
    before = record.read_bytes()
    with pytest.raises(ValueError, match=r"judge\.jsonl:2: is no recorded reply"):
        Judge("http://localhost:1/v1", "m", None, record)
    assert record.read_bytes() == before


def test_nothing_to_replay(tmp_path):
    with pytest.raises(ValueError, match="nothing to replay, no file is named"):
        Judge("http://localhost:1/v1", "m", replay=True)
    with pytest.raises(ValueError, match=r"nothing to replay, .*none is no file"):
        Judge("http://localhost:1/v1", "m", None, tmp_path / "none", replay=True)


def test_threads_share_one_judge(server, tmp_path):
    record = tmp_path / "judge.jsonl"
    judge = Judge(server.url, "m", None, record)
    threads = [
        threading.Thread(target=judge.ask, args=([{"role": "user", "content": f"{n % 20} " + "x" * 5000}],))
        for n in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {json.loads(line)["hash"] for line in record.read_text().splitlines()}
    assert len(names) == 20 and len(Judge(server.url, "m", None, record)._replies) == 20


KILLED = """
import sys
from pathlib import Path
from omnikit.evaluate.judges import Judge
judge = Judge(sys.argv[1], "m", None, Path(sys.argv[2]))
for number in range(100000):
    judge.ask([{"role": "user", "content": str(number)}])
    print(number, flush=True)
"""


def test_kill_9_loses_nothing_that_was_paid_for(server, tmp_path):
    record = tmp_path / "judge.jsonl"
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, server.url, str(record)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "no_proxy": "*"}
        ) as process:
            had = [int(process.stdout.readline()) for _ in range(20)]
            process.send_signal(signal.SIGKILL)
            had += [int(line) for line in process.stdout.read().splitlines() if line]
        judge = Judge(server.url, "m", None, record, replay=True)
        for number in had:
            assert judge.ask([{"role": "user", "content": str(number)}]) == "yes"
    # Each is asked once, but for at most one a kill whose reply was still on its way.
    asked = [request["messages"][0]["content"] for _, request in server.asked]
    assert len(asked) - len(set(asked)) <= 3


def test_what_another_evaluation_is_writing_is_waited_for_and_not_mended(server, tmp_path):
    import fcntl

    record = tmp_path / "judge.jsonl"
    Judge(server.url, "m", record=record).ask(HELLO)
    whole = record.read_bytes()
    record.write_bytes(whole[:20])
    began = []
    with record.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other = threading.Thread(target=lambda: began.append(Judge(server.url, "m", record=record)))
        other.start()
        time.sleep(0.3)
        assert not began
        file.write(whole[20:])
    other.join()
    assert record.read_bytes() == whole and began[0].ask(HELLO) == "yes" and len(server.asked) == 1
