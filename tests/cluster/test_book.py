"""Which server a request goes to, on a clock that tests set."""

from __future__ import annotations

import tritonclient.grpc
from tritonclient.grpc import service_pb2

from triptych_cluster.asked import Asked, read
from triptych_cluster.book import LAG_S, Book
from triptych_cluster.scaling import ByWork, wanted
from triptych_contract.families import DEFAULT
from triptych_contract.verbs import LOOP

from .. import plain


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def told(**seconds):
    return {name: {"address": name, "seconds": one, "row_s": 0.01, "age_s": 0.0} for name, one in seconds.items()}


def book_of(**seconds):
    clock = Clock()
    book = Book(clock)
    book.tell(told(**seconds))
    return book, clock


def test_the_least_work_wins_and_who_left_is_not_asked():
    book, _ = book_of(a=5.0, b=2.0, c=3.0)
    assert book.choose(Asked()) == "b"
    assert book.choose(Asked(), but=["b"]) == "c"
    book.tell(told(a=5.0))
    assert book.choose(Asked()) == "a"
    assert book.choose(Asked(), but=["a"]) is None


def test_what_was_sent_counts_until_the_server_has_counted_it():
    book, clock = book_of(a=1.0, b=2.0)
    book.sent("a", Asked(steps=100))  # two seconds of work
    assert book.choose(Asked()) == "b"
    clock.now += 2 * LAG_S
    book.tell(told(a=1.0, b=2.0))
    assert book.choose(Asked()) == "a"


def test_a_new_server_is_thought_to_be_as_quick_as_the_others():
    book, _ = book_of(a=1.0, b=1.0)
    book.tell({**told(a=1.0, b=1.0), "new": {**told(new=0.0)["new"], "row_s": 0.0}})
    assert book.choose(Asked()) == "new"
    book.sent("new", Asked(steps=100))  # two seconds of work for any of the others
    assert book.choose(Asked()) != "new"


def test_work_is_done_while_a_server_says_nothing_new():
    book, clock = book_of(a=3.0)
    clock.now += 2
    assert book.servers["a"].waiting(clock.now) == 1.0


def test_a_suspect_is_asked_again_after_its_next_word():
    book, clock = book_of(a=1.0, b=2.0)
    book.suspect("a")
    clock.now += 1
    book.tell({**told(b=2.0), "a": {**told(a=1.0)["a"], "age_s": 1.5}})  # a word from before
    assert book.choose(Asked()) == "b"
    book.tell(told(a=1.0, b=2.0))
    assert book.choose(Asked()) == "a"


def test_kin_meet_unless_another_server_has_much_less_work():
    kin = [Asked(kin=str(k).encode()) for k in range(60)]
    book, clock = book_of(a=1.0, b=1.1, c=1.2)
    first = [book.choose(one) for one in kin]
    assert first == [book.choose(one) for one in kin]
    assert {*first} == {"a", "b", "c"}
    clock.now += 1
    book.tell(told(a=9.0, b=1.1, c=1.2))
    moved = [book.choose(one) for one in kin]
    assert [now for was, now in zip(first, moved, strict=True) if was != "a"] == [was for was in first if was != "a"]
    assert "a" not in moved


def request(**given):
    made = service_pb2.ModelInferRequest(model_name=LOOP if "action" in given else DEFAULT.name, id="mine")
    for tensor in plain.inputs(tritonclient.grpc, given):
        made.inputs.append(tensor._get_tensor())
        made.raw_input_contents.append(tensor._get_content())
    return made


def test_a_request_is_read_as_far_as_it_matters():
    assert read(request(prompt="a fox", num_inference_steps=7)) == Asked(id="mine", steps=7)
    assert [read(request(prompt="a fox", num_inference_steps=n)).steps for n in (-(2**31), 2**31 - 1)] == [0, 1000]
    assert read(request(action="watch", id="his")) == Asked("watch", "his")
    assert read(request(action="nonsense")).action == ""
    one, late, other = (
        read(request(prompt="a fox", seed=3, deadline_ms=ms, width=w)).kin for ms, w in ((1, 64), (2, 64), (1, 128))
    )
    assert one == late != other
    assert read(request(prompt="a fox", seed=3, use_cache=False)).kin == b""
    styled = [read(request(prompt=prompt, seed=seed, lora='[["a", 1]]')).kin for seed, prompt in enumerate(("a", "b"))]
    assert styled[0] == styled[1] != b""


def test_what_is_malformed_is_the_servers_to_refuse():
    broken = request(prompt="a fox", num_inference_steps=7)
    broken.raw_input_contents[1] = b"\1"
    del broken.raw_input_contents[0]
    assert read(broken) == Asked(id="mine")


def test_as_many_servers_as_the_work_asks_for():
    assert wanted(1, 90, 0, 20, 1, 8) == 5
    assert wanted(2, 900, 0, 20, 1, 8) == 8
    assert wanted(1, 0, 0, 20, 1, 8) == 1
    assert wanted(1, 0, 0, 20, 0, 8) == 0
    assert [wanted(now, 0, 3, 20, 0, 8) for now in (0, 1)] == [
        1,
        1,
    ]  # also while that one starts, however long it takes


def test_servers_go_by_a_quarter_at_a_time():
    steps = [32]
    while steps[-1] > 1:
        steps.append(wanted(steps[-1], 1, 0, 20, 1, 64))
    assert steps == [32, 24, 18, 14, 11, 9, 7, 6, 5, 4, 3, 2, 1]


class Context:
    """Ray Serve's, as far as the policy reads it."""

    capacity_adjusted_min_replicas, capacity_adjusted_max_replicas, total_num_requests = 1, 8, 0

    def __init__(self, servers, *seconds):
        self.target_num_replicas = servers
        values = [type("Value", (), {"value": one})() for one in (99, *seconds[:1])]
        others = [[type("Value", (), {"value": one})()] for one in seconds[1:]]
        self.raw_metrics = {"estimate_seconds": dict(enumerate([values, *others]))}


def test_the_newest_figures_of_all_servers_count():
    policy = ByWork(target_s=10)
    assert policy(Context(1, 35)) == (4, {})
    assert policy(Context(4, 5, 30)) == (4, {})
    assert policy(Context(4, 5, 0, 0)) == (3, {})
