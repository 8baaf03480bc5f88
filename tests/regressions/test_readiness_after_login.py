"""Regression: a master that had logged in once reported that salt-api accepts its account after salt-api had ended."""

import time

import pytest
from pytest_httpserver import HTTPServer

from master_service.core.errors import SaltError
from master_service.gate.rest_cherrypy import RestCherrypy


async def test_token_of_before_says_nothing_about_now():
    token = {"token": "tok", "expire": time.time() + 3600}
    with HTTPServer() as server:
        server.expect_request("/login", method="POST").respond_with_json({"return": [token]})
        server.expect_request("/", method="GET").respond_with_json({"clients": ["local", "local_async"]})
        salt = RestCherrypy(server.url_for("").rstrip("/"), "saltern-master", "secret", timeout_s=60)
        try:
            await salt.check()
            server.stop()
            with pytest.raises(SaltError, match="does not answer"):
                await salt.check()
        finally:
            await salt.close()
