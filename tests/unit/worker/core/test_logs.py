"""The logs of helpers and of the API: lines of other libraries have no secrets of URIs either."""

import logging

from worker_service.core.logs import configure_logging

SIGNED = "https://h/a?X-Amz-Signature=c4nary&x=1"


def test_urls_of_libraries_are_masked_or_not_logged(monkeypatch, capsys):
    client = logging.getLogger("httpx2")
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.Formatter, "converter", logging.Formatter.converter)
    levels = logging.root.level, client.level
    try:
        configure_logging()
        logging.getLogger("paramiko").warning("went to %s", SIGNED)
        client.info('HTTP Request: GET %s "200"', SIGNED)
    finally:
        logging.root.setLevel(levels[0])
        client.setLevel(levels[1])
    err = capsys.readouterr().err
    assert "went to https://h/a?X-Amz-Signature=***&x=1" in err
    assert ("c4nary" in err, "HTTP Request" in err) == (False, False)
