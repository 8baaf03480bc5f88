"""The logs of helpers and of the API: lines of other libraries are masked as well."""

import logging

from worker_service.core.logs import configure_logging


def test_url_that_a_client_logs_is_masked(monkeypatch, capsys):
    """An HTTP client logs each URL, also the signed one that a store redirects to."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.Formatter, "converter", logging.Formatter.converter)
    configure_logging()
    logging.getLogger("httpx2").info('HTTP Request: GET %s "200"', "https://h/a?X-Amz-Signature=c4nary&x=1")
    logging.root.setLevel(logging.WARNING)
    err = capsys.readouterr().err
    assert "https://h/a?X-Amz-Signature=***&x=1" in err
    assert "c4nary" not in err
