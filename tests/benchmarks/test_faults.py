"""Five kills of the real extraction, in this process' Ray cluster; and flipped bits. The campaign does a hundred."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.fault_campaign import Campaign
from benchmarks.fault_flips import flip_bits, stale_shard, undetected
from tests.cache.caches import fill, made, make, root_of, tree


def test_five_kills_leave_the_cache_as_an_undisturbed_one(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, seed=5, images=4)
    try:
        kills = ["worker", "driver", "worker", "node", "worker"]
        while kills:
            campaign.one_round(kills, faults=["raise"])
    finally:
        campaign.close()
    assert campaign.counts == {"worker": 3, "driver": 1, "node": 1}
    assert len(campaign.whole) > 20
    assert (campaign.lost, campaign.duplicate, campaign.wrong, campaign.unexpected) == (set(), set(), set(), [])
    assert campaign.faults() == {"raise": campaign.rounds}


def test_a_campaign_notices_what_is_not_the_same(tmp_path: Path) -> None:
    campaign = Campaign.__new__(Campaign)  # without a cluster
    campaign.whole = {"a": "1", "b": "2", "c": "3"}
    campaign.lost, campaign.duplicate, campaign.wrong = set(), set(), set()
    for name in ("b", "c", "d"):
        (tmp_path / name).write_text("another")
    campaign.compare(tmp_path)
    assert (campaign.lost, campaign.duplicate, campaign.wrong) == ({"a"}, {"d"}, {"b", "c"})


def test_every_flipped_bit_is_noticed_and_flipped_back(tmp_path: Path) -> None:
    root = root_of(made(tmp_path / "cache"))
    before = tree(root)
    counts = flip_bits([root], 180, random.Random(0))
    kinds = {"data", "chunk crc", "index", "zarr.json", "commits", "cache.json", "rows.parquet", "manifest.parquet"}
    assert counts.keys() == kinds | {"failures.jsonl"}
    assert all(count["flips"] == 20 for count in counts.values()) and undetected(counts) == 0
    assert tree(root) == before


def test_a_stale_shard_is_noticed(tmp_path: Path) -> None:
    root = root_of(made(tmp_path / "cache"))
    other = make(tmp_path / "other", identity={"lmm": "other"}, units=2)
    fill(other)
    shard = root_of(other) / "priors.zarr" / "attention" / "c.0.0.0.0"
    shard.write_bytes(
        (root_of(other) / "priors.zarr" / "attention" / "c.1.0.0.0").read_bytes()
    )  # sound, of other values
    noticed = stale_shard(root, root_of(other))
    assert noticed == {"right_size": True, "by_verify": True, "by_reading": True}
