"""The folder sink: durable, all or nothing, one file a process, rotation, keys, policies."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from safeguard.audit import AuditLog, AuditSink, Decision, MemorySink, load_snapshot, query, verify
from safeguard.audit.keys import load_or_make_key
from safeguard.errors import AuditError

Make = Callable[..., Decision]
NewLog = Callable[..., AuditLog]


def test_a_batch_is_on_disk_when_append_returns(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    records = log.append([make_decision(), make_decision()])
    assert list(query(log.folder)) == list(records)


def test_the_chain_starts_with_the_file_s_id_and_goes_on(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    first, second = log.append([make_decision(), make_decision()])
    (path,) = log.folder.glob("*.jsonl")
    genesis = json.loads(path.read_text().splitlines()[0])
    assert path.name == f"audit-{genesis['file']}.jsonl"
    assert (genesis["seq"], genesis["prev"]) == (0, "0" * 64)
    assert (first["seq"], first["prev"]) == (1, genesis["hash"])
    assert (second["seq"], second["prev"]) == (2, first["hash"])
    assert log.head is not None
    assert log.head.hash == second["hash"]


def test_nothing_to_append_makes_no_file(new_log: NewLog) -> None:
    log = new_log()
    assert log.append([]) == ()
    log.close()
    assert log.head is None
    assert not list(log.folder.glob("*.jsonl"))


def test_a_closed_log_refuses(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    log.close()
    log.close()
    with pytest.raises(AuditError, match="closed"):
        log.append([make_decision()])


def test_both_sinks_are_sinks(new_log: NewLog) -> None:
    assert isinstance(new_log(), AuditSink)
    assert isinstance(MemorySink(), AuditSink)


def test_many_threads_make_one_chain(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    work = [
        threading.Thread(target=lambda: [log.append([make_decision(), make_decision()]) for _ in range(5)]) for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    report = verify(log.folder)
    assert (report.ok, report.records) == (True, 40)


def test_a_forked_child_writes_a_file_of_its_own(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    log.append([make_decision()])
    child = os.fork()
    if child == 0:
        try:
            log.append([make_decision(tenant="child")])
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    log.append([make_decision()])
    report = verify(log.folder)
    assert (report.ok, sorted(file.records for file in report.files)) == (True, [1, 2])


def test_a_fork_while_another_thread_writes_does_not_hang_the_child(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    log.append([make_decision()])
    with log._lock:  # as a thread in the middle of a write would hold it
        child = os.fork()
        if child == 0:
            try:
                log.append([make_decision()])
                os._exit(0)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_new_process_never_goes_on_with_an_old_file(new_log: NewLog, make_decision: Make) -> None:
    for _ in range(2):
        new_log().append([make_decision()])
    assert len(list((new_log().folder).glob("*.jsonl"))) == 2


# Rotation


def test_rotation_keeps_one_chain_over_the_files(new_log: NewLog, make_decision: Make) -> None:
    with new_log(max_bytes=1) as log:
        for _ in range(3):
            log.append([make_decision()])
    report = verify(log.folder)
    assert report.ok
    assert [(file.state, file.records, file.pruned) for file in report.files] == [
        ("rotated", 1, False),
        ("rotated", 1, False),
        ("closed", 1, False),
    ]
    assert [record["seq"] for record in query(log.folder)] == [1, 4, 7]  # between them a checkpoint and a genesis


def test_a_rotation_that_fails_leaves_the_old_file_in_use(new_log: NewLog, make_decision: Make) -> None:
    log = new_log(max_bytes=1)
    log.append([make_decision()])
    with no_room_beyond(0), pytest.raises(AuditError, match="cannot write"):
        log.append([make_decision()])
    assert len(list(log.folder.glob("*.jsonl"))) == 1
    log.append([make_decision()])
    log.close()
    assert verify(log.folder).ok


# A disk that refuses


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """A limit of the operating system: a file that grows beyond ``size`` bytes takes a part of a write, then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def log_path(log: AuditLog) -> Path:
    return next(log.folder.glob("*.jsonl"))


def test_a_full_disk_is_an_error_and_nothing_is_half_written(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    log.append([make_decision()])
    before = log_path(log).read_bytes()
    with no_room_beyond(len(before) + 700), pytest.raises(AuditError, match="cannot write") as caught:
        log.append([make_decision("secret words"), make_decision()])
    assert log_path(log).read_bytes() == before
    assert caught.value.path == str(log_path(log))
    assert "secret" not in str(caught.value)


def test_after_the_disk_has_room_again_the_chain_goes_on(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    log.append([make_decision()])
    with no_room_beyond(len(log_path(log).read_bytes()) + 700), pytest.raises(AuditError):
        log.append([make_decision()])
    (record,) = log.append([make_decision()])
    assert record["seq"] == 2
    assert verify(log.folder).ok


def test_a_full_disk_at_the_first_record_leaves_no_file(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    with no_room_beyond(100), pytest.raises(AuditError, match="cannot write"):
        log.append([make_decision()])
    assert not [path.name for path in log.folder.iterdir() if "audit-" in path.name]


def test_a_log_that_could_not_be_restored_refuses_until_it_can(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    log.append([make_decision()])
    descriptor = descriptor_of(log_path(log))
    good, read_only = os.dup(descriptor), os.open(log_path(log), os.O_RDONLY)
    os.dup2(read_only, descriptor)  # now neither a write nor the way back works
    for message in ("cannot write", "nothing more is written"):
        with pytest.raises(AuditError, match=message):
            log.append([make_decision()])
    os.dup2(good, descriptor)
    log.append([make_decision()])
    report = verify(log.folder)
    assert (report.ok, report.records) == (True, 2)


def descriptor_of(path: Path) -> int:
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                return int(name)
        except OSError:
            continue
    raise LookupError(path)


@pytest.mark.parametrize("harm", ["remove", "cut", "append", "replace"])
def test_a_log_changed_while_it_is_open_refuses(new_log: NewLog, make_decision: Make, harm: str) -> None:
    log = new_log()
    log.append([make_decision()])
    path = log_path(log)
    data = path.read_bytes()
    if harm in ("remove", "replace"):
        path.unlink()
    if harm != "remove":
        path.write_bytes({"cut": data[:-10], "append": data + b"{}\n", "replace": data}[harm])
    with pytest.raises(AuditError, match="moved, removed or changed"):
        log.append([make_decision()])


def test_a_crash_in_the_middle_of_a_line_leaves_the_others(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    kept = [log.append([make_decision()])[0] for _ in range(2)]
    path = log_path(log)
    path.write_bytes(path.read_bytes() + b'{"decision_id":"0')
    assert list(query(log.folder)) == kept


def test_a_killed_process_loses_nothing_that_append_returned(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    program = (
        "import hashlib, os, sys\n"
        "from safeguard.audit import AuditLog, Decision, Model, Subject\n"
        "log = AuditLog(sys.argv[1]); revision = hashlib.sha256(b'{}').hexdigest(); log.store_policy(revision, b'{}')\n"
        "decision = Decision(policy_name='p', policy_revision=revision, result='pass', subject=Subject('a'), "
        "model=Model('m'))\n"
        "log.append([decision]); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(folder)], check=False).returncode == -9
    report = verify(folder)
    assert (report.ok, report.records, report.files[0].state) == (True, 1, "open")


# Folders that cannot be used


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("hello")
    with pytest.raises(AuditError, match="a file stands where the audit folder should be"):
        AuditLog(tmp_path / "audit")
    with pytest.raises(AuditError, match="a file stands where"):
        AuditLog(tmp_path / "audit" / "deeper")


def test_a_folder_that_nobody_may_write() -> None:
    with pytest.raises(AuditError, match="/proc/self/audit: cannot write the audit log"):
        AuditLog("/proc/self/audit")


def test_a_folder_of_someone_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with as_nobody(), pytest.raises(AuditError, match="Permission denied"):
        AuditLog(tmp_path)


def test_a_log_of_someone_else_cannot_be_read(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    log.append([make_decision()])
    log_path(log).chmod(0)
    log.folder.chmod(0)
    try:
        with as_nobody():
            for read in (verify, query):
                with pytest.raises(AuditError, match="cannot read the audit log: Permission denied"):
                    read(log.folder)
    finally:
        log.folder.chmod(0o700)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Gives up the superuser's rights, where the tests run with them: they would open every folder."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_no_room_for_anything(tmp_path: Path) -> None:
    with no_room_beyond(0), pytest.raises(AuditError, match="cannot write"):
        AuditLog(tmp_path / "audit")


# Keys


def test_the_key_is_made_once_and_for_its_owner_only(new_log: NewLog, make_decision: Make) -> None:
    first, second = new_log(), new_log()
    key = first.folder / "hmac.key"
    assert len(key.read_bytes()) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    hashes = {log.append([make_decision()])[0]["subject"]["prompt_hmac"] for log in (first, second)}
    assert len(hashes) == 1


def test_processes_that_come_at_once_get_one_key(tmp_path: Path) -> None:
    gate, opened = os.pipe()
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                os.close(opened)
                os.read(gate, 1)  # ends for all at once, when the parent closes its side
                (tmp_path / f"seen-{number}").write_bytes(load_or_make_key(tmp_path))
            finally:
                os._exit(0)
        children.append(child)
    os.close(opened)
    for child in children:
        os.waitpid(child, 0)
    assert len({path.read_bytes() for path in tmp_path.glob("seen-*")} | {load_or_make_key(tmp_path)}) == 1
    assert len(list(tmp_path.glob("seen-*"))) == 4


def test_the_log_is_for_its_owner_only(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    log.append([make_decision()])
    assert stat.S_IMODE(log.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(log_path(log).stat().st_mode) == 0o600


def test_a_given_key_is_not_written_anywhere(new_log: NewLog, make_decision: Make) -> None:
    log = new_log(key=b"k" * 32)
    log.append([make_decision()])
    assert not (log.folder / "hmac.key").exists()


def test_a_cut_key_file_is_refused(new_log: NewLog) -> None:
    folder = new_log().folder
    (folder / "hmac.key").write_bytes(b"abc")
    with pytest.raises(AuditError, match=r"hmac\.key: an HMAC key needs"):
        AuditLog(folder)


# Policies


def test_a_policy_is_archived_by_its_revision(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    revision = make_decision().policy_revision
    assert (log.folder / "policies" / f"{revision}.json").read_bytes() == load_snapshot(log.folder, revision)


def test_a_snapshot_under_a_wrong_revision_is_refused(new_log: NewLog) -> None:
    for sink in (new_log(), MemorySink()):
        with pytest.raises(AuditError, match="is not the SHA-256 of its snapshot"):
            sink.store_policy("0" * 64, b"{}")


def test_a_revision_cannot_lead_out_of_the_folder(new_log: NewLog) -> None:
    with pytest.raises(AuditError, match="hex SHA-256"):
        new_log().store_policy("../../x", b"{}")


def test_a_decision_under_a_policy_that_is_not_archived_is_refused(new_log: NewLog, make_decision: Make) -> None:
    log = new_log()
    with pytest.raises(AuditError, match="is not archived"):
        log.append([make_decision(), make_decision(policy_revision="1" * 64)])
    assert not list(log.folder.glob("*.jsonl"))


def test_a_damaged_snapshot_is_written_again(new_log: NewLog, make_decision: Make) -> None:
    folder, revision = new_log().folder, make_decision().policy_revision
    (folder / "policies" / f"{revision}.json").write_bytes(b"{}")
    new_log()
    assert load_snapshot(folder, revision) != b"{}"


def test_the_memory_sink_keeps_records_and_policies(make_decision: Make) -> None:
    sink = MemorySink()
    records = sink.append([make_decision(), make_decision()])
    assert sink.records == list(records)
    assert records[1]["prev"] == records[0]["hash"]
