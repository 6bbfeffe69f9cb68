"""The page's server over real HTTP: whom it serves, and what it refuses."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from safeguard.errors import FeedbackError
from safeguard.feedback import FeedbackStore
from safeguard.feedback.server import LARGEST, FeedbackServer
from safeguard.feedback.session import FeedbackSession
from tests.support.feedback_samples import MODEL, picture

Serve = Callable[..., FeedbackServer]


def ask(
    server: FeedbackServer, method: str, path: str, body: Any = None, **headers: str | None
) -> tuple[int, Any, dict[str, str]]:
    """Status, what came (JSON where it is), and headers. A header of None is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    given: dict[str, str | None] = {"Host": f"127.0.0.1:{server.server_port}", "X-Safeguard-Token": server.token}
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    if data is not None:
        given |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(data)
        reply = connection.getresponse()
        came = reply.read()
        kind = reply.headers.get_content_type()
        return reply.status, json.loads(came) if kind == "application/json" else came, dict(reply.headers)
    finally:
        connection.close()


def test_the_page_holds_no_secret_and_asks_for_nothing_elsewhere(store: FeedbackStore, serve: Serve) -> None:
    server = serve(store)
    script = "text/javascript"
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", script), ("/rank.js", script)):
        status, body, headers = ask(server, "GET", path, X_Safeguard_Token=None)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["Cache-Control"] == "no-store"
        assert server.token.encode() not in body
        assert b"://" not in body
        assert b"<script>" not in body


@pytest.mark.parametrize("token", [None, "", "wrong", "ü"])
def test_without_the_token_nothing_is_told(store: FeedbackStore, digests: list[str], serve: Serve, token: str | None) -> None:
    server = serve(store)
    for method, path in (
        ("GET", "/api/state"),
        ("GET", f"/images/{digests[0]}.png"),
        ("POST", "/api/answer"),
        ("GET", "/none"),
    ):
        status, told, _ = ask(server, method, path, X_Safeguard_Token=token)
        assert (status, list(told)) == (401, ["error"])
    assert store.judgements() == []


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", None])
def test_a_strange_name_that_leads_here_is_not_served(store: FeedbackStore, serve: Serve, host: str | None) -> None:
    server = serve(store)
    named = host.format(port=server.server_port) if host else host
    for path in ("/", "/api/state"):
        assert ask(server, "GET", path, Host=named)[0] == 421
    assert ask(server, "GET", "/", Host=f"localhost:{server.server_port}")[0] == 200


def test_another_site_may_not_ask_even_with_the_token(store: FeedbackStore, serve: Serve) -> None:
    server = serve(store)
    for origin in ("https://evil.example", "null", f"https://127.0.0.1:{server.server_port}"):
        assert ask(server, "POST", "/api/undo", {}, Origin=origin)[0] == 403
    assert ask(server, "GET", "/api/state", Origin=f"http://127.0.0.1:{server.server_port}")[0] == 200


def test_pictures_come_by_digest_alone(store: FeedbackStore, digests: list[str], serve: Serve) -> None:
    server = serve(store)
    status, body, headers = ask(server, "GET", f"/images/{digests[0]}.png")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert body == (store.folder / "images" / f"{digests[0]}.png").read_bytes()
    assert ask(server, "GET", f"/images/{'0' * 64}.png")[0] == 409
    strange = ["/../hmac.key", "//etc/passwd", "/page.py", "/feedback.jsonl"]
    wrong = ["../hmac.key", "..%2fhmac.key", digests[0], f"{digests[0]}.png/..", f"{digests[0].upper()}.png"]
    for path in (*strange, *(f"/images/{name}" for name in wrong)):
        assert ask(server, "GET", path)[0] == 404, path


def test_an_answer_is_kept_changed_and_taken_back(store: FeedbackStore, digests: list[str], serve: Serve) -> None:
    server = serve(store)
    status, told, _ = ask(server, "POST", "/api/answer", {"concept": "blood", "image": digests[0], "answer": "yes"})
    assert (status, told["changed"], told["labelled"]) == (200, {digests[0]: "yes"}, 1)
    told = ask(server, "POST", "/api/answer", {"concept": "blood", "image": digests[0], "answer": "no"})[1]
    assert store.labels("blood") == {digests[0]: {"ana": "no"}}
    assert told["last"]["binary"]["images"] == [digests[0]]
    told = ask(server, "POST", "/api/undo", {"concept": "blood", "judgement": told["last"]["binary"]["judgement"]})[1]
    assert told["changed"] == {digests[0]: "yes"}
    told = ask(server, "POST", "/api/undo", {"concept": "blood", "judgement": told["last"]["binary"]["judgement"]})[1]
    assert (told["changed"], told["labelled"], "binary" in told["last"]) == ({digests[0]: None}, 0, False)


def test_a_ranking_is_kept_and_other_pictures_come_next(store: FeedbackStore, serve: Serve) -> None:
    server = serve(store)
    state = ask(server, "GET", "/api/state")[1]
    assert (len(state["group"]), state["unranked"]) == (4, 6)
    told = ask(server, "POST", "/api/rank", {"concept": "blood", "images": state["group"]})[1]
    assert store.rankings("blood")[0].images == tuple(state["group"])
    assert (told["rankings"], told["unranked"]) == (1, 2)
    assert not set(told["group"][:2]) & set(state["group"])


def test_the_state_is_of_the_person_and_the_concept_that_is_named(
    store: FeedbackStore, digests: list[str], serve: Serve
) -> None:
    store.add(picture(9), "weapon", model=MODEL)
    store.answer("blood", digests[0], "yes", who="ben")
    state = ask(serve(store), "GET", "/api/state?concept=weapon")[1]
    assert (state["who"], state["concepts"], state["concept"], len(state["pictures"])) == (
        "ana",
        ["blood", "weapon"],
        "weapon",
        1,
    )
    assert {one["answer"] for one in ask(serve(store), "GET", "/api/state?concept=none")[1]["pictures"]} == {None}


ANSWER = {"concept": "blood", "answer": "yes"}


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{", {}, 400, "this is not JSON"),
        (b"\xff", {}, 400, "this is not JSON"),
        (b"[" * 9999, {}, 400, "this is not JSON"),
        (b"[]", {}, 400, "no JSON object"),
        ({"concept": "blood"}, {}, 400, "image is a text"),
        ({**ANSWER, "image": 7}, {}, 400, "image is a text"),
        ({**ANSWER, "image": "0" * 64}, {}, 409, "nobody is asked about blood in picture"),
        ({**ANSWER, "image": "x"}, {}, 409, "a picture is named by"),
        ({}, {"Content_Type": "text/plain"}, 415, "only JSON"),
        ({}, {"Content_Type": None}, 415, "only JSON"),
        ({}, {"Content_Length": None}, 411, "how long"),
        ({}, {"Content_Length": "-1"}, 411, "how long"),
        ({}, {"Content_Length": "9" * 40}, 413, "at most"),
        ({}, {"Content_Length": str(LARGEST + 1)}, 413, "at most"),
    ],
    ids=str,
)
def test_what_the_page_cannot_have_sent_is_refused(
    store: FeedbackStore, serve: Serve, body: Any, headers: dict[str, str | None], status: int, said: str
) -> None:
    got, told, _ = ask(serve(store), "POST", "/api/answer", body, **headers)
    assert (got, said in told["error"]) == (status, True), told
    assert store.judgements() == []


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD"])
def test_other_methods_are_not_known(store: FeedbackStore, serve: Serve, method: str) -> None:
    server = serve(store)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as raw:
        raw.sendall(f"{method} /api/state HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 501 ")


def test_a_store_that_cannot_be_written_is_said_so(store: FeedbackStore, digests: list[str], serve: Serve) -> None:
    server = serve(store)
    (store.folder / "feedback.jsonl").rename(store.folder / "away")
    status, told, _ = ask(server, "POST", "/api/answer", {**ANSWER, "image": digests[0]})
    assert (status, "cannot be read" in told["error"]) == (409, True)


def test_a_fault_of_the_program_is_an_error_without_its_inside(
    store: FeedbackStore, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(concept: str | None) -> dict[str, Any]:
        raise RuntimeError("inside")

    server = serve(store)
    monkeypatch.setattr(server.desk, "state", broken)
    status, told, _ = ask(server, "GET", "/api/state")
    assert (status, told) == (500, {"error": "the server met an error; its terminal says which"})
    assert "error=RuntimeError" in caplog.text
    assert "inside" in caplog.text


def test_a_server_that_is_stopped_answers_on_no_open_connection(store: FeedbackStore, serve: Serve) -> None:
    server = serve(store)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", "/")
    assert connection.getresponse().read()
    server.shutdown()
    server.server_close()
    with contextlib.suppress(OSError):  # the next request may still be sent, but nobody reads it
        connection.request("GET", "/")
    with pytest.raises((OSError, http.client.HTTPException)):
        connection.getresponse()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "192.168.1.7"}, "can be reached from other machines: say --token"),
        ({"host": "box.example"}, "can be reached from other machines: say --token"),
        ({"host": "0.0.0.0", "token": "x" * 16}, "is every address at once"),
        ({"host": "::", "token": "x" * 16}, "is every address at once"),
        ({"token": "short"}, "a token is of 16 to 200"),
        ({"token": "with a blank in it"}, "a token is of 16 to 200"),
        ({"port": 70000}, "cannot be served at"),
    ],
    ids=str,
)
def test_an_address_that_shows_pictures_to_others_has_to_be_meant(
    store: FeedbackStore, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(FeedbackError, match=said):
        FeedbackServer(FeedbackSession(store, "ana"), **options)


def test_a_port_that_is_taken_is_said_so(store: FeedbackStore, serve: Serve) -> None:
    with pytest.raises(FeedbackError, match=r"cannot be served at \(Address already in use\); choose another --port"):
        FeedbackServer(FeedbackSession(store, "ana"), port=serve(store).server_port)


def test_a_chosen_token_is_the_end_of_the_address(store: FeedbackStore, serve: Serve) -> None:
    server = serve(store, token="chosen-by-the-operator")
    assert server.address == f"http://127.0.0.1:{server.server_port}/#chosen-by-the-operator"
    assert serve(store).token != serve(store).token


@pytest.mark.parametrize(
    ("who", "size", "said"), [("", 4, "the name of a person"), ("ana", 1, "2 to 9 pictures"), ("ana", 10, "2 to 9 pictures")]
)
def test_a_desk_needs_a_person_and_a_size(store: FeedbackStore, who: str, size: int, said: str) -> None:
    with pytest.raises(FeedbackError, match=said):
        FeedbackSession(store, who, size)


def test_a_store_without_pictures_is_not_served(tmp_path: Any) -> None:
    with pytest.raises(FeedbackError, match="add pictures: safeguard feedback make"):
        FeedbackSession(FeedbackStore(tmp_path / "s", create=True), "ana")
