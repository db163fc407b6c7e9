"""The annotation page by HTTP: who gets in, what is shown when, what every answer carries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import httpx
import pytest
from starlette.testclient import TestClient

from ptalign.errors import DataDamaged, InvalidInput, PtalignError
from ptalign.nouns import MAX_ANNOTATIONS
from ptalign.sealed import SealedText
from ptalign_server.errors import NotFound
from ptalign_server.page import Board, Full, Item, Mark, Queue, Visitor, create_app
from ptalign_server.page.ordering import most_informative, uncertainty
from ptalign_server.page.sessions import Sessions, fingerprint

SECRETS = ("Could you fold it again?", "Gladly: fold it gently.", "What a silly question.")
QUEUE = Queue("pairSets/1", "m", "tone", 0.0, 3, 0, 0.0, None)


def item(number: int, topic: str = "rude", **values: object) -> Item:
    texts = [SealedText(f"{text} {number}") for text in SECRETS]
    return Item(f"id{number}", topic, *texts, **values)  # type: ignore[arg-type]


class Memory:
    """A library in memory that notes what it was asked."""

    def __init__(self, *, free: bool = False, roles: Sequence[str] = ("annotator",)) -> None:
        self.free = free
        self.people = {"good-token": Visitor("ann", "default", frozenset(roles))}
        self.left = [item(n) for n in range(3)]
        self.marks: list[Mark] = []
        self.looks: list[str] = []
        self.audit_works = True
        self.marked = 0

    def secret(self) -> bytes:
        return b"k" * 32

    def local(self) -> Visitor | None:
        return Visitor("local", "default", frozenset({"annotator"})) if self.free else None

    def visitor(self, token_hash: str) -> Visitor | None:
        return next((v for t, v in self.people.items() if fingerprint(t) == token_hash), None)

    def queues(self, visitor: Visitor) -> Sequence[Queue]:
        return [QUEUE]

    def annotation_items(self, visitor: Visitor, pair_set: str) -> Board:
        if pair_set != QUEUE.pair_set:
            raise NotFound
        done = {m.item for m in self.marks}
        queue = replace(QUEUE, marked=self.marked + len(self.marks))
        last = self.marks[-1].item if self.marks else ""
        left = [i for i in self.left if i.id not in done]
        return Board(queue, left, last, len(self.marks))

    def record_reveal(self, visitor: Visitor, pair_set: str, item: str) -> None:
        if not self.audit_works:
            raise RuntimeError("audit is down")
        self.looks.append(item)

    def add_annotation(self, visitor: Visitor, pair_set: str, mark: Mark) -> None:
        if mark.verdict == "withdrawn":
            self.marks = [m for m in self.marks if m.item != mark.item]
            return
        if mark.verdict == "skipped":
            self.left.sort(key=lambda item: item.id == mark.item)
            return
        if self.marked + len(self.marks) >= MAX_ANNOTATIONS:
            raise Full
        self.marks.append(mark)

    def hand_over(self, visitor: Visitor, pair_set: str) -> str:
        if not self.marks:
            raise InvalidInput("marks", "Nothing is marked", "Mark at least one first.")
        return "annotationSets/7"


def browser(library: Memory, base: str = "https://page.example") -> TestClient:
    return TestClient(create_app(library), base_url=base, raise_server_exceptions=False)


def login(client: TestClient, token: str = "good-token") -> httpx.Response:
    return client.post("/login", data={"token": token}, follow_redirects=False)


def csrf(client: TestClient, path: str = "/sets/1") -> str:
    found = re.search(r'name="csrf" value="(\w+)"', client.get(path).text)
    assert found
    return found[1]


def send(client: TestClient, verb: str, **fields: str) -> httpx.Response:
    data = {"csrf": csrf(client), "item": "id0"} | fields
    return client.post(f"/sets/1/{verb}", data=data)


@pytest.fixture
def library() -> Memory:
    return Memory()


@pytest.fixture
def client(library: Memory) -> TestClient:
    made = browser(library)
    assert login(made).status_code == 303
    return made


def test_where_harm_begins_is_said_before_the_texts_are_shown(
    library: Memory, client: TestClient
) -> None:
    library.left = [item(0, boundary="Saying <b>no</b> is fine.")]
    page = client.get("/sets/1").text
    assert "Saying &lt;b&gt;no&lt;/b&gt; is fine.</p>" in page
    assert "Saying &lt;b&gt;no&lt;/b&gt; is fine.</p>" in send(client, "reveal").text
    library.left = [item(0)]
    assert "boundary" not in client.get("/sets/1").text


@pytest.mark.parametrize("path", ["/", "/sets/1"])
def test_strangers_are_sent_to_the_login(library: Memory, path: str) -> None:
    answer = browser(library).get(path, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


@pytest.mark.parametrize("verb", ["reveal", "mark", "skip", "undo", "finish"])
def test_strangers_can_post_nothing(library: Memory, verb: str) -> None:
    answer = browser(library).post(f"/sets/1/{verb}", data={"item": "id0"}, follow_redirects=False)
    assert answer.status_code == 303
    assert (library.marks, library.looks) == ([], [])


@pytest.mark.parametrize(
    ("token", "roles", "says"),
    [
        ("wrong", ("annotator",), "not known"),
        ("", ("annotator",), "not known"),
        ("good-token", ("engineer", "operator", "auditor", "backend"), "lacks the role annotator"),
    ],
)
def test_login_needs_a_known_token_with_the_role(
    token: str, roles: tuple[str, ...], says: str
) -> None:
    client = browser(Memory(roles=roles))
    answer = login(client, token)
    assert answer.status_code == 403
    assert says in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 303)]
)
def test_another_site_logs_nobody_in(library: Memory, site: str, status: int) -> None:
    """With a token of its own: what the annotator does next would stand under that name."""
    answer = browser(library).post(
        "/login",
        data={"token": "good-token"},
        headers={"Sec-Fetch-Site": site},
        follow_redirects=False,
    )
    assert answer.status_code == status
    assert ("set-cookie" in answer.headers) == (status == 303)


def test_the_cookie_is_out_of_reach_and_holds_no_token(library: Memory) -> None:
    header = login(browser(library)).headers["set-cookie"]
    assert header.startswith("__Host-ptalign=")
    assert "good-token" not in header
    for flag in ("HttpOnly", "Secure", "SameSite=strict", "Path=/"):
        assert flag in header


def test_a_removed_token_ends_its_sessions_at_once(library: Memory, client: TestClient) -> None:
    assert client.get("/").status_code == 200
    library.people.clear()
    assert client.get("/", follow_redirects=False).headers["location"] == "/login"


def test_a_token_that_loses_its_role_loses_the_page(library: Memory, client: TestClient) -> None:
    library.people["good-token"] = Visitor("ann", "default", frozenset({"auditor"}))
    assert client.get("/").status_code == 403


def test_changed_and_expired_cookies_are_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(b"k" * 32)
    cookie, _ = sessions.start("f" * 64)
    assert sessions.read(cookie)
    for place in range(0, len(cookie), 7):
        changed = cookie[:place] + chr(ord(cookie[place]) ^ 1) + cookie[place + 1 :]
        assert sessions.read(changed) is None
    assert Sessions(b"x" * 32).read(cookie) is None
    assert sessions.read("") is None
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert sessions.read(cookie) is None


@pytest.mark.parametrize("verb", ["reveal", "mark", "skip", "undo", "finish"])
def test_forms_need_the_sessions_own_csrf_token(
    library: Memory, client: TestClient, verb: str
) -> None:
    other = browser(library)
    login(other)
    for token in ("", "0" * 64, csrf(other)):
        data = {"csrf": token, "item": "id0", "verdict": "good"}
        assert client.post(f"/sets/1/{verb}", data=data).status_code == 403
    assert (library.marks, library.looks) == ([], [])


def test_logging_out_forgets_the_session(client: TestClient) -> None:
    client.post("/logout", data={"csrf": csrf(client)})
    assert client.get("/", follow_redirects=False).status_code == 303


def test_loopback_needs_no_login_but_a_csrf_token_and_its_own_name() -> None:
    library = Memory(free=True)
    client = browser(library, "http://127.0.0.1:8080")
    assert client.get("/sets/1").status_code == 200
    assert client.post("/sets/1/mark", data={"item": "id0", "verdict": "good"}).status_code == 403
    assert send(client, "mark", verdict="good").status_code == 200
    rebound = browser(library, "http://evil.example:8080")
    assert rebound.get("/sets/1").status_code == 400


@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("0:0:0:0:0:0:0:1", "[0:0:0:0:0:0:0:1]"),
        ("0:0:0:0:0:0:0:1", "[::1]"),
        ("127.0.0.2", "127.0.0.2"),
    ],
)
def test_the_page_answers_at_the_address_that_it_is_set_to(host: str, where: str) -> None:
    """`Invalid host header` was all of the page at `PTALIGN_PAGE_HOST=::1`."""
    app = create_app(Memory(free=True), host=host)
    ask = {"host": f"{where}:8080"}
    assert TestClient(app).get("/", headers=ask).status_code == 200
    assert TestClient(app).get("/", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("path", ["/", "/login", "/sets/1", "/sets/none", "/nowhere"])
def test_every_answer_is_uncached_unframed_and_free_of_foreign_code(
    client: TestClient, path: str
) -> None:
    headers = client.get(path).headers
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"


def test_pages_name_no_other_host_and_carry_no_inline_code(client: TestClient) -> None:
    for path in ("/", "/login", "/sets/1"):
        text = client.get(path).text
        assert re.findall(r'(?:src|href|action)="(?!/|#)', text) == []
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", text)


def test_no_text_is_sent_before_it_is_asked_for(library: Memory, client: TestClient) -> None:
    hidden = client.get("/sets/1").text
    assert not [text for text in SECRETS if text in hidden]
    assert "Hidden text" in hidden
    shown = send(client, "reveal").text
    assert all(text in shown for text in SECRETS)
    assert library.looks == ["id0"]


def test_nothing_is_shown_when_the_audit_fails(library: Memory, client: TestClient) -> None:
    library.audit_works = False
    answer = send(client, "reveal")
    assert answer.status_code == 500
    assert "audit is down" not in answer.text
    assert not [text for text in SECRETS if text in answer.text]


def test_texts_are_data_and_never_markup(library: Memory, client: TestClient) -> None:
    attack = "</textarea><script>alert(1)</script><img src=x onerror=alert(1)>"
    library.left = [replace(item(0), good=SealedText(attack), bad=SealedText('" autofocus x="'))]
    shown = send(client, "reveal").text
    assert "<script>alert" not in shown
    assert "<img src=x" not in shown
    assert "&lt;script&gt;" in shown
    assert '" autofocus x="' not in shown


@pytest.mark.parametrize("verdict", ["good", "bad"])
def test_a_verdict_is_kept_and_the_next_item_comes_hidden(
    library: Memory, client: TestClient, verdict: str
) -> None:
    answer = send(client, "mark", verdict=verdict)
    assert [(m.item, m.verdict) for m in library.marks] == [("id0", verdict)]
    assert "<strong>1</strong> of 49" in answer.text
    assert 'value="id1"' in answer.text
    assert not [text for text in SECRETS if text in answer.text]


def test_an_edit_carries_both_answers(library: Memory, client: TestClient) -> None:
    send(client, "mark", verdict="edit", good=" A kinder one. ", bad="A colder one.")
    (mark,) = library.marks
    assert mark.good == "A kinder one."
    assert mark.bad == SealedText("A colder one.")
    assert "colder" not in repr(mark)
    assert "kinder" not in repr(mark)


@pytest.mark.parametrize(
    ("twin", "asks"), [(False, "one you want to such a request"), (True, "Does the answer help")]
)
def test_an_item_with_one_answer_asks_about_that_one(
    library: Memory, client: TestClient, twin: bool, asks: str
) -> None:
    library.left = [replace(item(0), bad=None, twin=twin)]
    hidden = client.get("/sets/1").text
    assert ("legitimate request" in hidden) == twin
    shown = send(client, "reveal").text
    assert asks in shown
    assert "bad answer" not in hidden + shown
    assert 'name="bad"' not in shown
    assert "Both right" not in shown
    send(client, "mark", verdict="edit", good="A fuller one.")
    (mark,) = library.marks
    assert (mark.good, mark.bad) == ("A fuller one.", None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"verdict": "edit", "good": " ", "bad": "x"}, "needs 1 to 8000 characters"),
        ({"verdict": "edit", "good": "x", "bad": "y" * 8001}, "needs 1 to 8000 characters"),
        ({"verdict": "withdrawn"}, "Use the buttons"),
        ({"verdict": ""}, "Use the buttons"),
    ],
)
def test_marks_outside_their_limits_say_what_to_do(
    library: Memory, client: TestClient, fields: dict[str, str], says: str
) -> None:
    answer = send(client, "mark", **fields)
    assert answer.status_code == 409
    assert says in answer.text
    assert library.marks == []


def test_lines_of_an_answer_stay_as_they_were_without_scripts(
    library: Memory, client: TestClient
) -> None:
    """A form that no script sends ends them with two characters."""
    send(client, "mark", verdict="edit", good="One.\r\nTwo.", bad="Go.\r\n\r\nAway.")
    (mark,) = library.marks
    assert mark.good == "One.\nTwo."
    assert mark.bad is not None
    assert mark.bad.reveal() == "Go.\n\nAway."


def test_two_long_japanese_answers_fit_into_a_form(library: Memory, client: TestClient) -> None:
    """They are nine bytes a character there: what a person had written was refused, and lost."""
    good, bad = "良" * 8000, "悪" * 8000
    assert send(client, "mark", verdict="edit", good=good, bad=bad).status_code == 200
    (mark,) = library.marks
    assert (mark.good, mark.bad is not None and mark.bad.reveal()) == (good, bad)


def test_damage_that_the_page_meets_is_counted(
    library: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[PtalignError] = []
    damage = DataDamaged("set 1 was changed")

    def queues(_: Visitor) -> Sequence[Queue]:
        raise damage

    monkeypatch.setattr(library, "queues", queues)
    app = create_app(library, told.append)
    client = TestClient(app, base_url="https://page.example", raise_server_exceptions=False)
    login(client)
    assert client.get("/").status_code == 409
    assert told == [damage]


@pytest.mark.parametrize(("maker", "shown"), [("alice", "by alice"), ("", "by unknown")])
def test_the_list_of_sets_names_who_asked_for_each(
    library: Memory, client: TestClient, monkeypatch: pytest.MonkeyPatch, maker: str, shown: str
) -> None:
    monkeypatch.setattr(library, "queues", lambda _: [replace(QUEUE, made_by=maker)])
    assert shown in client.get("/").text


def test_huge_forms_are_refused_unread(library: Memory, client: TestClient) -> None:
    answer = send(client, "mark", verdict="edit", good="x" * 300_000, bad="y")
    assert answer.status_code == 403
    assert "too large" in answer.text


def test_what_is_skipped_comes_after_all_others_and_is_no_mark(
    library: Memory, client: TestClient
) -> None:
    """It came back after the next mark: the most informative item was shown again."""
    assert 'value="id1"' in send(client, "skip").text
    assert library.marks == []
    assert 'value="id2"' in send(client, "mark", item="id1", verdict="good").text
    assert 'value="id0"' in send(client, "skip", item="id2").text
    assert 'value="id2"' in send(client, "skip", item="id0").text


def test_the_last_mark_can_be_taken_back(library: Memory, client: TestClient) -> None:
    send(client, "mark", verdict="good")
    answer = send(client, "undo")
    assert library.marks == []
    assert "Taken back" in answer.text
    assert 'value="id0"' in answer.text


def test_the_counter_stops_at_49(library: Memory, client: TestClient) -> None:
    library.marked = MAX_ANNOTATIONS - 1
    answer = send(client, "mark", verdict="good")
    assert f"All {MAX_ANNOTATIONS} marks are made" in answer.text
    late = send(client, "mark", item="id1", verdict="good")
    assert "not counted" in late.text
    edit = send(client, "mark", item="id1", verdict="edit", good="La.", bad="Go.")
    assert (edit.status_code, "not counted" in edit.text) == (409, True)
    assert len(library.marks) == 1


def test_what_is_handed_over_is_counted_apart_from_the_limit(
    library: Memory, client: TestClient
) -> None:
    """The button counted "wrong" verdicts on other sets, which the sealed set leaves out."""
    library.marked = MAX_ANNOTATIONS - 1
    assert "Hand over" not in client.get("/sets/1").text
    full = send(client, "mark", verdict="good").text
    assert "Hand over 1 mark<" in full
    assert "Hand them over" in full
    library.marks.clear()
    library.marked = MAX_ANNOTATIONS
    assert "Hand them over" not in client.get("/sets/1").text


def test_second_opinions_go_on_after_the_limit(library: Memory, client: TestClient) -> None:
    library.marked = MAX_ANNOTATIONS
    library.left = [item(0), item(1, opinions=1, free=True)]
    answer = client.get("/sets/1")
    assert "second opinion" in answer.text
    assert 'value="id1"' in answer.text


def test_handing_over_names_the_set_and_the_next_command(
    library: Memory, client: TestClient
) -> None:
    assert "Mark at least one first" in send(client, "finish").text
    send(client, "mark", verdict="good")
    answer = send(client, "finish")
    assert "annotationSets/7" in answer.text
    assert "pairSets/1" in answer.text


def test_other_sets_are_not_found_in_one_sentence(client: TestClient) -> None:
    texts = {client.get(f"/sets/{name}").text for name in ("2", "%00", "x" * 300)}
    assert len(texts) == 1
    assert client.get("/sets/2").status_code == 404


def test_swaps_carry_the_board_alone(client: TestClient) -> None:
    page, part = client.get("/sets/1"), client.get("/sets/1", headers={"HX-Request": "true"})
    assert "<html" in page.text
    assert "<html" not in part.text
    assert 'id="board"' in part.text


def test_an_expired_session_sends_a_swap_to_the_login(library: Memory) -> None:
    answer = browser(library).get("/sets/1", headers={"HX-Request": "true"})
    assert answer.headers["hx-redirect"] == "/login"


def test_working_time_is_measured_here_and_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(b"k" * 32)
    clock = [1000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    stamp = sessions.stamp("id0")
    clock[0] += 20
    assert sessions.seconds("id0", stamp) == pytest.approx(20)
    assert sessions.seconds("id1", stamp) == 0.0
    assert sessions.seconds("id0", "1.0." + stamp.rpartition(".")[2]) == 0.0
    clock[0] += 9000
    assert sessions.seconds("id0", stamp) == 300.0


def test_doubtful_items_of_uncovered_topics_come_first() -> None:
    sure, unsure = item(1, "a", polarity=(1.0, 1.0)), item(2, "a", polarity=(0.6, 0.6))
    split = item(3, "a", polarity=(0.6, 1.0))
    other, second = item(4, "b", polarity=(1.0,)), item(5, "b", polarity=(0.6,), opinions=1)
    assert uncertainty(split) > uncertainty(unsure) > uncertainty(sure)
    ordered = most_informative([sure, unsure, split, other, second], {"a": 2})
    assert [i.id for i in ordered] == ["id4", "id3", "id2", "id1", "id5"]


def test_twins_and_topics_with_one_answer_do_not_crowd_out_tone() -> None:
    """An unscored pair is as doubtful as can be, but one answer has no polarity to score."""
    tone, alone = item(1, "b", polarity=(0.9,)), replace(item(2, "a"), bad=None)
    twin = replace(item(3, "c"), bad=None, twin=True)
    seen = item(4, "d", polarity=(0.6,), opinions=1)
    ordered = most_informative([seen, twin, alone, tone], {})
    assert [i.id for i in ordered] == ["id1", "id2", "id3", "id4"]
    assert [i.id for i in most_informative([alone, tone], {"b": 1})] == ["id2", "id1"]


def test_ordering_gives_every_item_once() -> None:
    items = [item(n, f"t{n % 3}", polarity=(0.6 + n / 100,)) for n in range(30)]
    ordered = most_informative(items, {})
    assert sorted(i.id for i in ordered) == sorted(i.id for i in items)
    assert [i.topic for i in ordered[:3]] != [ordered[0].topic] * 3
