"""The feedback store: what was said is kept, the last word stands, and damage is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from safeguard.audit import image_digest
from safeguard.audit.mask import prompt_hmac
from safeguard.errors import FeedbackError
from safeguard.feedback import ANSWERS, FeedbackStore, Item, Judgement, Withdrawal
from safeguard.feedback.judgements import from_record, to_record
from safeguard.feedback.next_pictures import to_rank
from tests.support.feedback_samples import MODEL, filled, picture


def test_a_picture_is_kept_under_its_digest_and_the_prompt_is_not_kept(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "s", create=True, key=b"k" * 32)
    item = store.add(picture(1), "blood", model=MODEL, prompt="a secret prompt", seed=2**60)
    assert item.image == image_digest(Image.fromarray(picture(1)))
    assert item.prompt_hmac == prompt_hmac("a secret prompt", b"k" * 32)
    with Image.open(tmp_path / "s" / "images" / f"{item.image}.png") as kept:
        assert np.array_equal(np.asarray(kept), picture(1))
    assert np.array_equal(store.pixels([item.image])[0], picture(1))
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]
    assert FeedbackStore(tmp_path / "s").items("blood") == (item,)


def test_the_folder_is_for_its_owner_only(store: FeedbackStore) -> None:
    assert store.folder.stat().st_mode & 0o077 == 0


def test_a_picture_is_asked_about_once_for_each_concept(store: FeedbackStore) -> None:
    store.add(picture(0), "blood", model=MODEL, seed=99)
    store.add(picture(0), "weapon", model=MODEL)
    assert len(store.items("blood")) == 6
    assert store.items("blood")[0].seed == 0
    assert store.concepts == ("blood", "weapon")


def test_a_later_answer_of_the_same_person_replaces_and_another_persons_does_not(
    store: FeedbackStore, digests: list[str]
) -> None:
    store.answer("blood", digests[0], "yes", who="ana")
    store.answer("blood", digests[0], "no", who="ben")
    store.answer("blood", digests[0], "unsure", who="ana")
    assert store.labels("blood") == {digests[0]: {"ana": "unsure", "ben": "no"}}
    assert len(store.judgements(replaced=True)) == 3


def test_what_is_taken_back_gives_way_to_what_was_said_before(store: FeedbackStore, digests: list[str]) -> None:
    store.answer("blood", digests[0], "yes", who="ana")
    second = store.answer("blood", digests[0], "no", who="ana")
    store.take_back(second.id, who="ana")
    assert store.labels("blood") == {digests[0]: {"ana": "yes"}}
    with pytest.raises(FeedbackError, match="was taken back before"):
        store.take_back(second.id, who="ana")
    assert second.id in (store.folder / "feedback.jsonl").read_text("utf-8")


def test_nobody_takes_back_what_another_said(store: FeedbackStore, digests: list[str]) -> None:
    said = store.answer("blood", digests[0], "yes", who="ana")
    with pytest.raises(FeedbackError, match="ben gave no judgement"):
        store.take_back(said.id, who="ben")


def test_a_ranking_of_the_same_pictures_replaces_in_whatever_order(store: FeedbackStore, digests: list[str]) -> None:
    store.rank("blood", digests[:3], who="ana")
    store.rank("blood", digests[2::-1], who="ana")
    store.rank("blood", digests[1:4], who="ana")
    assert [one.images for one in store.rankings("blood")] == [tuple(digests[2::-1]), tuple(digests[1:4])]


def test_labels_of_the_judge_are_told_apart(store: FeedbackStore, digests: list[str]) -> None:
    store.answer_all("blood", dict.fromkeys(digests, "no"), who="judge", by="judge")
    store.answer("blood", digests[0], "yes", who="ana")
    assert store.labels("blood", by="person") == {digests[0]: {"ana": "yes"}}
    assert len(store.judgements("blood", by="judge")) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"concept": "Blood!"}, "a concept is named by its id"),
        ({"image": "0" * 64}, "nobody is asked about blood in picture 000000000000"),
        ({"image": "../../etc/passwd"}, "a picture is named by a hex SHA-256"),
        ({"answer": "maybe"}, "answer is one of yes, no, unsure"),
        ({"who": "  "}, "who is the name of a person"),
        ({"who": "a\nb"}, "who is the name of a person"),
        ({"by": "robot"}, "by is one of person, judge"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_is_written(
    store: FeedbackStore, digests: list[str], change: dict[str, str], said: str
) -> None:
    before = (store.folder / "feedback.jsonl").read_bytes()
    given = {"concept": "blood", "image": digests[0], "answer": "yes", "who": "ana", "by": "person", **change}
    with pytest.raises(FeedbackError, match=said):
        store.answer(given["concept"], given["image"], given["answer"], who=given["who"], by=given["by"])
    assert (store.folder / "feedback.jsonl").read_bytes() == before


def test_a_ranking_names_each_picture_once(store: FeedbackStore, digests: list[str]) -> None:
    for images in ([digests[0]], [digests[0], digests[0]]):
        with pytest.raises(FeedbackError, match="each named once"):
            store.rank("blood", images, who="ana")


NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
DIGESTS = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
TIMES = st.just("2026-11-26T12:00:00.000000Z")
SIZES = st.tuples(st.integers(1, 4096), st.integers(1, 4096))
HMACS, KEYS, SEEDS = st.none() | DIGESTS, st.none() | st.just("00aa11bb"), st.none() | st.integers(0, 2**64)
ONE, MANY = DIGESTS.map(lambda one: (one,)), st.lists(DIGESTS, min_size=2, max_size=5, unique=True).map(tuple)
BY, SAID, BLOOD = st.sampled_from(("person", "judge")), st.sampled_from(ANSWERS), st.just("blood")
ENTRIES = st.one_of(
    st.builds(Item, DIGESTS, BLOOD, st.just(MODEL), SIZES, TIMES, HMACS, KEYS, SEEDS),
    st.builds(Judgement, NAMES, BLOOD, st.just("binary"), ONE, NAMES, BY, TIMES, SAID),
    st.builds(Judgement, NAMES, BLOOD, st.just("ranking"), MANY, NAMES, BY, TIMES),
    st.builds(Withdrawal, NAMES, NAMES, NAMES, TIMES),
)


@given(ENTRIES)
def test_every_record_comes_back_as_it_was(entry: Item | Judgement | Withdrawal) -> None:
    assert from_record(json.loads(json.dumps(to_record(entry)))) == entry


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("answer", "rank", "undo")),
        st.sampled_from(("ana", "ben")),
        st.integers(0, 5),
        st.sampled_from(ANSWERS),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_who_reads_the_file_later_finds_the_same_as_who_wrote_it(steps: list[tuple[str, str, int, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = filled(Path(folder) / "s", 3)
        digests = [item.image for item in store.items("blood")]
        expected: dict[tuple[str, str], list[str]] = {}  # answers by person and picture, the last stands
        for what, who, number, answer in steps:
            image = digests[number % 3]
            if what == "answer":
                store.answer("blood", image, answer, who=who)
                expected.setdefault((who, image), []).append(answer)
            elif what == "rank":
                store.rank("blood", digests if number % 2 else digests[::-1], who=who)
            else:
                said = [one for one in store.judgements(replaced=True) if one.who == who and one.kind == "binary"]
                if said:
                    store.take_back(said[-1].id, who=who)
                    expected[who, said[-1].images[0]].pop()
        stands = {(who, image): given[who] for image, given in store.labels("blood").items() for who in given}
        assert stands == {key: answers[-1] for key, answers in expected.items() if answers}
        again = FeedbackStore(Path(folder) / "s")
        assert again.judgements() == store.judgements()
        assert again.judgements(replaced=True) == store.judgements(replaced=True)


def test_a_line_that_a_crash_broke_off_is_put_aside_and_nothing_else_is_lost(store: FeedbackStore, digests: list[str]) -> None:
    store.answer("blood", digests[0], "yes", who="ana")
    file = store.folder / "feedback.jsonl"
    with file.open("ab") as torn:
        torn.write(b'{"record":"judgement","id":"half')
    again = FeedbackStore(store.folder)
    assert again.labels("blood") == {digests[0]: {"ana": "yes"}}
    again.answer("blood", digests[1], "no", who="ana")
    assert store.labels("blood") == {digests[0]: {"ana": "yes"}, digests[1]: {"ana": "no"}}
    assert (store.folder / "feedback.jsonl.torn").read_bytes() == b'{"record":"judgement","id":"half\n'
    assert FeedbackStore(store.folder).labels("blood") == store.labels("blood")


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b'{"record":"judgement"}',
        b'{"record":"photo"}',
        b'{"a": 1}',
        b'{"id":"1","judgement":"2","record":"withdrawal","time":"","who":"ana"}',
    ],
)
def test_a_damaged_line_is_named_at_every_call_and_nothing_more_is_written(
    store: FeedbackStore, digests: list[str], line: bytes
) -> None:
    file = store.folder / "feedback.jsonl"
    with file.open("ab") as damaged:
        damaged.write(line + b"\n")
    before = file.read_bytes()
    for _ in range(2):
        with pytest.raises(FeedbackError, match=r"feedback.jsonl:8: this line is damaged") as caught:
            store.answer("blood", digests[0], "yes", who="ana")
        assert caught.value.line == 8
    with pytest.raises(FeedbackError, match="take the line out"):
        FeedbackStore(store.folder)
    assert file.read_bytes() == before


def test_a_file_of_another_kind_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "feedback.jsonl").write_text('{"schema":"another"}\n')
    with pytest.raises(FeedbackError, match=r"feedback.jsonl:1: .*names its schema"):
        FeedbackStore(tmp_path)
    with pytest.raises(FeedbackError, match="there is no feedback store here; make one: safeguard feedback make"):
        FeedbackStore(tmp_path / "none")


def test_a_store_that_is_cut_or_gone_while_it_is_open_is_noticed(store: FeedbackStore, digests: list[str]) -> None:
    file = store.folder / "feedback.jsonl"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FeedbackError, match="cut or replaced while it was open"):
        store.labels("blood")
    file.unlink()
    with pytest.raises(FeedbackError, match="cannot be read"):
        store.answer("blood", digests[0], "yes", who="ana")


def test_a_disk_that_refuses_leaves_the_file_as_it_was(
    store: FeedbackStore, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (store.folder / "feedback.jsonl").read_bytes()

    def full(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safeguard.feedback.jsonl.write_all", full)
        with pytest.raises(FeedbackError, match=r"cannot be written \(No space left on device\); nothing was kept"):
            store.answer("blood", digests[0], "yes", who="ana")
    assert (store.folder / "feedback.jsonl").read_bytes() == before
    assert store.labels("blood") == {}
    store.answer("blood", digests[0], "no", who="ana")
    assert store.labels("blood") == {digests[0]: {"ana": "no"}}


def test_a_picture_that_was_changed_is_not_learnt_from(store: FeedbackStore, digests: list[str]) -> None:
    Image.fromarray(picture(77)).save(store.folder / "images" / f"{digests[0]}.png")
    with pytest.raises(FeedbackError, match="this picture was changed"):
        store.pixels(digests)
    (store.folder / "images" / f"{digests[0]}.png").unlink()
    with pytest.raises(FeedbackError, match="put the picture back"):
        store.pixels(digests)
    store.add(picture(0), "blood", model=MODEL)
    assert len(store.pixels(digests)) == 6


WRITER = """
import sys
from safeguard.feedback import FeedbackStore
folder, who = sys.argv[1:]
store = FeedbackStore(folder)
for item in store.items("blood"):
    for answer in ("yes", "no", "yes"):
        store.answer("blood", item.image, answer, who=who)
"""


def test_programs_and_threads_that_write_at_once_lose_nothing(store: FeedbackStore, digests: list[str]) -> None:
    programs = [subprocess.Popen([sys.executable, "-c", WRITER, str(store.folder), who]) for who in ("ana", "ben")]
    threads = [
        threading.Thread(target=lambda who=who: [store.answer("blood", image, "no", who=who) for image in digests])
        for who in ("cleo", "dan")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [program.wait(120) for program in programs] == [0, 0]
    assert len(store.judgements(replaced=True)) == 2 * 18 + 2 * 6
    assert store.labels("blood") == {one: {"ana": "yes", "ben": "yes", "cleo": "no", "dan": "no"} for one in digests}


def test_what_is_ranked_next_covers_every_picture_and_then_mixes_them_anew(store: FeedbackStore) -> None:
    items, groups, left = store.items("blood"), [], []
    for _ in range(6):
        group, never = to_rank(items, store.judgements(replaced=True), 2)
        groups.append(frozenset(item.image for item in group))
        left.append(never)
        store.rank("blood", [item.image for item in group], who="ana")
    assert left == [6, 4, 2, 0, 0, 0]
    assert set().union(*groups[:3]) == set().union(*groups[3:]) == {item.image for item in items}
    assert set(groups[:3]) != set(groups[3:])
