"""The cached image of the Debian guest: one for each version of the script that makes it."""

from devstack.guests import debian


def test_edit_of_the_script_makes_another_image(tmp_path, monkeypatch):
    script, built = tmp_path / "debian.py", []
    script.write_text("PACKAGES = ('cloud-init',)")
    monkeypatch.setattr(debian, "_SCRIPT", script)
    monkeypatch.setattr(debian, "_bootstrap", lambda root, *_: built.append(root))
    monkeypatch.setattr(debian, "_write_disk", lambda *_: None)
    monkeypatch.setattr(debian, "convert", lambda _raw, _from, out, _to, **_: out.write_text(script.read_text()))
    monkeypatch.setattr(debian.os, "geteuid", lambda: 0)
    (tmp_path / "debian.qcow2").touch()  # of a script that gave all its images one name

    image = debian.build_debian(tmp_path)
    assert debian.build_debian(tmp_path) == image
    assert len(built) == 1
    script.write_text("PACKAGES = ('cloud-init', 'hello')")
    another = debian.build_debian(tmp_path)
    assert (another != image, another.read_text()) == (True, script.read_text())
    assert list(tmp_path.glob("*.qcow2")) == [another]
