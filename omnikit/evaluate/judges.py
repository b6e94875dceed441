"""A language model that grades answers, behind any OpenAI-compatible endpoint; recorded, and replayed offline.

Every reply is written down before it is used, a line of JSON each, so that what was paid for is never lost and an
evaluation that is run again costs nothing. The key is read from an environment variable for each request and stands in
no file, message or object.
"""

import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

TIMEOUT = 120.0
"""Seconds that a reply may take, however many pieces it comes in."""
TRIES = 5
"""Times that a request is sent in all, before its question has no grade."""
PAUSE = 1.0
"""Seconds before the second try; twice as many before each further one."""
LONGEST_PAUSE = 120.0
"""Seconds that are waited at most, whatever `Retry-After` says."""
IN_A_ROW = 5
"""Questions in a row that may fail for want of a reply; from then on nobody is asked, and all others fail at once."""
LARGEST = 1 << 22
"""Bytes of a reply that are read at most."""


class JudgeFailed(Exception):
    """A question has no grade: the judge did not reply, or nothing that could be read. The others are kept."""


class JudgeRefused(ValueError):
    """No question can get a grade: the judge's address, model or key is wrong."""


class _Again(Exception):
    """A try that came to nothing, and how long to wait at least before the next."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Lets a redirect be the error it is here: following it would hand the key to whom it names."""

    def redirect_request(self, *_: Any) -> None:  # noqa: ANN401
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


class Judge:
    """Asks `model` at `url` (such as http://localhost:8000/v1); may be asked from several threads.

    `key_from_env` names the environment variable that holds the key; None sends none. Replies are kept in `record`, a
    JSONL file, by the hash of the request (model, messages, temperature), and what it holds is not asked again. With
    `replay` nothing is asked at all.
    """

    def __init__(
        self, url: str, model: str, key_from_env: str | None = None, record: Path | None = None, replay: bool = False
    ) -> None:
        _check(url)
        if replay and (record is None or not record.is_file()):
            where = "no file is named" if record is None else f"{record} is no file"
            raise ValueError(f"judge: nothing to replay, {where}; give the recording of an earlier evaluation")
        self.url, self.model = url.rstrip("/"), model
        self._key_from_env, self._record, self._replay = key_from_env, record, replay
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self._replies = {} if record is None or not record.exists() else _recorded(record, mend=not replay)
        if not replay:
            self._key()  # so that a missing one is said before the first question is answered

    def ask(self, messages: Sequence[Mapping[str, Any]], temperature: float = 0.0) -> str:
        """The judge's reply to a conversation. `JudgeFailed` where there is none; `JudgeRefused` where there never
        will be any."""
        request = {"model": self.model, "messages": list(messages), "temperature": temperature}
        name = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        with self._lock:
            if name in self._replies:
                return self._replies[name]
        if self._replay:
            raise JudgeFailed(f"{self._record} holds no reply to this request; ask the judge once without replay")
        reply = self._asked(request)
        with self._lock:
            if self._record is not None:
                _append(self._record, {"hash": name, **request, "reply": reply})
            self._replies[name] = reply
        return reply

    def _asked(self, request: Mapping[str, Any]) -> str:
        """The reply, after as many tries as it takes, `TRIES` at most."""
        if self._failed_in_a_row >= IN_A_ROW:
            raise JudgeFailed(f"judge {self.model} at {self.url}: not asked, as it left {IN_A_ROW} in a row alone")
        reason = ""
        for attempt in range(TRIES):
            try:
                reply = self._sent(request)
            except _Again as error:
                reason = str(error)
                if attempt + 1 < TRIES:
                    time.sleep(min(max(error.after, PAUSE * 2**attempt), LONGEST_PAUSE))
            else:
                self._failed_in_a_row = 0
                return reply
        self._failed_in_a_row += 1
        raise JudgeFailed(f"judge {self.model} at {self.url}: no reply in {TRIES} tries; the last: {reason}")

    def _sent(self, request: Mapping[str, Any]) -> str:
        """The reply to one request, sent once."""
        key = self._key()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        address = f"{self.url}/chat/completions"
        message = urllib.request.Request(address, json.dumps(request).encode(), headers, method="POST")
        deadline = time.monotonic() + TIMEOUT
        try:
            with _OPENER.open(message, timeout=TIMEOUT) as response:
                return _content(_read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                said = _words(error, deadline)
            said = f"HTTP {error.code}: {said.replace(key, '[key]') if key else said}"
            if error.code in (408, 409, 425, 429) or error.code >= 500:
                raise _Again(said, _retry_after(error.headers.get("Retry-After"))) from None
            if error.code in (400, 413, 422):  # this request's own fault: too long, or not allowed
                raise JudgeFailed(f"judge {self.model} at {self.url}: {said}") from None
            look = f", or the key in {self._key_from_env}" if self._key_from_env else ""
            raise JudgeRefused(f"judge: {address}: {said}; check the address, the model {self.model!r}{look}") from None
        except TimeoutError:
            raise _Again(f"no reply within {TIMEOUT:g} s") from None
        except (OSError, http.client.HTTPException) as error:  # refused, reset, closed half-way, no such host
            cause = getattr(error, "reason", error)
            late = isinstance(cause, TimeoutError)
            raise _Again(f"no reply within {TIMEOUT:g} s" if late else f"{type(cause).__name__}: {cause}") from None

    def _key(self) -> str:
        if self._key_from_env is None:
            return ""
        key = os.environ.get(self._key_from_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            what = f"{self._key_from_env} {'holds what is no key' if key else 'is not set'}"
            raise JudgeRefused(f"judge: the environment variable {what}; set it to the judge's key")
        return key


def _check(url: str) -> None:
    """Refuse what is no address, before anybody is asked."""
    if "@" in url.partition("//")[2].partition("/")[0]:
        raise ValueError("judge: the address holds a name or password; name the variable that holds the key instead")
    try:
        parts = urlsplit(url)
        is_sent = parts.path.isascii() and url.isprintable() and " " not in url  # as http.client wants it
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and is_sent:
            return
    except ValueError:  # brackets of no address, a port that is no number
        pass
    raise ValueError(f"judge: {url!r} is no address; give one such as http://localhost:8000/v1")


def _read(response: Any, deadline: float) -> bytes:  # noqa: ANN401  (an HTTPResponse, or an HTTPError that is one)
    """The body. A timeout of a socket starts anew with every byte, so one who dribbles is stopped here."""
    body = b""
    while piece := response.read1(1 << 16):
        body += piece
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(body) > LARGEST:
            raise _Again(f"a reply of more than {LARGEST} bytes")
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    return body


def _content(body: bytes) -> str:
    """The first choice's text out of a chat completion."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise _Again(f"no chat completion: {body[:80]!r}") from None
    if not isinstance(content, str):
        raise _Again(f"a chat completion without a text: {body[:80]!r}")
    return content


def _words(error: urllib.error.HTTPError, deadline: float) -> str:
    """What the endpoint says of its refusal, in one line."""
    try:
        body = _read(error, deadline)
    except (OSError, http.client.HTTPException, _Again):
        return str(error.reason)
    try:
        said = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = body.decode(errors="replace")
    return " ".join(str(said).split())[:300] or str(error.reason)


def _retry_after(value: str | None) -> float:
    """Seconds, of a header that holds seconds or a date; 0 where it holds neither."""
    if value is None:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


# ----------------------------------------------------------------------------------------------------------- recordings


def _recorded(path: Path, mend: bool) -> dict[str, str]:
    """The replies of a recording by hash. A last line that a killed process left unfinished is dropped, and with `mend`
    cut off; any other that is no recorded reply is a ValueError that names it."""
    with path.open("r+b" if mend else "rb") as file:
        if mend:
            _lock(file)
        data = file.read()
        *lines, last = data.split(b"\n")
        replies = dict[str, str]()
        for number, line in enumerate(lines, 1):
            found = _entry(line)
            if found is None:
                raise ValueError(
                    f"{path}:{number}: is no recorded reply; give a judge's recording, or a file that is not yet"
                )
            replies.setdefault(*found)
        if last and (found := _entry(last)):  # all but the end of the line was written
            replies.setdefault(*found)
            if mend:
                file.write(b"\n")
        elif last and mend:
            file.truncate(len(data) - len(last))
    return replies


def _entry(line: bytes) -> tuple[str, str] | None:
    """(hash, reply) of a line, or None where it is none."""
    try:
        entry = json.loads(line)
        name, reply = entry["hash"], entry["reply"]
    except (ValueError, LookupError, TypeError):
        return None
    return (name, reply) if isinstance(name, str) and isinstance(reply, str) else None


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    """A line at the end of the recording, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        _lock(file)
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _lock(file: BinaryIO) -> None:
    """Wait until no other evaluation reads or writes the recording: half of what it writes is not to be mended."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(file, fcntl.LOCK_EX)
