"""Whose turn it is."""

from mezzotint.serve.queue import Queue


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def taken(queue, count):
    return [queue.take(0) for _ in range(count)]


def test_a_caller_with_many_jobs_does_not_hold_up_another():
    queue = Queue(Clock())
    for i in range(10):
        queue.put(f"many{i}", [0], "greedy", 1.0)
    queue.take(0)
    queue.take(0)
    queue.put("one", [0], "modest", 1.0)
    assert "modest" in {piece.owner for piece in taken(queue, 2)}


def test_who_comes_late_does_not_catch_up_on_the_past():
    queue = Queue(Clock())
    for i in range(20):
        queue.put(f"a{i}", [0], "early", 1.0)
    taken(queue, 10)
    for i in range(10):
        queue.put(f"b{i}", [0], "late", 1.0)
    owners = [piece.owner for piece in taken(queue, 10)]
    assert 4 <= owners.count("late") <= 6


def test_cost_counts_and_not_the_number_of_jobs():
    queue = Queue(Clock())
    for i in range(20):
        queue.put(f"long{i}", [0], "long", 10.0)
        queue.put(f"short{i}", [0], "short", 1.0)
    owners = [piece.owner for piece in taken(queue, 11)]
    assert owners.count("short") >= 9


def test_short_ones_overtake_and_long_ones_do_not_starve():
    clock = Clock()
    queue = Queue(clock)
    queue.put("long", [0], "me", 50.0)
    clock.now = 4.0
    queue.put("short", [0], "me", 4.0)
    clock.now = 8.0
    assert queue.take(0).job == "short"  # (4 / 4) against (8 / 50)
    for i in range(200):
        queue.put(f"short{i}", [0], "me", 4.0)
        clock.now += 4.0
        if queue.take(0).job == "long":
            break
    else:
        raise AssertionError("the long one starved")


def test_dropped_jobs_wait_no_more():
    queue = Queue(Clock())
    queue.put("a", [0, 1, 2], "me", 1.0)
    queue.put("b", [0], "me", 1.0)
    assert queue.ahead("b") == 3
    assert queue.drop("a") == 3
    assert (queue.ahead("b"), len(queue)) == (0, 1)
    assert queue.take(0).job == "b"
    assert queue.take(0) is None
