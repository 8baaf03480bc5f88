"""`saltern console-url`."""

from master_service.cli.commands import vms
from master_service.core.settings import Settings


def test_console_url_waits_longer_than_the_master_does(monkeypatch, capsys):
    waits = []

    class Client:
        def post(self, _path, _body, blocks_s=0.0):
            waits.append(blocks_s)
            return {"page": "http://master/vmachines/web01"}

    monkeypatch.setattr(vms, "client_of", lambda _: Client())
    vms.console_url(None, "web01")
    assert capsys.readouterr().out == "http://master/vmachines/web01\n"
    assert waits[0] > Settings.model_fields["poll_timeout_s"].default
