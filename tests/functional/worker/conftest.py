"""A minion's configuration for the module's worker, Salt's loader with it, and the worker API over both."""

import pytest

from tests.functional.worker.serving import serving, write_minion
from worker_service.api.salt_loader import load


@pytest.fixture(scope="module")
def minion_config(site):
    return write_minion(site)


@pytest.fixture(scope="module")
def modules(minion_config):
    return load(minion_config)


@pytest.fixture(scope="module")
def worker_api(site, modules):
    with serving(site, modules) as url:
        yield url
