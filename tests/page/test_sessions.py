"""What the page keeps and allows: sessions apart from each other, limits, logins, the server's health."""

from __future__ import annotations

import io
import os
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from triptych import GeneratedImage, InvalidRequest, Overloaded, ServerUnavailable, TriptychError
from triptych.errors import DeadlineExceeded
from triptych_page import users
from triptych_page.health import State, Watcher
from triptych_page.routes import zipped
from triptych_page.store import Store, key_of
from triptych_page.users import HASHER, Door, add_user, line_for, read_users
from triptych_web.limits import Limits, TooMany

GONE = ServerUnavailable("no server is ready there (failed to connect)", nothing_accepted=True)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    made = Store(max_entries=3, max_bytes=1000, max_sessions=2, expiry_s=60, clock=clock)
    yield made
    made.close()


def picture(data=b"bytes", **receipt):
    return GeneratedImage(data, "png", 7, {"prompt": "a secret fox", **receipt}, {"total_ms": 5.0}, "id", cached=True)


def keep(store, session, **facts):
    return store.keep(session, "sdxl", "sdxl", "group", picture(**facts))


def test_a_kept_file_has_the_very_bytes_and_a_name_by_the_clock(store):
    entry = keep(store, store.session("a"))
    assert entry.path.read_bytes() == b"bytes"
    assert re.fullmatch(r"image_\d{8}_\d{6}\.png", entry.path.name)
    assert "fox" not in str(entry.path)
    assert (entry.cached, entry.replayable, entry.milliseconds) == (True, True, 5.0)


def test_a_picture_made_from_another_is_not_replayable_alone(store):
    assert not keep(store, store.session("a"), init_image={"sha256": "ab"}).replayable


def test_sessions_never_see_each_other(store):
    mine, yours = store.session("a"), store.session("b")
    entry = keep(store, mine)
    assert store.session("a") is mine
    assert store.session("a").entry(entry.id) is entry
    assert yours.entry(entry.id) is None
    assert yours.entries == []
    assert mine.tenant != yours.tenant


def test_another_login_in_the_same_browser_is_another_session(store):
    keep(store, store.session("a", "ada"))
    assert store.session("a", "bob").entries == []


def test_nothing_on_disk_or_on_the_wire_tells_the_token(store):
    session = store.session("my-token")
    for told in (str(session.folder), session.tenant):
        assert "my-token" not in told
        assert key_of("my-token", None) not in told


def test_folders_are_for_the_owner_alone(store):
    session = store.session("a")
    assert store.folder.stat().st_mode & 0o077 == 0
    assert session.folder.stat().st_mode & 0o077 == 0


def test_the_oldest_pictures_make_room(store):
    session = store.session("a")
    entries = [keep(store, session) for _ in range(5)]
    assert session.entries == entries[2:]
    assert set(session.folder.iterdir()) == {entry.path for entry in entries[2:]}
    big = keep(store, session, data=b"x" * 2000)
    assert session.entries == [big]
    assert list(session.folder.iterdir()) == [big.path]


def test_favourites_stay_when_others_make_room_and_when_others_are_deleted(store):
    session = store.session("a")
    first = keep(store, session)
    assert store.favour(session, first.id).favourite
    for _ in range(5):
        keep(store, session)
    assert [entry.favourite for entry in session.entries] == [True, False, False]
    store.clear(session)
    assert [entry.id for entry in session.entries] == [first.id]
    assert not store.favour(session, first.id).favourite
    assert store.favour(store.session("b"), first.id) is None


def test_favourites_alone_are_bounded_as_well(store):
    session = store.session("a")
    for _ in range(5):
        store.favour(session, keep(store, session).id)
    assert len(session.entries) == len(list(session.folder.glob("*.png"))) == 3


def test_an_archive_has_the_very_files_and_leaves_out_what_is_gone(store):
    session = store.session("a")
    kept = [keep(store, session), keep(store, session)]
    gone = session.folder / "gone.png"
    data = b"".join(zipped([kept[0].path, gone, kept[1].path]))
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert read.testzip() is None
        assert read.namelist() == [entry.path.name for entry in kept]
        assert all(re.fullmatch(r"image_\d{8}_\d{6}(_\d+)?\.png", name) for name in read.namelist())
        assert {read.read(name) for name in read.namelist()} == {b"bytes"}


def test_the_session_used_longest_ago_makes_room(store, clock):
    first = store.session("a")
    keep(store, first)
    clock.now += 1
    second = store.session("b")
    clock.now += 1
    store.session("a")
    store.session("c")
    assert not store.alive(second.key)
    assert store.alive(first.key)
    assert not second.folder.exists()


def test_unused_sessions_expire_with_their_files(store, clock):
    session = store.session("a")
    keep(store, session)
    clock.now += 59
    store.expire()
    assert session.folder.exists()
    clock.now += 2
    store.expire()
    assert not session.folder.exists()
    assert store.session("a") is not session
    with pytest.raises(TriptychError, match="it is over"):
        keep(store, session)


def test_clearing_deletes_the_files(store):
    session = store.session("a")
    entry = keep(store, session)
    before = session.version
    store.clear(session)
    assert not entry.path.exists()
    assert session.version > before


def test_closing_deletes_everything(store):
    keep(store, store.session("a"))
    store.close()
    assert not store.folder.exists()


def test_pictures_under_way_are_limited_by_user(clock):
    limits = Limits(under_way=4, a_minute=100, in_all=6, clock=clock)
    limits.take("a", 4)
    with pytest.raises(TooMany, match="limit: 4 pictures are under way and 1 more given; legal: 4 at once"):
        limits.take("a", 1)
    limits.take("b", 2)
    with pytest.raises(TooMany, match="6 pictures are under way for all users"):
        limits.take("c", 1)
    limits.give_back("a")
    limits.take("c", 1)


def test_pictures_a_minute_are_limited_by_user(clock):
    limits = Limits(under_way=100, a_minute=6, clock=clock)
    limits.take("a", 6)
    with pytest.raises(TooMany, match="try again in about 20 s") as error:
        limits.take("a", 2)
    assert error.value.retry_after_s == pytest.approx(20)
    limits.take("b", 6)
    clock.now += 20
    limits.take("a", 2)
    with pytest.raises(TooMany):
        limits.take("a", 1)


def test_what_was_refused_is_not_counted(clock):
    limits = Limits(under_way=5, a_minute=3, clock=clock)
    for _ in range(3):
        with pytest.raises(TooMany):
            limits.take("a", 4)
    limits.take("a", 3)


def test_health_follows_the_servers_life(clock):
    watcher = Watcher(clock)
    assert watcher.missed(GONE).state is State.ABSENT
    loading = ServerUnavailable("it is starting", nothing_accepted=True, loading=True)
    assert watcher.missed(loading).state is State.LOADING
    cold = watcher.found({"batches_total": 0, "estimate_seconds": 0})
    assert (cold.state, cold.warm) == (State.READY, False)
    assert "cold" in cold.text
    assert watcher.found({"batches_total": 5}).warm
    away = watcher.missed(GONE)
    assert away.state is State.ABSENT
    assert "drawn again" in away.text
    assert not away.usable
    assert watcher.found({"batches_total": 0}).state is State.RESTARTED
    clock.now += 20
    assert watcher.found({"batches_total": 1}).state is State.READY


def test_a_restart_between_two_looks_is_noticed(clock):
    watcher = Watcher(clock)
    watcher.found({"batches_total": 50})
    assert watcher.found({"batches_total": 2}).state is State.RESTARTED


def test_the_first_look_is_no_restart(clock):
    watcher = Watcher(clock)
    watcher.missed(GONE)
    assert watcher.found({"batches_total": 2}).state is State.READY


def test_overload_is_told_with_its_estimate_while_it_lasts(clock):
    watcher = Watcher(clock)
    watcher.refused(Overloaded("queue: full", retry_after_s=12))
    health = watcher.found({"batches_total": 1, "estimate_seconds": 612})
    assert health.state is State.OVERLOADED
    assert "612 s" in health.text
    assert "12 s" in health.text
    clock.now += 13
    assert watcher.found({"batches_total": 1}).state is State.READY


def test_a_server_that_is_slow_to_answer_is_not_called_absent(clock):
    assert Watcher(clock).missed(DeadlineExceeded("Deadline Exceeded")).state is not State.ABSENT


def test_users_come_back_from_their_file(tmp_path):
    path = tmp_path / "users"
    add_user(path, "ada", "correct horse")
    add_user(path, "bob", "battery staple")
    add_user(path, "ada", "another horse")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "horse" not in path.read_text()
    door = Door(read_users(path))
    assert door("ada", "another horse")
    assert not door("ada", "correct horse")
    assert door("bob", "battery staple")
    assert not door("eve", "battery staple")


@pytest.mark.parametrize("line", ["ada:secret-password", "ada", ":$argon2id$v=19$m=8,t=1,p=1$aa$bb", "ada:md5$aa$bb"])
def test_a_password_as_it_is_is_refused_and_not_told(tmp_path, line):
    path = tmp_path / "users"
    path.touch(0o600)
    path.write_text(f"# users\n\n{line}\n")
    with pytest.raises(InvalidRequest, match=r"users: .*line 3 given; legal: lines that") as error:
        read_users(path)
    assert "secret" not in str(error.value)


def test_a_file_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "users"
    add_user(path, "ada", "correct horse")
    path.chmod(0o644)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        read_users(path)


def test_a_file_without_users_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="users: "):
        read_users(tmp_path / "none")
    path = tmp_path / "users"
    path.touch(0o600)
    with pytest.raises(InvalidRequest, match="which has no user"):
        read_users(path)


@pytest.mark.parametrize(
    ("name", "password"), [("a:b", "long enough"), ("", "long enough"), ("ada", "short"), ("a\nb", "x" * 9)]
)
def test_bad_names_and_short_passwords_are_refused(name, password):
    with pytest.raises(InvalidRequest):
        line_for(name, password)


def test_a_name_waits_after_wrong_passwords_and_no_longer(clock, tmp_path):
    path = tmp_path / "users"
    add_user(path, "ada", "correct horse")
    door = Door(read_users(path), clock)
    for _ in range(5):
        assert not door("ada", "wrong")
    assert not door("ada", "correct horse")
    clock.now += 31
    assert door("ada", "correct horse")


def test_many_attempts_at_once_are_no_more_than_one_after_the_other(clock):
    door = Door({"ada": HASHER.hash("correct horse")}, clock)
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(door, ["ada"] * 5, ["wrong"] * 5))
    assert not door("ada", "correct horse")


def test_a_locked_name_an_unknown_one_and_a_wrong_password_take_the_same_work(clock, monkeypatch):
    door = Door({"ada": HASHER.hash("correct horse")}, clock)
    costs = []
    real = users._verify
    monkeypatch.setattr(users, "_verify", lambda kept, given: costs.append(kept.split("$")[3]) or real(kept, given))
    answers = [door("eve", "wrong"), *(door("ada", "wrong") for _ in range(5)), door("ada", "correct horse")]
    assert answers == [False] * 7
    assert len(costs) == 7
    assert len(set(costs)) == 1


def test_names_that_nobody_has_fill_no_memory(clock):
    door = Door({"ada": HASHER.hash("correct horse")}, clock)
    for k in range(3):
        assert not door(f"eve{k}", "wrong")
    assert door._failed == {}


def test_a_hash_of_an_older_version_is_told_and_can_be_replaced(tmp_path):
    path = tmp_path / "users"
    path.touch(0o600)
    path.write_text("ada:scrypt$c2FsdA==$aGFzaA==\nbob:scrypt$c2FsdA==$aGFzaA==\n")
    for name in ("ada", "bob"):
        with pytest.raises(InvalidRequest, match=f"password of {name} .* --users {path} --add-user {name}$"):
            read_users(path)
        add_user(path, name, "correct horse")
    assert Door(read_users(path))("bob", "correct horse")


def test_uploads_go_after_an_hour_and_pictures_stay(store, clock):
    session = store.session("a")
    entry = keep(store, session)
    sent = session.uploads / "hash" / "start.png"
    sent.parent.mkdir(parents=True)
    sent.touch()
    for path in (sent, entry.path):
        os.utime(path, (clock.now, clock.now))
    store.session("a")
    clock.now += 3601
    session.used_at = clock.now
    store.expire()
    assert not sent.exists()
    assert entry.path.exists()
