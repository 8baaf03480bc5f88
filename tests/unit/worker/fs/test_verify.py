"""The cache of digests keeps a limited number of files."""

from worker_service.fs.verify import DigestCache


def test_cache_over_its_limit_drops_the_oldest(tmp_path):
    cache, files = DigestCache(limit=2), []
    for name in ("a", "b", "c"):
        path = tmp_path / name
        path.write_text(name)
        files.append(path.stat())
        cache.put(files[-1], name)
    assert [cache.get(file) for file in files] == [None, "b", "c"]
    cache.put(files[1], "b")
    cache.put(files[0], "a")
    assert [cache.get(file) for file in files] == ["a", "b", None]
    assert len(cache) == 2
