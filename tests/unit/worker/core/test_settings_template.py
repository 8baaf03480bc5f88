"""The settings that Salt writes from the pillar: each table of the worker's settings can be given there."""

from pathlib import Path

import jinja2

from worker_service.core.settings import load

REPO = Path(__file__).parents[4]
SETTINGS = {
    "tick_s": 2.5,
    "networks": ["default"],
    "images": {
        "http_networks": ["10.0.0.0/8"],
        "proxy": {"url": "http://proxy.example:3128", "direct": ["*.lan"]},
        "stores": {
            "s3://disks/{owner}": {
                "kind": "s3", "endpoint": "https://s3.example", "access_key_id": "a", "secret_key_file": "/s"
            },
            "https://store.example/open": {"kind": "open"},
        },
    },
    "api": {"port": 8082},
}  # fmt: skip


def test_pillar_becomes_settings(tmp_path):
    template = REPO / "states/worker/files/worker.toml.jinja"
    files = {"worker/map.jinja": "{% set worker = given %}", "worker.toml": template.read_text()}
    environment = jinja2.Environment(loader=jinja2.DictLoader(files))
    environment.globals["given"] = {"settings": SETTINGS}
    path = tmp_path / "worker.toml"
    path.write_text(environment.get_template("worker.toml").render())
    found = load(path)
    assert (found.tick_s, found.networks, found.api.port) == (2.5, ("default",), 8082)
    assert found.images.proxy is not None
    assert (found.images.proxy.url, found.images.proxy.direct) == ("http://proxy.example:3128", ("*.lan",))
    assert set(found.images.stores) == set(SETTINGS["images"]["stores"])
