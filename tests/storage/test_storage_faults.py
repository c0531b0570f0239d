"""The store's fault campaign at its full length: `pytest -m faults tests/storage` (about two minutes).

Its short version is in `test_conditional.py`. Every zero is printed with its n by `-s`.
"""

import random
import threading

import pytest

from roboimi.errors import StoreUnavailableError
from roboimi.storage.s3_client import S3Client
from roboimi.storage.s3_store import S3Store

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

TRIALS = 100
WRITERS = 16


@pytest.fixture
def lossy(bucket, minio_server, toxiproxy, monkeypatch):
    """A store behind a proxy, and a function that makes the answer to the next request be lost, in one of two ways."""
    proxy = toxiproxy.proxy(minio_server.host)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    store, original, toxics = S3Store(f"s3://{bucket}/store"), S3Client.call, []
    lost = [0]

    def call(client, what, request, **options):
        def attempt(minio):
            try:
                return request(minio)
            except BaseException:
                lost[0] += bool(toxics)
                raise
            finally:
                while toxics:
                    proxy.remove(toxics.pop())

        return original(client, what, attempt, **options)

    def lose_next():
        # The answer never comes (the proxy closes after 50 ms without a byte), or one byte of it does.
        kind = random.choice(["timeout", "limit_data"])
        toxics.append(proxy.add(kind, **({"timeout": 50} if kind == "timeout" else {"bytes": 1})))

    monkeypatch.setattr(S3Client, "call", call)
    store.lost = lost
    return store, lose_next


def test_lost_answers_to_plain_writes(lossy, tmp_path):
    store, lose_next = lossy
    wrong = 0
    for number in range(TRIALS):
        (tmp_path / "x").write_bytes(b"%d" % number)
        lose_next()
        store.put("t/x", tmp_path / "x")
        wrong += (store.fetch("t", ["x"]) / "x").read_bytes() != b"%d" % number
    print(f"PUT: answers lost {store.lost[0]} of {TRIALS}, wrong contents {wrong}")
    assert (store.lost[0], wrong) == (TRIALS, 0)


def test_lost_answers_to_commits(lossy, bucket):
    store, lose_next = lossy
    other = S3Store(f"s3://{bucket}/store")
    false_defeats = double = 0
    for number in range(TRIALS):
        lose_next()
        won = store.create(f"t/{number}.json", {"writer": "me"}) is not None
        double += other.create(f"t/{number}.json", {"writer": "me"}) is not None
        false_defeats += not won and store.read_json(f"t/{number}.json") == {"writer": "me"}
    print(f"commit: answers lost {store.lost[0]} of {TRIALS}, false defeats {false_defeats}, double commits {double}")
    assert (store.lost[0], false_defeats, double) == (TRIALS, 0, 0)


def test_lost_answers_to_swaps(lossy):
    store, lose_next = lossy
    now = store.create("t/LATEST.json", {"epoch": 0})
    false_defeats = double = 0
    for number in range(1, TRIALS + 1):
        stale = now
        lose_next()
        swapped = store.replace("t/LATEST.json", {"epoch": number}, stale.version)
        false_defeats += swapped is None
        double += store.replace("t/LATEST.json", {"epoch": -number}, stale.version) is not None
        now = store.read_versioned("t/LATEST.json")
        false_defeats += swapped != now
    print(f"swap: answers lost {store.lost[0]} of {TRIALS}, false defeats {false_defeats}, double swaps {double}")
    assert (store.lost[0], false_defeats, double) == (TRIALS, 0, 0)


def test_lost_answers_and_rivals(lossy, bucket):
    store, lose_next = lossy
    rival = S3Store(f"s3://{bucket}/store")
    both = neither = 0
    for number in range(TRIALS):
        answers, go = {}, threading.Barrier(2)

        def write(name, writer, key, answers=answers, go=go):
            go.wait()
            answers[name] = writer.create(key, {"writer": name}) is not None

        lose_next()
        key = f"r/{number}.json"
        threads = [threading.Thread(target=write, args=(*who, key)) for who in (("me", store), ("rival", rival))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        both += sum(answers.values()) == 2
        neither += sum(answers.values()) == 0
        winner = next((name for name, won in answers.items() if won), None)
        assert rival.read_json(key) == {"writer": winner}
    print(f"commit against a rival, answers lost: both won {both}, neither won {neither} of {TRIALS}")
    assert (both, neither) == (0, 0)


def test_writes_of_unknown_fate_done_again(lossy):
    store, lose_next = lossy
    store.client.patience = 0
    false_defeats = double = 0
    for number in range(TRIALS):
        lose_next()
        with pytest.raises(StoreUnavailableError):
            store.create(f"u/{number}.json", {"writer": "me"})
        false_defeats += store.create(f"u/{number}.json", {"writer": "me"}) is None
        double += store.create(f"u/{number}.json", {"writer": "me"}) is not None
    print(f"commit done again after an outage: false defeats {false_defeats}, double commits {double} of {TRIALS}")
    assert (false_defeats, double) == (0, 0)


def test_sixteen_writers_at_once(bucket):
    stores = [S3Store(f"s3://{bucket}/store") for _ in range(WRITERS)]
    stores[0].create("w/COUNT.json", {"count": 0})
    winners, swaps, lock = {}, [0], threading.Lock()

    def work(number):
        store = stores[number]
        for trial in range(TRIALS):
            if store.create(f"w/{trial}.json", {"writer": number}) is not None:
                with lock:
                    winners.setdefault(trial, []).append(number)
        for _ in range(10):
            while True:
                now = store.read_versioned("w/COUNT.json")
                if store.replace("w/COUNT.json", {"count": now.document["count"] + 1}, now.version):
                    with lock:
                        swaps[0] += 1
                    break

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    documents = {trial: stores[0].read_json(f"w/{trial}.json")["writer"] for trial in range(TRIALS)}
    wrong = sum(winners.get(trial) != [documents[trial]] for trial in range(TRIALS))
    count = stores[0].read_json("w/COUNT.json")["count"]
    print(f"{WRITERS} writers: {TRIALS} commits, {wrong} without exactly one winner; {swaps[0]} swaps, count {count}")
    assert (wrong, count) == (0, swaps[0])
